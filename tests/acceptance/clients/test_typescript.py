"""The TypeScript client in Node.js: its own tests, and real gateways that are killed and restarted."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import AsyncGenerator

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.version import __version__
from tests.acceptance.clients.typescript import PACKAGE, NodeClient, built, node_client
from tests.integration.broker.webhooks.scene import announced, delivering, settings
from tests.servers.webhook_receiver import SECRET, webhook_receiver
from tests.support import Gateway, Writer, clean_environment, gateway, request_body, worker

pytestmark = pytest.mark.node

KEY = "key-anna"
KEYS = f"anna:{hashlib.sha256(KEY.encode()).hexdigest()}"
BODY = request_body()


@pytest.fixture(scope="module")
async def keyed(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS) as started:
        yield started


@pytest.fixture(scope="module")
async def client(keyed: Gateway) -> AsyncGenerator[NodeClient, None]:
    """A client with the address of the gateway and a key, and nothing else."""
    async with node_client(baseUrl=keyed.url, apiKey=KEY) as started:
        yield started


def test_the_tests_of_the_package_pass() -> None:
    done = subprocess.run(
        [built(), "--test", "--test-concurrency=4", *map(str, sorted(PACKAGE.glob("tests/*.test.mjs")))],
        cwd=PACKAGE,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_package_has_the_version_of_the_broker_and_is_formatted() -> None:
    built()
    assert json.loads((PACKAGE / "package.json").read_text("utf-8"))["version"] == __version__
    done = subprocess.run(
        [PACKAGE / "node_modules/.bin/prettier", "--check", "."], cwd=PACKAGE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((PACKAGE / "package-lock.json").read_text("utf-8"))
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


async def test_a_stream_survives_a_killed_gateway_and_a_reset(redis: EmbeddedRedis, broker: Broker) -> None:
    """Each event once and in order; a call during the outage waits for the next gateway, and creates one generation."""
    port = str(free_port())
    async with node_client(baseUrl=f"http://127.0.0.1:{port}") as client:
        async with gateway(redis.url, PORT=port) as first:
            gid = (await client.call("enqueue", BODY, {}))["id"]
            writer = await Writer(broker.store.redis, gid).claim()
            await writer.append("One ", "two ")
            followed, waited = await client.start("follow", gid, {}), await client.start("wait", gid, {})
            await followed.until_text("One two ")
            await first.wait_for_subscribers(2)
            first.process.send(signal.SIGKILL)
            await first.process.wait()
        enqueued = await client.start("enqueue", BODY, {"idempotencyKey": "during-the-outage"})
        await writer.append("three ")
        async with gateway(redis.url, PORT=port) as second:
            await followed.until_text("One two three ")
            await writer.release()
            await writer.claim()
            await writer.append("Uno ")
            await followed.until_text("Uno ")
            await second.wait_for_subscribers(2)
            await writer.finish()
            await followed.end()
            assert (await waited.end())["text"] == "Uno "
            assert await client.call("text", gid, {}) == "Uno "
            created = (await enqueued.end())["id"]
            again = await client.call("enqueue", BODY, {"idempotencyKey": "during-the-outage"})
            assert again["id"] == created
    names = [event["name"] for event in followed.received]
    assert names == ["created", "started", *["chunk"] * 3, "reset", "chunk", "completed"]
    cursors = [tuple(map(int, event["cursor"].split("-"))) for event in followed.received]
    assert cursors == sorted(set(cursors))
    assert followed.states[:3] == [["connecting", None], ["live", None], ["reconnecting", "Unreachable"]]
    assert followed.states[-1] == ["live", None]


async def test_a_killed_worker_is_a_reset_and_its_generation_completes(own_redis: EmbeddedRedis, sim: str) -> None:
    quick = {"TOKENCAST_LEASE": "2"}
    slow = request_body("Tell me a story. [[sim length=60 speed=30]]", model="sim")
    async with gateway(own_redis.url, **quick) as api, node_client(baseUrl=api.url) as client:
        async with worker(own_redis.url, sim, **quick) as killed:
            gid = (await client.call("enqueue", slow, {}))["id"]
            followed = await client.start("follow", gid, {})
            await followed.until(lambda events: any(event["text"] for event in events))
            killed.send(signal.SIGKILL)
            await killed.wait()
        async with worker(own_redis.url, sim, **quick):
            await followed.end()
        assert [event["name"] for event in followed.received if event["name"] not in ("chunk", "waiting")] == [
            *("created", "started", "reset", "completed")
        ]
        assert followed.text == await client.call("text", gid, {}) != ""


async def test_the_methods_of_a_client(keyed: Gateway, client: NodeClient, broker: Broker) -> None:
    activity = await client.start("activity", {"after": "latest", "group": "methods"})
    await activity.until_live()
    bodies = [{**BODY, "metadata": {"number": str(number)}} for number in range(3)]
    *made, bad = await client.call("enqueueBatch", [*bodies, {"model": "m"}], {"group": "methods", "priority": 2})
    assert [one["priority"] for one in made] == [2, 2, 2]
    assert (bad["error"]["class"], bad["error"]["param"]) == ("BadRequest", "messages")
    one, other, third = [one["id"] for one in made]

    listed = await client.start("list all", {"group": "methods", "limit": 2})
    await listed.end()
    assert [item["id"] for item in listed.received] == sorted([one, other, third], reverse=True)
    page = await client.call("list", {"group": "methods", "metadata": {"number": "1"}}, {})
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([other], False)

    writer = await Writer(broker.store.redis, one).claim()
    await writer.append("Hello")
    assert (await client.call("get", one, {}))["text"] == "Hello"
    assert (await client.call("get", one, {"include": "request"}))["request"]["model"] == "m"
    text = await client.start("text", one, {})
    await writer.finish()
    assert await text.end() == "Hello"

    assert (await client.call("cancel", other, {}))["status"] == "cancelled"
    assert (await client.refused("text", other, {}))["class"] == "GenerationCancelled"
    writer = await Writer(broker.store.redis, third).claim()
    await writer.finish("failed", b'{"error":{"message":"It broke.","type":"server_error","code":"upstream_error"}}')
    failed = await client.refused("text", third, {})
    assert (failed["class"], failed["code"], failed["message"]) == ("GenerationFailed", "upstream_error", "It broke.")

    again = await client.call("retry", third, {})
    assert again["retry_of"] == third
    result = await client.call("retryAll", {"group": "methods"}, {"dryRun": True})
    assert (result["matched"], [item["id"] for item in result["data"]]) == (1, [third])
    assert (await client.refused("retry", again["id"], {}))["code"] == "not_ended"
    assert (await client.call("queue", {}))["by_reason"].keys() == {"queued"}
    [upstream] = await client.call("upstreams", {})
    assert (upstream["name"], upstream["circuit"]) == ("default", "closed")
    refused = await client.refused("updateUpstream", "default", {"paused": True}, {})
    assert (refused["class"], refused["code"]) == ("Forbidden", "operator_required")
    overview = await client.call("request", "GET", "/v1/generations", {"query": {"limit": 1}})
    assert [item["id"] for item in overview["data"]] == [again["id"]]
    followed = await client.start("followAll", [one, f"{third}@0-1"], {})
    await followed.end()
    names = {gid: [event["name"] for event in followed.received if event["generation"] == gid] for gid in (one, third)}
    assert names == {one: ["created", "started", "chunk", "completed"], third: ["started", "failed"]}
    assert (await client.call("group", "methods", {}))["counts"]["queued"] == 1
    assert (await client.call("cancelGroup", "methods", {}))["counts"]["cancelled"] == 2

    await client.call("delete", one, {})
    gone = await client.refused("get", one, {})
    assert (gone["class"], gone["status"], gone["code"]) == ("Gone", 410, "generation_gone")
    assert gone["request_id"].startswith("req_")

    expected = {("created", one), ("completed", one), ("cancelled", other), ("failed", third), ("gone", one)}
    await activity.until(lambda told: {(event["name"], event["data"]["id"]) for event in told} >= expected)
    await activity.abort()
    assert (await activity.failure() or {})["class"] == "AbortError"


async def test_errors_have_their_class(keyed: Gateway, client: NodeClient) -> None:
    unknown = "gen_01kbn2h8v010" + "0" * 22
    for method in ("get", "follow", "wait", "cancel", "retry", "delete", "token"):
        error = await client.refused(method, unknown, {})
        assert (error["class"], error["code"]) == ("NotFound", "generation_not_found"), method
    for method in ("get", "follow"):
        error = await client.refused(method, unknown, {}, client={"baseUrl": keyed.url, "apiKey": "wrong"})
        assert (error["class"], error["status"]) == ("Unauthorized", 401)
    assert (await client.refused("enqueue", {"model": "none", "messages": []}, {}))["class"] == "BadRequest"
    await client.call("enqueue", BODY, {"idempotencyKey": "one"})
    error = await client.refused("enqueue", {**BODY, "temperature": 0}, {"idempotencyKey": "one"})
    assert (error["class"], error["status"]) == ("Conflict", 422)


async def test_a_token_reads_one_generation(keyed: Gateway, client: NodeClient, broker: Broker) -> None:
    gid, other = [(await client.call("enqueue", BODY, {}))["id"] for _ in range(2)]
    token = await client.call("token", gid, {"ttlSeconds": 60})
    assert token["url"] == f"{keyed.url}{token['events_url']}"
    reader = {"baseUrl": keyed.url, "token": token["token"]}
    writer = await Writer(broker.store.redis, gid).claim()
    followed = await client.start("follow", gid, {"after": "latest"}, client=reader)
    await keyed.wait_for_subscribers(1)
    await writer.append("Hello")
    await writer.finish()
    await followed.end()
    assert followed.text == "Hello"
    assert (await client.call("get", gid, {}, client=reader))["text"] == "Hello"
    assert (await client.refused("get", other, {}, client=reader))["class"] == "NotFound"
    assert (await client.refused("cancel", gid, {}, client=reader))["class"] == "Unauthorized"


async def test_delivered_webhooks_are_verified(redis: EmbeddedRedis, client: NodeClient) -> None:
    async with connect(settings=settings(redis.url)) as broker, webhook_receiver() as receiver:
        gid = await announced(broker, receiver.url)
        async with delivering(broker):
            [request] = await receiver.received(1)
    event = await client.call("verifyWebhook", request.body.decode(), request.headers, SECRET)
    assert (event["type"], event["data"]["id"], event["id"]) == ("generation.completed", gid, request.id)
    forged = request.body.decode().replace("completed", "cancelled")
    error = await client.refused("verifyWebhook", forged, request.headers, SECRET)
    assert error["class"] == "WebhookVerificationError"


async def test_an_aborted_call_leaves_the_gateway(keyed: Gateway, client: NodeClient) -> None:
    gid = (await client.call("enqueue", BODY, {}))["id"]
    followed = await client.start("follow", gid, {})
    await followed.until(bool)
    await followed.abort()
    assert (await followed.failure() or {})["class"] == "AbortError"
    await keyed.wait_for_subscribers(0)
