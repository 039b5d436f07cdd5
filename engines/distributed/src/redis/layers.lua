-- Part of every script: where marks lie.
--
-- Marks lie in small hashes, which Redis keeps as listpacks: about 26 bytes a mark. The hashes of one
-- period and one number of buckets (2^bits) are a layer; a layer that has filled is followed by one with
-- four times the buckets, so that no hash outgrows the listpack however many marks a period brings.
--
-- KEYS: 1 the layers' counts, 2 the numbers of log ids, 3 the partitions' progress.
-- ARGV: 1 prefix of the hashes, 2 shift of the clock in ms (0 but in tests), 3 length of a period in ms,
--       4 most marks of a hash, 5 bits of the first layer.

local MAX_BITS = 26
local MAX_LOGS = 250

local hash_prefix, period_ms, hash_marks = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])

-- The server's clock, so that processes with different clocks agree on the period.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
local period = math.floor(now_ms / period_ms)
-- Until the period after the next has ended.
local ttl_ms = (period + 3) * period_ms - now_ms

-- The layers that may hold a mark of the window, the newest first.
local function live_layers()
  local layers, counts = {}, redis.call('HGETALL', KEYS[1])
  for i = 1, #counts, 2 do
    local layer_period, bits = string.match(counts[i], '^(%d+)%.(%d+)$')
    layer_period, bits = tonumber(layer_period), tonumber(bits)
    if layer_period < period - 2 then
      redis.call('HDEL', KEYS[1], counts[i])
    else
      layers[#layers + 1] = {
        name = counts[i], period = layer_period, bits = bits, marks = tonumber(counts[i + 1]),
        prefix = hash_prefix .. counts[i] .. ':', divisor = 2 ^ (32 - bits),
      }
    end
  end
  table.sort(layers, function(a, b)
    if a.period ~= b.period then return a.period > b.period end
    return a.bits > b.bits
  end)
  return layers
end

-- The layer that takes new marks; put first in `layers` when it is new.
local function open_layer(layers)
  local newest, before, bits = nil, 0, tonumber(ARGV[5])
  for _, layer in ipairs(layers) do
    if layer.period == period and not newest then newest = layer end
    if layer.period == period - 1 then before = before + layer.marks end
  end
  if newest then
    if newest.bits >= MAX_BITS or newest.marks < 2 ^ newest.bits * hash_marks then return newest end
    bits = math.min(newest.bits + 2, MAX_BITS)
  else
    -- As many as the period before needed, and a quarter more.
    while bits < MAX_BITS and 2 ^ bits * hash_marks < before * 1.25 do bits = bits + 1 end
  end
  local name = period .. '.' .. bits
  newest = {
    name = name, period = period, bits = bits, marks = 0,
    prefix = hash_prefix .. name .. ':', divisor = 2 ^ (32 - bits),
  }
  table.insert(layers, 1, newest)
  return newest
end

-- The first 4 bytes of a key choose the bucket, the last 12 are the field.
local function hash_of(layer, key)
  local a, b, c, d = string.byte(key, 1, 4)
  return layer.prefix .. string.format('%d', math.floor((((a * 256 + b) * 256 + c) * 256 + d) / layer.divisor))
end

-- Sets a mark in the open layer; counts it when it is new there.
local function put(layer, key, field, place)
  local hash = hash_of(layer, key)
  if redis.call('HSET', hash, field, place) == 1 then
    layer.added = (layer.added or 0) + 1
    if redis.call('HLEN', hash) == 1 then redis.call('PEXPIRE', hash, ttl_ms) end
  end
end

local function count_added(layer)
  if layer.added then redis.call('HINCRBY', KEYS[1], layer.name, layer.added) end
end

-- ARGV[i] is how many log ids follow; their numbers, one byte each, and where the marks begin.
local function log_numbers(i)
  local numbers, count = {}, tonumber(ARGV[i])
  for n = 1, count do
    local log_id = ARGV[i + n]
    local number = redis.call('HGET', KEYS[2], log_id)
    if not number then
      number = redis.call('HLEN', KEYS[2])
      if number >= MAX_LOGS then return nil end
      redis.call('HSET', KEYS[2], log_id, number)
    end
    numbers[n] = string.char(tonumber(number))
  end
  return numbers, i + count + 1
end

local TOO_MANY_LOGS = 'TOOMANYLOGS marks of more than ' .. MAX_LOGS .. ' creations of a topic'
