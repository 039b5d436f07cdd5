-- A call of a rebuild: sets keys to places, over what is there; the last one sets the progress.
--
-- ARGV: the marks: key and place of each.
-- Answers nil when what the calls before have written is lost.

if not is_first and not is_unbroken() then return false end
-- What was found while marks were missing counts no more.
redis.call('HINCRBY', KEYS[3], 'epoch', 1)
local layers = live_layers()
if #ARGV > 14 then
  -- Look-ups begin at the newest layer: what is set there hides what older ones hold.
  local open = open_layer(layers)
  local numbers, first = log_numbers()
  if not numbers then return redis.error_reply(TOO_MANY_LOGS) end
  for i = first, #ARGV, 2 do
    local key, place = ARGV[i], ARGV[i + 1]
    put(open, key, string.sub(key, 5), kept(numbers[string.byte(place, 1)] .. string.sub(place, 2)))
  end
  count_added(open)
end
leave_trace()
if is_last then set_progress(tonumber(ARGV[8]), tonumber(ARGV[8])) end
return 1
