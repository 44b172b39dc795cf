--#include common
-- Removes a ticket that waits, is scheduled, or was granted and not taken. A worker that has it finds the generation
-- ended.
-- ARGV: generation, ticket number, reserved tokens, lane, priority, tenant, order ms
-- Returns 1 if it was there, otherwise 0
local gid, tenant, level = ARGV[1], ARGV[6], ARGV[4] .. ':' .. ARGV[5]
local member = gid .. '.' .. ARGV[2] .. '.' .. ARGV[3]
redis.call('ZREM', 'tc:q:' .. tenant, gid)
if redis.call('ZREM', waiting(level, tenant), member) == 1 then
  count('tc:depth', level, -1)
  count('tc:qn', tenant, -1)
  if redis.call('EXISTS', waiting(level, tenant)) == 0 then
    redis.call('ZREM', turns(level), tenant)
    redis.call('SREM', full(tenant), level)
    if redis.call('EXISTS', full(tenant)) == 0 then redis.call('ZREM', 'tc:fullz', tenant) end
  end
  return 1
end
if redis.call('ZREM', 'tc:later', table.concat({ARGV[4], ARGV[5], tenant, ARGV[7], member}, ' ')) == 1 then
  count('tc:qn', tenant, -1)
  return 1
end
local job = 'arq:job:' .. gid .. '.' .. ARGV[2]
if redis.call('ZREM', 'tc:ready', gid .. '.' .. ARGV[2]) == 0 then return 0 end
local granted = redis.call('GET', job)
if granted then
  redis.call('ZREM', places(cjson.decode(granted).a[3]), gid)
  redis.call('ZREM', running(tenant), gid)
  redis.call('DEL', job)
  readmit(tenant)
  ring()
end
return 1
