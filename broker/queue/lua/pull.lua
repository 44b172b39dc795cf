--#include common
--#include resources
-- Takes the tickets that can run now: with a place at an upstream, within its rates, and a place of the tenant. They
-- move to arq's queue. Nothing else is moved, so a full upstream or tenant costs one look, whatever waits for it.
-- ARGV: most tickets, lease ms, `born` as seen before ('' = never), most running of a tenant (0 = any), JSON of the
--       tenants with others ({tenant: [running, weight]}; '' = none), ms after which a priority is next, then for each
--       upstream of its settings: name, most at once (-1 = it does not call it now), per minute, tokens per minute
--       (0 = any), 1 = learns its limit, weight (0 = in order)
-- Returns tickets, ms until something may change (-1 = unknown), born, and {ticket, tenant, priority} of tickets in lanes
-- that no process serves: they have been removed, and the caller puts them into another lane
local most, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
local tenant_limit, others = tonumber(ARGV[4]), ARGV[5] ~= '' and cjson.decode(ARGV[5]) or {}
local ageing = tonumber(ARGV[6])
local now = now_ms()
local LOOKS = 200

local function weight_of(tenant) return others[tenant] and others[tenant][2] or 1 end

local next_at
local function look_again(at)
  if at > now and (not next_at or at < next_at) then next_at = at end
end

local unused = true
for i = 7, #ARGV, 6 do unused = unused and redis.call('EXISTS', places(ARGV[i])) == 0 end
local born = trusted_since(now, lease, ARGV[3], unused)
if now - born < grace(lease) then return {{}, int(born + grace(lease) - now), int(born), {}} end

local paused, flat = {}, redis.call('HGETALL', PAUSED)
for i = 1, #flat, 2 do paused[flat[i]] = true end
if flat[1] then redis.call('EXPIRE', PAUSED, 30 * 86400) end

-- What was scheduled, and tenants one of whose places has ended.
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', LATER, '-inf', int(now), 'LIMIT', 0, 100)) do
  local lane, p, tenant, order, member = string.match(entry, '^(%S+) (%d) (%S+) (%S+) (%S+)$')
  redis.call('ZREM', LATER, entry)
  if not add_waiting(lane .. ':' .. p, tenant, member, order, now, weight_of(tenant)) then count(COUNTS, tenant, -1) end
end
local first = redis.call('ZRANGE', LATER, 0, 0, 'WITHSCORES')
if first[2] then look_again(math.max(tonumber(first[2]), now + 1)) end
for _, tenant in ipairs(redis.call('ZRANGEBYSCORE', FULL, '-inf', int(now), 'LIMIT', 0, 20)) do readmit(tenant) end
local ends = redis.call('ZRANGE', FULL, 0, 0, 'WITHSCORES')
if ends[2] then look_again(tonumber(ends[2])) end
if paused.all then return {{}, -1, int(born), {}} end

local known, named, used = {}, {}, {}
for i = 7, #ARGV, 6 do
  local max = tonumber(ARGV[i + 1])
  named[ARGV[i]] = true
  if max >= 0 then
    known[ARGV[i]] = {max = max, rpm = tonumber(ARGV[i + 2]), tpm = tonumber(ARGV[i + 3]), adaptive = ARGV[i + 4] == '1',
      weight = tonumber(ARGV[i + 5])}
  end
end

-- Returns an upstream as it is at this call, read once.
local function read(name)
  local u = used[name]
  if u then return u end
  local key, given, h = state(name), known[name], load(name)
  prune(places(name), now, lease)
  u = {name = name, key = key, weight = given.weight, inflight = redis.call('ZCARD', places(name)), closed = false}
  u.max = governing(h, 'max', given.max, now, key)
  u.rpm, u.tpm = governing(h, 'rpm', given.rpm, now, key), governing(h, 'tpm', given.tpm, now, key)
  u.rt, u.tt = tonumber(h.rt or 0), tonumber(h.tt or 0)
  u.requests, u.tokens = told_bucket(h, 'r', now), told_bucket(h, 't', now)
  local busy = busy_until(h, now)
  if h.ramp == '1' and busy <= now then -- after a long wait it begins with what runs, not with what ran before
    h.L = math.max(1, u.inflight)
    redis.call('HSET', key, 'L', h.L, 'ramp', '', 'held', 0)
  end
  u.limit = limit_of(h, u.max, given.adaptive)
  if u.inflight >= u.limit and (u.max == 0 or u.inflight < u.max) then
    -- Long calls use the learned limit up, and none ends that would let it grow: one more is tried from time to time.
    local since = math.min(now, math.max(tonumber(h.cut or 0), tonumber(h.granted or 0)))
    local wait = tonumber(h.need or 2) * 1000
    if now - since >= wait then u.limit = u.inflight + 1 else look_again(since + wait) end
  end
  if paused['u:' .. name] then u.closed = true end
  if busy > now then
    u.closed = true
    look_again(busy)
  end
  if h.circuit == 'open' then
    local at = tonumber(h.since) + tonumber(h.wait)
    if at > now and at <= now + MINUTE + 1000 then
      u.closed = true
      look_again(at)
    elseif h.probe and h.probe ~= '' and tonumber(h.probeat) > now and tonumber(h.probeat) <= now + 2 * lease then
      u.closed = true
      look_again(tonumber(h.probeat))
    else
      u.half, u.probed = true, h.probed
      u.limit = math.min(1 + u.inflight, u.max > 0 and u.max or 1e9)
    end
  end
  used[name] = u
  return u
end

-- Closes an upstream for this call if it has to wait; returns whether it has not.
local function passes(u, wait)
  if wait <= 0 then return true end
  u.closed = true
  look_again(now + wait)
  return false
end

-- Returns whether an upstream has room for another call; the tokens are only known with the ticket.
local function open(u)
  if u.closed or u.inflight >= u.limit then return false end
  if u.rpm > 0 and not passes(u, (rate_wait(u.rt, u.rpm, 1, now))) then return false end
  return not u.requests or passes(u, told_wait(u.requests, 1))
end

-- Returns the upstream of a lane that takes the next call: the first that is open, or by weight.
local function upstream_of(lane)
  local best, share
  for _, name in ipairs(lane) do
    local u = read(name)
    if open(u) then
      if u.weight == 0 then return u end
      local of_this = (u.inflight + 1) / u.weight
      if not best or of_this < share then best, share = u, of_this end
    end
  end
  return best
end

local lanes, depth = {}, {}
local starved = {}
flat = redis.call('HGETALL', DEPTH)
for i = 1, #flat, 2 do
  local level, n = flat[i], tonumber(flat[i + 1])
  local text, p = string.match(level, '^(.*):(%d)$')
  depth[level] = n
  if n > 0 then
    local lane = lanes[text]
    if not lane then
      lane = {levels = {}}
      for name in string.gmatch(text, '[^,]+') do
        if known[name] then lane[#lane + 1] = name end
      end
      lanes[text] = lane
    end
    if lane[1] then
      lane.levels[#lane.levels + 1] = {key = level, p = tonumber(p)}
      local at = tonumber(redis.call('HGET', TIMES, level) or now)
      if at > now then redis.call('HSET', TIMES, level, int(now)) end
      starved[level] = now - at > ageing
    end
  end
end

-- Lanes that were named by settings which no process has any more, or has yet.
local misplaced = {}
for name, given in pairs(known) do
  local at = tonumber(redis.call('HGET', state(name), 'maxat') or 0)
  if now - at > 10000 or at > now then
    governing(load(name), 'max', given.max, now, state(name))
  end
end
local function is_served(text)
  for name in string.gmatch(text, '[^,]+') do
    if named[name] then return true end -- the caller would put its tickets into this lane again
    local at = redis.call('HGET', state(name), 'maxat')
    if at and now - tonumber(at) < MINUTE then return true end
  end
  return false
end
for text, lane in pairs(lanes) do
  if not lane[1] and next(known) and not is_served(text) then
    for p = 1, 5 do
      local level = text .. ':' .. p
      for _, tenant in ipairs(redis.call('ZRANGE', turns(level), 0, 9)) do
        for _, member in ipairs(redis.call('ZRANGE', waiting(level, tenant), 0, 9)) do
          redis.call('ZREM', waiting(level, tenant), member)
          count(DEPTH, level, -1)
          count(COUNTS, tenant, -1)
          misplaced[#misplaced + 1] = {member, tenant, p}
        end
        if redis.call('EXISTS', waiting(level, tenant)) == 0 then redis.call('ZREM', turns(level), tenant) end
      end
    end
  end
end

local heads = {}
local function head(level)
  if heads[level] == nil then
    local found = redis.call('ZRANGE', turns(level), 0, 0, 'WITHSCORES')
    heads[level] = found[1] and {found[1], tonumber(found[2])} or false
  end
  return heads[level]
end

-- Returns the next turn: the lowest priority, then the lowest tag. A priority without a run for long is first.
local function next_turn()
  local best
  for _, lane in pairs(lanes) do
    local u = lane[1] and upstream_of(lane)
    if u then
      for _, level in ipairs(lane.levels) do
        local turn = depth[level.key] > 0 and head(level.key)
        local p = starved[level.key] and 0 or level.p
        if turn and (not best or p < best.p or (p == best.p and turn[2] < best.tag)) then
          best = {level = level.key, p = p, tenant = turn[1], tag = turn[2], u = u}
        end
      end
    end
  end
  return best
end

local function limit_for(tenant)
  local own = others[tenant]
  return own and own[1] or (tenant == 'default' and 0 or tenant_limit)
end

local function is_full(tenant)
  if paused['t:' .. tenant] then return true end
  local limit = limit_for(tenant)
  if limit == 0 then return false end
  prune(running(tenant), now, lease)
  if redis.call('ZCARD', running(tenant)) < limit then return false end
  local till = redis.call('ZRANGE', running(tenant), 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', FULL, till, tenant)
  redis.call('EXPIRE', FULL, WEEK)
  look_again(tonumber(till))
  return true
end

-- Returns the member to run: the oldest, but not a generation that failed the last probe while there is another.
local function member_of(turn)
  local found = redis.call('ZRANGE', waiting(turn.level, turn.tenant), 0, turn.u.half and 1 or 0)
  if found[2] and string.match(found[1], '^[^.]+') == turn.u.probed then return found[2] end
  return found[1]
end

local function grant(turn, member)
  local u, tenant, level = turn.u, turn.tenant, turn.level
  local gid, number, tokens = string.match(member, '^([^.]+)%.(%d+)%.(%d+)$')
  local rt, tt = u.rt, u.tt
  if u.tokens and not passes(u, told_wait(u.tokens, tonumber(tokens))) then return nil end
  if u.tpm > 0 then
    local wait, after = rate_wait(u.tt, u.tpm, tonumber(tokens), now)
    if not passes(u, wait) then return nil end
    u.tt = after
  end
  if u.rpm > 0 then
    local _, after = rate_wait(u.rt, u.rpm, 1, now)
    u.rt = after
  end
  if rt ~= u.rt or tt ~= u.tt then
    redis.call('HSET', u.key, 'rt', string.format('%.3f', u.rt), 'tt', string.format('%.3f', u.tt))
  end
  if u.requests then take_told(u.key, u.requests, 1, now) end
  if u.tokens then take_told(u.key, u.tokens, tonumber(tokens), now) end
  local till = int(now + lease)
  if u.half then
    redis.call('HSET', u.key, 'probe', gid, 'probeat', int(now + math.min(lease, 30000)))
    u.closed = true
  end
  redis.call('HSET', u.key, 'granted', int(now))
  redis.call('EXPIRE', u.key, WEEK)
  redis.call('ZREM', waiting(level, tenant), member)
  local added = redis.call('ZADD', places(u.name), till, gid)
  redis.call('EXPIRE', places(u.name), WEEK)
  u.inflight = u.inflight + added
  if limit_for(tenant) > 0 then
    redis.call('ZADD', running(tenant), till, gid)
    redis.call('EXPIRE', running(tenant), WEEK)
  end
  local ticket = granted_name(gid, number)
  local p = priority_of(level)
  redis.call('SET', job_of(ticket), cjson.encode({t = cjson.null, f = 'generate', k = {}, et = now,
    a = {gid, tenant, u.name, string.sub(level, 1, -3), tonumber(p), tonumber(tokens), added == 1}}), 'PX', 7200000)
  redis.call('ZADD', READY, 1, ticket)
  redis.call('EXPIRE', READY, WEEK)
  count(DEPTH, level, -1)
  count(COUNTS, tenant, -1)
  depth[level] = depth[level] - 1
  redis.call('HSET', TIMES, level, int(now))
  starved[level] = false
  local tag = turn.tag + 1 / weight_of(tenant)
  redis.call('HSET', tags(p), tenant, string.format('%.6f', tag), '', string.format('%.6f', turn.tag))
  redis.call('EXPIRE', tags(p), WEEK)
  if redis.call('EXISTS', waiting(level, tenant)) == 1 then
    redis.call('ZADD', turns(level), tag, tenant)
  else
    redis.call('ZREM', turns(level), tenant)
  end
  return ticket
end

local tickets, looks = {}, 0
while #tickets < most and looks < LOOKS do
  looks = looks + 1
  local turn = next_turn()
  if not turn then break end
  local newest = tonumber(redis.call('HGET', tags(priority_of(turn.level)), turn.tenant) or 0)
  if newest > turn.tag then -- it was served in another lane
    redis.call('ZADD', turns(turn.level), newest, turn.tenant)
    heads[turn.level] = nil
  elseif is_full(turn.tenant) then
    redis.call('ZREM', turns(turn.level), turn.tenant)
    redis.call('SADD', full(turn.tenant), turn.level)
    redis.call('EXPIRE', full(turn.tenant), WEEK)
    heads[turn.level] = nil
  else
    local member = member_of(turn)
    if not member then
      redis.call('ZREM', turns(turn.level), turn.tenant)
      heads[turn.level] = nil
    else
      local ticket = grant(turn, member)
      if ticket then
        tickets[#tickets + 1] = ticket
        heads[turn.level] = nil
      end
    end
  end
end
return {tickets, next_at and int(next_at - now) or -1, int(born), misplaced}
