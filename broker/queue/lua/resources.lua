-- The state of an upstream in the queue: its limits, its rates, and its circuit. Included after common.lua.
local MINUTE = 60000
local BURST = 10000 -- ms of a rate that may be used at once: at most 1.17 times the rate in any minute
local FIRST_LIMIT = 4

-- Returns the limit that governs: an operator's; otherwise the lowest that a process has given in the last 30 s.
local function governing(h, name, given, now, key)
  local known, at = tonumber(h[name] or 0), tonumber(h[name .. 'at'] or 0)
  local lower = given > 0 and (known == 0 or given < known)
  if lower or now - at > 30000 or now < at then
    known = given
    redis.call('HSET', key, name, given, name .. 'at', int(now))
  elseif now - at > 10000 and known == given then
    redis.call('HSET', key, name .. 'at', int(now))
  end
  redis.call('EXPIRE', key, WEEK)
  local own = h['o' .. name]
  return own and own ~= '' and tonumber(own) or known
end

local function load(resource)
  local flat, h = redis.call('HGETALL', state(resource)), {}
  for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
  return h
end

-- Returns the number of calls that the upstream is known to take: the configured limit and the learned one.
local function limit_of(h, most, adaptive)
  local limit = most > 0 and most or 1e9
  if adaptive then limit = math.min(limit, tonumber(h.L or (most > 0 and most or FIRST_LIMIT))) end
  return limit
end

-- Returns ms until which nobody calls, 0 if calls are possible. A time that is farther away than when it was set is from
-- before the clock went back.
local function busy_until(h, now)
  local till = tonumber(h.busy or 0)
  return till > now and till - now <= tonumber(h['for'] or 0) and till or 0
end

local function rate_wait(tat, per_minute, amount, now)
  local each = MINUTE / per_minute
  local burst = math.max(BURST, each)
  tat = math.min(math.max(tat, now), now + MINUTE)
  local wait = tat + amount * each - burst - now
  -- One larger than the whole bucket passes when the bucket is full; otherwise it would wait forever.
  if wait <= 0 or (amount * each > burst and tat <= now) then return 0, tat + amount * each end
  return math.ceil(wait)
end
