-- Appends the items that the log does not have yet. ARGV from `at` on are triples type, ms, data; the first
-- one's seq is `first`, the log's last is `n`. A resent item is skipped, so a lost reply costs nothing. Nothing is
-- written, and nil returned, where the log itself is gone: made anew it would begin in the middle and never expire.
local function append_items(log, prefix, n, first, at)
  local bytes = 0
  for i = at + 3 * (n + 1 - first), #ARGV, 3 do
    n = n + 1
    bytes = bytes + #ARGV[i + 2]
    if not redis.call('XADD', log, 'NOMKSTREAM', prefix .. n, 't', ARGV[i], 'm', ARGV[i + 1], 'd', ARGV[i + 2]) then return nil end
  end
  return n, bytes
end

-- Whether `own` may write: nil, or the reply that says why not.
local function refusal(m, own, first)
  if not m[1] then return {'LOST'} end
  if m[1] == 'deleted' then return {'GONE'} end
  if m[1] == 'completed' or m[1] == 'failed' or m[1] == 'cancelled' then return {'CLOSED', m[1]} end
  if m[2] ~= own then return {'FENCED'} end
  if first > tonumber(m[3]) + 1 then return {'GAP', tonumber(m[3])} end
  return nil
end
