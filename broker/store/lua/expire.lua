--#include common
-- Ends a generation whose waiting has lasted too long, or will have at the next try, with the error of what it last waited
-- for. One whose call is under way is not touched.
-- KEYS: the five of common.lua   ARGV: gid, random 0..1023, ms of the next try (0 = unknown)
-- Returns NO | FAILED
local m = redis.call('HMGET', META, 'st', 'own', 'qd', 'we', 'a')
if m[1] ~= 'queued' or m[2] ~= '' or not m[3] or m[3] == '' then return {'NO'} end
local now = now_ms()
if tonumber(m[3]) > math.max(now, tonumber(ARGV[3])) then return {'NO'} end
end_waiting(now, ARGV[2], m[4])
return {'FAILED'}
