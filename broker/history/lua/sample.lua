-- Records how much waits, if that is the most in the current minute by Redis's clock: in all, for each upstream, and
-- for each tenant.
-- KEYS: [1] base of all hashes [2] depth by level [3] scheduled tickets [4] tickets by tenant
-- ARGV: seconds to live, the name that stands for all tenants
-- Returns OK
local minute = math.floor(redis.call('TIME')[1] / 60)

local function raise(tenant, field, count)
  if count <= 0 then return end
  local key = KEYS[1] .. ':' .. tenant .. ':' .. minute
  if count > tonumber(redis.call('HGET', key, field) or 0) then
    redis.call('HSET', key, field, count)
    redis.call('EXPIRE', key, ARGV[1])
  end
end

local all, by_upstream = redis.call('ZCARD', KEYS[3]), {}
local levels = redis.call('HGETALL', KEYS[2])
for at = 1, #levels, 2 do
  local count = tonumber(levels[at + 1])
  all = all + count
  for upstream in string.gmatch(string.match(levels[at], '^(.*):'), '[^,]+') do
    by_upstream[upstream] = (by_upstream[upstream] or 0) + count
  end
end
raise(ARGV[2], 'q', all)
for upstream, count in pairs(by_upstream) do raise(ARGV[2], 'q:' .. upstream, count) end
local tenants = redis.call('HGETALL', KEYS[4])
for at = 1, #tenants, 2 do raise(tenants[at], 'q', tonumber(tenants[at + 1])) end
return 'OK'
