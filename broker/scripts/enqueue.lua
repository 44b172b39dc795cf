-- Puts a ticket into arq's queue, once, and rings. Writes arq's own two keys: its enqueue_job answers None both
-- for "is there" and for "the connection broke around EXEC", so a caller cannot tell; this can be repeated.
-- The score is a fair tag, not a time (small numbers are always due for arq): one tenant's thousand tickets get
-- tags 1…1000, another one's next gets the tag behind the queue's head. An empty queue forgets all tags.
-- KEYS: [1] arq's job, [2] queue, [3] bell, [4] fair tags   ARGV: ticket, job JSON, ms to live, tenant
-- Returns 1, or 0 if the ticket was there
redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3])
local head = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if #head == 0 then redis.call('DEL', KEYS[4]) end
local tag = math.max(tonumber(head[2] or 0), tonumber(redis.call('HGET', KEYS[4], ARGV[4]) or 0)) + 1
local added = redis.call('ZADD', KEYS[2], 'NX', tag, ARGV[1])
if added == 1 then
  redis.call('HSET', KEYS[4], ARGV[4], tag)
  redis.call('EXPIRE', KEYS[4], 604800)
  redis.call('EXPIRE', KEYS[2], 604800)
  if redis.call('LLEN', KEYS[3]) < 1000 then redis.call('LPUSH', KEYS[3], '') end
  redis.call('EXPIRE', KEYS[3], 60)
end
return added
