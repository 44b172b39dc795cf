--#include webhook_host
-- Schedules an entry at once, whether or not it has been delivered, with another day of retries.
-- KEYS: the two of webhook_host.lua   ARGV: generation, number of the attempt to repeat
-- Returns NONE (no such attempt) | OK
local gid = ARGV[1]
local body = BODY .. ':' .. gid
local m = redis.call('HMGET', body, 'ev', 'ho', 'log')
if not m[1] or not string.find('\n' .. m[3], '\n' .. ARGV[2] .. ' ', 1, true) then return 'NONE' end
redis.call('PEXPIRE', body, DAY + HOUR)
redis.call('HSET', body, 'ti', int(now_ms() + DAY))
redis.call('ZADD', HOSTS .. ':' .. m[2], BY_HAND, gid .. '.' .. m[1])
set_host_due(m[2], '')
return 'OK'
