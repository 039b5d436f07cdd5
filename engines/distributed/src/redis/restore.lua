-- Sets keys to places, over what is there, and then the progress.
--
-- ARGV: as for marking, without the comparison: 6 partition or '', 7 unused, 8 the progress reached or '',
--       9 its log id or '', 10 how many log ids follow, the log ids, then key and place of each mark.

-- What was found while marks were missing counts no more.
redis.call('HINCRBY', KEYS[3], 'epoch', 1)
local layers = live_layers()
if #ARGV > 10 then
  -- Look-ups begin at the newest layer: what is set there hides what older ones hold.
  local open = open_layer(layers)
  local numbers, first = log_numbers(10)
  if not numbers then return redis.error_reply(TOO_MANY_LOGS) end
  for i = first, #ARGV, 2 do
    local key, place = ARGV[i], ARGV[i + 1]
    put(open, key, string.sub(key, 5), numbers[string.byte(place, 1)] .. string.sub(place, 2))
  end
  count_added(open)
end
if ARGV[6] ~= '' and ARGV[8] ~= '' then
  redis.call('HSET', KEYS[3], ARGV[6], ARGV[9] .. ':' .. ARGV[8])
end
return 1
