"""`/metrics` of gateways and workers, parsed by Prometheus's own parser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.support import ROOT, Gateway, Service, gateway, request_body, service, texts, wait_until, worker

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples with this name and these labels."""
    return sum(v for (n, have), v in samples.items() if n == name and labels.items() <= set(have))


async def scrape(http: httpx2.AsyncClient) -> Samples:
    response = await http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return parsed(response.text)


@asynccontextmanager
async def worker_metrics(redis_url: str, upstream_url: str, **more: str) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of the metrics port of a new worker."""
    port = free_port()
    async with (
        worker(redis_url, upstream_url, TOKENCAST_METRICS_PORT=str(port), **more),
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        yield http


async def test_the_metrics_of_one_stream(own_redis: EmbeddedRedis, sim: str) -> None:
    async with (
        gateway(own_redis.url, TOKENCAST_MODELS="sim-*,m") as api,
        worker_metrics(own_redis.url, sim, TOKENCAST_MODELS="sim-*,m") as http,
    ):
        before = await scrape(api.http)
        assert value(before, "tokencast_workers") == 1
        assert value(before, "tokencast_slots") == 100
        created = await api.create(request_body("one two three four five", model="sim-fast"))
        frames = await api.events(created["id"])
        chunks = [frame for frame in frames if frame.event == "chunk"]
        assert texts(frames)
        ours = await scrape(api.http)
        theirs = await wait_for_ending(http)
    model = {"upstream": "default", "model": "sim-fast"}  # for which the settings have a pattern
    assert value(ours, "tokencast_generations_created_total", **model) == 1
    assert value(ours, "tokencast_events_delivered_total", dialect="native") == len(frames)
    assert value(ours, "tokencast_subscriptions_ended_total", reason="ended") == 1
    assert value(ours, "tokencast_first_token_seconds_count") == 1
    assert 0 < value(ours, "tokencast_token_gap_seconds_count") < len(frames)
    assert value(ours, "tokencast_delivery_seconds_count") >= 1
    assert value(ours, "tokencast_redis_up") == 2
    assert value(ours, "tokencast_redis_memory_bytes", server="logs") > 0
    assert value(ours, "tokencast_redis_memory_limit_bytes", server="queue") == 0
    route = "/v1/generations/{id}/events"
    assert value(ours, "tokencast_http_requests_total", route=route, method="GET", status="200") == 1
    assert value(theirs, "tokencast_generations_ended_total", status="completed", **model) == 1
    assert value(theirs, "tokencast_attempts_total", **model) == 1
    assert value(theirs, "tokencast_queue_wait_seconds_count") == 1
    assert value(theirs, "tokencast_upstream_first_token_seconds_count", **model) == 1
    assert 0 < value(theirs, "tokencast_upstream_token_gap_seconds_count", **model) < len(chunks)
    assert value(theirs, "tokencast_tokens_total", kind="completion") > 0
    sent = sum(len(frame.data or "") for frame in chunks)
    assert value(theirs, "tokencast_upstream_bytes_total", **model) >= sent
    assert value(theirs, "tokencast_append_seconds_count") >= 1
    assert value(theirs, "tokencast_worker_ready") == 1


async def wait_for_ending(http: httpx2.AsyncClient) -> Samples:
    """A worker learns that its ending is written only after subscribers have received it."""

    async def look() -> Samples | None:
        samples = await scrape(http)
        return samples if value(samples, "tokencast_generations_ended_total", status="completed") else None

    return await wait_until(look)


async def test_the_metrics_of_the_queue_and_the_upstreams(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url, TOKENCAST_UPSTREAM_CONCURRENCY="3") as api:
        for options in ({"priority": 1}, {}, {}, {"delay_seconds": 600}):
            await api.create(request_body(tokencast=options))
        await api.http.post("/v1/queue/pause", json={"upstream": "default"})
        samples = await scrape(api.http)
    upstream = {"upstream": "default"}
    assert value(samples, "tokencast_queue_depth") == 4
    assert value(samples, "tokencast_queue_waiting", priority="1", reason="paused") == 1
    assert value(samples, "tokencast_queue_waiting", priority="3", reason="paused") == 2
    assert value(samples, "tokencast_queue_scheduled") == 1
    assert value(samples, "tokencast_upstream_waiting", **upstream) == 3
    assert value(samples, "tokencast_upstream_paused", **upstream) == 1
    assert value(samples, "tokencast_upstream_in_flight", **upstream) == 0
    assert value(samples, "tokencast_upstream_refused_total", **upstream) == 0
    assert value(samples, "tokencast_upstream_circuit", state="closed", **upstream) == 1
    assert value(samples, "tokencast_upstream_circuit", **upstream) == 1


async def test_endings_of_generations_that_waited_too_long_are_counted(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api:
        created = await api.create(request_body(tokencast={"queue_timeout": 0.1}))
        assert (await api.ended(created["id"]))["error"]["code"] == "queue_timeout"
        samples = await scrape(api.http)
    assert value(samples, "tokencast_generations_ended_total", status="failed", code="queue_timeout") == 1


async def test_callers_cannot_create_labels(running: Gateway) -> None:
    """Paths, methods and ids do not create series of their own."""
    for path in ("/nowhere", "/v1/generations/gen_unknown", "/v1/generations/gen_other"):
        await running.http.get(path)
    await running.http.request("PUT", "/v1/generations")
    text = (await running.http.get("/metrics")).text
    assert 'method="other",route="/v1/generations",status="405"' in text
    for invented in ("nowhere", "gen_", "PUT"):
        assert invented not in text


async def test_openmetrics_is_sent_on_request(running: Gateway) -> None:
    accept = "application/openmetrics-text;version=1.0.0"
    response = await running.http.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    odd = await running.http.get("/metrics", headers={"accept": "text/plain;version=odd"})
    assert odd.status_code == 200


async def test_gateways_on_one_port_report_common_metrics(redis: EmbeddedRedis, tmp_path: Path) -> None:
    """Each gateway returns the sum. Counters of a killed gateway are kept, its gauges are not."""
    shared = {"TOKENCAST_METRICS_DIR": str(tmp_path)}
    async with gateway(redis.url, **shared) as one, gateway(redis.url, **shared) as other:
        await one.create()
        for _ in range(2):
            await other.create()

        async def all_counted(at: Gateway) -> bool:
            return value(await scrape(at.http), "tokencast_generations_created_total") == 3

        await wait_until(lambda: all_counted(one))
        await wait_until(lambda: all_counted(other))
        assert value(await scrape(one.http), "tokencast_build_info") == 1
        assert value(await scrape(one.http), "tokencast_redis_up") == 2
        other.process.send(signal.SIGKILL)
        await other.process.wait()
        both = value(await scrape(one.http), "process_resident_memory_bytes")
        make_stale(tmp_path, other.process.process.pid)
        after = await scrape(one.http)
        assert value(after, "tokencast_generations_created_total") == 3
        assert value(after, "process_resident_memory_bytes") < both


def make_stale(folder: Path, pid: int) -> None:
    for path in folder.glob(f"{pid}-*.json"):
        os.utime(path, (0, 0))


async def test_a_worker_is_ready_while_it_can_take_generations(own_redis: EmbeddedRedis, sim: str) -> None:
    async with worker_metrics(own_redis.url, sim) as http:
        await wait_until(lambda: ready(http))
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        own_redis.kill()
        await wait_until(lambda: not_ready(http))
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert (await http.get("/healthz")).status_code == 200


async def ready(http: httpx2.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == 200


async def not_ready(http: httpx2.AsyncClient) -> bool:
    return not await ready(http)


async def test_a_metrics_port_in_use_is_reported(redis: EmbeddedRedis, sim: str) -> None:
    async with worker_metrics(redis.url, sim) as http:
        port = str(http.base_url.port)
        settings = {"OPENAI_BASE_URL": sim, "OPENAI_API_KEY": "k", "TOKENCAST_METRICS_PORT": port}
        async with service("worker", REDIS_URL=redis.url, **settings) as second:
            await assert_port_is_named(second)


async def assert_port_is_named(second: Service) -> None:
    assert await second.wait() == 2
    assert "TOKENCAST_METRICS_PORT" in second.output


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ports_listen_on_both_address_families(redis: EmbeddedRedis, sim: str) -> None:
    """For the port of a gateway and that of a worker, independent of the system's default for IPv6 sockets."""
    every = {"HOST": "::", "TOKENCAST_ALLOW_OPEN": "1"}
    port = free_port()
    async with (
        gateway(redis.url, **every) as api,
        worker(redis.url, sim, TOKENCAST_METRICS_PORT=str(port), **every),
        httpx2.AsyncClient() as http,
    ):
        for number in (httpx2.URL(api.url).port, port):
            for host in ("127.0.0.1", "[::1]"):
                assert (await http.get(f"http://{host}:{number}/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
async def test_a_probe_needs_no_key(redis: EmbeddedRedis, path: str) -> None:
    async with gateway(redis.url, TOKENCAST_API_KEYS="acme:" + "0" * 64) as api:
        response = await api.http.get(path)
        assert response.status_code == 200
        assert "acme" not in response.text


# --- the examples in docs/ -----------------------------------------------------------------------------------

DOCS = ROOT / "docs"


def expressions() -> list[str]:
    board = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    rules = yaml.safe_load((DOCS / "alerts.yaml").read_text("utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return asked + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


async def test_the_metrics_of_dashboard_and_alerts_exist(own_redis: EmbeddedRedis, sim: str) -> None:
    """Every metric, and every label in their groupings."""
    async with gateway(own_redis.url) as api, worker_metrics(own_redis.url, sim) as http:
        created = await api.create(request_body("one two three", model="sim-fast"))
        await api.events(created["id"])
        await wait_for_ending(http)
        families = [
            family
            for client in (api.http, http)
            for family in text_string_to_metric_families((await client.get("/metrics")).text)
        ]
    names = {sample.name for family in families for sample in family.samples}
    # Counters without a value have no samples: their name is derived from the family.
    names |= {f"{family.name}_total" for family in families if family.type == "counter"}
    asked = {name for text in expressions() for name in re.findall(r"\b(?:tokencast|process)_\w+", text)}
    assert asked
    assert asked - names == set()
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    labels |= {
        "reason",
        "code",
        "job",
        "instance",
    }  # labels of counters without samples; the last two are Prometheus's own
    grouped = {name for text in expressions() for by in re.findall(r"by \(([^)]*)\)", text) for name in by.split(", ")}
    assert grouped - labels == set()


def test_every_metric_is_used_or_listed() -> None:
    """A metric without a panel or a rule has to be listed here."""
    source = "".join(
        (DOCS.parent / path).read_text("utf-8") for path in ("api/ops/metrics.py", "worker/monitoring/metrics.py")
    )
    defined = set(re.findall(r'"(tokencast_\w+)"', source))
    shown = " ".join(expressions())
    assert {name for name in defined if name not in shown} == {
        "tokencast_cache_bytes",
        "tokencast_draining",
        "tokencast_passes",
        "tokencast_redis_ping_seconds",
        "tokencast_worker_running",
        "tokencast_worker_slots",
    }


def test_the_variables_of_the_dashboard_are_defined_and_used() -> None:
    board = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"])))
    assert used == defined == {"datasource", "instance", "upstream", "model"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_alert_rules_are_well_formed() -> None:
    """In Prometheus's form: names, durations, an expression with balanced brackets, a summary."""
    (group,) = yaml.safe_load((DOCS / "alerts.yaml").read_text("utf-8"))["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) >= 10
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Tokencast[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
    for text in expressions():
        for opening, closing in ("()", "[]", "{}"):
            assert text.count(opening) == text.count(closing), text
