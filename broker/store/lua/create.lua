--#include common
--#include expired
-- Creates a generation and its log, with status queued.
-- KEYS: the five of common.lua, [6] epoch, [7] idempotency record (or the epoch again, when there is no key)
-- ARGV: gid, tenant, model, request, metadata, policy, created ms, ttl ms, idempotency hash ('' = none),
--       fingerprint, prompt tokens, random part of a new epoch, data of `created`, latest ms at which it may be created,
--       with an idempotency key the epoch ('' = none) in which a record that is missing was not lost lately, priority,
--       lane, deadline of the waiting in ms ('' = none), time before which it must not run in ms ('' = none), group
--       ('' = none), webhook JSON ('' = none), id of the generation that this one repeats ('' = none), tokens that a call
--       reserves, first line of the prompt ('' = none)
-- Returns OK epoch (also for its own resend) | REPLAY gid | CONFLICT gid | LATE (the command lay in a server that hung,
--         and its caller has long been refused) | UNSURE epoch (the key has no record, in another epoch than that)
local now = now_ms()
local held = ARGV[9] ~= '' and redis.call('GET', KEYS[7])
if held then
  local other, fingerprint = string.match(held, '^(%S+) (%S+)$')
  if other == GID then return {'OK', redis.call('GET', KEYS[6])} end
  local m = redis.call('HMGET', beside(META, other), 'st', 'xa')
  if m[1] and m[1] ~= 'deleted' and tonumber(m[2]) > now then
    return {fingerprint == ARGV[10] and 'REPLAY' or 'CONFLICT', other}
  end
end
if redis.call('EXISTS', META) == 1 then return {'OK', redis.call('GET', KEYS[6])} end
if now > tonumber(ARGV[14]) then return {'LATE'} end
if ARGV[9] ~= '' then
  local epoch = redis.call('GET', KEYS[6]) or ''
  if epoch ~= ARGV[15] then return {'UNSURE', epoch} end
end

redis.call('SET', KEYS[6], int(now) .. '.' .. ARGV[12], 'NX', 'PX', 30 * DAY)
redis.call('PEXPIRE', KEYS[6], 30 * DAY)
local wait = ARGV[18] ~= '' and int(tonumber(ARGV[18]) - tonumber(ARGV[19] ~= '' and ARGV[19] or ARGV[7])) or ''
redis.call('HSET', META, 'tn', ARGV[2], 'md', ARGV[3], 'rq', ARGV[4], 'mt', ARGV[5], 'pol', ARGV[6], 'ca', ARGV[7], 'ttl', ARGV[8],
  'ik', ARGV[9] ~= '' and KEYS[7] or '', 'fp', ARGV[10], 'pt', ARGV[11], 'st', 'queued', 'a', 0, 'n', 1, 'own', '', 'k', 0, 'x', 0, 'le', 0, 'tk', 1, 'by', 0, 'ct', 0,
  'pr', ARGV[16], 'ln', ARGV[17], 'qd', ARGV[18], 'ra', ARGV[19], 'gr', ARGV[20], 'wh', ARGV[21], 'ro', ARGV[22], 'es', ARGV[23], 'qt', wait, 'pv', ARGV[24])
redis.call('XADD', LOG, '0-1', 't', 'cr', 'm', 0, 'd', ARGV[13])
if ARGV[9] ~= '' then redis.call('SET', KEYS[7], GID .. ' ' .. ARGV[10], 'PX', KEPT) end
expire_live(now)
due(now + 5000)
transition(nil, 'queued', 'created')
-- Requests and texts expire an hour after they can be read, index entries never do, and their tenant may never list
-- them: with three checked for each new one, no more than about a third of the index has expired.
local index = INDEX .. ':' .. ARGV[2]
for _, other in ipairs(redis.call('ZRANDMEMBER', index, 3)) do
  forget_expired(index, other)
end
-- Of the secondary indexes the oldest, which as a rule expire first, up to the first that has not expired: a sixth of
-- the cost of random ones.
for _, key in ipairs(listed) do
  for _, other in ipairs(redis.call('ZRANGE', key, 0, 2)) do
    if other == GID or not forget_expired(index, other) then break end
    redis.call('ZREM', key, other)
  end
end
return {'OK', redis.call('GET', KEYS[6])}
