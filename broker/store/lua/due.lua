-- Returns the generations that the reaper must check, by this server's clock.
-- KEYS: [1] live   ARGV: maximum number of generations, ms ahead ('' = none): what is due later than that is due now: the
--       clock may have gone back. One that waits in the queue, with a time up to ten minutes ahead, is checked once more
-- Returns now ms, generations
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(n) return string.format('%.0f', n) end
if ARGV[2] ~= '' then
  local far = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. int(now + tonumber(ARGV[2])), '+inf', 'LIMIT', 0, 10000)
  for _, gid in ipairs(far) do redis.call('ZADD', KEYS[1], int(now), gid) end
end
return {now, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', 0, ARGV[1])}
