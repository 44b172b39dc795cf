-- The outbox of webhooks, part of the scripts that end or delete a generation. Its keys (broker/store/keys.py) are of the
-- same shard; the name of each is derived from the base of the indexes, which all of these scripts have.
local function hooks(name) return string.sub(INDEX, 1, -2) .. name end

-- Returns a name of fixed length for the server of a URL: host and port, without user name and password.
local function host_of(url)
  local authority = string.match(url, '^%a+://([^/?#\\]*)') or ''
  return string.sub(redis.sha1hex(string.lower(string.match(authority, '[^@]*$'))), 1, 16)
end

-- Texts that the summary leaves out because they are long, and a receiver needs.
local function if_long(value) return value and #value > 2048 and value or '' end

-- Puts the announcement of the ending into the outbox, if the generation has a webhook for it. It contains a snapshot of
-- the generation, which may be kept for less than the day of the retries. An ending must not fail because of it.
local function put_webhook(now, status)
  local webhook = redis.call('HGET', META, 'wh')
  if not webhook or webhook == '' then return end
  local known, hook = pcall(cjson.decode, webhook)
  if not known or type(hook) ~= 'table' or type(hook.url) ~= 'string' or type(hook.events) ~= 'table' then return end
  local wanted = false
  for _, event in ipairs(hook.events) do wanted = wanted or event == status end
  if not wanted then return end
  local m, host, body = redis.call('HMGET', META, 'mt', 'us', 'tn'), host_of(hook.url), hooks('hb:' .. GID)
  redis.call('DEL', body)
  redis.call('HSET', body, 'url', hook.url, 'ev', status, 'ho', host, 'at', int(now), 'ti', int(now + DAY), 'd', summary(),
    'mt', if_long(m[1]), 'us', if_long(m[2]), 'tn', m[3], 'n', 0, 'log', '')
  redis.call('PEXPIRE', body, DAY + HOUR)
  -- Entries whose bodies have expired: a receiver that is down, or no process that delivers, must not add them up. Those
  -- that are redelivered by hand have the score 1.
  redis.call('ZREMRANGEBYSCORE', hooks('hk:' .. host), '(1', int(now - DAY - HOUR))
  redis.call('ZADD', hooks('hk:' .. host), int(now), GID .. '.' .. status)
  redis.call('PEXPIRE', hooks('hk:' .. host), 2 * DAY)
  redis.call('ZADD', hooks('hk'), 'LT', int(now), host)
  redis.call('PEXPIRE', hooks('hk'), 2 * DAY)
end

-- Removes the announcement of a generation that is deleted, delivered or not.
local function remove_webhook()
  local body = hooks('hb:' .. GID)
  local m = redis.call('HMGET', body, 'ho', 'ev')
  if not m[1] then return end
  redis.call('ZREM', hooks('hk:' .. m[1]), GID .. '.' .. m[2])
  redis.call('DEL', body)
end
