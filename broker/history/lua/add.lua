-- Adds one process's figures of a tenant to the current minute, by Redis's clock.
-- KEYS: [1] base of the tenant's hashes   ARGV: seconds to live, maximum series, maximum errors, number of series; for
-- each series: model, upstream, number of counts, then name, amount, …, number of errors, then code, failed, returned,
-- latest generation, …. A series or an error above the maximum is added to that of all further ones.
-- Returns OK
local now = redis.call('TIME')
local key = KEYS[1] .. ':' .. math.floor(now[1] / 60)
local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
local most_series, most_errors = tonumber(ARGV[2]), tonumber(ARGV[3])
local at = 4

local function take()
  at = at + 1
  return ARGV[at]
end

-- Returns whether the hash has a field, or has room for another one of its kind, and then counts it.
local function admit(field, counter, most)
  if redis.call('HGET', key, field) then return true end
  if tonumber(redis.call('HGET', key, counter) or 0) >= most then return false end
  redis.call('HINCRBY', key, counter, 1)
  return true
end

local function series_of(model, upstream)
  if model == '' and upstream == '' then return '0' end
  local name = '#' .. model .. '\0' .. upstream
  local known = redis.call('HGET', key, name)
  if known then return known end
  if not admit(name, '#', most_series) then return '0' end
  local number = redis.call('HGET', key, '#')
  redis.call('HSET', key, name, number)
  return number
end

for _ = 1, tonumber(ARGV[4]) do
  local series = series_of(take(), take())
  for _ = 1, tonumber(take()) do
    local name, amount = take(), take()
    redis.call('HINCRBY', key, series .. ':' .. name, amount)
  end
  for _ = 1, tonumber(take()) do
    local code, failed, returned, latest = take(), take(), take(), take()
    if not admit('f:' .. series .. ':' .. code, 'f', most_errors) then code = 'other' end
    local error = series .. ':' .. code
    redis.call('HINCRBY', key, 'f:' .. error, failed)
    if returned ~= '0' then redis.call('HINCRBY', key, 'r:' .. error, returned) end
    redis.call('HSET', key, 'l:' .. error, ms .. ' ' .. latest)
  end
end
redis.call('EXPIRE', key, ARGV[1])
return 'OK'
