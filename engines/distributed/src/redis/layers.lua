-- Part of every script: where marks lie, and what is known of partitions.
--
-- Marks lie in small hashes, which Redis keeps as listpacks: about 28 bytes a mark. The hashes of one
-- period and one number of buckets (2^bits) are a layer; a layer that has filled is followed by one with
-- four times the buckets, so that no hash outgrows the listpack however many marks a period brings.
--
-- KEYS: 1 the layers' counts, 2 the numbers of log ids, 3 the partitions' progress.
-- ARGV: 1 prefix of the hashes, 2 shift of the clock in ms (0 but in tests), 3 length of a period in ms,
--       4 most marks of a hash, 5 bits of the first layer;
--       then what is asked of a partition's progress, each '' where nothing is: 6 the partition, 7 first offset
--       of the batch, 8 one past the last where this is the last call of a work, 9 log id, 10 the owner who
--       asks, 11 the oldest owner whose word counts, 12 which work, 13 how many of its calls were before;
--       14 how many log ids follow, the log ids, then the marks.

local MAX_BITS = 26
-- Where the hashes of a layer have so many marks on average, all of them have been made: that one of the largest
-- layer has not, and would not expire, has a chance of 1 in 400.
local MADE_MARKS = 24
local MAX_LOGS = 250

local hash_prefix, period_ms, hash_marks = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])

-- The server's clock, so that processes with different clocks agree on the period.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
local period = math.floor(now_ms / period_ms)
-- Until the period after the next has ended.
local ttl_ms = (period + 3) * period_ms - now_ms

local function layer_of(name, layer_period, bits, marks)
  return {
    name = name, period = layer_period, bits = bits, marks = marks,
    prefix = hash_prefix .. name .. ':', divisor = 2 ^ (32 - bits),
    -- What this call adds to it.
    added = 0, has_all_hashes = marks >= 2 ^ bits * MADE_MARKS,
  }
end

-- The layers that may hold a mark of the window, the newest first.
local function live_layers()
  local layers, counts = {}, redis.call('HGETALL', KEYS[1])
  for i = 1, #counts, 2 do
    local layer_period, bits = string.match(counts[i], '^(%d+)%.(%d+)$')
    layer_period, bits = tonumber(layer_period), tonumber(bits)
    if layer_period < period - 2 then
      redis.call('HDEL', KEYS[1], counts[i])
    else
      layers[#layers + 1] = layer_of(counts[i], layer_period, bits, tonumber(counts[i + 1]))
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
  newest = layer_of(period .. '.' .. bits, period, bits, 0)
  table.insert(layers, 1, newest)
  return newest
end

-- The first 4 bytes of a key, which begins behind byte `at`, choose the bucket; the last 12 are the field.
local byte, whole = string.byte, math.floor
local function bucket_of(keys, at)
  local a, b, c, d = byte(keys, at + 1, at + 4)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

-- The hash of a bucket in a layer.
local function hash_of(layer, bucket)
  return layer.prefix .. whole(bucket / layer.divisor)
end

-- Counts a mark that is new in a hash of the layer; a hash that is new itself will expire.
local function added(layer, hash)
  layer.added = layer.added + 1
  if layer.has_all_hashes then return end
  if redis.call('HLEN', hash) == 1 then redis.call('PEXPIRE', hash, ttl_ms) end
end

-- Sets a mark in the open layer.
local function put(layer, key, field, place)
  local hash = hash_of(layer, bucket_of(key, 0))
  if redis.call('HSET', hash, field, place) == 1 then added(layer, hash) end
end

local function count_added(layer)
  if layer.added > 0 then redis.call('HINCRBY', KEYS[1], layer.name, layer.added) end
end

-- The numbers of the call's log ids, one byte each, and where the marks begin.
local function log_numbers()
  local numbers, count = {}, tonumber(ARGV[14])
  for n = 1, count do
    local log_id = ARGV[14 + n]
    local number = redis.call('HGET', KEYS[2], log_id)
    if not number then
      number = redis.call('HLEN', KEYS[2])
      if number >= MAX_LOGS then return nil end
      redis.call('HSET', KEYS[2], log_id, number)
    end
    numbers[n] = string.char(tonumber(number))
  end
  return numbers, 14 + count + 1
end

-- A mark that a rebuild has written has the last number of its place a byte longer than need be: it counts
-- below the floor, and is the same place to whoever reads it.
local function is_kept(value)
  return string.byte(value, -1) == 0 and string.byte(value, -2) >= 128
end

local function kept(value)
  return string.sub(value, 1, -2) .. string.char(string.byte(value, -1) + 128) .. '\0'
end

local function plain(value)
  if not is_kept(value) then return value end
  return string.sub(value, 1, -3) .. string.char(string.byte(value, -2) - 128)
end

-- Progress is `log id:offset:floor:owner`; builds that knew of no owners wrote `log id:offset`, and that is
-- owner 0.0, who has no floor.
local function progress_of(partition)
  local stored = redis.call('HGET', KEYS[3], partition) or ''
  local log, offset, rest = string.match(stored, '^(%x*):(%d+)(.*)$')
  if not log then return nil end
  local floor, owner, number = string.match(rest, '^:(%d+):((%d+)%.%x+)$')
  return {
    log = log, reached = tonumber(offset), floor = tonumber(floor or 0), owner = owner or '0.0',
    number = tonumber(number or 0),
  }
end

local function set_progress(reached, floor)
  redis.call('HSET', KEYS[3], ARGV[6], string.format('%s:%.0f:%.0f:%s', ARGV[9], reached, floor, ARGV[10]))
end

local function number_of(owner) return tonumber(string.match(owner, '^%d+')) end

-- A work of several calls leaves a trace of each, which the next one must find: or what it has written is lost.
local WORK = 'work:' .. ARGV[6]
local is_first, is_last = ARGV[13] == '0', ARGV[8] ~= ''

local function is_unbroken()
  return redis.call('HGET', KEYS[3], WORK) == ARGV[12] .. ':' .. ARGV[13]
end

local function leave_trace()
  if not is_last then
    redis.call('HSET', KEYS[3], WORK, ARGV[12] .. ':' .. tonumber(ARGV[13]) + 1)
  elseif not is_first then
    redis.call('HDEL', KEYS[3], WORK)
  end
end

local TOO_MANY_LOGS = 'TOOMANYLOGS marks of more than ' .. MAX_LOGS .. ' creations of a topic'
