-- Moves keys that name the place they are said to have to another one; leaves all others as they are.
--
-- ARGV: for each move its key, the place that it is to be moved from, its key again, and the place that it
--       gets.

local layers = live_layers()
if #ARGV > 14 then
  local open = open_layer(layers)
  local numbers, first = log_numbers()
  if not numbers then return redis.error_reply(TOO_MANY_LOGS) end
  local function numbered(place) return numbers[string.byte(place, 1)] .. string.sub(place, 2) end
  for i = first, #ARGV, 4 do
    local key, from, to = ARGV[i], numbered(ARGV[i + 1]), numbered(ARGV[i + 3])
    local field = string.sub(key, 5)
    local found = false
    for _, layer in ipairs(layers) do
      found = redis.call('HGET', hash_of(layer, bucket_of(key, 0)), field)
      if found then break end
    end
    -- Set in the newest layer, it hides what older ones hold.
    if found and plain(found) == from then put(open, key, field, to) end
  end
  count_added(open)
end
return 1
