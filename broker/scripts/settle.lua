-- Keeps the merged choices of a generation that somebody else than its worker ended, once they were folded.
-- KEYS: [1] meta, [2] log   ARGV: merged choices JSON
-- Returns GONE (deleted or expired since: they may be less than all) | OK
local m = redis.call('HMGET', KEYS[1], 'st', 'md')
if not m[2] or redis.call('EXISTS', KEYS[2]) == 0 then return 'GONE' end
if m[1] == 'completed' or m[1] == 'failed' or m[1] == 'cancelled' then redis.call('HSET', KEYS[1], 'res', ARGV[1]) end
return 'OK'
