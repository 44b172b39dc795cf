--#include common
--#include resources
-- Ends a call: frees the places of upstream and tenant, and draws the conclusions from its outcome.
-- ok, none: nothing more. busy (429, 503 with Retry-After, 529): nobody calls until the upstream said; the learned limit
-- is cut to the calls that run, once per round trip, because calls that were sent before the cut tell nothing new.
-- fail (other 5xx, no connection, no answer): five generations in a row open the circuit, if two workers saw it where
-- two are present: a worker with a broken network must not close an upstream for the others. denied (the key or the
-- account): the circuit opens for a minute.
-- ARGV: generation, tenant, upstream, outcome, ms until it may be tried again (-1 = not said), ms since the call was
--       sent, reserved tokens, used tokens ('' = unknown), worker,
--       then of the headers as for begun.lua, if the call was refused
-- Returns ms of the last accepted call at this upstream (0 = none), now, 1 = its circuit is open
local gid, tenant, resource, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local retry, age, worker = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[9]
local key, now = state(resource), now_ms()
local h = load(resource)

redis.call('ZREM', places(resource), gid)
redis.call('ZREM', running(tenant), gid)
redis.call('SREM', begun(resource), gid)
readmit(tenant)

local function open_circuit(wait)
  redis.call('HSET', key, 'circuit', 'open', 'since', int(now), 'wait', int(wait), 'probe', '', 'probed', gid)
end

if outcome == 'busy' then
  redis.call('HINCRBY', key, 'refused', 1)
  local wait = retry >= 0 and retry or 250
  local till = math.min(math.max(busy_until(h, now), now + wait), now + 3600000)
  redis.call('HSET', key, 'busy', int(till), 'for', int(till - now), 'why', 'busy')
  local cut = tonumber(h.cut or 0)
  if now - age >= cut or cut > now then
    local runs = 0
    for _, other in ipairs(redis.call('SMEMBERS', begun(resource))) do
      if redis.call('ZSCORE', places(resource), other) then runs = runs + 1 else redis.call('SREM', begun(resource), other) end
    end
    local limit, ceil, need = tonumber(h.L or FIRST_LIMIT), tonumber(h.ceil or ''), tonumber(h.need or 2)
    local now_at = math.max(1, runs)
    need = ceil and now_at >= ceil and math.min(64, need * 2) or 2
    if wait > 1000 then -- each try above the ceiling may cost such a pause
      need = math.min(64, math.max(need, 2 * math.ceil(wait / 1000)))
      -- A refusal of the only call tells nothing about the number of calls at once.
      if runs == 0 then now_at, ceil, need = 1, '', 2 else ceil = now_at end
    else
      ceil = now_at
    end
    redis.call('HSET', key, 'L', now_at, 'ceil', ceil, 'need', need, 'held', 0, 'cut', int(now))
  end
  if wait > 1000 then redis.call('HSET', key, 'ramp', 1) end
elseif outcome == 'denied' then
  open_circuit(MINUTE)
elseif outcome == 'fail' then
  if h.circuit == 'open' then
    if h.probe == gid then open_circuit(math.min(MINUTE, tonumber(h.wait) * 2)) end
  else
    local failed = failures(resource)
    redis.call('ZADD', failed, int(now), gid .. ' ' .. worker)
    redis.call('ZREMRANGEBYSCORE', failed, '-inf', int(now - 300000))
    redis.call('EXPIRE', failed, 300)
    local generations, workers, n, w = {}, {}, 0, 0
    for _, entry in ipairs(redis.call('ZREVRANGE', failed, 0, 49)) do
      local one, by = string.match(entry, '^(%S+) (%S+)$')
      if not generations[one] then generations[one], n = true, n + 1 end
      if not workers[by] then workers[by], w = true, w + 1 end
    end
    local present = redis.call('ZCOUNT', WORKERS, int(now - 15000), '+inf')
    if n >= 5 and (w >= 2 or present < 2) then open_circuit(5000) end
  end
elseif outcome == 'ok' then
  redis.call('HSET', key, 'okat', int(now))
end

-- A probe that ended without an answer about the upstream makes room for the next one.
if h.circuit == 'open' and h.probe == gid and outcome ~= 'fail' and outcome ~= 'denied' then
  redis.call('HSET', key, 'probe', '')
end

local tpm = tonumber(h.otpm or '') or tonumber(h.tpm or 0)
if tpm > 0 and ARGV[8] ~= '' then
  local surplus = (tonumber(ARGV[7]) - tonumber(ARGV[8])) * MINUTE / tpm
  redis.call('HSET', key, 'tt', string.format('%.3f', math.max(now, tonumber(h.tt or 0) - surplus)))
end
note_headers(resource, h, now, 10, tonumber(ARGV[7]), outcome ~= 'busy')
redis.call('EXPIRE', key, WEEK)
if redis.call('EXISTS', DEPTH) == 1 then ring() end
local is = redis.call('HMGET', key, 'okat', 'circuit')
return {int(tonumber(is[1] or 0)), int(now), is[2] == 'open' and 1 or 0}
