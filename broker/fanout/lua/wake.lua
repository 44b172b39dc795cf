-- Wakes the reader that blocks on a control key. Entry and lifetime in one step: of two commands the second may be lost.
-- KEYS: [1] control key   ARGV: ms to live
-- Returns OK
redis.call('XADD', KEYS[1], 'MAXLEN', 1, '*', 'w', '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 'OK'
