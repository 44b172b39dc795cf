-- Renews the reservations of a tenant's running generations by a lease from now, and recreates lost ones.
-- KEYS: [1] running   ARGV: ms that a place lasts, then generations
local t = redis.call('TIME')
local till = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[1]))
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], till, ARGV[i]) end
redis.call('EXPIRE', KEYS[1], 86400)
return 'OK'
