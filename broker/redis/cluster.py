"""Redis Cluster for the logs: maps slots to masters, and sends commands there.

The library's own client (5.3, the newest that arq allows) closes the connections to all nodes whenever one of them
fails, and resends by itself commands that may have been executed. Here a failing node affects only itself, and only
commands that a node reports as not executed are sent again: MOVED, ASK and TRYAGAIN.

A shard that is being migrated between masters can still be written and read. Only status changes wait until the
migration is complete: those scripts name a key that never exists (the base of the indexes), so Redis answers TRYAGAIN
instead of stopping them half-way at a key that has already moved.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.concurrency.shared_call import SharedCall
from broker.ids import SHARDS
from broker.redis.commands import Call, Command, Pool, Redis, Script
from broker.redis.connection import RespConnection, raise_for_error
from broker.redis.errors import (
    ConnectionRefused,
    Redirection,
    RespError,
    UrlRefused,
    host_or_queried,
    in_place,
    redirection_of,
    storage_errors,
)
from broker.redis.handshake import Argument, Reply
from broker.redis.topology import SingleServer, Topology
from broker.redis.url import Node, RedisUrl

REDIRECTIONS = 8
TRY_AGAIN = 5.0  # seconds; maximum time during which commands are repeated because a slot is split
_NO_KEY = frozenset({"PING", "INFO", "TIME", "CONFIG", "CLIENT", "CLUSTER", "SCRIPT", "KEYS", "DBSIZE", "COMMAND"})


class SlotMap(Topology):
    """The masters of a cluster by slot. A connection reaches one shard only, since an XREAD must not span two slots.
    The map is fetched again once a master does not answer; a MOVED changes it at once."""

    groups = SHARDS
    # A key that has moved to another server before its slot does not wake a read that waits for it.
    longest_block_ms = 500

    def __init__(self, address: RedisUrl) -> None:
        super().__init__(address)
        self._starts: list[int] = []  # first slot of each range, ascending
        self._ranges: list[tuple[int, Node]] = []  # last slot of each range, and its master
        self._moved: dict[int, Node] = {}
        self._suspects: set[Node] = set()
        self._refresh = SharedCall(self._fetch)

    def group(self, shard: str) -> str:
        return shard

    @property
    def masters(self) -> list[Node]:
        """The masters that have slots."""
        return sorted({node for _, node in self._ranges} | set(self._moved.values()))

    async def master(self) -> Node:
        return random.choice(await self.known_masters())

    async def known_masters(self) -> list[Node]:
        if not self._ranges:
            await self._refresh()
        return self.masters

    async def owner(self, slot: int) -> Node:
        """Return the master of a slot. Only slots of a suspected master wait for a new map. OSError if no node of the
        cluster answers, or none has the slot."""
        node = self._owner(slot)
        if node is None or node in self._suspects:
            await self._refresh()
            node = self._owner(slot)
        if node is None:
            raise ConnectionError(f"no server of the cluster serves slot {slot}")
        return node

    def _owner(self, slot: int) -> Node | None:
        if slot in self._moved:
            return self._moved[slot]
        at = bisect_right(self._starts, slot) - 1
        return self._ranges[at][1] if at >= 0 and slot <= self._ranges[at][0] else None

    def redirect(self, slot: int, error: Exception, by: Node) -> Redirection | None:
        """Return where to send a command instead, if the error of a node says so; record a slot that has moved."""
        redirection = redirection_of(error, by)
        if redirection is not None and redirection.kind == "MOVED":
            self._moved[slot] = redirection.node
        return redirection

    def mark_failed(self, node: Node) -> None:
        """Record that a master does not answer: another node may have replaced it."""
        self._suspects.add(node)

    async def open(self, group: str = SHARDS[0]) -> RespConnection:
        slot = slot_of(group)
        node = await self.owner(slot)
        try:
            connection = await SlotConnection.open(self.address, node)
        except OSError:
            self.mark_failed(node)
            raise
        connection.bind(self, slot)
        return connection

    async def server_groups(self) -> Sequence[str]:
        await self.known_masters()
        owners = {self._owner(slot_of(shard)): shard for shard in reversed(SHARDS)}
        owners.pop(None, None)
        return list(owners.values())

    async def watch(self) -> None:
        """Nothing to query: Redis reports a moved slot in its reply."""

    async def _fetch(self) -> None:
        nodes = list(dict.fromkeys((*self.masters, *self.address.nodes)))
        random.shuffle(nodes)  # a node that lost contact may have an old map
        nodes.sort(key=self._suspects.__contains__)
        failure = OSError("the cluster has no nodes")
        for node in nodes:
            try:
                connection = await RespConnection.open(self.address, node, any_role=True)
                try:
                    self._update(node, await connection.call("CLUSTER", "SLOTS", timeout=2.0))
                    return
                finally:
                    connection.close()
            except OSError as error:
                failure = error
            except RespError as error:
                no_cluster = "cluster support disabled" in str(error)
                failure = (
                    UrlRefused(f"it is not a Redis Cluster ({error})") if no_cluster else ConnectionRefused(str(error))
                )
        raise failure

    def _update(self, queried: Node, ranges: Sequence[Sequence[Any]]) -> None:
        known = sorted((first, last, _node_of(master, queried)) for first, last, master, *_ in ranges)
        self._starts = [first for first, _, _ in known]
        self._ranges = [(last, node) for _, last, node in known]
        self._moved.clear()
        self._suspects.clear()


class SlotConnection(RespConnection):
    """A connection to the master of one slot. While the slot is being migrated, it follows keys that have moved."""

    _topology: SlotMap
    _slot: int

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._redirected: dict[Node, RespConnection] = {}

    def bind(self, topology: SlotMap, slot: int) -> None:
        self._topology = topology
        self._slot = slot

    async def pipeline(self, commands: Sequence[tuple[Argument, ...]], *, timeout: float) -> list[Reply]:
        replies = await super().pipeline(commands, timeout=timeout)
        redirects: dict[Node, list[int]] = {}
        for at, reply in enumerate(replies):
            # After a MOVED the caller sees the error and opens another connection.
            if not isinstance(reply, RespError):
                continue
            redirection = self._topology.redirect(self._slot, reply, self.node)
            if redirection is not None and redirection.kind == "ASK":
                redirects.setdefault(redirection.node, []).append(at)
        for node, positions in redirects.items():
            target = self._redirected.get(node)
            if target is None:
                target = self._redirected[node] = await RespConnection.open(self._topology.address, node)
            answers = await target.pipeline(
                [command for at in positions for command in (("ASKING",), commands[at])], timeout=timeout
            )
            for at, reply in zip(positions, answers[1::2], strict=True):
                replies[at] = reply
        if commands and commands[0][0] == "SCRIPT":  # for the other servers too
            for target in self._redirected.values():
                await target.pipeline(commands, timeout=timeout)
        return replies

    def close(self) -> None:
        super().close()
        for target in self._redirected.values():
            target.close()


class Cluster(Redis):
    """One pool per master. A command goes to the master of its key's slot, a command without a key to any master."""

    def __init__(self, url: str, topology: SlotMap, **options: Any) -> None:
        super().__init__(url, topology)
        self._map = topology
        self._options = options
        self._pools: dict[Node, Pool] = {}

    async def execute(self, *command: Argument) -> Reply:
        with storage_errors(self.latency):
            if command[0] in _NO_KEY:
                return await self._send_to_any(command)
            return (await self._send([command]))[0]

    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """Run all commands, with one concurrent round trip to each master that has some of the keys."""
        with storage_errors(self.latency):
            return await self._send(commands)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        return (await self.run_many(script, ((keys, args),)))[0]

    async def run_many(self, script: Script, calls: Sequence[Call]) -> list[Reply]:
        with storage_errors(self.latency):
            return await self._send(
                [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls], script.source
            )

    async def run_each(self, script: Script, calls: Sequence[Call]) -> list[Reply | Exception]:
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        with storage_errors(self.latency):
            return [in_place(reply) for reply in await self._try_send(commands, script.source)]

    async def info(self, section: str, group: str) -> bytes:
        with storage_errors(self.latency):
            entry = _PendingCommand(("INFO", section), slot_of(group))
            await self._send_to(await self._map.owner(entry.slot), [entry])
            return raise_for_error(entry.reply)

    async def close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    async def _send_to_any(self, command: Command) -> Reply:
        """Return the reply of the first master that answers."""
        entry, masters = _PendingCommand(command, 0), await self._map.known_masters()
        for node in random.sample(masters, len(masters)):
            await self._send_to(node, [entry])
            if not isinstance(entry.reply, RedisConnectionError | RedisTimeoutError | OSError):
                break
        return raise_for_error(entry.reply)

    async def _send(self, commands: Sequence[Command], source: str = "") -> list[Reply]:
        """Return the replies in order, or raise the first error."""
        return [raise_for_error(reply) for reply in await self._try_send(commands, source)]

    async def _try_send(self, commands: Sequence[Command], source: str) -> list[Reply]:
        """Return the replies in order, an error in its command's place. `source`: source of the script that all
        commands run, for masters that have not loaded it."""
        pending = [_PendingCommand(command, slot_of(_key_of(command))) for command in commands]
        waiting, until = pending, asyncio.get_running_loop().time() + TRY_AGAIN
        while waiting:
            await self._send_round(waiting)
            waiting = [entry for entry in waiting if self._should_resend(entry, source, until)]
            if any(entry.pause for entry in waiting):
                await asyncio.sleep(0.05)
        return [entry.reply for entry in pending]

    async def _send_round(self, pending: Sequence[_PendingCommand]) -> None:
        to: dict[Node, list[_PendingCommand]] = {}
        for entry in pending:
            to.setdefault(entry.to or await self._map.owner(entry.slot), []).append(entry)
        if len(to) == 1:
            await self._send_to(*to.popitem())
        else:
            await asyncio.gather(*(self._send_to(node, some) for node, some in to.items()))

    async def _send_to(self, node: Node, pending: Sequence[_PendingCommand]) -> None:
        """Send all of them to one master. Never raises: the failure of one master must not affect the others."""
        commands: list[Command] = []
        for entry in pending:
            commands += (("ASKING",), entry.command) if entry.asking else (entry.command,)
        try:
            replies = iter(await self._pool(node).try_pipeline(commands))
        except (RedisError, OSError) as error:
            self._map.mark_failed(node)
            for entry in pending:
                entry.reply = error
            return
        for entry in pending:
            if entry.asking:
                next(replies)
            entry.reply, entry.by = next(replies), node

    def _should_resend(self, entry: _PendingCommand, source: str, until: float) -> bool:
        """Return whether to send it again, which is only done if a master reports that it did not execute the
        command."""
        entry.pause = False
        if not isinstance(entry.reply, ResponseError):
            return False
        if source and isinstance(entry.reply, NoScriptError):
            entry.command = ("EVAL", source, *entry.command[2:])
            return True
        if entry.redirections < REDIRECTIONS and (redirection := self._map.redirect(entry.slot, entry.reply, entry.by)):
            entry.to, entry.asking = redirection.node, redirection.kind == "ASK"
            entry.redirections += 1
            return True
        if str(entry.reply).startswith("TRYAGAIN") and asyncio.get_running_loop().time() < until:
            entry.to, entry.asking, entry.pause, entry.redirections = None, False, True, 0
            return True
        return False

    def _pool(self, node: Node) -> Pool:
        pool = self._pools.get(node)
        if pool is None:
            address = replace(self._map.address, kind="server", nodes=(node,))
            pool = self._pools[node] = Pool(self.url, SingleServer(address), **self._options)
        return pool


@dataclass(slots=True)
class _PendingCommand:
    """A command and the state of its delivery."""

    command: Command
    slot: int
    to: Node | None = None
    """None: the slot's master."""
    asking: bool = False
    pause: bool = False
    redirections: int = 0
    reply: Reply = None
    by: Node = ("", 0)
    """The node that replied."""


def slot_of(shard_or_key: str) -> int:
    """Return the slot of a key, by its hash tag; a shard is a hash tag."""
    return key_slot(shard_or_key.encode())


def _node_of(master: Sequence[Any], queried: Node) -> Node:
    """Parse a node of CLUSTER SLOTS: host, port, id and, since Redis 7, the other names of the host."""
    host, port, *_ = master
    return host_or_queried((host or b"").decode(), queried), port


def _key_of(command: Command) -> str:
    key = command[3 if command[0] in ("EVAL", "EVALSHA") else 1]
    return key.decode() if isinstance(key, bytes) else str(key)
