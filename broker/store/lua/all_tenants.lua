-- The indexes over all tenants, for operators: as those of a tenant, under a name that no tenant can have. Part of common.lua,
-- with its KEYS.
local function all_tenants() return INDEX .. ':*' end

-- Moves the generation from one status to the next in them. A claim leaves the index of all statuses as it is.
local function list_among_all(created, from, to)
  local all = all_tenants()
  if from then redis.call('ZREM', all .. ':' .. from, GID) end
  for _, index in ipairs({all .. ':' .. to, from ~= 'queued' and all or nil}) do
    redis.call('ZADD', index, created, GID)
    redis.call('PEXPIRE', index, 32 * DAY)
  end
end
