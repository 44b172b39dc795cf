-- Looks at waiting generations of one shard whose time in `live` has come: their tickets may be missing. Each is due again
-- at its deadline, or in ten minutes. Others stay due, for reap.lua: owned ones, those whose waiting has ended, whose log is
-- missing, or whose lifetime has to be extended.
-- KEYS: [1] live, then for each generation: meta, log   ARGV: generations
-- Returns for each one that waits {generation, tenant, ticket, then the fields that its ticket needs}
local LOOK, DAY = 600000, 86400000
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(n) return string.format('%.0f', n) end
-- The first write of a script that must succeed above maxmemory.
redis.call('PEXPIRE', KEYS[1], 8 * DAY)
local found = {}
for i, gid in ipairs(ARGV) do
  local meta, log = KEYS[2 * i], KEYS[2 * i + 1]
  local m = redis.call('HMGET', meta, 'st', 'own', 'qd', 'xa', 'tn', 'tk', 'md', 'ln', 'pr', 'es', 'ca', 'ra', 'nt')
  local deadline = tonumber(m[3] or '')
  local waits = m[1] == 'queued' and m[2] == '' and not (deadline and deadline <= now)
  if waits and tonumber(m[4] or 0) > now + 5 * DAY and redis.call('EXISTS', log) == 1 then
    local at = redis.call('ZSCORE', KEYS[1], gid)
    if at and tonumber(at) <= now then
      redis.call('ZADD', KEYS[1], int(math.min(deadline or now + LOOK, now + LOOK)), gid)
      found[#found + 1] = {gid, m[5], m[6], m[7], m[8], m[9], m[10], m[11], m[12], m[13]}
    end
  end
end
return found
