"""Direct access of the model to its server: inspection, time shifts, and rollback to an older state."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from broker.ids import shard_of
from broker.redis.errors import RespError
from broker.store import keys

STATUSES = ("queued", "in_progress", "completed", "failed", "cancelled")

# Everything the invariants check, in one call. ARGV per generation: gid, meta, log, live, prefix of its indexes.
_LOOK = """
local without_lifetime = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('PTTL', key) == -1 then without_lifetime[#without_lifetime + 1] = key end
end
local all = {}
for i = 1, #ARGV, 5 do
  local gid, meta, log, live, index = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local listed = {}
  for _, status in ipairs({'', ':queued', ':in_progress', ':completed', ':failed', ':cancelled'}) do
    if redis.call('ZSCORE', index .. status, gid) then listed[#listed + 1] = status end
  end
  local due = redis.call('ZSCORE', live, gid)
  local score = due and tonumber(due) or -1
  all[#all + 1] = {redis.call('HGETALL', meta), redis.call('XRANGE', log, '-', '+'), score, listed}
end
return {without_lifetime, all}
"""

# Advances time by ms: stored times move into the past, lifetimes shrink or end. For the scripts this is equivalent to a
# later clock, except for attempt ids, which still grow with the real clock.
_ELAPSE = """
local ms = tonumber(ARGV[1])
local function int(n) return string.format('%.0f', n) end
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' and string.find(key, ':m:', 1, true) then
    for _, field in ipairs({'le', 'xa', 'qd', 'nt', 'ra'}) do
      local at = tonumber(redis.call('HGET', key, field) or '') or 0
      if at > 0 then redis.call('HSET', key, field, int(at - ms)) end
    end
  elseif kind == 'zset' and (string.sub(key, -5) == ':live' or key == 'tc:later' or string.find(key, '^tc:ur:')) then
    local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #members, 2 do redis.call('ZADD', key, int(tonumber(members[i + 1]) - ms), members[i]) end
  elseif kind == 'string' and string.sub(key, -3) == ':ep' then
    local born, rest = string.match(redis.call('GET', key), '^(%d+)(.*)$')
    redis.call('SET', key, int(tonumber(born) - ms) .. rest, 'KEEPTTL')
  end
  local ttl = redis.call('PTTL', key)
  if ttl > 0 then
    if ttl <= ms then redis.call('DEL', key) else redis.call('PEXPIRE', key, int(ttl - ms)) end
  end
end
"""


@dataclass
class Stored:
    """One generation as stored on the server."""

    meta: dict[str, str]
    log: list[tuple[int, int, str, bytes]]  # attempt, seq, type, data
    due: float | None
    listed: set[str]
    """Statuses whose indexes contain it; '' is the index of all."""

    @property
    def status(self) -> str | None:
        return self.meta.get("st")

    @property
    def top(self) -> tuple[int, int]:
        return int(self.meta.get("a") or 0), int(self.meta.get("n") or 0)

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


@dataclass
class Snapshot:
    """All keys with their lifetimes, and how much model time had passed."""

    dumps: list[tuple[bytes, int, bytes]]
    elapsed: int
    extra: Any = field(default=None)


class Storage:
    """The model's own connection, without asyncio, so that no other task runs during a call."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = hiredis.Reader(replyError=RespError)
        self.elapsed = 0
        self.without_lifetime: list[bytes] = []

    def close(self) -> None:
        self._socket.close()

    def pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Replies in order. An error reply is a RespError in the list."""
        self._socket.sendall(b"".join([hiredis.pack_command(command) for command in commands]))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._parser.gets()
            if reply is False:
                self._parser.feed(self._socket.recv(1 << 18))
            else:
                replies.append(reply)
        return replies

    def call(self, *command: Any) -> Any:
        (reply,) = self.pipeline([command])
        if isinstance(reply, RespError):
            raise reply
        return reply

    def look(self, gids: Sequence[str], tenant: str) -> dict[str, Stored]:
        names: list[str] = []
        for gid in gids:
            shard = shard_of(gid)
            names += (gid, keys.meta(gid), keys.log(gid), keys.live(shard), keys.index(shard, tenant))
        self.without_lifetime, all_seen = self.call("EVAL", _LOOK, 0, *names)
        return {gid: _stored(*seen) for gid, seen in zip(gids, all_seen, strict=True)}

    def elapse(self, ms: int) -> None:
        self.call("EVAL", _ELAPSE, 0, ms)
        self.elapsed += ms

    def snapshot(self) -> Snapshot:
        names = self.call("KEYS", "*")
        replies = self.pipeline([part for name in names for part in (("PTTL", name), ("DUMP", name))])
        ttls, dumps = replies[::2], replies[1::2]
        kept = [(n, t, d) for n, t, d in zip(names, ttls, dumps, strict=True) if d is not None]
        return Snapshot(kept, self.elapsed)

    def fail_over(self, to: Snapshot) -> None:
        """Replace the data with an older snapshot, as in a failover to a replica that lagged."""
        commands: list[tuple[Any, ...]] = [("FLUSHALL",)]
        commands += [("RESTORE", name, max(ttl, 0), dump) for name, ttl, dump in to.dumps]
        for reply in self.pipeline(commands):
            assert reply == b"OK", reply
        if self.elapsed > to.elapsed:
            self.call("EVAL", _ELAPSE, 0, self.elapsed - to.elapsed)

    def lose_everything(self) -> None:
        self.call("FLUSHALL")

    def lose_queue(self) -> None:
        """Delete the keys that would be on the queue's Redis, which are those without a shard."""
        self.call("DEL", "tc:depth", *(name for name in self.call("KEYS", "*") if b"{" not in name))

    def forget_scripts(self) -> None:
        self.call("SCRIPT", "FLUSH")


def _stored(meta: list[bytes], log: list[Any], due: int, listed: list[bytes]) -> Stored:
    fields = [part.decode(errors="replace") for part in meta]
    entries: list[tuple[int, int, str, bytes]] = []
    for entry_id, (_, kind, _, _, _, data) in log:
        attempt, _, seq = entry_id.partition(b"-")
        entries.append((int(attempt), int(seq), kind.decode(), data))
    statuses = {name.decode().removeprefix(":") for name in listed}
    return Stored(dict(zip(fields[::2], fields[1::2], strict=True)), entries, due if due >= 0 else None, statuses)
