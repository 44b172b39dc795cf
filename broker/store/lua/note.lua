--#include common
-- Tells the readers of a waiting generation that the reason changed.
-- KEYS: the five of common.lua   ARGV: gid, reason, ms of the next try ('' = unknown), data of `waiting`
-- Returns NO | OK
local m = redis.call('HMGET', META, 'st', 'own', 'wr', 'a', 'n', 'nt', 'ra', 'ca')
local known = m[3] and m[3] ~= '' and m[3] or m[7] and m[7] ~= '' and 'scheduled' or 'queued'
if m[1] ~= 'queued' or m[2] ~= '' or known == ARGV[2] then return {'NO'} end
-- It was refused, and its readers know until when it waits.
local now = now_ms()
if tonumber(m[6] or 0) > now then return {'NO'} end
local n = tonumber(m[5]) + 1
if not redis.call('XADD', LOG, 'NOMKSTREAM', m[4] .. '-' .. n, 't', 'w', 'm', since(now, m[4], m[8]), 'd', ARGV[4]) then return {'NO'} end
redis.call('HSET', META, 'n', n, 'wr', ARGV[2], 'rt', ARGV[3])
return {'OK'}
