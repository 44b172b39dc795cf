--#include common
--#include items
-- Names the upstream that a running attempt calls from now on: the call before broke off, and another one goes on.
-- KEYS: the five of common.lua   ARGV: gid, own, upstream
-- Returns LOST | GONE | CLOSED status | FENCED | OK
local m = redis.call('HMGET', META, 'st', 'own', 'n', 'a')
local no = refusal(m, ARGV[2], 0, m[4])
if no then return no end
redis.call('HSET', META, 'up', ARGV[3])
return {'OK'}
