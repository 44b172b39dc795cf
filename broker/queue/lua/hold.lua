--#include common
-- Renews the places of a worker's calls by a lease from now, and recreates lost ones.
-- ARGV: lease ms, `born` as seen before, then for each call: generation, upstream ('' = between two calls), tenant ('' = not
--       limited), 1 = accepted
-- Returns born
local lease, now = tonumber(ARGV[1]), now_ms()
local born = trusted_since(now, lease, ARGV[2])
local till = int(now + lease)
for i = 3, #ARGV, 4 do
  local gid, resource, tenant = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if resource ~= '' then
    redis.call('ZADD', places(resource), till, gid)
    redis.call('EXPIRE', places(resource), WEEK)
  end
  if resource ~= '' and ARGV[i + 3] == '1' then
    redis.call('SADD', begun(resource), gid)
    redis.call('EXPIRE', begun(resource), 86400)
  end
  if tenant ~= '' then
    redis.call('ZADD', running(tenant), till, gid)
    redis.call('EXPIRE', running(tenant), WEEK)
  end
end
return int(born)
