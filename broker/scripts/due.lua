-- Generations the reaper must look at, by this server's clock. KEYS: [1] live   ARGV: how many at most
local t = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)), 'LIMIT', 0, ARGV[1])
