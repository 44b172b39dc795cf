--#include common
-- Stores the merged choices of a generation that was ended from outside, once a reader has folded them.
-- KEYS: the five of common.lua   ARGV: gid, merged choices JSON
-- Returns GONE (deleted or expired since: they may be less than all) | OK
local m = redis.call('HMGET', META, 'st', 'md')
if not m[2] or redis.call('EXISTS', LOG) == 0 then return 'GONE' end
if TERMINAL[m[1]] then redis.call('HSET', META, 'res', ARGV[2]) end
return 'OK'
