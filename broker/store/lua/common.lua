-- What the lifecycle scripts share. All of them take the same first keys, all of one shard:
--   KEYS[1] meta hash   KEYS[2] log   KEYS[3] live zset   KEYS[4] base of the index zsets   KEYS[5] activity stream
-- and ARGV[1] is the generation's id. Numbers above 1e14 go through int(): Lua's own `..` prints 14 digits.
local META, LOG, LIVE, INDEX, ACTIVITY = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GID = ARGV[1]
local HOUR, DAY = 3600000, 86400000
-- For this time a generation that has not ended is kept without a renewal: all processes may stand still for longer
-- than a weekend.
local KEPT = 7 * DAY
local TERMINAL = {completed = true, failed = true, cancelled = true}

local function int(n) return string.format('%.0f', n) end

-- The key that another generation of the shard has where this one has `key`.
local function beside(key, gid) return string.sub(key, 1, -#GID - 1) .. gid end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- An attempt id above every earlier one. The clock keeps it above those a failover forgot, the random bits
-- keep two claimants of one forgotten attempt apart: a bare counter and a bare clock both mixed two texts.
local function fresh_attempt(now, previous, random)
  return int(math.max(now * 1024 + tonumber(random), tonumber(previous) + 1))
end

-- Log, tombstone and idempotency record go together. A script that begins with this may write even above maxmemory
-- (reproduced on Redis 7.0 and Valkey 9.1), so only those may that make room or keep what is there.
local function expire(xa)
  redis.call('PEXPIREAT', LOG, int(xa))
  redis.call('PEXPIREAT', META, int(xa + HOUR))
  -- Not among the KEYS of all scripts. While the slot moves to another server of a cluster it may have left already,
  -- and Redis refuses it: the next renewal, long before its two hours are over, finds it.
  local record = redis.call('HGET', META, 'ik')
  if record and record ~= '' then redis.pcall('PEXPIREAT', record, int(xa)) end
end

-- For whatever lives; renewed with the lease, which must not run out because Redis is full.
local function expire_live(now)
  local xa = now + KEPT
  expire(xa)
  redis.call('HSET', META, 'xa', int(xa))
end

local function due(at)
  redis.call('ZADD', LIVE, int(at), GID)
  redis.call('PEXPIRE', LIVE, KEPT + DAY)
end

local function text(value) return cjson.encode(value or '') end
local function seconds(ms) return ms and ms ~= '' and string.format('%.3f', tonumber(ms) / 1000) or 'null' end
local function json(value) return value and value ~= '' and value or 'null' end

-- What callers and upstreams write is told to every watcher, and kept 2,000 times in each shard. What is longer than
-- this is left to those who read the generation itself.
local function brief(value, most, instead)
  if value and #value > most then return instead end
  return json(value)
end
local function brief_error(value)
  local code = value and string.match(value, '"code":"([%w_]+)"')
  return brief(value, 4096, '{"message":"Too long to be told here; the generation has all of it.","type":"server_error","code":'
    .. (code and text(code) or 'null') .. '}')
end

-- The generation without its text, as the list and /v1/activity show it.
local function summary()
  local m = redis.call('HMGET', META, 'st', 'md', 'ca', 'sa', 'fa', 'ea', 'k', 'a', 'n', 'us', 'er', 'mt')
  return '{"id":' .. text(GID) .. ',"object":"generation","status":' .. text(m[1]) .. ',"model":' .. text(m[2])
    .. ',"created_at":' .. seconds(m[3]) .. ',"started_at":' .. seconds(m[4]) .. ',"first_token_at":' .. seconds(m[5])
    .. ',"ended_at":' .. seconds(m[6]) .. ',"attempt":' .. (m[7] or '0') .. ',"cursor":' .. text((m[8] or '0') .. '-' .. (m[9] or '0'))
    .. ',"usage":' .. brief(m[10], 2048, 'null') .. ',"error":' .. brief_error(m[11]) .. ',"metadata":' .. brief(m[12], 2048, '{}') .. '}'
end

local function announce(tenant, event)
  redis.call('XADD', ACTIVITY, 'MAXLEN', '~', 2000, '*', 'tn', tenant, 'g', GID, 'e', event, 'd', summary())
  redis.call('PEXPIRE', ACTIVITY, DAY)
end

-- Moves the generation from one status to the next in the indexes, and tells who listens.
local function transition(from, to, event)
  local m = redis.call('HMGET', META, 'tn', 'ca')
  local tenant = INDEX .. ':' .. m[1]
  if from then redis.call('ZREM', tenant .. ':' .. from, GID) end
  redis.call('ZADD', tenant, m[2], GID)
  redis.call('PEXPIRE', tenant, 32 * DAY)
  redis.call('ZADD', tenant .. ':' .. to, m[2], GID)
  redis.call('PEXPIRE', tenant .. ':' .. to, 32 * DAY)
  announce(m[1], event)
end

-- First write of every ending, which must be possible above maxmemory too.
local function expire_ended(now)
  local xa = now + tonumber(redis.call('HGET', META, 'ttl'))
  expire(xa)
  return int(xa)
end

-- An ending by somebody who does not own the attempt (cancel, the reaper): its event gets an attempt id of its
-- own, so that it can never collide with what the owner wrote. At `<a>-<n+1>` a rollback made readers hang. A log that
-- is missing stays so (then the generation can be read no more): one made here would lack its beginning and a lifetime.
local function end_from_outside(now, random, status, type, data, usage, err)
  local m = redis.call('HMGET', META, 'a', 'st')
  local attempt = fresh_attempt(now, m[1], random)
  local xa = expire_ended(now)
  redis.call('XADD', LOG, 'NOMKSTREAM', attempt .. '-0', 't', type, 'm', 0, 'd', data)
  redis.call('HSET', META, 'st', status, 'own', '', 'a', attempt, 'n', 0, 'le', 0, 'ea', int(now), 'xa', xa, 'us', usage, 'er', err)
  redis.call('ZREM', LIVE, GID)
  transition(m[2], status, status)
end

-- What the tokens so far cost, counted: nobody who ends a generation from outside knows better.
local function counted_usage()
  local m = redis.call('HMGET', META, 'pt', 'ct')
  local prompt, completion = tonumber(m[1] or 0), tonumber(m[2] or 0)
  return string.format('{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"estimated":true}', prompt, completion, prompt + completion)
end

-- Ends a generation that was started too often; `x` is the budget it has used.
local function end_exhausted(now, random, x)
  local err = '{"message":"The generation was lost ' .. x .. ' times with the worker that ran it.","type":"server_error","code":"attempts_exhausted"}'
  end_from_outside(now, random, 'failed', 'f', '{"error":' .. err .. '}', counted_usage(), err)
  redis.call('HSET', META, 'x', x)
end
