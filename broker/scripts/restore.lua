--#include common
-- Puts a running generation back that this server does not know, or does not know to be ours: it came back empty, or a
-- failover took it to a time before the claim. The events follow by append, under their old ids.
-- An expired or deleted generation must not come back so: where meta is missing, the data set must be another one than
-- at our claim, and younger than a tombstone lives.
-- KEYS: the five of common.lua, [6] epoch, [7] idempotency record (or the epoch again, when there is no key)
-- ARGV: gid, own, attempt, epoch at the claim, random part of a new epoch, lease ms, data of `created`, type and data
--       of the attempt's first event, then meta at the claim as field, value, …
-- Returns GONE | CLOSED status | FENCED | OK n epoch
local own, attempt = ARGV[2], ARGV[3]
local m = redis.call('HMGET', META, 'st', 'own', 'n', 'a')
if m[1] == 'deleted' then return {'GONE'} end
if TERMINAL[m[1]] then return {'CLOSED', m[1]} end
local epoch = redis.call('GET', KEYS[6])
local has_log = redis.call('EXISTS', LOG) == 1
if m[1] and m[2] == own and has_log then return {'OK', tonumber(m[3]), epoch or ''} end
if m[1] and m[2] ~= own and tonumber(m[4]) >= tonumber(attempt) then return {'FENCED'} end

local now = now_ms()
if not m[1] then
  local born = epoch and tonumber(string.match(epoch, '^(%d+)'))
  if epoch and (epoch == ARGV[4] or now - born > HOUR) then return {'GONE'} end
  redis.call('SET', KEYS[6], int(now) .. '.' .. ARGV[5], 'NX')
  redis.call('PEXPIRE', KEYS[6], 30 * DAY)
end
for i = 10, #ARGV, 2 do redis.call('HSET', META, ARGV[i], ARGV[i + 1]) end
if not has_log then redis.call('XADD', LOG, '0-1', 't', 'cr', 'm', 0, 'd', ARGV[7]) end
redis.call('XADD', LOG, attempt .. '-0', 't', ARGV[8], 'm', 0, 'd', ARGV[9])
redis.call('HSET', META, 'le', int(now + tonumber(ARGV[6])))
local record = redis.call('HMGET', META, 'ik', 'fp')
if record[1] ~= '' then redis.call('SET', KEYS[7], GID .. ' ' .. record[2]) end
expire_live(now)
due(now + tonumber(ARGV[6]))
transition(m[1], 'in_progress', 'started')
return {'OK', 0, redis.call('GET', KEYS[6])}
