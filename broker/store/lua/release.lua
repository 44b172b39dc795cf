--#include common
-- The owner returns a running generation to the queue, without using its crash budget: the worker stops, or the upstream
-- accepted the call and failed before the first token.
-- KEYS: the five of common.lua   ARGV: gid, own, reason of the next attempt's `reset`
-- Returns NO | OK ticket
local m = redis.call('HMGET', META, 'st', 'own', 'tk', 'a')
if m[1] ~= 'in_progress' or m[2] ~= ARGV[2] or m[4] ~= string.match(ARGV[2], '^(%d+)') then return {'NO'} end
local ticket = tonumber(m[3]) + 1
redis.call('HSET', META, 'st', 'queued', 'own', '', 'le', 0, 'tk', ticket, 'why', ARGV[3])
local now = now_ms()
due(now + 5000)
extend_wait(now)
transition('in_progress', 'queued', 'queued')
return {'OK', ticket}
