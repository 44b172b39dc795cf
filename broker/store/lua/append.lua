--#include items
-- The hot path: no clock, no lease, no read of the stream (7 µs instead of 12 with them). The first write must be XADD:
-- a script that begins with an expiry would pass maxmemory, and chunks must not.
-- KEYS: [1] meta, [2] log   ARGV: own, "<attempt>-", first seq, completion chunks so far, byte cap, 1 = holds the
-- first token, then triples type, ms, data
-- Returns LOST | GONE | CLOSED status | FENCED | GAP n | TOOBIG | OK n
local m = redis.call('HMGET', KEYS[1], 'st', 'own', 'n', 'by', 'a')
local first = tonumber(ARGV[3])
local no = refusal(m, ARGV[1], first, m[5])
if no then return no end
local by = tonumber(m[4])
if by > tonumber(ARGV[5]) then return {'TOOBIG'} end
local n, bytes = append_items(KEYS[2], ARGV[2], tonumber(m[3]), first, 7)
if not n then return {'LOST'} end
if ARGV[6] == '1' then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'n', n, 'by', by + bytes, 'ct', ARGV[4], 'fa', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
else
  redis.call('HSET', KEYS[1], 'n', n, 'by', by + bytes, 'ct', ARGV[4])
end
return {'OK', n}
