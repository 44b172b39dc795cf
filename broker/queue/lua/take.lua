--#include common
--#include resources
-- Takes a place for another call of a running generation: at the first of some upstreams that takes a call now. A place at
-- another upstream ends. Where the generation has its place, it needs no room. A circuit that is not closed takes no call:
-- the probe belongs to the generations that wait.
-- ARGV: generation, upstream at which it has a place ('' = none), lease ms, `born` as seen before, tokens, then for each
--       upstream: name, most at once, per minute, tokens per minute (0 = any), 1 = learns its limit
-- Returns its name ('' = none takes a call), ms until something may change (-1 = unknown), born
local gid, from, lease, tokens = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local now = now_ms()
local born = trusted_since(now, lease, ARGV[4])
local complete = now - born >= grace(lease) -- whether all workers have put their places back
local everything = redis.call('HEXISTS', PAUSED, 'all') == 1

local next_at
local function look_again(at)
  if at > now and (not next_at or at < next_at) then next_at = at end
end

-- Returns what the call takes of an upstream's rates; nil if the upstream does not take it now.
local function admits(name, given)
  local key, h = state(name), load(name)
  prune(places(name), now, lease)
  local max = governing(h, 'max', given.max, now, key)
  local rpm, tpm = governing(h, 'rpm', given.rpm, now, key), governing(h, 'tpm', given.tpm, now, key)
  if everything or redis.call('HEXISTS', PAUSED, 'u:' .. name) == 1 or h.circuit == 'open' then return nil end
  local held = redis.call('ZSCORE', places(name), gid)
  local calls = redis.call('ZCARD', places(name))
  if not held and not (complete and calls < limit_of(h, max, given.adaptive)) then return nil end
  local busy, rt, tt, wait = busy_until(h, now), tonumber(h.rt or 0), tonumber(h.tt or 0), 0
  if busy > now then
    look_again(busy)
    return nil
  end
  local requests, of_tokens = told_bucket(h, 'r', now), told_bucket(h, 't', now)
  if rpm > 0 then wait, rt = rate_wait(rt, rpm, 1, now) end
  if wait == 0 and tpm > 0 then wait, tt = rate_wait(tt, tpm, tokens, now) end
  if wait == 0 and requests then wait = told_wait(requests, 1) end
  if wait == 0 and of_tokens then wait = told_wait(of_tokens, tokens) end
  if wait > 0 then
    look_again(now + wait)
    return nil
  end
  return {rt = rt, tt = tt, requests = requests, tokens = of_tokens}
end

for i = 6, #ARGV, 5 do
  local name = ARGV[i]
  local taken = admits(name, {max = tonumber(ARGV[i + 1]), rpm = tonumber(ARGV[i + 2]),
    tpm = tonumber(ARGV[i + 3]), adaptive = ARGV[i + 4] == '1'})
  if taken then
    redis.call('HSET', state(name), 'granted', int(now), 'rt', string.format('%.3f', taken.rt), 'tt', string.format('%.3f', taken.tt))
    if taken.requests then take_told(state(name), taken.requests, 1, now) end
    if taken.tokens then take_told(state(name), taken.tokens, tokens, now) end
    redis.call('EXPIRE', state(name), WEEK)
    redis.call('ZADD', places(name), int(now + lease), gid)
    redis.call('EXPIRE', places(name), WEEK)
    if from ~= '' and from ~= name then
      redis.call('ZREM', places(from), gid)
      redis.call('SREM', begun(from), gid)
      if redis.call('EXISTS', DEPTH) == 1 then ring() end
    end
    return {name, -1, int(born)}
  end
end
return {'', next_at and int(next_at - now) or -1, int(born)}
