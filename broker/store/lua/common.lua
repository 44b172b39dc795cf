-- Shared part of the lifecycle scripts. All of them have the same first keys, all of one shard:
--   KEYS[1] meta hash   KEYS[2] log   KEYS[3] live zset   KEYS[4] base of the index zsets   KEYS[5] activity stream
-- and ARGV[1] is the generation's id. Numbers above 1e14 are formatted by int(): Lua's own `..` prints 14 digits.
local META, LOG, LIVE, INDEX, ACTIVITY = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GID = ARGV[1]
local HOUR, DAY = 3600000, 86400000
-- Lifetime of a generation that has not ended, without a renewal: all processes may be down for longer than a
-- weekend.
local KEPT = 7 * DAY
local TERMINAL = {completed = true, failed = true, cancelled = true}

local function int(n) return string.format('%.0f', n) end

-- Returns the key of another generation of the shard that corresponds to this one's `key`.
local function beside(key, gid) return string.sub(key, 1, -#GID - 1) .. gid end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Returns an attempt id above every earlier one. The clock keeps it above ids that a failover lost, the random bits
-- keep two claimants of one lost attempt apart: with a bare counter and with a bare clock two texts were mixed.
local function fresh_attempt(now, previous, random)
  return int(math.max(now * 1024 + tonumber(random), tonumber(previous) + 1))
end

-- Returns the ms since an attempt began; before the first attempt, whose id is 0, those since the creation.
local function since(now, attempt, created)
  local began = attempt == '0' and tonumber(created) or math.floor(tonumber(attempt) / 1024)
  return int(math.max(0, now - began))
end

-- Returns the newest attempt id: that of the log, or that of a claim whose attempt has not begun.
local function newest_attempt(begun, claimed)
  return claimed and claimed ~= '' and tonumber(claimed) > tonumber(begun) and claimed or begun
end

-- Log, tombstone and idempotency record expire together. A script that begins with this may write even above maxmemory
-- (reproduced on Redis 7.0 and Valkey 9.1), so only scripts that free memory or keep existing data may do so.
local function expire(xa)
  redis.call('PEXPIREAT', LOG, int(xa))
  redis.call('PEXPIREAT', META, int(xa + HOUR))
  -- Not among the KEYS of all scripts. While the slot is migrated to another server of a cluster it may have moved
  -- already, and Redis rejects the command: the next renewal, long before its two hours are over, reaches it.
  local record = redis.call('HGET', META, 'ik')
  if record and record ~= '' then redis.pcall('PEXPIREAT', record, int(xa)) end
end

-- For generations that have not ended; renewed with the lease, which must not run out because Redis is full.
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
local function text_or_null(value) return value and value ~= '' and cjson.encode(value) or 'null' end
local function seconds(ms) return ms and ms ~= '' and string.format('%.3f', tonumber(ms) / 1000) or 'null' end
local function json(value) return value and value ~= '' and value or 'null' end

-- Texts of callers and upstreams are sent to every subscriber of the activity, and kept 2,000 times in each shard. Longer
-- ones are omitted there; they can be read from the generation itself.
local function brief(value, most, instead)
  if value and #value > most then return instead end
  return json(value)
end
local function brief_error(value)
  local code = value and string.match(value, '"code":"([%w_]+)"')
  return brief(value, 4096, '{"message":"Too long to be shown here; read the generation for the full error.","type":"server_error","code":'
    .. (code and text(code) or 'null') .. '}')
end

-- Returns the upstreams of a lane, which names them percent-encoded.
local function upstreams(lane)
  local found = {}
  for name in string.gmatch(lane or '', '[^,]+') do
    found[#found + 1] = text((string.gsub(name, '%%(%x%x)', function(code) return string.char(tonumber(code, 16)) end)))
  end
  return '[' .. table.concat(found, ',') .. ']'
end

-- Returns the generation without its text, as the list and /v1/activity show it; `named`: with the first line of its prompt.
local function summary(named)
  local m = redis.call('HMGET', META, 'st', 'md', 'ca', 'sa', 'fa', 'ea', 'k', 'a', 'n', 'us', 'er', 'mt',
    'pr', 'ra', 'gr', 'ro', 'up', 'wr', 'own', 'rt', 'pv', 'ln')
  local queue = 'null'
  if m[1] == 'queued' and m[19] == '' then
    local reason = m[18] and m[18] ~= '' and m[18] or m[14] and m[14] ~= '' and 'scheduled' or 'queued'
    local at = reason == 'scheduled' and m[14] or m[20]
    queue = '{"position":null,"reason":' .. text(reason) .. ',"retry_at":' .. seconds(at) .. ',"upstreams":' .. upstreams(m[22]) .. '}'
  end
  return '{"id":' .. text(GID) .. ',"object":"generation","status":' .. text(m[1]) .. ',"model":' .. text(m[2])
    .. ',"created_at":' .. seconds(m[3]) .. ',"started_at":' .. seconds(m[4]) .. ',"first_token_at":' .. seconds(m[5])
    .. ',"ended_at":' .. seconds(m[6]) .. ',"attempt":' .. (m[7] or '0') .. ',"cursor":' .. text((m[8] or '0') .. '-' .. (m[9] or '0'))
    .. ',"usage":' .. brief(m[10], 2048, 'null') .. ',"error":' .. brief_error(m[11]) .. ',"metadata":' .. brief(m[12], 2048, '{}')
    .. ',"priority":' .. (m[13] or '3') .. ',"run_at":' .. seconds(m[14]) .. ',"group":' .. text_or_null(m[15])
    .. ',"retry_of":' .. text_or_null(m[16]) .. ',"upstream":' .. text_or_null(m[17]) .. ',"queue":' .. queue
    .. (named and ',"prompt":' .. text_or_null(m[21]) or '') .. '}'
end

--#include all_tenants
local function announce(tenant, event)
  redis.call('XADD', ACTIVITY, 'MAXLEN', '~', 2000, '*', 'tn', tenant, 'g', GID, 'e', event, 'd', summary(true))
  redis.call('PEXPIRE', ACTIVITY, DAY)
end

--#include secondary
-- Moves the generation from one status to the next in the indexes, and announces it.
local function transition(from, to, event)
  local m = redis.call('HMGET', META, 'tn', 'ca')
  local tenant = INDEX .. ':' .. m[1]
  list_among_all(m[2], from, to)
  if from then redis.call('ZREM', tenant .. ':' .. from, GID) end
  redis.call('ZADD', tenant, m[2], GID)
  redis.call('PEXPIRE', tenant, 32 * DAY)
  redis.call('ZADD', tenant .. ':' .. to, m[2], GID)
  redis.call('PEXPIRE', tenant .. ':' .. to, 32 * DAY)
  list_and_count(m[2], from, to)
  announce(m[1], event)
end

-- First write of every ending, so that endings succeed above maxmemory too.
local function expire_ended(now)
  local xa = now + tonumber(redis.call('HGET', META, 'ttl'))
  expire(xa)
  return int(xa)
end

--#include webhook
-- An ending from outside, by a process that does not own the attempt (cancel, the reaper): its event gets its own
-- attempt id, so that it cannot collide with the owner's events. At `<a>-<n+1>` a rollback made readers hang. A missing
-- log is not created (such a generation can no longer be read): it would lack its beginning and a lifetime.
local function end_from_outside(now, random, status, type, data, usage, err)
  local m = redis.call('HMGET', META, 'a', 'st', 'na')
  local attempt = fresh_attempt(now, newest_attempt(m[1], m[3]), random)
  local xa = expire_ended(now)
  redis.call('XADD', LOG, 'NOMKSTREAM', attempt .. '-0', 't', type, 'm', 0, 'd', data)
  redis.call('HSET', META, 'st', status, 'own', '', 'a', attempt, 'n', 0, 'le', 0, 'ea', int(now), 'xa', xa, 'us', usage, 'er', err)
  redis.call('ZREM', LIVE, GID)
  transition(m[2], status, status)
  put_webhook(now, status)
end

-- Usage counted from the tokens so far: an ending from outside has no better figures. Without an attempt that has begun
-- there is none: no upstream has accepted a call.
local function counted_usage()
  local m = redis.call('HMGET', META, 'pt', 'ct', 'k')
  if tonumber(m[3] or 0) == 0 then return 'null' end
  local prompt, completion = tonumber(m[1] or 0), tonumber(m[2] or 0)
  return string.format('{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"estimated":true}', prompt, completion, prompt + completion)
end

-- Ends a generation that was started too often; `x` is the used crash budget.
local function end_exhausted(now, random, x)
  local err = '{"message":"The worker of this generation was lost ' .. x .. ' times.","type":"server_error","code":"attempts_exhausted"}'
  end_from_outside(now, random, 'failed', 'f', '{"error":' .. err .. '}', counted_usage(), err)
  redis.call('HSET', META, 'x', x)
end

-- A generation that has begun before may wait for at least another hour: it has been paid for.
local function extend_wait(now)
  local wait = redis.call('HGET', META, 'qt')
  if wait and wait ~= '' then redis.call('HSET', META, 'qd', int(now + math.max(tonumber(wait), HOUR))) end
end

-- Ends a generation that waited for too long. `err`: the error of its last call; otherwise that of what its readers saw it
-- wait for.
local function end_waiting(now, random, err)
  if not err or err == '' then
    local m = redis.call('HMGET', META, 'wr', 'rt')
    local code, kind, message = 'queue_timeout', 'server_error', 'The generation waited for longer than its queue_timeout.'
    if m[1] == 'upstream_busy' then
      code, kind, message = 'upstream_rate_limited', 'rate_limit_error', 'The upstream was busy for longer than the queue_timeout.'
    elseif m[1] == 'upstream_down' then
      code, message = 'upstream_error', 'The upstream was down for longer than the queue_timeout.'
    end
    local left = math.ceil((tonumber(m[2] or '') or 0) / 1000 - now / 1000)
    local retry_after = code ~= 'queue_timeout' and left > 0 and ',"retry_after":' .. left or ''
    err = '{"message":"' .. message .. '","type":"' .. kind .. '","code":"' .. code .. '"' .. retry_after .. '}'
  end
  end_from_outside(now, random, 'failed', 'f', '{"error":' .. err .. '}', 'null', err)
end
