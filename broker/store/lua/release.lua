--#include common
-- The owner returns a running generation to the queue (a deploy), without using its crash budget.
-- KEYS: the five of common.lua   ARGV: gid, own
-- Returns NO | OK ticket
local m = redis.call('HMGET', META, 'st', 'own', 'tk')
if m[1] ~= 'in_progress' or m[2] ~= ARGV[2] then return {'NO'} end
local ticket = tonumber(m[3]) + 1
redis.call('HSET', META, 'st', 'queued', 'own', '', 'le', 0, 'tk', ticket, 'why', 'worker_stopped')
due(now_ms() + 5000)
transition('in_progress', 'queued', 'queued')
return {'OK', ticket}
