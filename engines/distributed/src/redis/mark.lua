-- Marks keys with places unless they have one, and answers the places that came first.
--
-- ARGV: 6 partition or '', 7 first offset, 8 one past the last or '' (compare, but do not advance),
--       9 log id of the progress or '', 10 how many log ids follow, the log ids,
--       then, record by record: its partition as `log id:partition`, its offset, its log id's position in the
--       list, how many marks it has, and of each the first 4 bytes of its key as a number, the other 12, and
--       its place without the log.
-- Answers nil when marks of the partition were lost; else the log ids' numbers, and for each mark the place
-- that came first, '' when that is the mark's own.
--
-- A record all of whose marks are its own is noted as clean until its partition's progress has passed it:
-- what the gateway has found of a record, the dedupe stage need not look up mark by mark. Rebuilding lost
-- marks begins a new epoch, in which no older note counts: a note may have been made while marks were missing.

local partition, progress_log = ARGV[6], ARGV[9]
local reached = 0
if partition ~= '' then
  local from = tonumber(ARGV[7])
  local stored = redis.call('HGET', KEYS[3], partition)
  local log, offset = string.match(stored or '', '^(%x*):(%d+)$')
  -- Progress in another creation of the topic says nothing of this one.
  if log and (log == progress_log or log == '' or progress_log == '') then
    reached = tonumber(offset)
    if progress_log == '' then progress_log = log end
  end
  -- Nothing known, at the very beginning: nothing can have been lost.
  if reached < from then return false end
end

-- The place that a mark has already; without one, it is set to `place` in the open layer. What the newest
-- layer holds counts before what older ones hold.
local function first_place(layers, open, bucket, field, place)
  local hash = open.prefix .. math.floor(bucket / open.divisor)
  if redis.call('HSETNX', hash, field, place) == 0 then return redis.call('HGET', hash, field) end
  for _, layer in ipairs(layers) do
    if layer ~= open then
      local found = redis.call('HGET', layer.prefix .. math.floor(bucket / layer.divisor), field)
      if found then
        redis.call('HDEL', hash, field)
        return found
      end
    end
  end
  open.added = (open.added or 0) + 1
  if redis.call('HLEN', hash) == 1 then redis.call('PEXPIRE', hash, ttl_ms) end
  return false
end

-- Whether the dedupe stage has done this offset already.
local function passed(home, offset)
  local log, number = string.match(home, '^(%x*):(%d+)$')
  local reached_log, reached_offset =
    string.match(redis.call('HGET', KEYS[3], number) or '', '^(%x*):(%d+)$')
  return reached_log == log and tonumber(reached_offset) > tonumber(offset)
end

local layers = live_layers()
local answers = {}
if #ARGV > 10 then
  local open = open_layer(layers)
  local numbers, first = log_numbers(10)
  if not numbers then return redis.error_reply(TOO_MANY_LOGS) end
  answers[1] = redis.call('HGETALL', KEYS[2])
  local epoch = redis.call('HGET', KEYS[3], 'epoch') or '0'
  local i = first
  while i <= #ARGV do
    local home, offset, number, count = ARGV[i], ARGV[i + 1], numbers[tonumber(ARGV[i + 2])], ARGV[i + 3]
    local notes = hash_prefix .. 'clean:' .. epoch .. ':' .. home
    local last = i + 3 + 3 * tonumber(count)
    if partition ~= '' and redis.call('HGET', notes, offset) == count then
      for _ = 1, tonumber(count) do answers[#answers + 1] = '' end
    else
      local clean = true
      for m = i + 4, last, 3 do
        local place = number .. ARGV[m + 2]
        local found = first_place(layers, open, ARGV[m], ARGV[m + 1], place)
        if found and found ~= place then
          clean = false
          answers[#answers + 1] = found
        else
          answers[#answers + 1] = ''
        end
      end
      if clean and partition == '' and not passed(home, offset) then
        redis.call('HSET', notes, offset, count)
        redis.call('PEXPIRE', notes, ttl_ms)
      end
    end
    if partition ~= '' and ARGV[8] ~= '' then redis.call('HDEL', notes, offset) end
    i = last + 1
  end
  count_added(open)
else
  answers[1] = {}
end

if partition ~= '' and ARGV[8] ~= '' then
  local to = math.max(reached, tonumber(ARGV[8]))
  redis.call('HSET', KEYS[3], partition, progress_log .. ':' .. string.format('%.0f', to))
end
return answers
