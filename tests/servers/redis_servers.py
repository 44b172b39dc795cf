"""Groups of real servers: a master with replicas and sentinels, and a cluster. All listen on loopback on free ports and
end with the test, like the embedded server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker.dev.embedded_redis import free_port, server_binary
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError
from broker.redis.url import RedisUrl
from broker.runtime.child_process import die_with_parent
from tests.support import wait_until

SERVICE = "logs"
ENGINES = {"valkey": server_binary(), "redis": shutil.which("redis-server") or server_binary()}
"""The second engine falls back to the first if it is not installed."""


def reserve_port() -> socket.socket:
    """A socket that holds a free port until it is closed. It does not listen, so a server can listen on the port;
    `free_port`, here and in other processes, does not return it."""
    while True:
        held = socket.socket()
        with contextlib.suppress(OSError):
            held.bind(("127.0.0.1", free_port()))
            held.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # after `bind`: it must not share the port itself
            return held
        held.close()


class Server:
    """One process. Its port stays the same over `kill` and `start`."""

    def __init__(self, binary: str, directory: Path, *options: str, sentinel: bool = False, password: str = "") -> None:
        self._held = [reserve_port()]
        self.port: int = self._held[0].getsockname()[1]
        self._binary = binary
        self.options = options
        self._sentinel = sentinel
        self.password = password
        self._dir = directory / str(self.port)
        self._dir.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        config = self._dir / "server.conf"
        if not config.exists():  # sentinels and cluster nodes write to their file and read it again
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                *([] if self._sentinel else ['save ""', "repl-diskless-sync-delay 0"]),
                *self.options,
            ]
            config.write_text("\n".join(lines) + "\n")
        with (self._dir / "output").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - ends with the main thread
                die_with_parent([self._binary, str(config), *(["--sentinel"] if self._sentinel else [])]),
                cwd=self._dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        await wait_until(self._answers, (self._dir / "output").read_text())

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._dir / "output").read_text()
        with contextlib.suppress(OSError):
            await self.ask("PING")
            return True
        return False

    async def ask(self, *command: Any) -> Any:
        """Execute one command as the server's administrator. Raises RespError."""
        password = None if self._sentinel else self.password or None
        address = RedisUrl("server", (self.node,), password=password)
        connection = await RespConnection.open(address, self.node, any_role=True)
        try:
            return await connection.call(*command, timeout=10)
        finally:
            connection.close()

    @property
    def node(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def role(self) -> str:
        """The server's role. Empty while it changes: a sentinel that promotes a server disconnects all its clients."""
        with contextlib.suppress(ConnectionError):
            return (await self.ask("ROLE"))[0].decode()
        return ""

    def with_cluster_port(self) -> Server:
        """Also reserve a port for the cluster bus."""
        self._held.append(reserve_port())
        self.options = (*self.options, f"cluster-port {self._held[1].getsockname()[1]}")
        return self

    def close(self) -> None:
        """Kill the process and give its ports back."""
        self.kill()
        for held in self._held:
            held.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def directory_of_servers() -> AsyncGenerator[tuple[Path, list[Server]], None]:
    """A directory and a list. Servers in the list are closed at the end."""
    servers: list[Server] = []
    directory = Path(tempfile.mkdtemp(prefix="tokencast-servers-"))
    try:
        yield directory, servers
    finally:
        for server in servers:
            server.close()
        shutil.rmtree(directory)


class SentinelGroup:
    """A master with replicas and the sentinels that monitor them."""

    def __init__(self, servers: list[Server], sentinels: list[Server], password: str) -> None:
        self.servers = servers
        self.sentinels = sentinels
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{f':{password}@' if password else ''}{hosts}/{SERVICE}/0"

    async def master(self) -> Server:
        """The master, according to the first sentinel that answers."""
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError):
                _, port = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return next(server for server in self.servers if server.port == int(port))
        raise AssertionError("no sentinel answers")

    async def failed_over(self, old: Server) -> Server:
        """Wait until the sentinels name a new master and it acts as one."""

        async def changed() -> Server | None:
            new = await self.master()
            return new if new is not old and await new.role() == "master" else None

        return await wait_until(changed)

    async def ready(self) -> bool:
        for sentinel in self.sentinels:
            flat = await sentinel.ask("SENTINEL", "MASTER", SERVICE)
            state = dict(zip(flat[::2], flat[1::2], strict=True))
            if int(state[b"num-other-sentinels"]) != len(self.sentinels) - 1:
                return False
            if int(state[b"num-slaves"]) != len(self.servers) - 1 or state[b"flags"] != b"master":
                return False
        return True


@asynccontextmanager
async def sentinel_group(
    binary: str,
    *,
    replicas: int = 1,
    options: tuple[str, ...] = (),
    sentinel_options: tuple[str, ...] = (),
    password: str = "",
) -> AsyncGenerator[SentinelGroup, None]:
    """Three sentinels with a quorum of two and a timeout of one second."""
    async with directory_of_servers() as (directory, all_of_them):
        servers = [Server(binary, directory, *options, password=password) for _ in range(1 + replicas)]
        first, *others = servers
        for other in others:
            other.options += (f"replicaof 127.0.0.1 {first.port}",)
        all_of_them.extend(servers)
        await asyncio.gather(*(server.start() for server in servers))

        async def linked() -> bool:
            return (await first.ask("INFO", "replication")).count(b"state=online") == replicas

        await wait_until(linked)
        sentinels = [Server(binary, directory, *sentinel_options, sentinel=True) for _ in range(3)]
        for sentinel in sentinels:
            sentinel.options += _monitoring(sentinel, sentinels, servers)
        all_of_them.extend(sentinels)
        await asyncio.gather(*(sentinel.start() for sentinel in sentinels))
        found = SentinelGroup(servers, sentinels, password)
        await wait_until(found.ready)
        yield found


def _monitoring(sentinel: Server, sentinels: Sequence[Server], servers: Sequence[Server]) -> tuple[str, ...]:
    """The known replicas and sentinels, since discovery takes ten seconds."""
    first, *replicas = servers
    return (
        f"sentinel myid {sentinel.port:040}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 2",
        f"sentinel down-after-milliseconds {SERVICE} 1000",
        f"sentinel failover-timeout {SERVICE} 3000",
        *(f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}" for replica in replicas),
        *(
            f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other.port} {other.port:040}"
            for other in sentinels
            if other is not sentinel
        ),
    )


class ClusterGroup:
    """Three masters with a third of the slots each, and a replica for each."""

    def __init__(self, masters: list[Server], replicas: list[Server]) -> None:
        self.masters = masters
        self.replicas = replicas
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in masters)

    @property
    def servers(self) -> list[Server]:
        return [*self.masters, *self.replicas]

    async def whole(self) -> bool:
        """Whether all nodes know each other, all slots are served, and each replica follows its master."""
        for server in self.servers:
            info = await server.ask("CLUSTER", "INFO")
            if b"cluster_state:ok" not in info or f"cluster_known_nodes:{len(self.servers)}\r".encode() not in info:
                return False
        replications = [await server.ask("INFO", "replication") for server in self.replicas]
        return all(b"master_link_status:up" in info for info in replications)

    async def owner(self, slot: int) -> Server:
        """The running server that serves the slot."""
        for server in self.servers:
            with contextlib.suppress(OSError):
                own = await server.ask("CLUSTER", "MYID")
                for first, last, master, *_ in await server.ask("CLUSTER", "SLOTS"):
                    if master[2] == own and first <= slot <= last:
                        return server
        raise AssertionError(f"no server has slot {slot}")


@asynccontextmanager
async def cluster_group(binary: str, *, replicas: bool = True) -> AsyncGenerator[ClusterGroup, None]:
    """Three masters. A master that does not answer for a second is replaced."""
    async with directory_of_servers() as (directory, all_of_them):
        options = (
            "cluster-enabled yes",
            "cluster-node-timeout 1000",
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
        )

        def server() -> Server:
            return Server(binary, directory, *options).with_cluster_port()

        masters, copies = [server() for _ in range(3)], [server() for _ in range(3 if replicas else 0)]
        all_of_them.extend((*masters, *copies))
        await asyncio.gather(*(server.start() for server in all_of_them))
        for number, master in enumerate(masters):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            await master.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, server_ in enumerate(all_of_them):
            await server_.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                bus = next(o for o in masters[0].options if o.startswith("cluster-port")).split()[1]
                await server_.ask("CLUSTER", "MEET", "127.0.0.1", masters[0].port, bus)
        found = ClusterGroup(masters, copies)

        async def connected() -> bool:
            known = f"cluster_known_nodes:{len(found.servers)}\r".encode()
            return all([known in await server.ask("CLUSTER", "INFO") for server in found.servers])

        await wait_until(connected)
        for master, copy in zip(masters, copies, strict=False):
            own = await master.ask("CLUSTER", "MYID")

            async def replicates(copy: Server = copy, own: bytes = own) -> bool:
                with contextlib.suppress(RespError):  # the master is not known to it yet
                    return await copy.ask("CLUSTER", "REPLICATE", own) == b"OK"
                return False

            await wait_until(replicates)
        await wait_until(found.whole)
        yield found
