--#include common
-- Ends a generation as cancelled, from anywhere, whether or not a worker lives.
-- KEYS: the five of common.lua   ARGV: gid, tenant, random 0..1023
-- Returns NONE | GONE | CLOSED status | OK was ticket
local m = redis.call('HMGET', META, 'tn', 'st', 'tk')
if m[1] ~= ARGV[2] then return {'NONE'} end
if m[2] == 'deleted' then return {'GONE'} end
if TERMINAL[m[2]] then return {'CLOSED', m[2]} end
local usage = counted_usage()
end_from_outside(now_ms(), ARGV[3], 'cancelled', 'x', '{"usage":' .. usage .. '}', usage, '')
return {'OK', m[2], m[3]}
