-- Shared part of the scripts that deliver webhooks. KEYS of all of them: [1] hosts, [2] base of the bodies. The keys of a
-- host's entries and of a body are derived from these. The base never exists as a key: while a cluster moves the shard,
-- Redis therefore answers TRYAGAIN instead of running such a script on half of its keys.
local HOSTS, BODY = KEYS[1], KEYS[2]
local BY_HAND = 1 -- score of an entry that somebody redelivers: it is sent at once, also to a host that is not called
local DAY, HOUR = 86400000, 3600000

local function int(n) return string.format('%.0f', n) end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Sets when a host must be looked at: when its first entry is due, but not before `closed` (ms, '' = it may be called).
local function set_host_due(host, closed)
  local first = redis.call('ZRANGE', HOSTS .. ':' .. host, 0, 0, 'WITHSCORES')
  if not first[1] then
    redis.call('ZREM', HOSTS, host)
    return
  end
  local due = tonumber(first[2])
  if closed ~= '' and due > BY_HAND then due = math.max(due, tonumber(closed)) end
  redis.call('ZADD', HOSTS, int(due), host)
  redis.call('PEXPIRE', HOSTS, 2 * DAY)
  redis.call('PEXPIRE', HOSTS .. ':' .. host, 2 * DAY)
end
