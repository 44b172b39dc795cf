"""The API keys in force. A gateway reads the file in TOKENCAST_API_KEYS_FILE again when it has changed."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from broker.errors import InvalidKey, KeyExpired, Misconfigured
from broker.runtime.environment import file_of
from broker.settings.api_keys import API_KEYS, ApiKey
from broker.settings.loading import load_keys
from broker.settings.settings import Settings

INTERVAL = 2.0  # seconds between two looks at the file
logger = logging.getLogger("tokencast.api")
OnChange = Callable[[Collection[str], Collection[str]], None]


class AccessEnd(NamedTuple):
    """When the access of a response ends: at a time (unix seconds), and when its key is removed."""

    at: float = math.inf
    key: str = ""
    """SHA-256 of the key (hex); "" for a token."""


class LiveKeys:
    """The keys by their hashes. `on_change` is told which hashes are no longer valid, and which are new."""

    def __init__(self, settings: Settings, on_use: Callable[[str], None]) -> None:
        """`on_use`: is told the hash of each key that is presented and valid."""
        self._keys = settings.keys
        self.tenants = _tenants(self._keys)
        """The tenants that have keys."""
        self._on_use = on_use
        self._path = file_of(API_KEYS)
        self._seen: tuple[int, int, int] | None = None
        self.on_change: OnChange | None = None

    def __bool__(self) -> bool:
        """Whether the gateway requires keys, which never changes."""
        return bool(self._keys)

    def find(self, digest: str) -> ApiKey:
        """Return what a key gives access to. Raises InvalidKey or KeyExpired. Hashes are compared by a dictionary:
        how long that takes says something about a hash, and nothing about the key."""
        key = self._keys.get(digest)
        if key is None:
            raise InvalidKey
        if key.expires is not None and key.expires <= time.time():
            raise KeyExpired
        self._on_use(digest)
        return key

    def items(self) -> Iterable[tuple[str, ApiKey]]:
        """The keys with their hashes."""
        return self._keys.items()

    def end_of(self, digest: str) -> AccessEnd:
        """Return when the access by a known key ends."""
        key = self._keys.get(digest)
        return AccessEnd(math.inf if key is None or key.expires is None else key.expires, digest)

    async def run(self) -> None:
        """Read the file again when it changes. Returns at once if there is none."""
        while self._path is not None and self:
            identity = await asyncio.to_thread(_identity, self._path)
            if identity != self._seen:
                self._seen = identity
                await self._read()
            await asyncio.sleep(INTERVAL)

    async def _read(self) -> None:
        """Put the keys of the file in the place of the present ones. An invalid file changes nothing."""
        try:
            keys = await asyncio.to_thread(load_keys)
        except Misconfigured as error:
            logger.error("the API keys remain as they were: %s", error)
            return
        before, self._keys, self.tenants = self._keys, keys, _tenants(keys)
        removed = {digest for digest, key in before.items() if keys.get(digest) != key}
        added = {digest for digest, key in keys.items() if before.get(digest) != key}
        if not removed and not added:
            return
        logger.info("API keys read again: %d new or changed, %d removed", len(added), len(removed - keys.keys()))
        if self.on_change is not None:
            self.on_change(removed, added)


def _tenants(keys: Mapping[str, ApiKey]) -> frozenset[str]:
    return frozenset(key.tenant for key in keys.values())


def _identity(path: str) -> tuple[int, int, int] | None:
    """Return what differs if a file is another one, or was written: Kubernetes changes a symbolic link."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
