-- A tenant asks for another generation: reserves a place among its waiting ones, and counts a creation.
-- KEYS: [1] queued, [2] base of the creations, from which `<base>:<minute>` is derived
-- ARGV: gid, most queued, most a minute (0 = any), ms that a place lasts
-- Returns OK, and the key that counted it | QUEUED | RATE seconds until the next minute
local t = redis.call('TIME')
local second, now = tonumber(t[1]), t[1] * 1000 + math.floor(t[2] / 1000)
local queued, rate = tonumber(ARGV[2]), tonumber(ARGV[3])
local minute = KEYS[2] .. ':' .. string.format('%.0f', math.floor(second / 60))
if queued > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
  if redis.call('ZCARD', KEYS[1]) >= queued then return {'QUEUED'} end
end
if rate > 0 then
  if tonumber(redis.call('GET', minute) or 0) >= rate then return {'RATE', 60 - second % 60} end
  redis.call('INCR', minute)
  redis.call('EXPIRE', minute, 120)
end
if queued > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[4])), ARGV[1])
  redis.call('EXPIRE', KEYS[1], 86400)
end
return {'OK', rate > 0 and minute or ''}
