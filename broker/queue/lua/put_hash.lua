-- Sets fields of a hash and its lifetime in one step: of two commands the second may be lost.
-- KEYS: [1] hash   ARGV: ms to live, then field, value, …
-- Returns OK
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 'OK'
