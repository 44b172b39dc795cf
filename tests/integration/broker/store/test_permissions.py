"""What a Redis user may not do is named, command by command, on both engines; and nothing is changed to find it out."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

import broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS
from broker.redis.client import topology_of
from broker.redis.connection import RespConnection
from broker.store import keys
from broker.store.permissions import LOGS, QUEUE, missing_rights

ROOT = Path(broker.__file__).parent
OUTSIDE_OF_SCRIPTS = ("PING", "SCRIPT|LOAD", "EVAL", "EVALSHA", "BLPOP", "WATCH", "UNWATCH", "MULTI", "EXEC")


class Users:
    """A server, and connections to it under rights of one's own."""

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


async def test_each_command_that_is_missing_is_named(users: Users) -> None:
    assert await users.missing("+@all") is None
    for command in (*LOGS, *QUEUE, *OUTSIDE_OF_SCRIPTS):
        granted = command.lower()
        said = await users.missing("+@all", f"-{granted}")
        assert said == f"this user has no permissions to run {command.replace('|', ' ')} (ACL: +{granted})"


async def test_several_are_named_together_and_each_server_needs_its_own(users: Users) -> None:
    said = await users.missing("+@all", "-xadd", "-blpop", "-xread")
    assert said is not None
    assert all(name in said for name in ("XADD", "BLPOP", "XREAD", "+xadd", "+blpop", "+xread"))
    assert await users.missing("+@all", "-blpop", logs=True, queue=False) is None
    assert await users.missing("+@all", "-xadd", logs=False, queue=True) is None


async def test_the_keys_are_tried_too(users: Users) -> None:
    for patterns in (("resetkeys", "~tc:*"), ("resetkeys", "~arq:*"), ("resetkeys",)):
        said = await users.missing("+@all", *patterns)
        assert said is not None
        assert "~tc:* ~arq:*" in said
    assert await users.missing("+@all", "resetkeys", "~tc:*", "~arq:*") is None
    assert await users.missing("+@all", "resetkeys", "~tc:*", queue=False) is None


async def test_nothing_is_left_of_it_but_one_text_for_ten_seconds(users: Users) -> None:
    await users.missing("+@all")
    left = await users.admin.call("KEYS", "*", timeout=5)
    assert left == [keys.rights(SHARDS[0]).encode()]
    assert 0 < await users.admin.call("PTTL", left[0], timeout=5) <= 10_000


def test_every_command_of_the_scripts_is_tried() -> None:
    for path in ROOT.glob("*/lua/*.lua"):
        used = set(re.findall(r"redis\.p?call\('([A-Z]+)'", path.read_text("utf-8")))
        assert used <= set(QUEUE if path.parts[-3] == "queue" else LOGS), path.name
