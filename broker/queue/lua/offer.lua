--#include common
-- Adds a ticket to the queue, once, and signals it. May be repeated.
-- ARGV: generation, ticket number, reserved tokens, lane, priority, tenant, order ms (that of the creation), ms before
--       which it must not run (0 = none), weight of the tenant. A ticket with a number above 1 has been here before
-- Returns 1, or 0 if it was there
local gid, tenant, order, not_before = ARGV[1], ARGV[6], ARGV[7], tonumber(ARGV[8])
local member, level, now = gid .. '.' .. ARGV[2] .. '.' .. ARGV[3], ARGV[4] .. ':' .. ARGV[5], now_ms()
redis.call('ZREM', reservations(tenant), gid)
if not_before > now then
  if redis.call('ZSCORE', waiting(level, tenant), member) then return 0 end
  local entry = table.concat({ARGV[4], ARGV[5], tenant, order, member}, ' ')
  local added = redis.call('ZADD', LATER, 'NX', int(not_before), entry)
  redis.call('EXPIRE', LATER, 2 * WEEK)
  if added == 1 then count(COUNTS, tenant, 1) end
  return added
end
if not add_waiting(level, tenant, member, order, now, tonumber(ARGV[9])) then return 0 end
count(COUNTS, tenant, 1)
ring()
return 1
