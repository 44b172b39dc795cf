--#include common
--#include expired
-- Deletes a generation. Followers get `gone` (a blocked XREAD does not notice DEL), and for an hour a tombstone answers
-- "deleted".
-- KEYS: the five of common.lua   ARGV: gid, tenant, random 0..1023
-- Returns NONE | GONE (deleted or expired) | OK was ticket, bytes of the request, ttl ms, {fields that the ticket needs} model
local m = redis.call('HMGET', META, 'tn', 'st', 'a', 'ik', 'tk', 'ttl', 'na', 'gr', 'md')
local ticket_fields = redis.call('HMGET', META, 'ln', 'pr', 'es', 'ca', 'ra')
if m[1] ~= ARGV[2] then return {'NONE'} end
local index = INDEX .. ':' .. m[1]
if m[2] == 'deleted' or forget_expired(index, GID) then return {'GONE'} end
local now, dropped = now_ms(), redis.call('HSTRLEN', META, 'rq') + redis.call('HSTRLEN', META, 'mt')
redis.call('PEXPIRE', LOG, 60000)
redis.call('XADD', LOG, fresh_attempt(now, newest_attempt(m[3], m[7]), ARGV[3]) .. '-0', 't', 'g', 'm', 0, 'd', '{}')
redis.call('XTRIM', LOG, 'MAXLEN', 1)
redis.call('PEXPIRE', LOG, 60000)
redis.call('ZREM', LIVE, GID)
if m[4] ~= '' then redis.call('DEL', m[4]) end
if m[8] and m[8] ~= '' then count(m[1], m[8], m[2], nil) end
unlist(index, GID)
remove_webhook()
bury(GID, 'deleted', HOUR)
if m[8] and m[8] ~= '' then redis.call('HSET', META, 'gr', m[8]) end -- for those who watch the group's activity
announce(m[1], 'gone')
return {'OK', m[2], m[5], dropped, m[6], ticket_fields, m[9]}
