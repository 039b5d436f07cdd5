-- Marks keys with places unless they have one, and answers the places that came first.
--
-- ARGV: the marks by runs, traces of a record that follow each other: the record's partition as
--       `log id:partition`, its offset, its log id's position in the list, what its places have between log and
--       index, the index of the run's first trace, and the keys, 16 bytes each.
-- Answers nil when marks of the partition were lost; else the log ids' numbers, and of each mark whose own
-- place did not come first, its position in the call, counted from 0, and the place that did.
--
-- A run all of whose marks are its own is noted as clean, by its first index and its length, until its partition's
-- progress has passed it: what the gateway has found of it, the dedupe stage need not look up mark by mark.
-- Rebuilding lost marks begins a new epoch, in which no older note counts: a note may have been made while marks
-- were missing.

local partition = ARGV[6]
local known
if partition ~= '' then
  known = progress_of(partition)
  -- Progress in another creation of the topic says nothing of this one.
  if known and known.log ~= ARGV[9] and known.log ~= '' then known = nil end
  if is_first then
    -- Nothing known, at the very beginning: nothing can have been lost.
    if (known and known.reached or 0) < tonumber(ARGV[7]) then return false end
    local oldest = ARGV[11]
    -- Of two owners that began at the same commit nobody here knows which came after the other.
    local is_trusted = oldest == ''
      or known and (known.owner == oldest or known.number > number_of(oldest))
    if not is_trusted then return false end
  elseif not is_unbroken() then
    return false
  end
end

-- The floor of a partition of the log with this number.
local floors = {}
local function floor_of(log_number, number)
  local name = log_number .. number
  if not floors[name] then
    local progress, floor = progress_of(number), 0
    if progress and progress.floor > 0 then
      local log_id = string.gsub(progress.log, '%x%x', function(hex) return string.char(tonumber(hex, 16)) end)
      local stored = redis.call('HGET', KEYS[2], log_id)
      if stored and string.char(tonumber(stored)) == log_number then floor = progress.floor end
    end
    floors[name] = floor
  end
  return floors[name]
end

-- The number that begins at byte `at`, and where the next one does.
local function varint(value, at)
  local number, scale = 0, 1
  while true do
    local byte = string.byte(value, at)
    at = at + 1
    if byte < 128 then return number + byte * scale, at end
    number, scale = number + (byte - 128) * scale, scale * 128
  end
end

-- Whether a mark was not left behind by a loss.
local function counts(value)
  if is_kept(value) then return true end
  local number, at = varint(value, 2)
  return varint(value, at) >= floor_of(string.sub(value, 1, 1), string.format('%.0f', number))
end

-- The place that a mark has already; without one, it is set to `place` in the open layer. What the newest
-- layer holds counts before what older ones hold. This runs for every mark: a call of Redis costs more than all
-- else in it.
local call = redis.call
local function first_place(layers, open, bucket, field, place)
  local hash = hash_of(open, bucket)
  local is_new = call('HSETNX', hash, field, place) == 1
  if not is_new then
    local found = call('HGET', hash, field)
    if found == place or counts(found) then return found end
  end
  for l = 1, #layers do
    local layer = layers[l]
    if layer ~= open then
      local found = call('HGET', hash_of(layer, bucket), field)
      if found and (found == place or counts(found)) then
        call('HDEL', hash, field)
        return found
      end
    end
  end
  if not is_new then
    call('HSET', hash, field, place)
    return false
  end
  added(open, hash)
  return false
end

-- Whether the dedupe stage has done this offset already.
local function passed(home, offset)
  local log, number = string.match(home, '^(%x*):(%d+)$')
  local progress = progress_of(number)
  return progress and progress.log == log and progress.reached > tonumber(offset)
end

-- Indexes as places end with them: varints.
local written = {}
local function index_of(number)
  local made = written[number]
  if made then return made end
  made = ''
  local rest = number
  while rest >= 128 do
    made, rest = made .. string.char(128 + rest % 128), whole(rest / 128)
  end
  made = made .. string.char(rest)
  written[number] = made
  return made
end

local KEY_BYTES = 16
local layers = live_layers()
local answers = {}
if #ARGV > 14 then
  local seen = 0
  local open = open_layer(layers)
  local numbers, first = log_numbers()
  if not numbers then return redis.error_reply(TOO_MANY_LOGS) end
  answers[1] = redis.call('HGETALL', KEYS[2])
  local epoch = redis.call('HGET', KEYS[3], 'epoch') or '0'
  for i = first, #ARGV, 6 do
    local home, offset, index, keys = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4]), ARGV[i + 5]
    local of_record = numbers[tonumber(ARGV[i + 2])] .. ARGV[i + 3]
    local notes = hash_prefix .. 'clean:' .. epoch .. ':' .. home
    local count = #keys / KEY_BYTES
    local run = ARGV[i + 4] .. ':' .. count
    if partition ~= '' and redis.call('HGET', notes, offset) == run then
      seen = seen + count
    else
      local clean = true
      for at = 0, #keys - 1, KEY_BYTES do
        local field, place = string.sub(keys, at + 5, at + KEY_BYTES), of_record .. index_of(index)
        local found = first_place(layers, open, bucket_of(keys, at), field, place)
        if found and plain(found) ~= place then
          clean = false
          answers[#answers + 1], answers[#answers + 2] = seen, found
        end
        seen, index = seen + 1, index + 1
      end
      if clean and partition == '' and not passed(home, offset) then
        redis.call('HSET', notes, offset, run)
        redis.call('PEXPIRE', notes, ttl_ms)
      end
    end
    if partition ~= '' and is_last then redis.call('HDEL', notes, offset) end
  end
  count_added(open)
else
  answers[1] = {}
end

if partition ~= '' then
  leave_trace()
  -- What a newer owner has said stays: whoever asks is not the owner any more.
  if is_last and (not known or known.number <= number_of(ARGV[10])) then
    local reached, floor = 0, 0
    if known then reached, floor = known.reached, known.floor end
    set_progress(math.max(reached, tonumber(ARGV[8])), floor)
  end
end
return answers
