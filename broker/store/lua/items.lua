-- Appends the items that the log does not have yet. ARGV from `at` on are triples type, ms, data; `first` is the seq of
-- the first one, `n` the last seq of the log. Items that were already appended are skipped, so a lost reply costs nothing.
-- If the log itself is missing, nothing is written and nil is returned: a new log would lack its beginning and never expire.
local function append_items(log, prefix, n, first, at)
  local bytes = 0
  for i = at + 3 * (n + 1 - first), #ARGV, 3 do
    n = n + 1
    bytes = bytes + #ARGV[i + 2]
    if not redis.call('XADD', log, 'NOMKSTREAM', prefix .. n, 't', ARGV[i], 'm', ARGV[i + 1], 'd', ARGV[i + 2]) then return nil end
  end
  return n, bytes
end

-- Returns nil if `own` may write, otherwise the reply that says why not. m: st, own, n, and a, unless the attempt need
-- not have begun: a server that lost the beginning must not get what follows.
local function refusal(m, own, first, a)
  if not m[1] then return {'LOST'} end
  if m[1] == 'deleted' then return {'GONE'} end
  if m[1] == 'completed' or m[1] == 'failed' or m[1] == 'cancelled' then return {'CLOSED', m[1]} end
  if m[2] ~= own then return {'FENCED'} end
  if a and a ~= string.match(own, '^(%d+)') then return {'LOST'} end
  if first > tonumber(m[3]) + 1 then return {'GAP', tonumber(m[3])} end
  return nil
end
