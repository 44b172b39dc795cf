"""One trace from the POST through queue and attempt to the last byte, received by an OTLP collector."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.store import keys
from tests.servers.tcp import tcp_server
from tests.support import ROOT, gateway, request_body, wait_until, worker

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return web.Response()

    def named(self, name: str) -> Span | None:
        return next((span for _, span in self.spans if span.name == name), None)


@asynccontextmanager
async def collector() -> AsyncGenerator[Collector, None]:
    found = Collector()
    app = web.Application()
    app.add_routes([web.post("/v1/traces", found.take)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()


async def test_one_trace_from_the_post_to_the_last_byte(own_redis: EmbeddedRedis, sim: str) -> None:
    names = ("POST /v1/generations", "queue", "attempt", "chat sim-fast", "follow")
    async with collector() as at:
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": at.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        async with gateway(own_redis.url, **sending) as api, worker(own_redis.url, sim, **sending):
            created = await api.create(request_body("one two", model="sim-fast"), traceparent=f"00-{TRACE}-{PARENT}-01")
            await api.events(created["id"])
            await wait_until(lambda: all(at.named(name) for name in names))
        post, queue, attempt, call, follow = (at.named(name) for name in names)
        services = {span.name: service for service, span in at.spans}
    assert {span.trace_id.hex() for span in (post, queue, attempt, call, follow)} == {TRACE}
    assert post.parent_span_id.hex() == PARENT
    assert {span.parent_span_id for span in (queue, attempt, follow)} == {post.span_id}
    assert (services["queue"], services["follow"]) == ("tokencast-worker", "tokencast-api")
    assert queue.end_time_unix_nano >= queue.start_time_unix_nano
    assert call.parent_span_id == attempt.span_id
    assert "first token" in [event.name for event in call.events]
    facts = facts_of(follow)
    assert (facts["generation.id"], facts["ended"]) == (created["id"], "ended")
    assert facts_of(post).items() >= {"http.route": "/v1/generations", "http.response.status_code": 202}.items()
    assert "one two" not in str(at.spans)


def facts_of(span: Span) -> dict[str, Any]:
    """The attributes; a list as a list."""
    found: dict[str, Any] = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return found


async def test_the_span_of_a_call_follows_the_conventions_for_generative_ai(own_redis: EmbeddedRedis, sim: str) -> None:
    """Of a call that succeeds, and of one that fails; neither contains a text."""
    nobody = free_port()
    entries = [
        {"name": "there", "base_url": sim, "models": {"mine": "sim-fast"}},
        {"name": "gone", "base_url": f"http://127.0.0.1:{nobody}/v1", "models": ["gone"]},
    ]
    async with collector() as at:
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": at.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        sending |= {"OTEL_SERVICE_NAME": "ours", "TOKENCAST_UPSTREAMS": json.dumps(entries), "TOKENCAST_LOG": "json"}
        async with gateway(own_redis.url, **sending) as api, worker(own_redis.url, sim, **sending) as process:
            asked = request_body("canary", model="mine", temperature=0.5, max_tokens=9, stop=["canary"])
            created = await api.create(asked)
            await api.ended(created["id"])
            await api.create(request_body("canary", model="gone"))
            good = await wait_until(lambda: at.named("chat sim-fast"))
            bad = await wait_until(lambda: at.named("chat gone"))
            line = (await process.says(f'.*"{created["id"]}: completed".*'))[0]
    facts = facts_of(good)
    assert (good.kind, bad.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_CLIENT)
    assert {service for service, _ in at.spans} == {"ours"}
    host, _, port = sim.removeprefix("http://").removesuffix("/v1").partition(":")
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "sim-fast",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.response.finish_reasons": ["length"],
        "server.address": host,
        "server.port": int(port),
        "tokencast.upstream": "there",
        "generation.id": created["id"],
    }
    assert {name: facts.get(name) for name in expected} == expected
    assert min(facts["gen_ai.usage.input_tokens"], facts["gen_ai.usage.output_tokens"]) > 0
    assert facts["gen_ai.response.id"]
    assert facts["gen_ai.response.time_to_first_chunk"] > 0
    assert (facts_of(bad)["error.type"], bad.status.code) == ("refused", Status.STATUS_CODE_ERROR)
    assert "canary" not in str(at.spans)
    assert json.loads(line)["trace_id"] == good.trace_id.hex()


async def test_a_stopping_process_sends_the_remaining_spans(own_redis: EmbeddedRedis, sim: str) -> None:
    """Here spans are sent every ten minutes, so all of them remain when the signal arrives."""
    async with collector() as at:
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": at.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        async with gateway(own_redis.url, **sending) as api, worker(own_redis.url, sim, **sending) as work:
            await api.ended((await api.create(request_body(model="sim-fast")))["id"])
            for process in (api.process, work):
                process.send(signal.SIGTERM)
                assert await process.wait() == 0
        assert at.named("POST /v1/generations") is not None
        assert at.named("attempt") is not None


async def test_a_stopping_gateway_sends_the_spans_of_open_streams(own_redis: EmbeddedRedis) -> None:
    """The process that serves the stream has a supervisor, which must give it the time to send them."""
    async with collector() as at:
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": at.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        async with gateway(own_redis.url, TOKENCAST_DRAIN="0.1", TOKENCAST_PROCESSES="2", **sending) as api:
            gid = (await api.create())["id"]
            async with api.http.stream("GET", f"/v1/generations/{gid}/events") as stream:
                lines = stream.aiter_lines()
                while await anext(lines) != "event: created":
                    pass
                api.process.send(signal.SIGTERM)
                async for _ in lines:
                    pass
            assert await api.process.wait() == 0
        ended = {span.name for _, span in at.spans}
    assert ended >= {"POST /v1/generations", "GET /v1/generations/{id}/events", "follow"}


@asynccontextmanager
async def silent_collector() -> AsyncGenerator[tuple[str, asyncio.Event], None]:
    """A collector that accepts connections and never answers. The event is set when it has received data."""
    contacted = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        contacted.set()
        await reader.read()
        writer.close()

    async with tcp_server(take, limit=1 << 24) as address:
        yield f"http://{address}", contacted


async def test_a_silent_collector_does_not_block_the_end_of_a_process(own_redis: EmbeddedRedis, sim: str) -> None:
    """Each process gives up by itself and reports the loss; the exporter would wait for ten minutes here."""
    async with silent_collector() as (url, contacted):
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
        async with gateway(own_redis.url, **sending) as api, worker(own_redis.url, sim, **sending) as work:
            await api.ended((await api.create(request_body(model="sim-fast")))["id"])
            for process in (api.process, work):
                process.send(signal.SIGTERM)
            for process in (api.process, work):
                assert await process.wait() == 0
                assert "the last spans were lost" in process.output
        assert contacted.is_set()


async def test_no_trace_context_is_stored_by_default(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        created = await api.create(traceparent=f"00-{TRACE}-{PARENT}-01")
        assert await broker.store.redis.execute("HEXISTS", keys.meta(created["id"]), "tp") == 0


async def test_a_missing_sdk_is_reported_and_the_gateway_runs(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry" / "sdk").mkdir(parents=True)
    (tmp_path / "opentelemetry" / "sdk" / "__init__.py").write_text("raise ImportError('not here')")
    without = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    async with gateway(own_redis.url, **without) as api:
        assert (await api.create())["status"] == "queued"
        assert "not installed: pip install -e clients/python -e '.[otel]'" in api.process.output
