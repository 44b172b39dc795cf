-- Secondary indexes and groups; part of common.lua, with its KEYS. A generation is listed by its model, its group and each
-- pair of its metadata, and once it has failed by its error code, so that a filter reads no tenant's whole history. Their
-- names contain digests: two values with the same one share an index, and readers check each row anyway.
local function digest(value) return string.sub(redis.sha1hex(value), 1, 16) end

-- Returns the hash of a group: status → generations, `pt`, `ct` → sums of tokens, `first` creation and `last` end in ms.
local function group_of(tenant, name) return string.sub(INDEX, 1, -2) .. 'g:' .. digest(tenant .. '\0' .. name) end

-- Returns the secondary indexes of a generation; `m`: tn, md, gr, mt, st and er of its meta.
local function secondary(m)
  local base, found = INDEX .. ':' .. m[1], {}
  found[1] = base .. ':m:' .. digest(m[2])
  if m[3] and m[3] ~= '' then found[2] = group_of(m[1], m[3]) .. ':i' end
  if m[4] and #m[4] > 2 then
    for key, value in pairs(cjson.decode(m[4])) do
      found[#found + 1] = base .. ':k:' .. digest(key .. '\0' .. value)
    end
  end
  local code = m[5] == 'failed' and string.match(m[6] or '', '"code":%s*"([^"\\]+)"')
  if code then found[#found + 1] = base .. ':c:' .. digest(code) end
  return found
end

-- As `secondary`; none if only a tombstone is left.
local function secondary_of(meta)
  local m = redis.call('HMGET', meta, 'tn', 'md', 'gr', 'mt', 'st', 'er')
  return m[2] and secondary(m) or {}
end

-- Counts a transition in the group. The counts include generations that have expired; only a deletion lowers them.
local function count(tenant, name, from, to)
  local key, m = group_of(tenant, name), redis.call('HMGET', META, 'ca', 'ea', 'us')
  if from ~= to then
    if from then redis.call('HINCRBY', key, from, -1) end
    if to then redis.call('HINCRBY', key, to, 1) end
  end
  local known = redis.call('HMGET', key, 'first', 'last')
  if not known[1] or tonumber(m[1]) < tonumber(known[1]) then redis.call('HSET', key, 'first', m[1]) end
  local at = TERMINAL[to] and tonumber(m[2]) or not (to or TERMINAL[from]) and now_ms()
  if at and at > tonumber(known[2] or 0) then redis.call('HSET', key, 'last', int(at)) end
  for field, total in pairs({pt = 'prompt_tokens', ct = 'completion_tokens'}) do
    local tokens = TERMINAL[to] and string.match(m[3] or '', '"' .. total .. '":%s*(%d+)')
    if tokens and #tokens < 13 then redis.call('HINCRBY', key, field, tokens) end
  end
  redis.call('PEXPIRE', key, 32 * DAY)
end

local listed = {} -- the secondary indexes that `list_and_count` has changed

-- Lists a generation that is new or has ended, and counts each transition. An index with no other member ends with its
-- generation: values such as an order number occur once, and their indexes would be kept for 32 days.
local function list_and_count(created, from, to)
  local m, ended = redis.call('HMGET', META, 'tn', 'md', 'gr', 'mt', 'st', 'er', 'ttl'), TERMINAL[to]
  listed = (ended or not from) and secondary(m) or listed
  for _, key in ipairs(listed) do
    redis.call('ZADD', key, created, GID)
    local alone = ended and redis.call('ZCARD', key) == 1
    redis.call('PEXPIRE', key, alone and int(tonumber(m[7]) + HOUR) or 32 * DAY)
  end
  if m[3] and m[3] ~= '' then count(m[1], m[3], from, to) end
end
