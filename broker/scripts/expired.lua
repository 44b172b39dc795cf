-- What is left of a generation whose retention is over: a tombstone, and in no index. Nothing happens to one that can
-- still be read. `index` is its tenant's.
local function forget_expired(index, gid)
  local meta, log = beside(META, gid), beside(LOG, gid)
  local status = redis.call('HGET', meta, 'st')
  if status and not (TERMINAL[status] and redis.call('EXISTS', log) == 0) then return end
  redis.call('ZREM', index, gid)
  for _, each in ipairs({'queued', 'in_progress', 'completed', 'failed', 'cancelled'}) do
    redis.call('ZREM', index .. ':' .. each, gid)
  end
  if not status then return end
  local m = redis.call('HMGET', meta, 'tn', 'ca', 'xa')
  local left = redis.call('PTTL', meta)
  redis.call('DEL', meta)
  redis.call('HSET', meta, 'st', status, 'tn', m[1], 'ca', m[2], 'xa', m[3])
  redis.call('PEXPIRE', meta, left)
end
