--#include common
-- Ends a generation as cancelled, from any process, with or without a running worker.
-- KEYS: the five of common.lua   ARGV: gid, tenant, random 0..1023
-- A long request is removed at once: it is not sent any more, and would be kept for the whole retention. A short one
-- is kept, so that it can be shown and sent again.
-- Returns NONE | GONE | CLOSED status | OK was ticket, bytes dropped, ttl ms, {fields that the ticket needs} model
local KEPT = 16384
local m = redis.call('HMGET', META, 'tn', 'st', 'tk', 'ttl', 'md')
if m[1] ~= ARGV[2] then return {'NONE'} end
if m[2] == 'deleted' then return {'GONE'} end
if TERMINAL[m[2]] then return {'CLOSED', m[2]} end
local ticket_fields = redis.call('HMGET', META, 'ln', 'pr', 'es', 'ca', 'ra')
local usage = counted_usage()
end_from_outside(now_ms(), ARGV[3], 'cancelled', 'x', '{"usage":' .. usage .. '}', usage, '')
local dropped = redis.call('HSTRLEN', META, 'rq')
if dropped <= KEPT then return {'OK', m[2], m[3], 0, m[4], ticket_fields, m[5]} end
redis.call('HDEL', META, 'rq')
return {'OK', m[2], m[3], dropped, m[4], ticket_fields, m[5]}
