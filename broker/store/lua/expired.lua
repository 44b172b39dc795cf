-- What is left of a generation that can be read no more. `index` is its tenant's.
local function unlist(index, ...)
  redis.call('ZREM', index, ...)
  for _, status in ipairs({'queued', 'in_progress', 'completed', 'failed', 'cancelled'}) do
    redis.call('ZREM', index .. ':' .. status, ...)
  end
end

-- A tombstone instead of its meta, for so many ms.
local function bury(gid, status, ms)
  local meta = beside(META, gid)
  local m = redis.call('HMGET', meta, 'tn', 'ca', 'xa')
  redis.call('DEL', meta)
  redis.call('HSET', meta, 'st', status, 'tn', m[1], 'ca', m[2], 'xa', m[3])
  redis.call('PEXPIRE', meta, ms)
end

-- Both, where its retention is over; returns whether it is. Nothing happens to one that can still be read.
local function forget_expired(index, gid)
  local meta = beside(META, gid)
  local status = redis.call('HGET', meta, 'st')
  if status and not (TERMINAL[status] and redis.call('EXISTS', beside(LOG, gid)) == 0) then return false end
  unlist(index, gid)
  if status then bury(gid, status, redis.call('PTTL', meta)) end
  return true
end
