"""Stream tokens: the generation that they open, their lifetime, and everything that they do not open."""

from __future__ import annotations

import asyncio
import calendar
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import jwt
import pytest

from broker import Broker, connect
from broker.auth.stream_tokens import Token
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.cli.test_cli import tokencast
from tests.servers.redis_proxy import redis_proxy
from tests.support import DEADLINE, Frame, Gateway, Writer, gateway, gather, request_body, texts, wait_until

KEYS = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "ben"))
ANNA, BEN = {"authorization": "Bearer key-anna"}, {"authorization": "Bearer key-ben"}
READING = ("/v1/generations/{}", "/v1/generations/{}/events", "/v1/chat/completions/{}")
WORDS = ["one ", "two ", "three "]


@pytest.fixture(scope="module")
async def keyed(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway with keys, on the module's Redis."""
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS) as started:
        yield started


async def running_generation(api: Gateway, broker: Broker) -> Writer:
    """A running generation of Anna's with these words."""
    writer = await Writer(broker.store.redis, (await api.create(**ANNA))["id"]).claim()
    await writer.append(*WORDS)
    return writer


async def make_token(api: Gateway, gid: str, body: Any = None, **headers: str) -> dict[str, Any]:
    """A new token of the generation."""
    response = await api.http.post(f"/v1/generations/{gid}/token", json=body, headers=headers or ANNA)
    assert response.status_code == 200, response.text
    return response.json()


async def read(api: Gateway, url: str, headers: dict[str, str] | None = None) -> list[Frame]:
    """All frames until the response ends, as it must for an expired token."""
    async with asyncio.timeout(DEADLINE):
        return [frame async for frame in api.stream("GET", url, headers=headers)]


async def expired_token(api: Gateway, gid: str) -> dict[str, Any]:
    """A token that was valid for a second."""
    token = await make_token(api, gid, {"ttl_seconds": 1})
    await wait_until(lambda: time.time() > token["expires_at"])
    return token


async def refusal(api: Gateway, path: str, token: str, method: str = "GET") -> tuple[int, str]:
    response = await api.http.request(method, path, params={"token": token})
    return response.status_code, response.json()["error"]["code"]


# --- allowed requests -----------------------------------------------------------------------------------------------


async def test_a_token_reads_its_generation(keyed: Gateway, broker: Broker) -> None:
    """On every route that reads a generation, as with the key: streams, pages, state, and the OpenAI dialect. The state
    does not show the prompt."""
    writer = await running_generation(keyed, broker)
    await writer.finish()
    before = time.time()
    token = await make_token(keyed, writer.gid)
    assert set(token) == {"token", "expires_at", "events_url"}
    assert before + 599 < token["expires_at"] <= time.time() + 600
    assert token["events_url"] == f"/v1/generations/{writer.gid}/events?token={token['token']}"
    given = await read(keyed, token["events_url"])
    assert given == await keyed.events(writer.gid, **ANNA)
    assert (texts(given), given[-1].event) == ("".join(WORDS), "completed")
    for path in READING:
        for query, headers in ({}, {}), ({"stream": "true"}, {}), ({"limit": "2"}, {"accept": "application/json"}):
            url = path.format(writer.gid)
            with_token = await keyed.http.get(url, params={**query, "token": token["token"]}, headers=headers)
            with_key = await keyed.http.get(url, params=query, headers={**headers, **ANNA})
            without_prompt = re.sub(rb'"prompt":"[^"]*"', b'"prompt":null', with_key.content)
            assert (with_token.status_code, with_token.content) == (200, without_prompt)
        head = await keyed.http.head(path.format(writer.gid), params={"token": token["token"]})
        assert (head.status_code, head.content) == (200, b"")


async def test_a_token_can_follow_and_resume(keyed: Gateway, broker: Broker) -> None:
    """`after` can be appended to the URL, for a page that has requested a new token."""
    writer = await running_generation(keyed, broker)
    url = (await make_token(keyed, writer.gid))["events_url"]
    async with aclosing(keyed.stream("GET", f"{url}&after={writer.attempt}-2")) as stream:
        assert texts([await anext(stream)]) == "three "
        await writer.append("four")
        await writer.finish()
        rest = [frame async for frame in stream]
    assert (texts(rest), rest[-1].event) == ("four", "completed")
    again = await keyed.http.get(url, headers={"last-event-id": rest[-1].id or ""})
    assert again.status_code == 204


async def test_responses_for_tokens_are_neither_cached_nor_referred(keyed: Gateway, broker: Broker) -> None:
    """The URL is the secret: no cache keeps a response longer than the token is valid, and no referrer passes it on."""
    writer = await running_generation(keyed, broker)
    await writer.finish()
    token = (await make_token(keyed, writer.gid))["token"]
    answers = [await keyed.http.get(path.format(writer.gid), params={"token": token}) for path in READING]
    answers += [await keyed.http.get(READING[2].format(writer.gid), params={"token": token, "stream": "true"})]
    answers += [await keyed.http.get(READING[0].format(writer.gid), params={"token": token + "x"})]
    answers += [await keyed.http.post(f"/v1/generations/{writer.gid}/token", headers=ANNA)]
    for answer in answers:
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize("body", [None, {}, {"ttl_seconds": None}, {"ttl_seconds": 600}, {"ttl_seconds": 1.5}])
async def test_a_token_is_valid_for_at_most_ten_minutes(keyed: Gateway, broker: Broker, body: Any) -> None:
    gid = (await keyed.create(**ANNA))["id"]
    seconds = (body or {}).get("ttl_seconds") or 600
    before = time.time()
    token = await make_token(keyed, gid, body)
    assert before + seconds - 0.01 <= token["expires_at"] <= time.time() + seconds + 0.01


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"ttl_seconds": 601}', "ttl_seconds"),
        (b'{"ttl_seconds": 0}', "ttl_seconds"),
        (b'{"ttl_seconds": -5}', "ttl_seconds"),
        (b'{"ttl_seconds": "600"}', "ttl_seconds"),
        (b'{"ttl_seconds": true}', "ttl_seconds"),
        (b"[600]", None),
        (b'{"ttl_seconds": NaN}', None),
        (b"600 s", None),
    ],
)
async def test_an_invalid_lifetime_is_refused(keyed: Gateway, content: bytes, param: str | None) -> None:
    gid = (await keyed.create(**ANNA))["id"]
    response = await keyed.http.post(f"/v1/generations/{gid}/token", content=content, headers=ANNA)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# --- refused requests ----------------------------------------------------------------------------------------------


async def test_only_the_tenant_can_create_a_token(keyed: Gateway, broker: Broker) -> None:
    """Neither another tenant, nor a request without a key, nor one with a token."""
    writer = await running_generation(keyed, broker)
    path = f"/v1/generations/{writer.gid}/token"
    token = (await make_token(keyed, writer.gid))["token"]
    assert (await keyed.http.post(path, headers=BEN)).status_code == 404
    assert (await keyed.http.post(path)).status_code == 401
    assert await refusal(keyed, path, token, "POST") == (401, "invalid_api_key")
    assert (await keyed.http.get(path, headers=ANNA)).status_code == 405
    unknown = await keyed.http.post(f"/v1/generations/{writer.gid[:-4]}0000/token", headers=ANNA)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "generation_not_found")
    await keyed.http.delete(f"/v1/generations/{writer.gid}", headers=ANNA)
    assert (await keyed.http.post(path, headers=ANNA)).status_code == 410


async def test_a_token_can_neither_change_nor_list(keyed: Gateway, broker: Broker) -> None:
    writer = await running_generation(keyed, broker)
    token = (await make_token(keyed, writer.gid))["token"]
    one = f"/v1/generations/{writer.gid}"
    for method, path in (
        ("POST", f"{one}/cancel"),
        ("DELETE", one),
        ("POST", "/v1/generations"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/generations"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
    ):
        assert await refusal(keyed, path, token, method) == (401, "invalid_api_key"), (method, path)
    as_key = await keyed.http.get(one, headers={"authorization": f"Bearer {token}"})
    assert as_key.status_code == 401
    assert (await keyed.http.get(one, headers=ANNA)).json()["status"] == "in_progress"


async def test_another_generation_looks_unknown_to_a_token(keyed: Gateway, broker: Broker) -> None:
    """Another one of the same tenant, one of another tenant and an unknown one look the same."""
    token = (await make_token(keyed, (await keyed.create(**ANNA))["id"]))["token"]
    hers, his = (await keyed.create(**ANNA))["id"], (await keyed.create(**BEN))["id"]
    answers: set[str] = set()
    for gid in (hers, his, hers[:-4] + "0000", "gen_x"):
        for path in READING:
            assert await refusal(keyed, path.format(gid), token) == (404, "generation_not_found")
            answers.add((await keyed.http.get(path.format(gid), params={"token": token})).text)
    assert len(answers) == 1


async def test_an_invalid_token_is_refused(keyed: Gateway, broker: Broker) -> None:
    gid = (await keyed.create(**ANNA))["id"]
    token = (await make_token(keyed, gid))["token"]
    late = await expired_token(keyed, gid)
    for path in READING:
        url = path.format(gid)
        for text in ("x", token[:-1], token.swapcase(), "key-anna", f"{token}\u2028", "%00", "x" * 5000):
            assert await refusal(keyed, url, text) == (401, "invalid_token"), text
        assert await refusal(keyed, url, late["token"]) == (401, "token_expired")
        assert await refusal(keyed, url, "") == (401, "invalid_api_key")
        head = await keyed.http.head(url, params={"token": late["token"]})
        assert (head.status_code, head.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_key_takes_precedence_over_a_token(keyed: Gateway, broker: Broker) -> None:
    """A client with a key needs no token, so an expired one in its link does no harm. Other credentials, such as those
    that a browser repeats to a proxy's password page, are ignored."""
    gid = (await keyed.create(**ANNA))["id"]
    late, good = await expired_token(keyed, gid), await make_token(keyed, gid)
    url = f"/v1/generations/{gid}?token="
    assert (await keyed.http.get(url + late["token"], headers=ANNA)).status_code == 200
    assert (await keyed.http.get(url + good["token"], headers=BEN)).status_code == 404
    assert (await keyed.http.get(url + good["token"], headers={"authorization": "Bearer wrong"})).status_code == 401
    assert (await keyed.http.get(url + good["token"], headers={"authorization": "Basic YTpi"})).status_code == 200


async def test_the_hash_of_an_empty_key_admits_nobody(redis: EmbeddedRedis) -> None:
    """The value that an unset variable in a shell produces."""
    async with gateway(redis.url, TOKENCAST_API_KEYS=f"anna:{hashlib.sha256(b'').hexdigest()}") as api:
        for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Basic"}):
            assert (await api.http.get("/v1/generations", headers=headers)).status_code == 401


# --- D14: expiry ---------------------------------------------------------------------------------------------------


async def test_a_stream_ends_when_its_token_expires(keyed: Gateway, broker: Broker) -> None:
    """In the middle of a running generation: `retry:`, a clean end, and 401 for a reconnect with the same token."""
    writer = await running_generation(keyed, broker)
    token = await make_token(keyed, writer.gid, {"ttl_seconds": 2})
    frames = await read(keyed, token["events_url"])
    assert time.time() > token["expires_at"] - 0.1
    assert texts(frames) == "".join(WORDS)
    assert frames[-1].raw.startswith(b"retry: ")
    assert frames[-2].event == "chunk"
    resume = {"last-event-id": frames[-2].id or ""}
    back = await keyed.http.get(token["events_url"], headers=resume)
    assert (back.status_code, back.json()["error"]["code"]) == (401, "token_expired")
    await writer.append("four")
    await writer.finish()
    other = await make_token(keyed, writer.gid)
    rest = await read(keyed, other["events_url"], resume)
    assert (texts(rest), rest[-1].event) == ("four", "completed")


async def test_a_chat_stream_ends_with_an_error_when_its_token_expires(keyed: Gateway, broker: Broker) -> None:
    """For an SDK, a clean end would be a complete response."""
    writer = await running_generation(keyed, broker)
    token = await make_token(keyed, writer.gid, {"ttl_seconds": 2})
    url = f"/v1/chat/completions/{writer.gid}?stream=true&token={token['token']}"
    frames = await read(keyed, url)
    assert texts(frames[:-1]) == "".join(WORDS)
    error = frames[-1].json["error"]
    assert (error["code"], error["type"]) == ("token_expired", "authentication_error")
    assert "[DONE]" not in [frame.data for frame in frames]
    assert await refusal(keyed, url, token["token"]) == (401, "token_expired")


async def test_each_stream_ends_with_its_own_token(keyed: Gateway, broker: Broker) -> None:
    """Another subscriber of the same generation continues, with a key or with a token that is still valid."""
    writer = await running_generation(keyed, broker)
    short, long = await make_token(keyed, writer.gid, {"ttl_seconds": 2}), await make_token(keyed, writer.gid)

    async def ending(url: str, **headers: str) -> Frame:
        return (await read(keyed, url, headers))[-1]

    async def finish_after_the_short_one() -> None:
        assert (await ending(short["events_url"])).raw.startswith(b"retry: ")
        await writer.append("four")
        await writer.finish()

    by_key = ending(f"/v1/generations/{writer.gid}/events", **ANNA)
    last, other, _ = await gather(ending(long["events_url"]), by_key, finish_after_the_short_one())
    assert (last.event, other.event) == ("completed", "completed")


async def test_the_end_of_a_generation_does_not_wait_for_the_expiry(keyed: Gateway, broker: Broker) -> None:
    writer = await running_generation(keyed, broker)
    token = await make_token(keyed, writer.gid)

    async def finish() -> None:
        await wait_until(lambda: len(given) > 3)
        await writer.finish()

    given: list[Frame] = []

    async def read() -> None:
        async for frame in keyed.stream("GET", token["events_url"]):
            given.append(frame)

    await gather(read(), finish())
    assert given[-1].event == "completed"
    assert time.time() < token["expires_at"]


# --- the signing key ------------------------------------------------------------------------------------------


async def test_gateways_accept_each_other_s_tokens(own_redis: EmbeddedRedis) -> None:
    """Without configuration, from the first token on, requested from both gateways concurrently; and after a
    restart."""
    async with (
        gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as one,
        gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as two,
    ):
        gid = (await one.create(**ANNA))["id"]
        tokens = await gather(*(make_token(api, gid) for api in (one, two) * 8))
        for api in (one, two):
            for token in tokens:
                params = {"token": token["token"]}
                assert (await api.http.get(READING[0].format(gid), params=params)).status_code == 200
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as three:
        assert (await three.http.get(READING[0].format(gid), params=params)).status_code == 200
    async with connect(own_redis.url) as broker:
        assert 29 * 86400 < await broker.queue.redis.execute("TTL", keys.SIGNING_KEY) <= 30 * 86400


async def test_concurrent_first_tokens_have_the_same_key(own_redis: EmbeddedRedis) -> None:
    """Created concurrently, also by a service that uses the broker as a library."""
    async with connect(own_redis.url) as one, connect(own_redis.url) as two:
        for _ in range(10):
            await one.queue.redis.execute("DEL", keys.SIGNING_KEY)
            made_at_once = await gather(*(broker.tokens.issue("gen_x", "anna") for broker in (one, two) * 20))
            for text, expires_at in made_at_once:
                assert await two.tokens.check(text) == Token("gen_x", "anna", expires_at)


async def test_a_lost_signing_key_invalidates_its_tokens(own_redis: EmbeddedRedis) -> None:
    """At every gateway immediately. The next token is valid, and each one extends the month of its key."""
    async with (
        gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as one,
        gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as two,
        connect(own_redis.url) as broker,
    ):
        gid = (await one.create(**ANNA))["id"]
        old = (await make_token(one, gid))["token"]
        for api in (one, two):
            assert (await api.http.get(READING[0].format(gid), params={"token": old})).status_code == 200
        await broker.queue.redis.execute("DEL", keys.SIGNING_KEY)
        for api in (one, two):
            assert await refusal(api, READING[0].format(gid), old) == (401, "invalid_token")
        new = (await make_token(two, gid))["token"]
        for api in (one, two):
            assert await refusal(api, READING[0].format(gid), old) == (401, "invalid_token")
            assert (await api.http.get(READING[0].format(gid), params={"token": new})).status_code == 200
        await broker.queue.redis.execute("EXPIRE", keys.SIGNING_KEY, 60)
        await make_token(one, gid)
        assert await broker.queue.redis.execute("TTL", keys.SIGNING_KEY) > 29 * 86400


async def test_a_configured_secret_needs_no_redis(own_redis: EmbeddedRedis) -> None:
    """Gateways with the same secret accept each other's tokens; those of another secret are refused."""
    variables = {"TOKENCAST_API_KEYS": KEYS}
    async with (
        gateway(own_redis.url, **variables, TOKENCAST_SECRET="a" * 32) as one,
        gateway(own_redis.url, **variables, TOKENCAST_SECRET="a" * 32) as two,
        gateway(own_redis.url, **variables, TOKENCAST_SECRET="b" * 32) as other,
        connect(own_redis.url) as broker,
    ):
        gid = (await one.create(**ANNA))["id"]
        token = (await make_token(one, gid))["token"]
        assert (await two.http.get(READING[0].format(gid), params={"token": token})).status_code == 200
        assert await refusal(other, READING[0].format(gid), token) == (401, "invalid_token")
        assert await broker.queue.redis.execute("EXISTS", keys.SIGNING_KEY) == 0


async def test_a_backend_with_the_secret_can_create_tokens(redis: EmbeddedRedis) -> None:
    """Without a call; only for existing tenants, for at most ten minutes, and only with this algorithm."""
    secret = "a" * 16
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS, TOKENCAST_SECRET=secret) as api:
        gid = (await api.create(**ANNA))["id"]
        claims = {"sub": "anna", "gen": gid, "scope": "read", "exp": int(time.time()) + 300}
        with pytest.warns(
            jwt.InsecureKeyLengthWarning
        ):  # PyJWT's warning about a short secret, which the gateway accepts
            own, other, longer, stronger, strange = (
                jwt.encode({**claims, **wrong}, secret, algorithm)
                for wrong, algorithm in (
                    ({}, "HS256"),
                    ({"gen": gid[:-4] + "0000"}, "HS256"),
                    ({"exp": claims["exp"] + 86400}, "HS256"),
                    ({}, "HS512"),
                    ({"sub": "carl"}, "HS256"),
                )
            )
        path = READING[0].format(gid)
        assert (await api.http.get(path, params={"token": own})).status_code == 200
        assert await refusal(api, path, other) == (404, "generation_not_found")
        for text in (longer, stronger, strange):
            assert await refusal(api, path, text) == (401, "invalid_token")
        assert await refusal(api, "/v1/generations", own) == (401, "invalid_api_key")


async def test_tokens_are_checked_while_the_queue_redis_is_away(own_redis: EmbeddedRedis, redis: EmbeddedRedis) -> None:
    """A gateway that has read the key continues to check with it. One that has not makes a browser reconnect, and
    refuses no token."""
    async with redis_proxy(redis.url) as proxy, connect(own_redis.url) as broker:
        variables = {"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_STREAMS_URL": own_redis.url}
        async with gateway(proxy.url, **variables) as one:
            writer = await running_generation(one, broker)
            await writer.finish()
            token = await make_token(one, writer.gid)
            await proxy.close()
            async with gateway(proxy.url, **variables) as two:
                frames = await read(one, token["events_url"])
                assert (texts(frames), frames[-1].event) == ("".join(WORDS), "completed")
                [later] = await read(two, token["events_url"])
                assert later.raw.startswith(b"retry: ")
                assert await refusal(two, READING[0].format(writer.gid), token["token"]) == (503, "storage_unavailable")
                assert (await one.http.post(f"/v1/generations/{writer.gid}/token", headers=ANNA)).status_code == 503
                await proxy.open()
                assert (await two.http.get(token["events_url"])).status_code == 200


async def test_the_tokens_of_a_tenant_end_with_its_keys(redis: EmbeddedRedis, keyed: Gateway) -> None:
    gid = (await keyed.create(**BEN))["id"]
    token = (await make_token(keyed, gid, **BEN))["token"]
    assert (await keyed.http.get(READING[0].format(gid), params={"token": token})).status_code == 200
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS.split(",")[0]) as api:
        assert await refusal(api, READING[0].format(gid), token) == (401, "invalid_token")


async def test_a_token_is_checked_without_api_keys(api: Gateway, broker: Broker) -> None:
    """So that a page handles expiry on a developer's machine as it does in production."""
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    other = (await api.create())["id"]
    response = await api.http.post(f"/v1/generations/{writer.gid}/token", json={"ttl_seconds": 2})
    token = response.json()
    assert await refusal(api, READING[0].format(other), token["token"]) == (404, "generation_not_found")
    frames = await read(api, token["events_url"])
    assert frames[-1].raw.startswith(b"retry: ")
    assert await refusal(api, token["events_url"], token["token"]) == (401, "token_expired")
    assert (await api.http.get(READING[0].format(other))).status_code == 200


# --- on the command line --------------------------------------------------------------------------------------


async def test_the_token_command_prints_a_link(api: Gateway) -> None:
    gid = (await api.create(request_body()))["id"]
    shown, as_json, missing, long = await gather(
        tokencast("token", gid, url=api.url),
        tokencast("token", gid, "--ttl", "60", "--json", url=api.url),
        tokencast("token", gid[:-4] + "0000", url=api.url),
        tokencast("token", gid, "--ttl", "601", url=api.url),
    )
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert (shown.code, shown.err, set(lines)) == (0, "", {"token", "expires", "url"})
    assert lines["url"] == f"{api.url}/v1/generations/{gid}/events?token={lines['token']}"
    assert (await api.http.get(lines["url"].replace("/events", ""))).status_code == 200
    ends = calendar.timegm(time.strptime(lines["expires"], "%Y-%m-%dT%H:%M:%SZ"))
    assert time.time() + 300 < ends < time.time() + 601
    answer = json.loads(as_json.out)
    assert set(answer) == {"token", "expires_at", "events_url"}
    assert answer["expires_at"] < time.time() + 61
    assert (missing.code, missing.out) == (4, "")
    assert (long.code, long.out) == (2, "")
