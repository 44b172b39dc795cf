--#include common
-- Tells a waiting ticket's position among those of its lane: the tickets of the priorities before its own, those of
-- other tenants whose turns come first, and those of its own tenant.
-- ARGV: generation, ticket number, reserved tokens, lane, priority, tenant
-- Returns the position from 1, or -1 if it does not wait there, or too many tenants do
local tenant, lane, p = ARGV[6], ARGV[4], tonumber(ARGV[5])
local level = lane .. ':' .. ARGV[5]
local own = redis.call('ZRANK', waiting(level, tenant), ARGV[1] .. '.' .. ARGV[2] .. '.' .. ARGV[3])
if not own then return -1 end
local ahead = own
for other = 1, p - 1 do ahead = ahead + tonumber(redis.call('HGET', DEPTH, lane .. ':' .. other) or 0) end
local found = redis.call('ZRANGE', turns(level), 0, 200)
if #found > 200 then return -1 end
local turn_is_later = false -- than that of the tenant; the zset has them in the order in which they come
for _, other in ipairs(found) do
  if other == tenant then
    turn_is_later = true
  else
    local turns_before = own + (turn_is_later and 0 or 1)
    ahead = ahead + math.min(redis.call('ZCARD', waiting(level, other)), turns_before)
  end
end
return ahead + 1
