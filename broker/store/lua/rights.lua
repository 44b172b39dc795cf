-- Tries commands to find out whether the user may run them: on a key that holds a text, where commands for other types
-- fail, and on one that never exists.
-- KEYS: [1] text, [2] never there   ARGV: of each command its number of words, and the words
-- Returns name and error of each command that failed, as `<name> <error>`
local held = redis.pcall('SET', KEYS[1], 'text', 'PX', 10000)
if held.err then return {'SET ' .. held.err} end
local failed, at = {}, 1
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local reply = redis.pcall(unpack(ARGV, at + 1, at + count))
  if type(reply) == 'table' and reply.err then failed[#failed + 1] = ARGV[at + 1] .. ' ' .. reply.err end
  at = at + count + 1
end
return failed
