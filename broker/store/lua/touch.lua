--#include common
--#include items
-- Renews the lease while nothing is appended, and reports an ending from outside to the owner. The only renewal: it also
-- revives an expired lease that was not taken. Writes only if less than two thirds of the lease are left, or more than
-- all of it, because the server's clock went back.
-- KEYS: [1] meta, [2] log, [3] live, unless a cluster has it on another server than the other two for the moment: then
-- the reaper looks too early, and sees by `le` that nothing is due
-- ARGV: gid, own, lease ms, 1 = the attempt has begun
-- Returns LOST | GONE | CLOSED status | FENCED | OK n now
local m = redis.call('HMGET', META, 'st', 'own', 'n', 'le', 'a')
local no = refusal(m, ARGV[2], 0, ARGV[4] == '1' and m[5] or nil)
if no then return no end
local now, lease = now_ms(), tonumber(ARGV[3])
local left = tonumber(m[4]) - now
if left < lease * 2 / 3 or left > lease then
  expire_live(now)
  redis.call('HSET', META, 'le', int(now + lease))
  if LIVE then due(now + lease) end
end
return {'OK', tonumber(m[3]), now}
