--#include common
--#include expired
-- Removes members from the indexes of a tenant that can no longer be read. Checks a bounded number of members of one
-- index: if all of them have expired, a member costs about a microsecond.
-- KEYS: the five of common.lua, of any generation of the shard, [6] the index to look at
-- ARGV: a gid (only its length matters), tenant, members to look at, score of the first one, newest first ('' = random
--       members)
-- Returns how many were removed
local index = INDEX .. ':' .. ARGV[2]
local members
if ARGV[4] == '' then
  members = redis.call('ZRANDMEMBER', KEYS[6], ARGV[3])
else
  members = redis.call('ZREVRANGEBYSCORE', KEYS[6], ARGV[4], '-inf', 'LIMIT', 0, ARGV[3])
end
if #members == 0 then return 0 end

local logs, metas = {}, {}
for i, gid in ipairs(members) do
  logs[i], metas[i] = beside(LOG, gid), beside(META, gid)
end
local dead, buried = members, redis.call('EXISTS', unpack(metas)) == 0
if not buried and redis.call('EXISTS', unpack(logs)) > 0 then
  dead = {}
  for i, gid in ipairs(members) do
    local status = redis.call('HGET', metas[i], 'st')
    if not status or status == 'deleted' or redis.call('EXISTS', logs[i]) == 0 then dead[#dead + 1] = gid end
  end
end
if #dead == 0 then return 0 end

unlist(index, unpack(dead))
redis.call('ZREM', KEYS[6], unpack(dead))
if not buried then
  for _, gid in ipairs(dead) do
    local meta = beside(META, gid)
    local status = redis.call('HGET', meta, 'st')
    if TERMINAL[status] then bury(gid, status, redis.call('PTTL', meta)) end
  end
end
return #dead
