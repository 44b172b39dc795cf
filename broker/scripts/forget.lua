--#include common
--#include expired
-- Somebody came upon a generation whose retention is over.
-- KEYS: the five of common.lua   ARGV: gid, tenant
-- Returns OK
forget_expired(INDEX .. ':' .. ARGV[2], GID)
return 'OK'
