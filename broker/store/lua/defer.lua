--#include common
-- The owner of a claim whose attempt has not begun returns the generation to the queue: the upstream refused the call
-- (no attempt is used), or the worker stops. Readers get a `waiting` event when the reason changes; the activity at most
-- every five seconds.
-- KEYS: the five of common.lua
-- ARGV: gid, own, reason ('' = the worker stops), ms of the next try, data of `waiting`, error JSON, 1 = the upstream
--       failed, which counts, ms before which it must not run again (0 = none), lane
-- Returns NO | OK ticket
local m = redis.call('HMGET', META, 'st', 'own', 'a', 'n', 'tk', 'wr', 'tn', 'an', 'nb', 'ca')
local attempt = string.match(ARGV[2], '^(%d+)')
if m[2] ~= ARGV[2] or m[3] == attempt or TERMINAL[m[1]] then return {'NO'} end
local now, ticket = now_ms(), tonumber(m[5]) + 1
redis.call('HSET', META, 'own', '', 'le', 0, 'tk', ticket, 'st', 'queued')
-- The reaper looks soon, in case the ticket cannot be written, or is lost with a queue that nobody refills.
due(now + 5000)
if m[1] ~= 'queued' then
  redis.call('HSET', META, 'why', 'upstream_error')
  extend_wait(now)
  transition(m[1], 'queued', 'queued')
end
if ARGV[3] == '' then return {'OK', ticket} end
redis.call('HSET', META, 'rt', ARGV[4], 'we', ARGV[6], 'nt', ARGV[8], 'ln', ARGV[9])
if ARGV[7] == '1' then
  redis.call('HINCRBY', META, 'nb', 1)
  redis.call('HSETNX', META, 'fb', int(now))
end
if m[6] ~= ARGV[3] then
  local n = tonumber(m[4]) + 1
  if redis.call('XADD', LOG, 'NOMKSTREAM', m[3] .. '-' .. n, 't', 'w', 'm', since(now, m[3], m[10]), 'd', ARGV[5]) then
    redis.call('HSET', META, 'n', n, 'wr', ARGV[3])
  end
end
if m[6] ~= ARGV[3] or now - tonumber(m[8] or 0) > 5000 then
  redis.call('HSET', META, 'an', int(now))
  announce(m[7], 'waiting')
end
return {'OK', ticket}
