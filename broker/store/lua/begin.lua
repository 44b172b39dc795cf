--#include common
-- Begins the claimed attempt: the upstream has accepted the call. Its first event is `started`, or `reset` if another
-- attempt has begun before: readers discard that one's text.
-- The first write must be XADD: a script that begins with an expiry would pass maxmemory, and attempts must not.
-- KEYS: the five of common.lua   ARGV: gid, own, upstream
-- Returns LOST | GONE | CLOSED status | FENCED | OK type data (also if it has begun)
local m = redis.call('HMGET', META, 'st', 'own', 'a', 'k', 'why', 'ls')
if not m[1] then return {'LOST'} end
if m[1] == 'deleted' then return {'GONE'} end
if TERMINAL[m[1]] then return {'CLOSED', m[1]} end
if m[2] ~= ARGV[2] then return {'FENCED'} end
local attempt = string.match(ARGV[2], '^(%d+)')
if m[3] == attempt then return {'OK'} end
local k = tonumber(m[4]) + 1
local first = k == 1
local data = '{"attempt":' .. k .. (first and '' or ',"reason":' .. text(m[5] or 'worker_lost')) .. ',"upstream":' .. text(ARGV[3]) .. '}'
if not redis.call('XADD', LOG, 'NOMKSTREAM', attempt .. '-0', 't', first and 'st' or 'rs', 'm', 0, 'd', data) then return {'LOST'} end
local now = now_ms()
redis.call('HSET', META, 'st', 'in_progress', 'a', attempt, 'n', 0, 'k', k, 'by', 0, 'ct', 0, 'fa', '', 'up', ARGV[3], 'wr', '', 'rt', '',
  'le', int(now + tonumber(m[6])))
if first then redis.call('HSET', META, 'sa', int(now)) end
expire_live(now)
due(now + tonumber(m[6]))
transition(m[1], 'in_progress', first and 'started' or 'reset')
return {'OK'}
