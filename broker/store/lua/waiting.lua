--#include common
-- Announces in the activity that a running generation waits for its upstream; its log says more.
-- KEYS: the five of common.lua   ARGV: gid, own
-- Returns NO | OK
local m = redis.call('HMGET', META, 'own', 'tn')
if m[1] ~= ARGV[2] then return {'NO'} end
announce(m[2], 'waiting')
return {'OK'}
