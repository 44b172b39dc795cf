--#include webhook_host
-- Leases due entries of a host: for that time no other process takes them. A process that dies delivers nothing, and the
-- entries are due again.
-- KEYS: the two of webhook_host.lua   ARGV: host, maximum number of entries, lease ms, ms for which the host is not called
--       ('' = it may be called): then only entries that are redelivered by hand
-- Returns of each entry: generation, event, URL, ended ms, summary, long metadata and usage ('' = as in the summary),
-- number of earlier attempts, tenant
local host, entries = ARGV[1], HOSTS .. ':' .. ARGV[1]
redis.call('PEXPIRE', entries, 2 * DAY)
local now, taken = now_ms(), {}
local latest = ARGV[4] == '' and now or BY_HAND
for _, member in ipairs(redis.call('ZRANGEBYSCORE', entries, '-inf', int(latest), 'LIMIT', 0, ARGV[2])) do
  local gid, event = string.match(member, '^(.*)%.(%a+)$')
  local m = redis.call('HMGET', BODY .. ':' .. gid, 'ev', 'url', 'at', 'd', 'mt', 'us', 'n', 'tn')
  if m[1] == event then
    redis.call('ZADD', entries, int(now + tonumber(ARGV[3])), member)
    taken[#taken + 1] = {gid, event, m[2], m[3], m[4], m[5], m[6], m[7], m[8] or ''}
  else -- expired, or replaced after Redis lost the ending
    redis.call('ZREM', entries, member)
  end
end
set_host_due(host, ARGV[4] == '' and '' or int(now + tonumber(ARGV[4])))
return taken
