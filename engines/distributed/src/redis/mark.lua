-- Marks keys with places unless they have one, and answers the places that came first.
--
-- ARGV: 6 partition or '', 7 first offset, 8 one past the last or '' (compare, but do not advance),
--       9 log id of the progress or '', 10 how many log ids follow, the log ids,
--       then key and place of each mark; the first byte of a place is its log id's position in the list.
-- Answers nil when marks of the partition were lost; else the log ids' numbers, and for each mark the place
-- that came first, '' when that is the mark's own.

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

local layers = live_layers()
local answers = {}
if #ARGV > 10 then
  local open = open_layer(layers)
  local numbers, first = log_numbers(10)
  if not numbers then return redis.error_reply(TOO_MANY_LOGS) end
  answers[1] = redis.call('HGETALL', KEYS[2])
  for i = first, #ARGV, 2 do
    local key, place = ARGV[i], ARGV[i + 1]
    local field = string.sub(key, 5)
    place = numbers[string.byte(place, 1)] .. string.sub(place, 2)
    local found = false
    for _, layer in ipairs(layers) do
      found = redis.call('HGET', hash_of(layer, key), field)
      if found then break end
    end
    if found and found ~= place then
      answers[#answers + 1] = found
    else
      if not found then put(open, key, field, place) end
      answers[#answers + 1] = ''
    end
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
