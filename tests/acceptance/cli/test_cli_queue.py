"""The commands of the queue, with a real gateway, worker and upstream."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.cli.terminal import TOKENCAST, terminal
from tests.acceptance.cli.test_cli import tokencast
from tests.support import Gateway, gateway, gather, request_body, upstream_sim, worker


@pytest.fixture
async def idle(own_redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway without a worker."""
    async with gateway(own_redis.url) as started:
        yield started


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the table with this first heading."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(heading)) + 1
    end = next((at for at in range(start, len(lines)) if not lines[at]), len(lines))
    return [line.split() for line in lines[start:end]]


async def test_the_queue_shows_what_waits_and_what_is_next(idle: Gateway) -> None:
    late, urgent = [(await idle.create(request_body(tokencast={"priority": level})))["id"] for level in (5, 1)]
    await idle.create(request_body(tokencast={"delay_seconds": 3600}))
    text, as_json, one = await gather(
        tokencast("queue", url=idle.url),
        tokencast("queue", "--json", url=idle.url),
        tokencast("queue", "--limit", "1", url=idle.url),
    )
    assert (text.code, text.err) == (0, "")
    assert rows(text.out, "UPSTREAM") == [["default", "up", "0", "-", "4", "-", "-", "2", "-"]]
    assert rows(text.out, "PRIORITY") == [
        ["1", "default", "1", "queued", "-"],
        ["5", "default", "1", "queued", "-"],
    ]
    assert "3 waiting: 1 of priority 1, 1 of priority 5; 2 queued, 1 scheduled" in text.out.splitlines()
    assert [row[:3] for row in rows(text.out, "POSITION")] == [["1", urgent, "1"], ["2", late, "5"]]
    told = json.loads(as_json.out)
    assert [one["id"] for one in told["next"]] == [urgent, late]
    assert told["queue"]["by_reason"] == {"queued": 2, "scheduled": 1}
    assert [row[1] for row in rows(one.out, "POSITION")] == [urgent]


async def test_a_paused_queue_starts_nothing(running: Gateway) -> None:
    paused = await tokencast("pause", url=running.url)
    assert (paused.code, paused.out) == (0, "paused: all\n")
    gid = (await running.create(request_body("[[sim length=3 speed=0]]", model="sim")))["id"]
    shown = await tokencast("show", gid, url=running.url)
    assert "the queue is paused" in shown.out
    assert "paused: all" in (await tokencast("queue", url=running.url)).out
    resumed = await tokencast("resume", url=running.url)
    assert (resumed.code, resumed.out) == (0, "paused: nothing\n")
    assert (await running.ended(gid))["status"] == "completed"


async def test_a_single_upstream_or_tenant_is_paused(idle: Gateway) -> None:
    await tokencast("pause", "--upstream", "default", url=idle.url)
    both = await tokencast("pause", "--tenant", "anna", url=idle.url)
    assert both.out == "paused: tenant anna, upstream default\n"
    assert rows((await tokencast("upstreams", url=idle.url)).out, "UPSTREAM")[0][:2] == ["default", "paused"]
    one = await tokencast("resume", "--upstream", "default", "--json", url=idle.url)
    assert json.loads(one.out)["paused"] == ["tenant anna"]
    unknown = await tokencast("pause", "--upstream", "other", url=idle.url)
    assert (unknown.code, unknown.out) == (2, "")
    assert "no upstream `other`" in unknown.err


async def test_limits_of_an_upstream_change_at_run_time(idle: Gateway) -> None:
    command = ("upstreams", "set", "default")
    changed = await tokencast(*command, "--concurrency", "7", "--rpm", "60", "--tpm", "9000", url=idle.url)
    assert rows(changed.out, "UPSTREAM") == [["default", "up", "0", "7", "-", "60", "9000", "0", "-"]]
    restored = await tokencast(*command, "--concurrency", "none", "--json", url=idle.url)
    limits = json.loads(restored.out)
    assert (limits["max_concurrency"], limits["requests_per_minute"]) == (None, 60)
    nothing, zero, unknown = await gather(
        tokencast(*command, url=idle.url),
        tokencast(*command, "--rpm", "0", url=idle.url),
        tokencast("upstreams", "set", "other/one", "--rpm", "1", url=idle.url),
    )
    assert [done.code for done in (nothing, zero, unknown)] == [2, 2, 2]
    assert "no upstream `other/one`" in unknown.err


async def test_changes_need_an_operator(own_redis: EmbeddedRedis) -> None:
    anna = json.loads((await tokencast("key", "anna", "--json", url="")).out)
    ops = json.loads((await tokencast("key", "ops", "--role", "operator", "--json", url="")).out)
    retry = ("retry", "--status", "failed", "--tenant")
    commands = (("pause", "--tenant", "anna"), ("resume",), ("upstreams", "set", "default", "--rpm", "9"))
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=f"{anna['entry']},{ops['entry']}") as api:
        for command in (*commands, (*retry, "ops")):
            refused = await tokencast(*command, url=api.url, TOKENCAST_API_KEY=anna["key"])
            assert (refused.code, refused.out) == (2, "")
            assert "role `operator`" in refused.err
        for command in (*commands, (*retry, "anna")):
            allowed = await tokencast(*command, url=api.url, TOKENCAST_API_KEY=ops["key"])
            assert (allowed.code, allowed.err) == (0, "")


async def test_the_options_of_enqueue_reach_the_generation(idle: Gateway) -> None:
    options = ("--priority", "2", "--group", "nightly", "--delay", "1h", "--ttl", "2h", "--queue-timeout", "5m")
    body = json.dumps({"model": "sim", "messages": request_body()["messages"], "metadata": {"a": "1"}}).encode()
    history = json.dumps([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]).encode()
    by_option, by_file, absolute, going_on = await gather(
        tokencast("enqueue", "Hi", *options, "--param", "temperature=0.5", "--param", 'stop=["x"]', url=idle.url),
        tokencast("enqueue", "--body", "-", "--metadata", "b=2", "--json", url=idle.url, given=body),
        tokencast("enqueue", "Hi", "--run-at", str(int(time.time()) + 3600), "--json", url=idle.url),
        tokencast("enqueue", "3", "--messages", "-", "--on-upstream-error", "continue", url=idle.url, given=history),
    )
    generation = (await idle.http.get(f"/v1/generations/{by_option.out.strip()}?include=request")).json()
    assert (generation["priority"], generation["group"]) == (2, "nightly")
    assert generation["run_at"] == pytest.approx(generation["created_at"] + 3600)
    assert generation["queue"]["reason"] == "scheduled"
    assert (generation["request"]["temperature"], generation["request"]["stop"]) == (0.5, ["x"])
    told = json.loads(by_file.out)
    assert (told["model"], told["metadata"]) == ("sim", {"a": "1", "b": "2"})
    assert json.loads(absolute.out)["run_at"] > time.time()
    request = (await idle.http.get(f"/v1/generations/{going_on.out.strip()}?include=request")).json()["request"]
    assert [message["content"] for message in request["messages"]] == ["1", "2", "3"]
    assert "continue" in json.dumps(request)


@pytest.mark.parametrize(
    "arguments",
    [
        ("Hi", "--body", "/dev/null"),
        ("--body", "/dev/null"),
        ("--messages", "/dev/null"),
        ("Hi", "--delay", "1h", "--run-at", "2h"),
        ("Hi", "--param", "user=anna"),
        ("Hi", "--priority", "6"),
        ("Hi", "--delay", "soon"),
    ],
)
async def test_wrong_options_of_enqueue_are_refused(idle: Gateway, arguments: tuple[str, ...]) -> None:
    refused = await tokencast("enqueue", *arguments, url=idle.url)
    assert (refused.code, refused.out) == (2, "")
    assert (await idle.http.get("/v1/generations")).json()["data"] == []


async def test_a_webhook_of_enqueue_is_checked_by_the_gateway(idle: Gateway) -> None:
    refused = await tokencast("enqueue", "Hi", "--webhook", "http://127.0.0.1/x", url=idle.url)
    assert (refused.code, refused.out) == (2, "")
    assert "Webhooks" in refused.err


async def test_failed_generations_are_listed_and_retried(own_redis: EmbeddedRedis, sim: str) -> None:
    async with gateway(own_redis.url) as api, worker(own_redis.url, sim):
        bad = request_body("[[sim fault=400]]", model="sim", tokencast={"group": "night"})
        failed = [(await api.create(bad))["id"] for _ in range(2)]
        good = (await api.create(request_body("[[sim length=3 speed=0]]", model="sim")))["id"]
        for gid in (*failed, good):
            await api.ended(gid)
        code = (await api.get(failed[0]))["error"]["code"]
        by_code, by_group, none = await gather(
            tokencast("ls", "--status", "failed", "--code", code, "--since", "1h", url=api.url),
            tokencast("ls", "--group", "night", "--model", "sim", "--json", url=api.url),
            tokencast("ls", "--until", "1h", url=api.url),
        )
        assert [row[0] for row in rows(by_code.out, "ID")] == failed[::-1]
        assert {row[-1] for row in rows(by_code.out, "ID")} == {code}
        assert [json.loads(line)["id"] for line in by_group.out.splitlines()] == failed[::-1]
        assert rows(none.out, "ID") == []
        chosen = ("retry", "--status", "failed", "--code", code, "--group", "night", "--since", "1h", "--limit", "1")
        dry = await tokencast(*chosen, "--dry-run", url=api.url)
        assert (dry.code, dry.err) == (0, "")
        assert [row[0] for row in rows(dry.out, "ID")][:1] == [failed[1]]
        assert dry.out.splitlines()[-1].startswith("1 matched")
        assert len((await api.http.get("/v1/generations")).json()["data"]) == 3
        wet = await tokencast(*chosen, url=api.url)
        new, old = rows(wet.out, "ID")[0][:2]
        assert old == failed[1]
        assert (await api.get(new))["retry_of"] == failed[1]
        by_id = await tokencast("retry", good, failed[0], url=api.url)
        assert [(await api.get(gid))["retry_of"] for gid in by_id.out.split()] == [good, failed[0]]
        wrong = await gather(
            tokencast("retry", url=api.url),
            tokencast("retry", good, "--status", "failed", url=api.url),
            tokencast("retry", "--status", "queued", url=api.url),
        )
        assert [done.code for done in wrong] == [2, 2, 2]


async def test_several_generations_are_cancelled(idle: Gateway) -> None:
    gids = [(await idle.create())["id"] for _ in range(2)]
    unknown = "gen_01kbn2h8v010" + "0" * 22
    printed = "".join(f"{gid}  cancelled\n" for gid in gids)
    some = await tokencast("cancel", gids[0], unknown, "x", gids[1], url=idle.url)
    assert (some.code, some.out) == (4, printed), "the others are cancelled"
    assert some.err == f"tokencast: {unknown}: No such generation.\ntokencast: x: No such generation.\n"
    both = await tokencast("cancel", *gids, url=idle.url)
    assert (both.code, both.out) == (0, printed)


async def test_a_busy_upstream_is_shown(own_redis: EmbeddedRedis) -> None:
    """By `queue`, and by the progress line of the generation that waits for it; `top` and `ls` show the reason."""
    quota = json.dumps({"outage": True, "outage_retry_after": 600})
    async with (
        upstream_sim("--quota", quota) as sim,
        gateway(own_redis.url) as api,
        worker(own_redis.url, sim),
        terminal(*TOKENCAST, "enqueue", "Hi", "--model", "sim", "--follow", url=api.url) as shown,
    ):
        await shown.shows("waiting: the upstream is busy, next try in 9m")
        queue, ls, top = await gather(*(tokencast(name, url=api.url) for name in ("queue", "ls", "top")))
        [upstream] = rows(queue.out, "UPSTREAM")
        assert (upstream[1], upstream[-1]) == ("busy", "9m")
        assert [row[-1] for row in rows(ls.out, "ID")] == ["upstream_busy"]
        assert [row[-1] for row in rows(top.out, "ID")] == ["upstream_busy"]
        await tokencast("cancel", rows(ls.out, "ID")[0][0], url=api.url)
        assert await shown.end() == 3
