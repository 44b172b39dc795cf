--#include webhook_host
-- Records an attempt to deliver an entry, and schedules the next one.
-- KEYS: the two of webhook_host.lua
-- ARGV: host, generation, event, JSON of the attempt, ms until the next one ('' = none), ms for which the host is not
--       called ('' = it may be called), maximum number of attempts that are kept
-- Returns GONE (the generation was deleted) | OK | OVER (the day of the retries ends before the next attempt)
local host, gid, event = ARGV[1], ARGV[2], ARGV[3]
local entries, body, member = HOSTS .. ':' .. host, BODY .. ':' .. gid, gid .. '.' .. event
redis.call('PEXPIRE', entries, 2 * DAY)
local m = redis.call('HMGET', body, 'ev', 'n', 'log', 'ti')
local now, result = now_ms(), 'OK'
if m[1] ~= event then
  redis.call('ZREM', entries, member)
  result = 'GONE'
else
  local n, log = tonumber(m[2]) + 1, m[3] .. (tonumber(m[2]) + 1) .. ' ' .. ARGV[4] .. '\n'
  if n > tonumber(ARGV[7]) then log = string.sub(log, string.find(log, '\n', 1, true) + 1) end
  redis.call('HSET', body, 'n', n, 'log', log)
  local score = redis.call('ZSCORE', entries, member)
  if ARGV[5] == '' then
    redis.call('ZREM', entries, member)
  elseif score and tonumber(score) > BY_HAND then
    local due = now + tonumber(ARGV[5])
    if due > tonumber(m[4]) then
      redis.call('ZREM', entries, member)
      result = 'OVER'
    else
      redis.call('ZADD', entries, int(due), member)
    end
  end
end
set_host_due(host, ARGV[6] == '' and '' or int(now + tonumber(ARGV[6])))
return result
