--#include common
-- Removes a ticket that waits, is scheduled, or was granted and not taken. A worker that has it finds the generation
-- ended, and frees its place.
-- ARGV: generation, ticket number, reserved tokens, lane, priority, tenant, order ms
-- Returns 1 if it was there, otherwise 0
local gid, tenant, level = ARGV[1], ARGV[6], ARGV[4] .. ':' .. ARGV[5]
local member = gid .. '.' .. ARGV[2] .. '.' .. ARGV[3]
redis.call('ZREM', reservations(tenant), gid)
if redis.call('ZREM', waiting(level, tenant), member) == 1 then
  count(DEPTH, level, -1)
  count(COUNTS, tenant, -1)
  if redis.call('EXISTS', waiting(level, tenant)) == 0 then
    redis.call('ZREM', turns(level), tenant)
    redis.call('SREM', full(tenant), level)
    if redis.call('EXISTS', full(tenant)) == 0 then redis.call('ZREM', FULL, tenant) end
  end
  return 1
end
if redis.call('ZREM', LATER, table.concat({ARGV[4], ARGV[5], tenant, ARGV[7], member}, ' ')) == 1 then
  count(COUNTS, tenant, -1)
  return 1
end
local ticket = granted_name(gid, ARGV[2])
local job = job_of(ticket)
if redis.call('EXISTS', starting_of(ticket)) == 1 or redis.call('ZREM', READY, ticket) == 0 then return 0 end
local granted = redis.call('GET', job)
if granted then
  redis.call('ZREM', places(cjson.decode(granted).a[3]), gid)
  redis.call('ZREM', running(tenant), gid)
  redis.call('DEL', job)
  readmit(tenant)
  ring()
end
return 1
