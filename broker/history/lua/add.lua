-- Adds one process's figures of a tenant to the current minute, by Redis's clock. The counts of a series are one field,
-- `<name>:<count>,…`: a field for each would take ten times as long, which blocks Redis.
-- KEYS: [1] base of the tenant's hashes   ARGV: seconds to live, maximum series, maximum errors, number of series; for
-- each series: model, upstream, counts, number of errors, then code, failed, returned, latest generation, …. A series or
-- an error above the maximum is added to that of all further ones.
-- Returns OK
local now = redis.call('TIME')
local key = KEYS[1] .. ':' .. math.floor(now[1] / 60)
local function int(n) return string.format('%.0f', n) end
local ms = int(now[1] * 1000 + math.floor(now[2] / 1000))
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

local sums = {} -- series → name → count
local function add(series, text)
  local counts = sums[series] or {}
  for name, count in string.gmatch(text, '(%w+):(%d+)') do counts[name] = (counts[name] or 0) + count end
  sums[series] = counts
end

for _ = 1, tonumber(ARGV[4]) do
  local series = series_of(take(), take())
  add(series, take())
  for _ = 1, tonumber(take()) do
    local code, failed, returned, latest = take(), take(), take(), take()
    if not admit('f:' .. series .. ':' .. code, 'f', most_errors) then code = 'other' end
    local error = series .. ':' .. code
    redis.call('HINCRBY', key, 'f:' .. error, failed)
    if returned ~= '0' then redis.call('HINCRBY', key, 'r:' .. error, returned) end
    redis.call('HSET', key, 'l:' .. error, ms .. ' ' .. latest)
  end
end
for series, counts in pairs(sums) do
  add(series, redis.call('HGET', key, series) or '')
  local parts = {}
  for name, count in pairs(counts) do parts[#parts + 1] = name .. ':' .. int(count) end
  if #parts > 0 then redis.call('HSET', key, series, table.concat(parts, ',')) end
end
redis.call('EXPIRE', key, ARGV[1])
return 'OK'
