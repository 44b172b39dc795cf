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

-- The limits that an upstream tells in the headers of its responses, by kind: `r` requests, `t` tokens. Each is a bucket
-- that mirrors the upstream's own, next to the configured rate: fields <kind>.limit units, of which .left were there
-- at .at, and which all come back within .window ms; .told = ms of the last response that told it, .longest = when the
-- window was last as long.
local KNOWN = 300000 -- ms after which a limit that is no longer told is forgotten
local SETTLED = 120000 -- ms for which the longest window counts: at the end of a fixed window, the rest looks like a short one
local LONGEST_HOLD = 300000 -- ms; a limit per hour or day may come back evenly, so a call tries it after a minute

-- Returns the bucket as it is now; nil if none was told lately.
local function told_bucket(h, kind, now)
  local limit, told = tonumber(h[kind .. '.limit'] or ''), tonumber(h[kind .. '.told'] or 0)
  if not limit or now - told > KNOWN or told - now > 1000 then return nil end
  local window, since = tonumber(h[kind .. '.window']), math.max(0, now - tonumber(h[kind .. '.at']))
  local left = math.min(limit, tonumber(h[kind .. '.left']) + since * limit / window)
  return {kind = kind, limit = limit, window = window, left = left}
end

-- Returns ms until a bucket has an amount. Of requests one is left over: then the upstream tells that nothing remains only
-- if others use its limit too, or if it does not come back evenly.
local function told_wait(bucket, amount)
  local need = math.min(amount, bucket.limit)
  if bucket.kind == 'r' and bucket.limit >= 10 then need = need + 1 end
  return need <= bucket.left and 0 or math.ceil((need - bucket.left) * bucket.window / bucket.limit)
end

local function take_told(key, bucket, amount, now)
  bucket.left = bucket.left - math.min(amount, bucket.limit)
  redis.call('HSET', key, bucket.kind .. '.left', string.format('%.3f', bucket.left), bucket.kind .. '.at', int(now))
end

-- Returns the bucket after a response that told it. What remains at the upstream corrects it in both directions. `ahead`:
-- units of calls under way, which the upstream may not have counted.
local function corrected(known, limit, window, remaining, ahead)
  local most = math.min(remaining or limit, limit)
  local least = math.max(0, most - ahead)
  local left = known and math.min(known.left, limit) or least
  if remaining then left = math.max(least, math.min(left, most)) end
  return {limit = limit, window = window, left = left}
end

-- Records what a response told about one kind of units. ARGV from `first`: limit, remaining, ms until the reset, ms of the
-- window ('' = not told). `configured`: units a minute, for a response that tells no limit.
local function note_told(resource, h, kind, now, first, ahead, configured)
  local limit, remaining = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  local window, key, known = tonumber(ARGV[first + 3]), state(resource), told_bucket(h, kind, now)
  if not limit and not remaining then return end
  limit = limit or known and known.limit or configured > 0 and configured
  if not limit then return end
  local longest = tonumber(h[kind .. '.longest'] or 0)
  if window and not (known and window < known.window and now - longest <= SETTLED) then
    redis.call('HSET', key, kind .. '.longest', int(now))
  else
    window = known and known.window or window or MINUTE
  end
  local bucket = corrected(known, limit, window, remaining, ahead)
  redis.call('HSET', key, kind .. '.limit', limit, kind .. '.window', int(bucket.window), kind .. '.told', int(now),
    kind .. '.left', string.format('%.3f', bucket.left), kind .. '.at', int(now))
end

-- If nothing remains, nobody calls until the reset.
local function hold_until_reset(resource, h, now, first)
  local remaining, reset = tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  if remaining ~= 0 or not reset or reset <= 0 then return end
  local till = now + (reset <= LONGEST_HOLD and reset or MINUTE)
  if till <= busy_until(h, now) then return end
  h.busy, h['for'] = till, till - now
  redis.call('HSET', state(resource), 'busy', int(till), 'for', int(till - now))
end

-- Records what the headers of a response told: ARGV from `first` for requests, and after them for tokens. `tokens`: what a
-- call reserves. `holds`: nothing else tells when to call again.
local function note_headers(resource, h, now, first, tokens, holds)
  local others = math.max(0, redis.call('ZCARD', places(resource)) - redis.call('SCARD', begun(resource)))
  note_told(resource, h, 'r', now, first, others, tonumber(h.orpm or '') or tonumber(h.rpm or 0))
  note_told(resource, h, 't', now, first + 4, others * tokens, tonumber(h.otpm or '') or tonumber(h.tpm or 0))
  if holds then
    hold_until_reset(resource, h, now, first)
    hold_until_reset(resource, h, now, first + 4)
  end
end
