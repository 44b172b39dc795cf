--#include common
--#include expired
-- Forgets a generation. Followers get `gone` (a blocked XREAD does not notice DEL), and a tombstone answers
-- "deleted" for an hour.
-- KEYS: the five of common.lua   ARGV: gid, tenant, random 0..1023
-- Returns NONE | GONE (deleted or expired) | OK was ticket
local m = redis.call('HMGET', META, 'tn', 'st', 'a', 'ik', 'ca', 'tk')
if m[1] ~= ARGV[2] then return {'NONE'} end
if m[2] == 'deleted' then return {'GONE'} end
if TERMINAL[m[2]] and redis.call('EXISTS', LOG) == 0 then
  forget_expired(INDEX .. ':' .. m[1], GID)
  return {'GONE'}
end
local now = now_ms()
redis.call('PEXPIRE', LOG, 60000)
redis.call('XADD', LOG, fresh_attempt(now, m[3], ARGV[3]) .. '-0', 't', 'g', 'm', 0, 'd', '{}')
redis.call('XTRIM', LOG, 'MAXLEN', 1)
redis.call('PEXPIRE', LOG, 60000)
redis.call('ZREM', LIVE, GID)
redis.call('ZREM', INDEX .. ':' .. m[1], GID)
redis.call('ZREM', INDEX .. ':' .. m[1] .. ':' .. m[2], GID)
if m[4] ~= '' then redis.call('DEL', m[4]) end
redis.call('DEL', META)
redis.call('HSET', META, 'st', 'deleted', 'tn', m[1], 'ca', m[5])
redis.call('PEXPIRE', META, HOUR)
announce(m[1], 'gone')
return {'OK', m[2], m[6]}
