-- Admits a new generation: reserves a place among the tenant's waiting ones, and counts a creation and its bytes.
-- KEYS: [1] creations under way, [2] base of the creations, from which `<base>:<minute>` is derived, [3] stored bytes,
--       [4] number of waiting generations by tenant
-- ARGV: gid, most queued, most a minute, ms that a place lasts, most bytes (0 = any, in all three), bytes of this
--       request, hour since the epoch in which it will have expired, tenant
-- Returns OK, and the key that counted it | QUEUED | RATE seconds until the next minute | STORED
local t = redis.call('TIME')
local second, now = tonumber(t[1]), t[1] * 1000 + math.floor(t[2] / 1000)
local queued, rate, bytes = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local minute = KEYS[2] .. ':' .. string.format('%.0f', math.floor(second / 60))

-- Expired bytes are removed once an hour; then the sum is computed anew, so that an error in it does not persist.
local function stored()
  local hour = string.format('%.0f', math.floor(second / 3600))
  local known = redis.call('HMGET', KEYS[3], 'hour', 'sum')
  if known[1] == hour and known[2] then return tonumber(known[2]) end
  local sum, all = 0, redis.call('HGETALL', KEYS[3])
  for i = 1, #all, 2 do
    local ends, size = tonumber(all[i]), tonumber(all[i + 1])
    if ends and ends <= tonumber(hour) then
      redis.call('HDEL', KEYS[3], all[i])
    elseif ends then
      sum = sum + math.max(0, size)
    end
  end
  redis.call('HSET', KEYS[3], 'hour', hour, 'sum', string.format('%.0f', sum))
  redis.call('EXPIRE', KEYS[3], 32 * 86400)
  return sum
end

if queued > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
  local waits = redis.call('ZCARD', KEYS[1]) + tonumber(redis.call('HGET', KEYS[4], ARGV[8]) or 0)
  if waits >= queued then return {'QUEUED'} end
end
if rate > 0 and tonumber(redis.call('GET', minute) or 0) >= rate then return {'RATE', 60 - second % 60} end
if bytes > 0 and stored() >= bytes then return {'STORED'} end

if rate > 0 then
  redis.call('INCR', minute)
  redis.call('EXPIRE', minute, 120)
end
if bytes > 0 then
  redis.call('HINCRBY', KEYS[3], ARGV[7], ARGV[6])
  redis.call('HINCRBY', KEYS[3], 'sum', ARGV[6])
end
if queued > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[4])), ARGV[1])
  redis.call('EXPIRE', KEYS[1], 86400)
end
return {'OK', rate > 0 and minute or ''}
