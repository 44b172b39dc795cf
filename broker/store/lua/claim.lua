--#include common
-- Makes the caller the owner of a new attempt: of a queued generation, or of its own after an upstream error
-- (ARGV[5]), which then counts against the budget like a crash. Never takes a running one from another worker; only the
-- reaper does. If it is repeated with the same token after a lost reply, it returns the attempt that it made.
-- KEYS: the five of common.lua, [6] epoch
-- ARGV: gid, token, random 0..1023, lease ms, current own ('' for a queued one), max attempts
-- Processes may have different maxima. The smallest one that claims the generation ends it: if it were only rejected, it
-- would stay queued and be claimed again indefinitely.
-- Returns NONE (also if its log is missing) | GONE | CLOSED | RUNNING | EXHAUSTED (a queued one has ended as failed)
--         | OK attempt k epoch {all of meta}
local function claimed(attempt, k)
  return {'OK', attempt, k, redis.call('GET', KEYS[6]) or '', redis.call('HGETALL', META)}
end

local m = redis.call('HMGET', META, 'st', 'a', 'k', 'own', 'x', 'why')
if not m[1] then return {'NONE'} end
if m[1] == 'deleted' then return {'GONE'} end
if TERMINAL[m[1]] then return {'CLOSED'} end
if m[1] == 'in_progress' and m[4] == m[2] .. '.' .. ARGV[2] then return claimed(m[2], tonumber(m[3])) end
local again = ARGV[5] ~= ''
if m[1] == 'in_progress' and not (again and m[4] == ARGV[5]) then return {'RUNNING'} end
if again and m[1] ~= 'in_progress' then return {'RUNNING'} end
if not again and redis.call('EXISTS', LOG) == 0 then return {'NONE'} end
local now = now_ms()
local x = tonumber(m[5]) + (again and 1 or 0)
if x >= tonumber(ARGV[6]) then
  if not again then end_exhausted(now, ARGV[3], x) end
  return {'EXHAUSTED'}
end

local attempt, k = fresh_attempt(now, m[2], ARGV[3]), tonumber(m[3]) + 1
local first = k == 1
local reason = again and 'upstream_error' or m[6] or 'worker_lost'
local data = first and '{"attempt":1}' or '{"attempt":' .. k .. ',"reason":' .. text(reason) .. '}'
redis.call('XADD', LOG, attempt .. '-0', 't', first and 'st' or 'rs', 'm', 0, 'd', data)
local own = attempt .. '.' .. ARGV[2]
redis.call('HSET', META, 'st', 'in_progress', 'own', own, 'a', attempt, 'n', 0, 'k', k, 'x', x, 'le', int(now + tonumber(ARGV[4])), 'ls', ARGV[4], 'by', 0, 'ct', 0, 'fa', '', 'why', reason)
if first then redis.call('HSET', META, 'sa', int(now)) end
expire_live(now)
due(now + tonumber(ARGV[4]))
transition(m[1], 'in_progress', first and 'started' or 'reset')
return claimed(attempt, k)
