--#include common
--#include resources
-- Records that an upstream has accepted a call: its circuit closes, and its learned limit may grow.
-- With no known ceiling the limit grows by one with each accepted call while it is used up, also if nothing waits: it is
-- then one above the calls that run, and the next generation does not wait until one of them ends. At a ceiling it is tried one
-- higher after `need` rounds of accepted calls; two rounds above it without a refusal end the ceiling.
-- ARGV: generation, upstream, reserved tokens, then of the headers for requests and for tokens: limit, remaining, ms until
--       the reset, ms of the window ('' = not told)
-- Returns OK
local gid, resource = ARGV[1], ARGV[2]
local key, now = state(resource), now_ms()
local h = load(resource)
redis.call('HSET', key, 'okat', int(now))
redis.call('EXPIRE', key, WEEK)
redis.call('DEL', failures(resource))
if redis.call('ZSCORE', places(resource), gid) then
  redis.call('SADD', begun(resource), gid)
  redis.call('EXPIRE', begun(resource), 86400)
end
note_headers(resource, h, now, 4, tonumber(ARGV[3]), true)
if h.circuit == 'open' then
  redis.call('HDEL', key, 'circuit', 'since', 'wait', 'probe', 'probeat', 'probed')
  redis.call('HSET', key, 'L', 1, 'ceil', '', 'need', 2, 'held', 0)
  ring()
  return 'OK'
end
local most = h.omax and h.omax ~= '' and h.omax or h.max
local limit = limit_of({L = h.L}, h.L and 0 or tonumber(most or 0), true)
local calls = redis.call('ZCARD', places(resource))
if calls < limit then return 'OK' end
local ceil, held, need = tonumber(h.ceil or ''), tonumber(h.held or 0) + 1, tonumber(h.need or 2)
if calls > limit then -- one that was tried above it
  limit, held = calls, 0
  ceil = ceil and math.max(ceil, limit)
elseif not ceil then
  limit = limit + 1
elseif limit < ceil then -- it grows again after a pause
  limit, held = limit + 1, 0
elseif limit <= ceil and held >= need * limit then
  limit, held = ceil + 1, 0
elseif limit > ceil and held >= 2 * limit then
  ceil, held, need = nil, 0, 2
end
redis.call('HSET', key, 'L', limit, 'ceil', ceil or '', 'held', held, 'need', need)
if redis.call('EXISTS', DEPTH) == 1 then ring() end
return 'OK'
