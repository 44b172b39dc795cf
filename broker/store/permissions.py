"""Finds the required commands that a Redis user may not run (ACL).

They are tested by running them, because `ACL DRYRUN` requires administrator's rights. Each runs in a form that changes
nothing: Redis checks the user's rights before it reads the key.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.redis.client import Script
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError, forbidden_command
from broker.redis.handshake import Argument
from broker.store import keys

WITHIN = 2.0  # seconds

_RIGHTS = Script("store", "rights")
_TEXT, _NONE = "{text}", "{none}"
_FORMS: dict[str, tuple[Argument, ...]] = {
    "DEL": (_NONE,),
    "EXISTS": (_NONE,),
    "EXPIRE": (_NONE, 1),
    "GET": (_NONE,),
    "HDEL": (_NONE, "f"),
    "HEXISTS": (_NONE, "f"),
    "HGET": (_NONE, "f"),
    "HGETALL": (_NONE,),
    "HINCRBY": (_TEXT, "f", 1),
    "HMGET": (_NONE, "f"),
    "HSET": (_TEXT, "f", "v"),
    "HSETNX": (_TEXT, "f", "v"),
    "HSTRLEN": (_NONE, "f"),
    "INCR": (_TEXT,),
    "INCRBY": (_TEXT, 1),
    "LLEN": (_NONE,),
    "LPUSH": (_TEXT, "v"),
    "PEXPIRE": (_NONE, 1),
    "PEXPIREAT": (_NONE, 1),
    "PSETEX": (_TEXT, 10_000, "text"),
    "PTTL": (_NONE,),
    "SADD": (_TEXT, "m"),
    "SCARD": (_NONE,),
    "SET": (_TEXT, "text", "PX", 10_000),
    "SISMEMBER": (_NONE, "m"),
    "SMEMBERS": (_NONE,),
    "SREM": (_NONE, "m"),
    "TIME": (),
    "XADD": (_TEXT, "*", "f", "v"),
    "XRANGE": (_NONE, "-", "+"),
    "XREAD": ("STREAMS", _NONE, "0"),
    "XREVRANGE": (_NONE, "+", "-"),
    "XTRIM": (_NONE, "MAXLEN", 1),
    "ZADD": (_TEXT, 0, "m"),
    "ZCARD": (_NONE,),
    "ZCOUNT": (_NONE, 0, 0),
    "ZRANDMEMBER": (_NONE,),
    "ZRANGE": (_NONE, 0, 0),
    "ZRANGEBYSCORE": (_NONE, 0, 0),
    "ZRANK": (_NONE, "m"),
    "ZREM": (_NONE, "m"),
    "ZREMRANGEBYSCORE": (_NONE, 0, 0),
    "ZREVRANGE": (_NONE, 0, 0),
    "ZREVRANGEBYSCORE": (_NONE, 0, 0),
    "ZSCORE": (_NONE, "m"),
}
"""Arguments with which a command changes nothing. The text is not a number and has none of the other types."""

LOGS = (
    *("DEL", "EXISTS", "GET", "HDEL", "HGET", "HGETALL", "HINCRBY", "HMGET", "HSET", "HSETNX", "HSTRLEN", "PEXPIRE"),
    *("PEXPIREAT", "PTTL", "SET", "TIME"),
    *("XADD", "XRANGE", "XREAD", "XREVRANGE", "XTRIM", "ZADD", "ZCARD", "ZRANDMEMBER", "ZRANGE", "ZRANGEBYSCORE"),
    *("ZREM", "ZREMRANGEBYSCORE", "ZREVRANGEBYSCORE", "ZSCORE"),
)
QUEUE = (
    *("DEL", "EXISTS", "EXPIRE", "GET", "HDEL", "HEXISTS", "HGET", "HGETALL", "HINCRBY", "HMGET", "HSET"),
    *(
        "INCR",
        "INCRBY",
        "LLEN",
        "LPUSH",
        "PEXPIRE",
        "PSETEX",
        "SADD",
        "SCARD",
        "SET",
        "SISMEMBER",
        "SMEMBERS",
        "SREM",
        "TIME",
        "ZADD",
    ),
    *("ZCARD", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREM", "ZREMRANGEBYSCORE", "ZREVRANGE", "ZSCORE"),
)
"""Commands that the scripts, arq and our own code run on each of the two servers."""


async def missing_rights(connection: RespConnection, shard: str, *, logs: bool, queue: bool) -> str | None:
    """Return a one-line message about the rights that the user of a connection lacks; None if none is missing.
    OSError."""
    text, none = keys.rights(shard), keys.index(shard)  # the base of the indexes never exists as a key
    names = sorted({*(LOGS if logs else ()), *(QUEUE if queue else ())})
    commands = _commands(names, text, none, queue=queue)
    replies = await connection.pipeline(commands, timeout=WITHIN)
    errors: dict[str, RespError] = {}
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, RespError):
            errors["SCRIPT LOAD" if command[0] == "SCRIPT" else str(command[0])] = reply
        elif command[0] in ("EVAL", "EVALSHA"):
            for name, _, error in (line.decode().partition(" ") for line in reply):
                errors[name] = RespError(error)
    return _told(errors)


def _commands(names: Iterable[str], text: str, none: str, *, queue: bool) -> list[tuple[Argument, ...]]:
    words: list[Argument] = []
    for name in names:
        form = [text if part == _TEXT else none if part == _NONE else part for part in _FORMS[name]]
        words += (1 + len(form), name, *form)
    arguments = (2, text, none, *words)
    commands: list[tuple[Argument, ...]] = [
        ("PING",),
        ("SCRIPT", "LOAD", _RIGHTS.source),
        ("EVALSHA", _RIGHTS.sha, *arguments),
        ("EVAL", _RIGHTS.source, *arguments),
    ]
    if queue:  # BLPOP does not wait on a key of the wrong type
        commands += (("BLPOP", text, 0.01), ("WATCH", none), ("UNWATCH",), ("MULTI",), ("EXEC",))
        commands.append(("EXISTS", keys.arq_job("rights")))
    return commands


def _told(errors: dict[str, RespError]) -> str | None:
    forbidden = [name for name, error in errors.items() if forbidden_command(error) is not None]
    if forbidden:
        granted = " ".join(f"+{name.lower().replace(' ', '|')}" for name in forbidden)
        return f"this user has no permissions to run {', '.join(forbidden)} (ACL: {granted})"
    if any(error.kind == "NOPERM" for error in errors.values()):
        return "this user has no permissions to use the keys tc:*, and arq:* on the queue's Redis (ACL: ~tc:* ~arq:*)"
    return None
