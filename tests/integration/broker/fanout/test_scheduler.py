"""A delivery contains the events read just before it, however long it waited for its turn. The tests block the hub's
loop during a write, so that events arriving in the meantime always arrive at the same point."""

from __future__ import annotations

import json
import select
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis as redis_py

from api.dialects.native.frames import NATIVE
from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.fanout import reader_pool as readers
from broker.fanout import scheduler as turns
from broker.fanout.buffer import Slice
from broker.fanout.hub import Hub
from broker.fanout.reader import LogReader
from broker.ids import START
from broker.store import keys
from tests.integration.broker.fanout.test_hub import Peer, generation, hub_of
from tests.support import Writer, wait_until


class Listener(Peer):
    """Records each write separately, and calls a function of the test before it accepts the first write with a mark."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.at: dict[bytes, Callable[[], object]] = {}

    def write(self, part: Slice) -> None:
        super().write(part)
        frames = [json.loads(line[6:]) for line in part.data.decode().splitlines() if line.startswith("data: ")]
        self.writes.append("".join(frame["choices"][0]["delta"]["content"] for frame in frames if "choices" in frame))
        for mark in [mark for mark in self.at if mark in part.data]:
            self.at.pop(mark)()


class BlockingAppend:
    """Appends without the event loop, and waits until the reader's socket has received the entry."""

    def __init__(self, url: str, hub: Hub, writer: Writer, seq: int, text: str) -> None:
        self._redis = redis_py.Redis.from_url(url)
        self._hub = hub
        self._writer = writer
        self._seq = seq
        self._text = text

    def __call__(self) -> None:
        writer = self._writer
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": self._text}}]})
        entry: dict[str, str | int] = {"t": "c", "m": 0, "d": chunk}
        self._redis.xadd(keys.log(writer.gid), entry, f"{writer.attempt}-{self._seq}")  # pyright: ignore
        self._redis.close()
        connection = self.reader._connection  # pyright: ignore
        assert connection is not None
        assert select.select([connection._transport.get_extra_info("socket")], [], [], 10)[0]  # pyright: ignore

    @property
    def reader(self) -> LogReader:
        feed = self._hub._feeds[self._writer.gid]  # pyright: ignore
        reader = self._hub._readers._assignments[feed].reader  # pyright: ignore
        assert reader is not None
        return reader


@asynccontextmanager
async def following(hub: Hub, writer: Writer, listeners: list[Listener]) -> AsyncGenerator[None]:
    async with AsyncExitStack() as stack:
        feed, _ = await stack.enter_async_context(hub.open(writer.gid, "default"))
        for listener in listeners:
            await stack.enter_async_context(hub.subscribe(feed, NATIVE, listener, START))
        yield


async def all_idle_after_one(hub: Hub, listeners: Sequence[Listener]) -> None:
    """Wait until all listeners have the first chunk, no delivery is under way and every reader blocks in its next
    read."""

    def waits(reader: LogReader) -> bool:
        return reader._reply is not None and not reader._reply.done()  # pyright: ignore

    def all_idle() -> bool:
        read = all(feed.tail.seq == 1 for feed in hub._feeds.values())  # pyright: ignore
        given = all("one " in listener.writes for listener in listeners)
        return read and given and hub._scheduler._holder is None and all(map(waits, hub._readers))  # pyright: ignore

    await wait_until(all_idle)


@pytest.fixture(autouse=True)
def single_write_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of one write each."""
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)


async def test_later_listeners_of_a_pass_get_events_that_arrived_during_it(
    redis: EmbeddedRedis, broker: Broker
) -> None:
    """The earlier listeners get them in the next pass: nothing is repeated or omitted."""
    writer = await generation(broker)
    listeners = [Listener() for _ in range(6)]
    async with hub_of(broker) as hub, following(hub, writer, listeners):
        listeners[3].at[b"two "] = BlockingAppend(redis.url, hub, writer, 3, "three ")
        await writer.append("one ")
        await all_idle_after_one(hub, listeners)
        await writer.append("two ")
        await wait_until(lambda: all(b"three " in listener.received for listener in listeners))
        given = [listener.writes[-2:] for listener in listeners]
        assert given[:4] == [["two ", "three "]] * 4
        assert given[4:] == [["one ", "two three "]] * 2
        assert len({listener.received for listener in listeners}) == 1


async def test_a_reader_waiting_for_its_turn_delivers_events_that_arrived_meanwhile(
    redis: EmbeddedRedis, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ACTIVE_PER_READER", 1)
    first, second, third = [await generation(broker) for _ in range(3)]
    crowd, other, last = [Listener() for _ in range(9)], Listener(), Listener()
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(hub_of(broker))
        for writer, listeners in ((first, crowd), (second, [other]), (third, [last])):
            await stack.enter_async_context(following(hub, writer, listeners))
            await writer.append("one ")
        await all_idle_after_one(hub, [*crowd, other, last])
        more = [BlockingAppend(redis.url, hub, writer, 3, "three ") for writer in (second, third)]

        def append_for_next_reader() -> None:
            line = hub._scheduler._queue  # pyright: ignore
            for at in [at for at in more if line and line[0][1] is at.reader]:
                more.remove(at)
                at()

        for listener in (*crowd, other, last):
            listener.at[b"two "] = append_for_next_reader
        wake = [BlockingAppend(redis.url, hub, writer, 2, "two ") for writer in (second, third)]
        crowd[0].at[b"two "] = lambda: [at() for at in wake]
        await first.append("two ")
        wanted = {b"three ": [other, last], b"two ": crowd}
        await wait_until(lambda: all(text in one.received for text, these in wanted.items() for one in these))
        assert other.writes[-1] == last.writes[-1] == "two three "
        assert all(listener.writes[-1] == "two " for listener in crowd)
