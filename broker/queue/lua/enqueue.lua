-- Adds a ticket to arq's queue, once, and signals it. Writes arq's own two keys: arq's enqueue_job returns None both if
-- the job exists and if the connection broke around EXEC, which a caller cannot distinguish; this script can be repeated.
-- The score is a fair tag, not a time (arq considers small numbers due): a thousand tickets of one tenant get the tags
-- 1…1000, and the next ticket of another tenant gets the tag of the queue's head and comes after it: within a tag the
-- oldest generation is first. Each tag is a round in which each tenant has one turn. An empty queue resets all tags; if
-- only the tags are lost, every tenant starts at the head again.
-- A parked ticket (its turn came while its tenant was at the limit) is queued at the head once a reservation is free: it
-- has already had its turn.
-- KEYS: [1] arq's job, [2] queue, [3] bell, [4] fair tags; for a tenant with limits [5] running, [6] queued, [7] parked
-- ARGV: ticket, job JSON, ms to live, tenant; with limits gid, most running (0 = any), ms that a place lasts among the
--       running, among the queued, 1 = its turn has come and found no place
-- Returns 1, or 0 if the ticket was there, or is parked
local head = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local turn = false
if KEYS[5] then
  local t = redis.call('TIME')
  local now, most = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[6])
  redis.call('ZADD', KEYS[6], string.format('%.0f', now + tonumber(ARGV[8])), ARGV[5])
  redis.call('EXPIRE', KEYS[6], 86400)
  turn = redis.call('ZSCORE', KEYS[5], ARGV[5])
  if not turn and (ARGV[9] == '1' or redis.call('ZSCORE', KEYS[7], ARGV[1])) then
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now))
    if most > 0 and redis.call('ZCARD', KEYS[5]) >= most then
      redis.call('ZADD', KEYS[7], 0, ARGV[1])
      redis.call('PEXPIRE', KEYS[7], ARGV[3])
      if ARGV[9] == '1' then -- the worker's slot that took it is free
        redis.call('LPUSH', KEYS[3], '')
        redis.call('EXPIRE', KEYS[3], 60)
      end
      return 0
    end
    turn = true
    redis.call('ZADD', KEYS[5], string.format('%.0f', now + tonumber(ARGV[7])), ARGV[5])
    redis.call('EXPIRE', KEYS[5], 86400)
  end
  redis.call('ZREM', KEYS[7], ARGV[1])
end

redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3])
if #head == 0 then redis.call('DEL', KEYS[4]) end
local tag = tonumber(head[2] or 1)
if not turn then tag = math.max(tag, tonumber(redis.call('HGET', KEYS[4], ARGV[4]) or 0) + 1) end
local added = redis.call('ZADD', KEYS[2], 'NX', tag, ARGV[1])
if added == 1 then
  if not turn then redis.call('HSET', KEYS[4], ARGV[4], tag) end
  redis.call('EXPIRE', KEYS[4], 604800)
  redis.call('EXPIRE', KEYS[2], 604800)
  if redis.call('LLEN', KEYS[3]) < 1000 then redis.call('LPUSH', KEYS[3], '') end
  redis.call('EXPIRE', KEYS[3], 60)
end
return added
