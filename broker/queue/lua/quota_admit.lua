-- Admits new generations, as many as the limits allow: reserves places among the tenant's waiting ones, and counts the
-- creations and their bytes.
-- KEYS: [1] creations under way, [2] base of the creations, from which `<base>:<minute>` is derived, [3] stored bytes,
--       [4] number of waiting generations by tenant
-- ARGV: most queued, most a minute, ms that a place lasts, most bytes (0 = any, in all three), tenant, then for each
--       generation gid, bytes of its request, hour since the epoch in which it will have expired
-- Returns the number admitted, which are the first ones; the key that counted them, or ''; and why no more: '' | QUEUED |
--         RATE seconds until the next minute | STORED
local t = redis.call('TIME')
local second, now = tonumber(t[1]), t[1] * 1000 + math.floor(t[2] / 1000)
local queued, rate, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
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

local left, reason = (#ARGV - 5) / 3, ''
local function allow(most, why)
  if most < left then left, reason = math.max(0, most), why end
end
if queued > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
  allow(queued - redis.call('ZCARD', KEYS[1]) - tonumber(redis.call('HGET', KEYS[4], ARGV[5]) or 0), 'QUEUED')
end
if rate > 0 then allow(rate - tonumber(redis.call('GET', minute) or 0), 'RATE') end
local sum, admitted = bytes > 0 and left > 0 and stored() or 0, 0
while admitted < left do
  if bytes > 0 and sum >= bytes then
    reason = 'STORED'
    break
  end
  local at = 6 + 3 * admitted
  if bytes > 0 then
    sum = sum + tonumber(ARGV[at + 1])
    redis.call('HINCRBY', KEYS[3], ARGV[at + 2], ARGV[at + 1])
    redis.call('HINCRBY', KEYS[3], 'sum', ARGV[at + 1])
  end
  if queued > 0 then redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[3])), ARGV[at]) end
  admitted = admitted + 1
end
if admitted > 0 and queued > 0 then redis.call('EXPIRE', KEYS[1], 86400) end
if admitted > 0 and rate > 0 then
  redis.call('INCRBY', minute, admitted)
  redis.call('EXPIRE', minute, 120)
end
return {admitted, rate > 0 and minute or '', reason, 60 - second % 60}
