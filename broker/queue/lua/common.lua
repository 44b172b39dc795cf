-- Shared part of the queue's scripts. The queue is on one server, never on a cluster, so names of keys are derived here.
-- A waiting ticket `<generation>.<number>.<tokens>` is in the zset of its lane (the upstreams that serve its model),
-- priority and tenant. It stays there until it can run. In each lane and priority, the zset of turns has the tenants that
-- wait and are not at their limit, by fair tag: each tag is a round in which every tenant has one turn.
local WEEK = 604800

local function int(n) return string.format('%.0f', n) end
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local DEPTH, COUNTS, TIMES, LATER, FULL = 'tc:depth', 'tc:qn', 'tc:at', 'tc:later', 'tc:fullz'
local BELL, BORN, TICK, PAUSED, READY, WORKERS = 'tc:bell', 'tc:born', 'tc:tick', 'tc:paused', 'tc:ready', 'tc:workers'

local function waiting(level, tenant) return 'tc:wait:' .. level .. ':' .. tenant end
local function turns(level) return 'tc:turn:' .. level end
local function full(tenant) return 'tc:full:' .. tenant end
local function running(tenant) return 'tc:r:' .. tenant end
local function places(resource) return 'tc:ur:' .. resource end
local function begun(resource) return 'tc:ub:' .. resource end
local function state(resource) return 'tc:u:' .. resource end
local function tags(priority) return 'tc:tag:' .. priority end
local function failures(resource) return 'tc:fg:' .. resource end
local function reservations(tenant) return 'tc:q:' .. tenant end
local function job_of(ticket) return 'arq:job:' .. ticket end
-- Name of a ticket for arq. 0.1.0 used `<generation>.<number>`: with another name the workers of both versions can have a
-- ticket of the same generation, without sharing arq's keys of it.
local function granted_name(gid, number) return gid .. '.r' .. number end
local function starting_of(ticket) return 'arq:in-progress:' .. ticket end -- a worker has it; it may have called already
local function priority_of(level) return string.sub(level, -1) end

local function count(key, field, by)
  if redis.call('HINCRBY', key, field, by) <= 0 then redis.call('HDEL', key, field) end
  redis.call('EXPIRE', key, WEEK)
end

local function ring()
  if redis.call('LLEN', BELL) < 64 then redis.call('LPUSH', BELL, '') end
  redis.call('EXPIRE', BELL, 60)
end

-- Gives a tenant its place in the turns of a level, unless it has one or is at its limit. `back`: what its last turn cost
-- that ended without a run, 0 if there is none.
local function add_turn(level, tenant, back)
  if redis.call('SISMEMBER', full(tenant), level) == 1 then return end
  local known = redis.call('HMGET', tags(priority_of(level)), tenant, '')
  local tag = math.max(tonumber(known[1] or 0), tonumber(known[2] or 0))
  if back > 0 then
    tag = tag - back
    redis.call('HSET', tags(priority_of(level)), tenant, string.format('%.6f', tag))
    redis.call('EXPIRE', tags(priority_of(level)), WEEK)
  end
  redis.call('ZADD', turns(level), back > 0 and 'LT' or 'NX', tag, tenant)
  redis.call('EXPIRE', turns(level), WEEK)
end

-- Returns a tenant that was at its limit to all turns that it waits for.
local function readmit(tenant)
  local levels = redis.call('SMEMBERS', full(tenant))
  if #levels == 0 then return end
  redis.call('DEL', full(tenant))
  redis.call('ZREM', FULL, tenant)
  for _, level in ipairs(levels) do add_turn(level, tenant, 0) end
end

-- Adds a ticket to the waiting ones of its level; returns whether it is new. `weight`: that of the tenant, whose turns cost
-- the less the higher it is.
local function add_waiting(level, tenant, member, order, now, weight)
  local key = waiting(level, tenant)
  if redis.call('ZADD', key, 'NX', order, member) == 0 then return false end
  redis.call('EXPIRE', key, WEEK)
  if redis.call('HEXISTS', DEPTH, level) == 0 then redis.call('HSET', TIMES, level, int(now)) end
  redis.call('EXPIRE', TIMES, WEEK)
  count(DEPTH, level, 1)
  add_turn(level, tenant, string.match(member, '%.1%.%d+$') and 0 or 1 / weight)
  return true
end

-- Removes places that have ended, and those that end later than any lease could: the clock went back.
local function prune(key, now, lease)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now))
  redis.call('ZREMRANGEBYSCORE', key, '(' .. int(now + 2 * lease), '+inf')
end

-- ms within which workers put their places back: they renew them three times in a lease.
local function grace(lease) return math.floor(lease / 3) + 1000 end

-- Returns since when the places can be trusted (ms). They may be too few after the server lost them, or stood still until
-- places ended that were due to be renewed, or its clock was set. `seen`: the time that the caller has seen before; ''
-- if it has just started. After a loss nothing tells such a caller that others have calls; the next one that has seen
-- another time does. `unused`: no place is left, not even one that has ended: nobody has calls, if that was settled.
local function trusted_since(now, lease, seen, unused)
  local born, tick = tonumber(redis.call('GET', BORN) or ''), tonumber(redis.call('GET', TICK) or '')
  local jumped = tick and (now - tick > math.max(lease / 2, 3000) or tick - now > 1000)
  local settled = born and tick and tick - born >= grace(lease)
  local alone = seen == '' and (not born or unused and settled)
  local missed = born and seen ~= '' and tonumber(seen) ~= born and now - born >= grace(lease)
  if not born or jumped or missed then
    born = alone and now - grace(lease) or now
    for _, tenant in ipairs(redis.call('ZRANGE', FULL, 0, -1)) do redis.call('ZADD', FULL, 0, tenant) end
  end
  redis.call('SET', BORN, int(born), 'EX', WEEK)
  redis.call('SET', TICK, int(now), 'EX', WEEK)
  return born
end
