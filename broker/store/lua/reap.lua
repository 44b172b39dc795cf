--#include common
-- Checks one generation whose time in `live` has come. A lease that has expired by this server's clock is not enough: the
-- clock may have been set, or the server may have hung, so that no owner could renew. The caller must therefore have
-- observed this server without interruption for a whole lease, the owner's and its own, and this command must run in time.
-- KEYS: the five of common.lua
-- ARGV: gid, random 0..1023, max attempts, lease ms of the caller, ms for which it has watched, latest ms at which this
--       may run
-- Returns NO | LATE | REQUEUE ticket tenant model {…} (queued without a ticket, or its worker is gone; the rest: HMGET of
--         the fields that the ticket needs) | FAILED tenant | EXPIRED tenant (it waited for too long)
local LOOK = 600000
local m = redis.call('HMGET', META, 'st', 'le', 'x', 'tk', 'tn', 'ls', 'own', 'qd', 'we', 'ra')
local function requeue(ticket)
  return {'REQUEUE', ticket, m[5], redis.call('HMGET', META, 'md', 'ln', 'pr', 'es', 'ca', 'ra', 'nt')}
end
if not m[1] or m[1] == 'deleted' or TERMINAL[m[1]] then
  redis.call('ZREM', LIVE, GID)
  return {'NO'}
end
local now = now_ms()
if now > tonumber(ARGV[6]) then return {'LATE'} end
local at = redis.call('ZSCORE', LIVE, GID)
if at and tonumber(at) > now then return {'NO'} end

local lease = tonumber(m[6] or ARGV[4])
local watched = tonumber(ARGV[5]) >= math.max(lease, tonumber(ARGV[4]))
local owned = m[1] == 'in_progress' or m[7] ~= ''
if owned then
  local till = tonumber(m[2])
  if till > now + lease then -- the clock went back: the lease begins now
    till = now + lease
    redis.call('HSET', META, 'le', int(till))
  end
  if till > now then
    due(till)
    return {'NO'}
  end
end
if not watched then return {'NO'} end
if redis.call('EXISTS', LOG) == 0 then -- it has expired, or its log was removed: it can no longer be read
  local err = '{"message":"The log of the generation is missing.","type":"server_error","code":"internal_error"}'
  end_from_outside(now, ARGV[2], 'failed', 'f', '', counted_usage(), err)
  return {'NO'}
end
if not owned then
  local deadline = tonumber(m[8] or '')
  if deadline and deadline <= now then
    end_waiting(now, ARGV[2], m[9])
    return {'EXPIRED', m[5]}
  end
  expire_live(now)
  -- Nothing is due before its deadline: the ticket is in the queue, and a queue that loses its data is refilled.
  due(math.min(deadline or now + LOOK, now + LOOK))
  return requeue(tonumber(m[4]))
end
local x = tonumber(m[3]) + 1
if x >= tonumber(ARGV[3]) then
  end_exhausted(now, ARGV[2], x)
  return {'FAILED', m[5]}
end
local ticket = tonumber(m[4]) + 1
redis.call('HSET', META, 'st', 'queued', 'own', '', 'le', 0, 'x', x, 'tk', ticket, 'why', 'worker_lost')
expire_live(now)
due(now + 5000)
if m[1] ~= 'queued' then
  extend_wait(now)
  transition('in_progress', 'queued', 'queued')
end
return requeue(ticket)
