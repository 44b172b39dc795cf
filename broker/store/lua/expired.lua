-- Removal of generations that can no longer be read. `index` is the base of the tenant's indexes.
local function unlist(index, ...)
  if index ~= all_tenants() then unlist(all_tenants(), ...) end
  redis.call('ZREM', index, ...)
  for _, status in ipairs({'queued', 'in_progress', 'completed', 'failed', 'cancelled'}) do
    redis.call('ZREM', index .. ':' .. status, ...)
  end
  for _, gid in ipairs({...}) do
    for _, key in ipairs(secondary_of(beside(META, gid))) do redis.call('ZREM', key, gid) end
  end
end

-- Replaces the meta by a tombstone that lives for `ms`.
local function bury(gid, status, ms)
  local meta = beside(META, gid)
  local m = redis.call('HMGET', meta, 'tn', 'ca', 'xa')
  redis.call('DEL', meta)
  redis.call('HSET', meta, 'st', status, 'tn', m[1], 'ca', m[2], 'xa', m[3])
  redis.call('PEXPIRE', meta, ms)
end

-- Does both if the retention is over, and returns whether it is. A generation that can still be read is not changed.
local function forget_expired(index, gid)
  local meta = beside(META, gid)
  local status = redis.call('HGET', meta, 'st')
  if status and not (TERMINAL[status] and redis.call('EXISTS', beside(LOG, gid)) == 0) then return false end
  unlist(index, gid)
  if status then bury(gid, status, redis.call('PTTL', meta)) end
  return true
end
