--#include common
-- Makes the caller the owner of the next attempt: of a queued generation, or of its own after an upstream error
-- (ARGV[5]), which then counts against the budget like a crash. Nothing is told to readers, for the upstream has not
-- accepted the call yet: begin.lua does that. Never takes a running one from another worker; only the reaper does. If it
-- is repeated with the same token after a lost reply, it returns the claim that it made.
-- KEYS: the five of common.lua, [6] epoch
-- ARGV: gid, token, random 0..1023, lease ms, current own ('' for a queued one), max attempts
-- Processes may have different maxima. The smallest one that claims the generation ends it: if it were only rejected, it
-- would stay queued and be claimed again indefinitely.
-- Returns NONE (also if its log is missing) | GONE | CLOSED | RUNNING | LATE (its waiting has ended) | EXHAUSTED (a queued
--         one has ended as failed) | OK attempt k epoch {all of meta}
local function claimed(attempt, k)
  return {'OK', attempt, k, redis.call('GET', KEYS[6]) or '', redis.call('HGETALL', META)}
end

local m = redis.call('HMGET', META, 'st', 'a', 'k', 'own', 'x', 'na', 'le', 'qd')
if not m[1] then return {'NONE'} end
if m[1] == 'deleted' then return {'GONE'} end
if TERMINAL[m[1]] then return {'CLOSED'} end
local newest = newest_attempt(m[2], m[6])
if m[4] == newest .. '.' .. ARGV[2] then return claimed(newest, tonumber(m[3]) + (newest == m[2] and 0 or 1)) end
local again, now = ARGV[5] ~= '', now_ms()
if again and m[4] ~= ARGV[5] then return {'RUNNING'} end
if not again then
  if m[1] ~= 'queued' or (m[4] ~= '' and tonumber(m[7]) > now) then return {'RUNNING'} end
  if redis.call('EXISTS', LOG) == 0 then return {'NONE'} end
  if m[8] and m[8] ~= '' and tonumber(m[8]) <= now then return {'LATE'} end
end
-- A claim that was lost before its attempt began counts too, also if its ticket comes before the reaper.
local x = tonumber(m[5]) + ((again or m[4] ~= '') and 1 or 0)
if x >= tonumber(ARGV[6]) then
  if not again then end_exhausted(now, ARGV[3], x) end
  return {'EXHAUSTED'}
end

local attempt = fresh_attempt(now, newest, ARGV[3])
redis.call('HSET', META, 'own', attempt .. '.' .. ARGV[2], 'na', attempt, 'x', x, 'le', int(now + tonumber(ARGV[4])), 'ls', ARGV[4])
if again then redis.call('HSET', META, 'why', 'upstream_error') end
expire_live(now)
due(now + tonumber(ARGV[4]))
return claimed(attempt, tonumber(m[3]) + 1)
