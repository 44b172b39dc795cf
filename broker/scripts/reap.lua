--#include common
-- Looks at one generation whose time in `live` has come.
-- KEYS: the five of common.lua   ARGV: gid, random 0..1023, max attempts
-- Returns NO | REQUEUE ticket tenant (queued without a ticket, or its worker is gone) | FAILED tenant
local m = redis.call('HMGET', META, 'st', 'le', 'x', 'tk', 'tn', 'k')
if not m[1] or m[1] == 'deleted' or TERMINAL[m[1]] then
  redis.call('ZREM', LIVE, GID)
  return {'NO'}
end
local now = now_ms()
local at = redis.call('ZSCORE', LIVE, GID)
if at and tonumber(at) > now then return {'NO'} end
if m[1] == 'queued' then
  expire_live(now)
  due(now + 30000)
  return {'REQUEUE', tonumber(m[4]), m[5]}
end
if tonumber(m[2]) > now then
  due(tonumber(m[2]))
  return {'NO'}
end
local x = tonumber(m[3]) + 1
if x >= tonumber(ARGV[3]) then
  local err = '{"message":"The generation was lost ' .. x .. ' times with the worker that ran it.","type":"server_error","code":"attempts_exhausted"}'
  end_from_outside(now, ARGV[2], 'failed', 'f', '{"error":' .. err .. '}', counted_usage(), err)
  redis.call('HSET', META, 'x', x)
  return {'FAILED', m[5]}
end
local ticket = tonumber(m[4]) + 1
redis.call('HSET', META, 'st', 'queued', 'own', '', 'le', 0, 'x', x, 'tk', ticket, 'why', 'worker_lost')
expire_live(now)
due(now + 5000)
transition('in_progress', 'queued', 'queued')
return {'REQUEUE', ticket, m[5]}
