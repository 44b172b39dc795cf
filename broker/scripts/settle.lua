-- Keeps the merged choices of a generation that somebody else than its worker ended, once they were folded.
-- KEYS: [1] meta   ARGV: merged choices JSON
local status = redis.call('HGET', KEYS[1], 'st')
if status == 'completed' or status == 'failed' or status == 'cancelled' then
  redis.call('HSET', KEYS[1], 'res', ARGV[1])
end
return 'OK'
