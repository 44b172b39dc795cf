-- Shared part of the queue's scripts. The queue is on one server, never on a cluster, so names of keys are derived here.
-- A waiting ticket `<generation>.<number>.<tokens>` is in the zset of its lane (the upstreams that serve its model),
-- priority and tenant. It stays there until it can run. In each lane and priority, the zset of turns has the tenants that
-- wait and are not at their limit, by fair tag: each tag is a round in which every tenant has one turn.
local WEEK = 604800
local GRACE = 6000

local function int(n) return string.format('%.0f', n) end
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function waiting(level, tenant) return 'tc:w:' .. level .. ':' .. tenant end
local function turns(level) return 'tc:turn:' .. level end
local function full(tenant) return 'tc:full:' .. tenant end
local function running(tenant) return 'tc:r:' .. tenant end
local function places(resource) return 'tc:ur:' .. resource end
local function begun(resource) return 'tc:ub:' .. resource end
local function state(resource) return 'tc:u:' .. resource end
local function priority_of(level) return string.sub(level, -1) end

local function count(key, field, by)
  if redis.call('HINCRBY', key, field, by) <= 0 then redis.call('HDEL', key, field) end
  redis.call('EXPIRE', key, WEEK)
end

local function ring()
  if redis.call('LLEN', 'tc:bell') < 64 then redis.call('LPUSH', 'tc:bell', '') end
  redis.call('EXPIRE', 'tc:bell', 60)
end

-- Gives a tenant its place in the turns of a level, unless it has one or is at its limit. `back`: its last turn ended
-- without a run, so it is not a round late.
local function add_turn(level, tenant, back)
  if redis.call('SISMEMBER', full(tenant), level) == 1 then return end
  local tags = redis.call('HMGET', 'tc:tag:' .. priority_of(level), tenant, '')
  local tag = math.max(tonumber(tags[1] or 0), tonumber(tags[2] or 0))
  if back then
    tag = tag - 1
    redis.call('HSET', 'tc:tag:' .. priority_of(level), tenant, string.format('%.6f', tag))
    redis.call('EXPIRE', 'tc:tag:' .. priority_of(level), WEEK)
  end
  redis.call('ZADD', turns(level), 'NX', tag, tenant)
  redis.call('EXPIRE', turns(level), WEEK)
end

-- Returns a tenant that was at its limit to all turns that it waits for.
local function readmit(tenant)
  local levels = redis.call('SMEMBERS', full(tenant))
  if #levels == 0 then return end
  redis.call('DEL', full(tenant))
  redis.call('ZREM', 'tc:fullz', tenant)
  for _, level in ipairs(levels) do add_turn(level, tenant, false) end
end

-- Adds a ticket to the waiting ones of its level; returns whether it is new.
local function add_waiting(level, tenant, member, order, now)
  local key = waiting(level, tenant)
  if redis.call('ZADD', key, 'NX', order, member) == 0 then return false end
  redis.call('EXPIRE', key, WEEK)
  if redis.call('HEXISTS', 'tc:depth', level) == 0 then redis.call('HSET', 'tc:at', level, int(now)) end
  redis.call('EXPIRE', 'tc:at', WEEK)
  count('tc:depth', level, 1)
  add_turn(level, tenant, not string.match(member, '%.1%.%d+$'))
  return true
end

-- Removes places that have ended, and those that end later than any lease could: the clock went back.
local function prune(key, now, lease)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now))
  redis.call('ZREMRANGEBYSCORE', key, '(' .. int(now + 2 * lease), '+inf')
end

-- Returns since when the places can be trusted (ms): a server that lost them, or stood still for longer than a lease, or
-- whose clock was set, may count too few. Workers put their places back within five seconds of noticing. `seen`: the
-- time that the caller has seen before; '' if it has just started, and may be the first of all.
local function trusted_since(now, lease, seen)
  local born, tick = redis.call('GET', 'tc:born'), redis.call('GET', 'tc:tick')
  local jumped = seen ~= '' and tick and (now - tick > math.max(lease, 3000) or tick - now > 1000)
  local set_back = born and tonumber(born) > now -- also a caller that has just started must not wait for that time
  if not born or jumped or set_back then
    born = int(seen == '' and not set_back and now - GRACE or now)
    for _, tenant in ipairs(redis.call('ZRANGE', 'tc:fullz', 0, -1)) do redis.call('ZADD', 'tc:fullz', 0, tenant) end
  end
  redis.call('SET', 'tc:born', born, 'EX', WEEK)
  redis.call('SET', 'tc:tick', int(now), 'EX', WEEK)
  return tonumber(born)
end
