"""Missing permissions of a Redis user are named command by command, on both engines, without changing data."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS
from broker.redis.client import topology_of
from broker.redis.connection import RespConnection
from broker.store import keys
from broker.store.permissions import LOGS, QUEUE, missing_rights
from tests.support import ROOT

OUTSIDE_OF_SCRIPTS = ("PING", "SCRIPT|LOAD", "EVAL", "EVALSHA", "BLPOP", "WATCH", "UNWATCH", "MULTI", "EXEC")


class Users:
    """A server, and connections to it with given permissions."""

    def __init__(self, redis: EmbeddedRedis, admin: RespConnection) -> None:
        self._redis = redis
        self.admin = admin

    async def missing(self, *rights: str, logs: bool = True, queue: bool = True) -> str | None:
        await self.admin.call("ACL", "SETUSER", "weak", "reset", "on", ">pw", "~*", "&*", *rights, timeout=5)
        connection = await topology_of(self._redis.url.replace("//", "//weak:pw@")).open()
        try:
            return await missing_rights(connection, SHARDS[0], logs=logs, queue=queue)
        finally:
            connection.close()


@pytest.fixture
async def users(engine: str) -> AsyncGenerator[Users, None]:
    async with EmbeddedRedis(binary=engine) as redis:
        admin = await topology_of(redis.url).open()
        yield Users(redis, admin)
        admin.close()


async def test_each_missing_command_is_named(users: Users) -> None:
    assert await users.missing("+@all") is None
    for command in (*LOGS, *QUEUE, *OUTSIDE_OF_SCRIPTS):
        granted = command.lower()
        reason = await users.missing("+@all", f"-{granted}")
        assert reason == f"this user has no permissions to run {command.replace('|', ' ')} (ACL: +{granted})"


async def test_all_missing_commands_are_named_and_each_server_needs_its_own(users: Users) -> None:
    reason = await users.missing("+@all", "-xadd", "-blpop", "-xread")
    assert reason is not None
    assert all(name in reason for name in ("XADD", "BLPOP", "XREAD", "+xadd", "+blpop", "+xread"))
    assert await users.missing("+@all", "-blpop", logs=True, queue=False) is None
    assert await users.missing("+@all", "-xadd", logs=False, queue=True) is None


async def test_missing_key_permissions_are_named(users: Users) -> None:
    for patterns in (("resetkeys", "~tc:*"), ("resetkeys", "~arq:*"), ("resetkeys",)):
        reason = await users.missing("+@all", *patterns)
        assert reason is not None
        assert "~tc:* ~arq:*" in reason
    assert await users.missing("+@all", "resetkeys", "~tc:*", "~arq:*") is None
    assert await users.missing("+@all", "resetkeys", "~tc:*", queue=False) is None


async def test_the_check_leaves_one_key_for_ten_seconds(users: Users) -> None:
    await users.missing("+@all")
    left = await users.admin.call("KEYS", "*", timeout=5)
    assert left == [keys.rights(SHARDS[0]).encode()]
    assert 0 < await users.admin.call("PTTL", left[0], timeout=5) <= 10_000


def test_every_command_of_the_scripts_is_checked() -> None:
    scripts = list((ROOT / "broker").glob("*/lua/*.lua"))
    assert scripts
    for path in scripts:
        used = set(re.findall(r"redis\.p?call\('([A-Z]+)'", path.read_text("utf-8")))
        assert used <= set(QUEUE if path.parts[-3] in ("queue", "history") else LOGS), path.name
