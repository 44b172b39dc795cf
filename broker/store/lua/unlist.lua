--#include common
-- Removes generations from a tenant's indexes that expired before they ended, because no process ran for a week. Checks
-- the oldest waiting and running ones until one still exists: two reads each if there is none to remove.
-- KEYS: the five of common.lua, of any id of the shard   ARGV: that id, tenant
-- Returns how many were removed
local removed, index = 0, INDEX .. ':' .. ARGV[2]
for _, status in ipairs({'queued', 'in_progress'}) do
  for _ = 1, 1000 do
    local gid = redis.call('ZRANGE', index .. ':' .. status, 0, 0)[1]
    if not gid or redis.call('EXISTS', beside(LOG, gid)) == 1 then break end
    redis.call('ZREM', index .. ':' .. status, gid)
    redis.call('ZREM', index, gid)
    removed = removed + 1
  end
end
return removed
