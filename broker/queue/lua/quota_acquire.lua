-- Reserves a place among a tenant's running generations, if one is free. A generation that has one keeps it.
-- KEYS: [1] running, [2] queued   ARGV: gid, most running (0 = any), ms that a place lasts
-- Returns 1, or 0 where the tenant is at its limit
local t = redis.call('TIME')
local now, most = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if most > 0 and redis.call('ZCARD', KEYS[1]) >= most and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[3])), ARGV[1])
redis.call('EXPIRE', KEYS[1], 86400)
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
