--#include common
--#include items
-- The owner's last append: the missing items, the terminal event as the last item, and the status, atomically.
-- KEYS: the five of common.lua
-- ARGV: gid, own, "<attempt>-", first seq, completed|failed, finish reason, usage JSON, error JSON ('' = none),
--       merged choices JSON, completion chunks, then triples type, ms, data
-- Returns LOST | GONE | CLOSED status | FENCED | GAP n | OK n
local m = redis.call('HMGET', META, 'st', 'own', 'n', 'fa', 'a')
local first = tonumber(ARGV[4])
local no = refusal(m, ARGV[2], first, m[5])
if no then return no end
local now = now_ms()
local xa = expire_ended(now)
local n = append_items(LOG, ARGV[3], tonumber(m[3]), first, 11)
if not n then return {'LOST'} end
redis.call('HSET', META, 'st', ARGV[5], 'own', '', 'n', n, 'le', 0, 'ea', int(now), 'xa', xa,
  'fr', ARGV[6], 'us', ARGV[7], 'er', ARGV[8], 'res', ARGV[9], 'ct', ARGV[10])
if m[4] == '' and tonumber(ARGV[10]) > 0 then redis.call('HSET', META, 'fa', int(now)) end
redis.call('ZREM', LIVE, GID)
transition('in_progress', ARGV[5], ARGV[5])
put_webhook(now, ARGV[5])
return {'OK', n}
