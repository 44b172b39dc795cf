--#include common
-- Restores a running generation that this server does not have, or does not have as ours: it came back empty, or a
-- failover took it to a state before the claim. The events follow by append, under their old ids.
-- A deleted or expired generation must not be restored. Both leave a tombstone for an hour; so if meta is missing, and
-- existed less than an hour ago by this server's clock, it was not removed: the server went back to a state before the
-- creation, or is another one. In another data set the same holds for its whole age, if that is less than an hour.
-- KEYS: the five of common.lua, [6] epoch, [7] idempotency record (or the epoch again, when there is no key)
-- ARGV: gid, own, attempt, epoch at the claim, random part of a new epoch, lease ms, ms at which meta was last known to
--       be there, data of `created`, type and data of the attempt's first event, then meta at the claim as field, value, …
-- Returns GONE | CLOSED status | FENCED | OK n epoch
local own, attempt = ARGV[2], ARGV[3]
local m = redis.call('HMGET', META, 'st', 'own', 'n', 'a', 'na')
if m[1] == 'deleted' then return {'GONE'} end
if TERMINAL[m[1]] then return {'CLOSED', m[1]} end
local epoch = redis.call('GET', KEYS[6])
local has_log = redis.call('EXISTS', LOG) == 1
if m[1] and m[2] == own and m[4] == attempt and has_log then return {'OK', tonumber(m[3]), epoch or ''} end
if m[1] and m[2] ~= own and tonumber(newest_attempt(m[4], m[5])) >= tonumber(attempt) then return {'FENCED'} end

local now = now_ms()
if not m[1] then
  local born = epoch and tonumber(string.match(epoch, '^(%d+)'))
  local another = not epoch or epoch ~= ARGV[4] and now - born <= HOUR
  if now - tonumber(ARGV[7]) >= HOUR and not another then return {'GONE'} end
  redis.call('SET', KEYS[6], int(now) .. '.' .. ARGV[5], 'NX', 'PX', 30 * DAY)
  redis.call('PEXPIRE', KEYS[6], 30 * DAY)
end
for i = 11, #ARGV, 2 do redis.call('HSET', META, ARGV[i], ARGV[i + 1]) end
if not has_log then redis.call('XADD', LOG, '0-1', 't', 'cr', 'm', 0, 'd', ARGV[8]) end
redis.call('XADD', LOG, attempt .. '-0', 't', ARGV[9], 'm', 0, 'd', ARGV[10])
redis.call('HSET', META, 'le', int(now + tonumber(ARGV[6])))
local record = redis.call('HMGET', META, 'ik', 'fp')
if record[1] ~= '' then redis.call('SET', KEYS[7], GID .. ' ' .. record[2], 'PX', KEPT) end
expire_live(now)
due(now + tonumber(ARGV[6]))
transition(m[1], 'in_progress', 'started')
return {'OK', 0, redis.call('GET', KEYS[6])}
