"""Deliveries to receivers that fail, hang, redirect, go away and come back."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from email.utils import formatdate
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from broker import Broker
from broker.ids import SHARDS, shard_of
from broker.records import Delivery
from broker.webhooks.hosts import FAILURES, PER_HOST
from tests.integration.broker.webhooks.scene import announced, delivering, entry_due, make_due
from tests.servers.certificates import make_authority, make_certificate, needs_openssl, server_context
from tests.servers.tcp import tcp_server
from tests.servers.webhook_receiver import ACCEPTED, SECRET, Receiver, answer, webhook_receiver
from tests.support import DEADLINE, wait_until

OTHER = "whsec_" + "b3RoZXIh" * 5
NEVER = 3600.0
"""Seconds until a repetition that no test waits for."""


async def attempts(broker: Broker, gid: str, least: int) -> list[Delivery]:
    """The recorded attempts, once there are this many."""

    async def enough() -> list[Delivery]:
        listed = (await broker.deliveries(gid)).data
        return listed if len(listed) >= least else []

    return await wait_until(enough)


async def outcome(broker: Broker, gid: str) -> tuple[int | None, str | None]:
    [first, *_] = await attempts(broker, gid, 1)
    return first.status, first.error


# --- what arrives -------------------------------------------------------------------------------------------------


async def test_a_delivery_is_signed(broker: Broker, receiver: Receiver) -> None:
    """As the libraries check it: Standard Webhooks' own, and OpenAI's SDK."""
    gid = await announced(broker, f"{receiver.url}/hook?key=1")
    async with delivering(broker) as delivery:
        [request] = await receiver.received(1)
        [recorded] = await attempts(broker, gid, 1)
    assert request.target == "/hook?key=1"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.id == f"msg_{gid}_completed" == recorded.webhook_id
    assert Webhook(SECRET).verify(request.body, request.headers) == request.json
    event = OpenAI(api_key="key", webhook_secret=SECRET).webhooks.unwrap(request.body, request.headers)
    assert (event.type, event.data.id) == ("generation.completed", gid)
    assert (recorded.status, recorded.error, recorded.type) == (204, None, "generation.completed")
    assert await entry_due(broker, gid) is None
    assert delivery.outcomes[("delivered",)] == 1
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(request.body, request.headers)
    with pytest.raises(InvalidWebhookSignatureError):
        OpenAI(api_key="key", webhook_secret=OTHER).webhooks.unwrap(request.body, request.headers)


async def test_two_secrets_sign_while_one_is_replaced(broker: Broker, receiver: Receiver) -> None:
    await announced(broker, receiver.url)
    async with delivering(broker, webhook_secret=(SECRET, OTHER)):
        [request] = await receiver.received(1)
    for key in (SECRET, OTHER):
        Webhook(key).verify(request.body, request.headers)


async def test_user_name_and_password_of_the_url(broker: Broker, receiver: Receiver) -> None:
    await announced(broker, receiver.url.replace("http://", "http://user:p%40ss@"))
    async with delivering(broker):
        [request] = await receiver.received(1)
    assert request.headers["authorization"] == "Basic dXNlcjpwQHNz"


async def test_two_processes_deliver_once(broker: Broker, receiver: Receiver) -> None:
    ids = [await announced(broker, f"{receiver.url}/{number}") for number in range(20)]
    async with delivering(broker) as one, delivering(broker) as other:
        for gid in ids:
            await attempts(broker, gid, 1)
    assert sorted(request.json["data"]["id"] for request in receiver.requests) == sorted(ids)
    assert one.outcomes[("delivered",)] + other.outcomes[("delivered",)] == 20


async def test_without_a_secret_a_process_delivers_nothing(broker: Broker, receiver: Receiver) -> None:
    gid = await announced(broker, receiver.url)
    async with delivering(broker, webhook_secret=()) as idle, delivering(broker):
        await attempts(broker, gid, 1)
    assert sum(idle.outcomes.values()) == 0


async def test_the_secret_of_a_tenant_signs_its_webhooks(broker: Broker, receiver: Receiver) -> None:
    """A receiver that knows one tenant's secret can forge only that tenant's webhooks. A process without it leaves
    them to others."""
    gids = [await announced(broker, f"{receiver.url}/{tenant}", tenant=tenant) for tenant in ("anna", "ben")]
    async with delivering(broker, TOKENCAST_TENANTS={"anna": {"webhook_secret": OTHER}}):
        await receiver.received(2)
    by_id = {request.json["data"]["id"]: request for request in receiver.requests}
    for gid, key, wrong in zip(gids, (OTHER, SECRET), (SECRET, OTHER), strict=True):
        Webhook(key).verify(by_id[gid].body, by_id[gid].headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(wrong).verify(by_id[gid].body, by_id[gid].headers)


async def test_a_process_without_the_secret_of_a_tenant_leaves_its_webhooks(
    broker: Broker, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    gid = await announced(broker, receiver.url, tenant="ben")
    async with delivering(broker, webhook_secret=(), TOKENCAST_TENANTS={"anna": {"webhook_secret": OTHER}}) as idle:
        await wait_until(lambda: "no secret for its tenant" in caplog.text)
    assert sum(idle.outcomes.values()) == 0
    assert receiver.requests == []
    await make_due(broker, gid)
    async with delivering(broker):
        await receiver.received(1)


# --- receivers that do not accept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_anything_but_2xx_is_repeated(broker: Broker, receiver: Receiver, status: int) -> None:
    numbers = count(1)
    receiver.reply = lambda _: answer(status) if next(numbers) < 3 else answer(202, body=b"thanks")
    gid = await announced(broker, receiver.url)
    async with delivering(broker) as delivery:
        recorded = await attempts(broker, gid, 3)
    assert [(one.status, one.error) for one in recorded] == [(status, "refused")] * 2 + [(202, None)]
    assert len({(request.id, request.body) for request in receiver.requests}) == 1
    assert delivery.outcomes[("failed",)] == 2
    assert await entry_due(broker, gid) is None


async def test_a_redirect_is_not_followed(broker: Broker, receiver: Receiver) -> None:
    async with webhook_receiver() as elsewhere:
        receiver.reply = lambda _: answer(307, f"location: {elsewhere.url}")
        gid = await announced(broker, receiver.url)
        async with delivering(broker, NEVER):
            assert await outcome(broker, gid) == (307, "redirected")
        assert elsewhere.requests == []
    assert await entry_due(broker, gid) is not None


async def test_cookies_are_not_sent_with_the_next_delivery(broker: Broker, receiver: Receiver) -> None:
    receiver.reply = lambda _: answer(204, "set-cookie: session=1")
    async with delivering(broker):
        for _ in range(2):
            await attempts(broker, await announced(broker, receiver.url), 1)
    assert [request.headers.get("cookie") for request in receiver.requests] == [None, None]


async def test_410_stops(broker: Broker, receiver: Receiver) -> None:
    receiver.reply = lambda _: answer(410)
    gid = await announced(broker, receiver.url)
    async with delivering(broker) as delivery:
        assert await outcome(broker, gid) == (410, "refused")
    assert await entry_due(broker, gid) is None
    assert delivery.outcomes[("stopped",)] == 1


async def test_a_receiver_that_hangs(broker: Broker, receiver: Receiver) -> None:
    receiver.reply = lambda _: None
    gid = await announced(broker, receiver.url)
    async with delivering(broker, NEVER, timeout=0.3):
        assert await outcome(broker, gid) == (None, "timeout")
    assert await entry_due(broker, gid) is not None


async def test_an_answer_that_comes_too_late(broker: Broker) -> None:
    """The receiver has accepted what the sender gave up: it gets it again, under the same id."""
    late = asyncio.Event()
    ids: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        ids.append(next(line for line in head.split(b"\r\n") if line.startswith(b"webhook-id")))
        if len(ids) == 1:
            await late.wait()
        writer.write(ACCEPTED)
        await writer.drain()

    async with tcp_server(serve) as address:
        gid = await announced(broker, f"http://{address}/")
        async with delivering(broker, timeout=0.3):
            recorded = await attempts(broker, gid, 2)
            late.set()
    assert [one.error for one in recorded] == ["timeout", None]
    assert len(set(ids)) == 1


async def test_a_response_that_does_not_end(broker: Broker) -> None:
    """Its status counts; of its body a part is read, and not for long."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with tcp_server(serve) as address:
        gid = await announced(broker, f"http://{address}/")
        async with delivering(broker):
            assert await outcome(broker, gid) == (200, None)
    assert sent < 16 << 20  # what the buffers of the connection hold, not what could be sent in ten seconds


async def test_what_is_no_answer(broker: Broker, receiver: Receiver) -> None:
    receiver.reply = lambda _: b"SSH-2.0-OpenSSH_9.6\r\n"
    gid = await announced(broker, receiver.url)
    async with delivering(broker, NEVER):
        assert await outcome(broker, gid) == (None, "connection_failed")


async def test_a_receiver_goes_and_comes_back(broker: Broker, receiver: Receiver) -> None:
    await receiver.close()
    gid = await announced(broker, receiver.url)
    async with delivering(broker, 0.05):
        await attempts(broker, gid, 3)
        receiver.open()
        await receiver.received(1)
        recorded = await wait_until(lambda: done(broker, gid))
    assert {one.error for one in recorded[:-1]} == {"connection_failed"}
    assert recorded[-1].status == 204


async def done(broker: Broker, gid: str) -> list[Delivery] | None:
    listed = await broker.deliveries(gid)
    return listed.data if listed.retry_at is None else None


@pytest.mark.parametrize(("text", "least", "most"), [("1200", 1200, 1201), ("date", 1100, 1201), ("99999", 3600, 3601)])
async def test_retry_after(broker: Broker, receiver: Receiver, text: str, least: float, most: float) -> None:
    """Obeyed, up to an hour, and for the host."""
    value = formatdate(time.time() + 1200, usegmt=True) if text == "date" else text
    receiver.reply = lambda _: answer(503, f"retry-after: {value}")
    gid = await announced(broker, receiver.url)
    async with delivering(broker):
        [first] = await attempts(broker, gid, 1)
        due = (await broker.deliveries(gid)).retry_at
        assert due is not None
        assert least - 1 <= due - first.at - first.seconds <= most + DEADLINE
        other = await announced(broker, receiver.url)
        assert (await broker.deliveries(other)).data == []
        async with webhook_receiver() as elsewhere:  # several looks into the outbox later
            await attempts(broker, await announced(broker, elsewhere.url), 1)
        assert len(receiver.requests) == 1


# --- hosts --------------------------------------------------------------------------------------------------------


async def test_a_host_has_two_deliveries_at_once_and_others_go_on(broker: Broker, receiver: Receiver) -> None:
    receiver.reply = lambda _: None
    stuck = [await announced(broker, receiver.url) for _ in range(10)]
    async with delivering(broker, NEVER) as delivery:
        await receiver.received(PER_HOST)
        async with webhook_receiver() as elsewhere:
            others = [await announced(broker, elsewhere.url) for _ in range(30)]
            for gid in others:
                await attempts(broker, gid, 1)
        assert delivery.outcomes[("delivered",)] == 30
        assert max(receiver.at_once) == PER_HOST
        receiver.reply = lambda _: ACCEPTED
        await receiver.close()
        receiver.open()
        for gid in stuck[PER_HOST:]:
            await attempts(broker, gid, 1)


async def test_a_host_that_is_down_is_called_by_one_probe(broker: Broker, receiver: Receiver) -> None:
    """After five failures nobody calls it, then one delivery after the other does; once it works, all are delivered."""
    receiver.reply = lambda _: answer(500)
    ids = [await announced(broker, receiver.url) for _ in range(30)]
    async with delivering(broker, 0.5):
        before = FAILURES + PER_HOST - 1  # the last of these was under way when the fifth failed
        await receiver.received(before + 3)
        assert receiver.at_once[before : before + 3] == [1, 1, 1]
        receiver.reply = lambda _: ACCEPTED
        for gid in ids:
            await wait_until(partial(done, broker, gid))


async def test_a_wrong_url_does_not_close_its_host(broker: Broker, receiver: Receiver) -> None:
    """404 says something about one caller's URL, and nothing about the others' of the same host."""
    receiver.reply = lambda request: answer(404) if request.target == "/wrong" else ACCEPTED
    wrong = [await announced(broker, f"{receiver.url}/wrong") for _ in range(3 * FAILURES)]
    right = await announced(broker, f"{receiver.url}/right")
    async with delivering(broker, NEVER):
        for gid in wrong:
            await attempts(broker, gid, 1)
        assert await outcome(broker, right) == (204, None)


async def test_one_that_always_fails_does_not_keep_a_host_closed(broker: Broker, receiver: Receiver) -> None:
    """It is in the first shard, and due at each probe; sooner or later another one is tried."""
    keys = (f"key-{number}" for number in count())
    key = await anext(key for key in keys if shard_of(await broker.store.make_id("default", key)) == SHARDS[0])
    poison = await announced(broker, f"{receiver.url}/poison", idempotency_key=key)
    receiver.reply = lambda request: answer(500) if request.target == "/poison" else ACCEPTED
    async with delivering(broker, 0.02):
        await attempts(broker, poison, FAILURES + 2)
        for gid in [await announced(broker, f"{receiver.url}/good") for _ in range(10)]:
            assert await outcome(broker, gid) == (204, None)


async def test_redelivery_reaches_a_host_that_is_not_called(broker: Broker, receiver: Receiver) -> None:
    receiver.reply = lambda _: answer(500)
    ids = [await announced(broker, receiver.url) for _ in range(FAILURES + PER_HOST)]
    async with delivering(broker, NEVER):
        await receiver.received(FAILURES)
        tried = next(iter([gid for gid in ids if (await broker.deliveries(gid)).data]))
        receiver.reply = lambda _: ACCEPTED
        await broker.redeliver(tried, 1)
        recorded = await attempts(broker, tried, 2)
        assert recorded[1].status == 204
        await broker.redeliver(tried, 1)  # also one that was delivered
        assert (await attempts(broker, tried, 3))[2].webhook_id == recorded[0].webhook_id


# --- addresses ----------------------------------------------------------------------------------------------------


class Resolver:
    """The system's resolver: every name has this address. Counts the look-ups."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.looked_up: list[str] = []
        self._addresses = addresses
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: Any, port: Any, *more: Any, **options: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        if not str(name).endswith(".example"):
            return self._real(host, port, *more, **options)
        self.looked_up.append(name)
        rows: list[Any] = []
        for address in self._addresses:
            rows += self._real(address, port, *more, **options)
        return rows


async def test_a_name_that_resolves_to_this_machine(
    broker: Broker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused at each delivery, before a connection is made."""
    resolver = Resolver(monkeypatch, "127.0.0.1", "::1")
    gid = await announced(broker, f"https://rebound.example:{receiver.port}/")
    async with delivering(broker, webhook_allow_private=False):
        recorded = await attempts(broker, gid, 2)
    assert {(one.status, one.error) for one in recorded} == {(None, "address_refused")}
    assert receiver.requests == []
    assert set(resolver.looked_up) == {"rebound.example"}


async def test_http_is_refused_at_delivery_too(broker: Broker, receiver: Receiver) -> None:
    """The setting may have changed since the request."""
    gid = await announced(broker, receiver.url)
    async with delivering(broker, NEVER, webhook_allow_private=False):
        assert await outcome(broker, gid) == (None, "address_refused")
    assert receiver.requests == []


@needs_openssl
async def test_tls_to_the_address_that_was_checked(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One look-up; the certificate has to be the name's. The first address refuses connections, the second is right."""
    authority = make_authority(tmp_path)
    make_certificate(tmp_path, authority, "DNS:right.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    resolver = Resolver(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with webhook_receiver(server_context(tmp_path)) as receiver, delivering(broker, NEVER):
        right = await announced(broker, f"https://right.example:{receiver.port}/hook")
        wrong = await announced(broker, f"https://wrong.example:{receiver.port}/hook")
        assert await outcome(broker, right) == (204, None)
        assert await outcome(broker, wrong) == (None, "tls_failed")
        [request] = receiver.requests
    assert request.headers["host"] == f"right.example:{receiver.port}"
    assert sorted(resolver.looked_up) == ["right.example", "wrong.example"]


async def test_an_unknown_name(broker: Broker) -> None:
    gid = await announced(broker, "https://does-not-exist.invalid/")
    async with delivering(broker, NEVER):
        assert await outcome(broker, gid) == (None, "name_not_resolved")


# --- deletion, logs -----------------------------------------------------------------------------------------------


async def test_a_deleted_generation_is_not_announced(broker: Broker, receiver: Receiver) -> None:
    """Not even again, if an attempt was under way."""
    receiver.reply = lambda _: answer(500)
    gone = await announced(broker, receiver.url)
    async with delivering(broker, 0.02) as delivery:
        await attempts(broker, gone, 1)
        await broker.delete(gone)
        receiver.reply = lambda _: ACCEPTED
        other = await announced(broker, receiver.url)
        assert await outcome(broker, other) == (204, None)
        accepted = [request for request in receiver.requests if other in request.id]
        assert len(accepted) == 1
        before = len(receiver.requests)
        await attempts(broker, await announced(broker, receiver.url), 1)
        assert len(receiver.requests) == before + 1
    assert delivery.outcomes[("delivered",)] == 2


async def test_no_secret_of_a_url_is_logged(
    broker: Broker, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = count(1)
    receiver.reply = lambda _: answer(500) if next(numbers) == 1 else ACCEPTED
    url = receiver.url.replace("http://", "http://Hunter1:Hunter2@") + "/Hunter3?key=Hunter4"
    with caplog.at_level(logging.DEBUG, "tokencast"):
        gid = await announced(broker, url)
        async with delivering(broker):
            await attempts(broker, gid, 2)
    logged = [record.getMessage() for record in caplog.records if record.name == "tokencast.webhooks"]
    assert any(f"{gid}: webhook failed (500) by 127.0.0.1" in line for line in logged)
    assert any(f"{gid}: webhook delivered (204) by 127.0.0.1" in line for line in logged)
    assert "Hunter" not in "".join(logged)


async def test_a_stopping_process_ends_its_deliveries(broker: Broker, receiver: Receiver) -> None:
    """It waits for the one under way, and begins no other."""
    arrived, answered = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await answered.wait()
        writer.write(ACCEPTED)
        await writer.drain()

    async with tcp_server(serve) as address, delivering(broker) as delivery:
        gid = await announced(broker, f"http://{address}/")
        await arrived.wait()
        closing = asyncio.create_task(delivery.close())
        await asyncio.sleep(0)
        later = await announced(broker, receiver.url)
        answered.set()
        await closing
        assert await outcome(broker, gid) == (204, None)
        assert (await broker.deliveries(later)).data == []
    await make_due(broker, later)
    async with delivering(broker):
        assert await outcome(broker, later) == (204, None)
