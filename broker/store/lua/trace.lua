-- Stores the trace of a generation if it still exists: a key that this created would never expire.
-- KEYS: [1] meta   ARGV: traceparent
-- Returns 1 | 0
local known = redis.call('EXISTS', KEYS[1])
if known == 1 then redis.call('HSET', KEYS[1], 'tp', ARGV[1]) end
return known
