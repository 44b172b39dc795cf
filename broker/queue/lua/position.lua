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
local found = redis.call('ZRANGE', turns(level), 0, 200, 'WITHSCORES')
if #found > 400 then return -1 end
local tag = tonumber(redis.call('ZSCORE', turns(level), tenant) or 0)
for i = 1, #found, 2 do
  if found[i] ~= tenant then
    local rounds = tag + own - tonumber(found[i + 1]) -- with equal tags, the names decide, as in a sorted set
    local turns_before = math.max(0, math.ceil(rounds))
    if rounds >= 0 and rounds == turns_before and found[i] < tenant then turns_before = turns_before + 1 end
    ahead = ahead + math.min(redis.call('ZCARD', waiting(level, found[i])), turns_before)
  end
end
return ahead + 1
