-- Releases a reservation among the running, and passes free ones to the tenant's oldest parked generations.
-- KEYS: [1] running, [2] parked   ARGV: gid, most running (0 = any), ms that a place lasts
-- Returns the tickets that are parked no longer, for the caller to queue: should it die first, the reaper does
local t = redis.call('TIME')
local now, most = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local room = redis.call('ZCARD', KEYS[2])
if most > 0 then room = math.min(room, most - redis.call('ZCARD', KEYS[1])) end
local tickets = {}
for i = 1, room do
  local ticket = redis.call('ZPOPMIN', KEYS[2])[1]
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[3])), string.match(ticket, '^[^.]+'))
  tickets[i] = ticket
end
if room > 0 then redis.call('EXPIRE', KEYS[1], 86400) end
return tickets
