--#include common
-- Ends pauses, and returns paused tenants to their turns.
-- ARGV: `all`, `u:<upstream>` or `t:<tenant>`, …
-- Returns the number of pauses that ended
local ended = redis.call('HDEL', PAUSED, unpack(ARGV))
for _, name in ipairs(ARGV) do
  local tenant = string.match(name, '^t:(.*)$')
  if tenant then readmit(tenant) end
end
ring()
return ended
