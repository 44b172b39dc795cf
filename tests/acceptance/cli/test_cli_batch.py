"""`tokencast batch`: a file of requests, run by real workers, interrupted and resumed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.cli.terminal import TOKENCAST, terminal
from tests.acceptance.cli.test_cli import finish, start, tokencast
from tests.servers.forked import Process, start_module
from tests.support import Gateway, clean_environment, gateway, request_body, upstream_calls, wait_until, worker

Json = dict[str, Any]


def write_requests(path: Path, bodies: dict[str, Json]) -> Path:
    lines = (
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in bodies.items()
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def quick(name: str, **more: Any) -> Json:
    return request_body(f"Hello. [[sim label={name} length=3 speed=0]]", model="sim", **more)


def read_results(lines: Iterable[str]) -> dict[str, Json]:
    """The results by custom_id, each of which occurs once."""
    results = [json.loads(line) for line in lines]
    found = {result["custom_id"]: result for result in results}
    assert len(found) == len(results)
    return found


async def test_results_have_the_format_of_openai(running: Gateway, tmp_path: Path) -> None:
    """A refused request and one that fails do not affect the others."""
    file = write_requests(
        tmp_path / "in.jsonl",
        {
            "first": quick("format"),
            "second": {"model": "sim"},
            "third": request_body("[[sim fault=400]]", model="sim"),
            "fourth": quick("format-4", tokencast={"priority": 1}),
        },
    )
    out = tmp_path / "out.jsonl"
    done = await tokencast("batch", str(file), "-o", str(out), url=running.url)
    results = read_results(out.read_text().splitlines())
    assert (done.code, done.out) == (1, "")
    assert "2 of 4 failed; group: batch-" in done.err
    assert {name: result["response"]["status_code"] for name, result in results.items()} == {
        "first": 200,
        "second": 400,
        "third": 400,
        "fourth": 200,
    }
    for result in results.values():
        assert set(result) == {"id", "custom_id", "response", "error"}
        assert result["error"] is None
        assert set(result["response"]) == {"status_code", "request_id", "body"}
    completion = results["first"]["response"]["body"]
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["content"]
    assert results["first"]["response"]["request_id"] == completion["id"]
    assert results["second"]["response"]["body"]["error"]["param"] == "messages"
    generation = await running.get(results["fourth"]["response"]["body"]["id"])
    assert generation["priority"] == 1
    assert done.err.strip().endswith(generation["group"])


async def test_without_a_file_the_results_go_to_stdout(running: Gateway, sim: str, tmp_path: Path) -> None:
    """A repetition prints the same results, without another call of the upstream."""
    own = {"tokencast": {"group": "of-its-own"}}
    file = write_requests(tmp_path / "in.jsonl", {"a": quick("stdout-a"), "b": quick("stdout-b", **own)})
    first = await tokencast("batch", str(file), url=running.url)
    again = await tokencast("batch", "-", url=running.url, given=file.read_bytes())
    assert (first.code, first.err) == (again.code, again.err) == (0, "")
    results = read_results(first.out.splitlines())
    assert results == read_results(again.out.splitlines())
    assert (await running.get(results["b"]["response"]["request_id"]))["group"] == "of-its-own"
    for label in ("stdout-a", "stdout-b"):
        assert len(await upstream_calls(sim, label)) == 1


async def test_an_interrupted_batch_is_resumed(own_redis: EmbeddedRedis, sim: str, tmp_path: Path) -> None:
    """The bar shows the progress; Ctrl-C leaves the generations running. The same command adds what is missing, also
    after a line that was not written to its end, and calls the upstream only once for each request."""
    endless = "[[sim label=resume-3 length=1000000 speed=20]]"
    requests: dict[str, Json] = {
        "1": quick("resume-1", tokencast={"priority": 1}),
        "2": quick("resume-2", tokencast={"priority": 1}),
        "3": request_body(endless, model="sim", tokencast={"priority": 2}),
        "4": quick("resume-4"),
        "5": quick("resume-5"),
    }
    file, out = write_requests(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
    command = ("batch", str(file), "-o", str(out))
    async with gateway(own_redis.url) as api, worker(own_redis.url, sim, TOKENCAST_SLOTS="1"):
        async with terminal(*TOKENCAST, *command, url=api.url) as shown:
            await shown.shows("[#########---------------]  40%  2 of 5 done, 1 running, 2 waiting")
            shown.press("\x03")
            assert await shown.end() == 130
            await shown.shows("2 of 5 done; the generations continue; run the same command again to resume")
        before = read_results(out.read_text().splitlines())
        assert set(before) == {"1", "2"}
        [running] = (await api.http.get("/v1/generations?status=in_progress")).json()["data"]
        with out.open("a") as file_of_results:
            file_of_results.write('{"id": "batch_req_')
        resumed = await start(*command, url=api.url)
        await api.http.post(f"/v1/generations/{running['id']}/cancel")
        done = await finish(resumed)
        assert done.code == 1
        assert "1 of 5 failed" in done.err
        results = read_results(out.read_text().splitlines())
        assert {name: one["response"]["status_code"] for name, one in results.items()} == {
            "1": 200,
            "2": 200,
            "3": 409,
            "4": 200,
            "5": 200,
        }
        assert {name: results[name] for name in before} == before
        assert len((await api.http.get("/v1/generations?limit=100")).json()["data"]) == 5
        written = out.read_bytes()
        again = await tokencast(*command, url=api.url)
        assert (again.code, out.read_bytes()) == (1, written)
    for number in range(1, 6):
        assert len(await upstream_calls(sim, f"resume-{number}")) == 1


async def test_a_batch_survives_a_crash_of_the_gateway(own_redis: EmbeddedRedis, sim: str, tmp_path: Path) -> None:
    """A line ends while there is no gateway; another is deleted."""
    bodies = {str(n): quick(f"crash-{n}", tokencast={"priority": 1 + n}) for n in range(3)}
    bodies["later"] = quick("crash-later", tokencast={"delay_seconds": 3600})
    file, out, port = write_requests(tmp_path / "in.jsonl", bodies), tmp_path / "out.jsonl", str(free_port())
    async with gateway(own_redis.url, PORT=port) as api:
        process = await start("batch", str(file), "-o", str(out), url=api.url)

        async def created() -> bool:
            return len((await api.http.get("/v1/generations")).json()["data"]) == len(bodies)

        await wait_until(created)
        api.process.send(signal.SIGKILL)
        await api.process.wait()
    async with worker(own_redis.url, sim), gateway(own_redis.url, PORT=port) as api:
        await wait_until(lambda: len(out.read_text().splitlines()) == 3)
        listed = (await api.http.get("/v1/generations?status=queued")).json()["data"]
        await api.http.delete(f"/v1/generations/{listed[0]['id']}")
        done = await finish(process)
    assert done.code == 1
    assert "connection lost, reconnecting" in done.err
    results = read_results(out.read_text().splitlines())
    assert [results[str(n)]["response"]["status_code"] for n in range(3)] == [200, 200, 200]
    assert results["later"]["response"] is None
    assert results["later"]["error"]["code"] == "generation_gone"


async def start_batch(api: Gateway, file: Path, out: Path, look_every: float, key: str = "") -> Process:
    """Start `batch` with this time between two looks."""
    environment = clean_environment(TOKENCAST_URL=api.url, TOKENCAST_API_KEY=key)
    arguments = ("tests.acceptance.cli.batch_run", str(file), str(out), str(look_every))
    return await start_module(*arguments, environment=environment)


async def lose_generations(redis_url: str, api: Gateway, number: int, key: str = "") -> None:
    """Wait for this number of generations, and remove all keys but the names of the data sets: with other names, the
    gateway would wait 20 seconds for workers that restore generations."""
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def created() -> bool:
        return len((await api.http.get("/v1/generations", headers=headers)).json()["data"]) == number

    await wait_until(created)
    async with connect(redis_url) as broker:
        redis = broker.store.redis
        await redis.execute("DEL", *(key for key in await redis.execute("KEYS", "*") if not key.endswith(b":ep")))


async def test_a_batch_ends_after_redis_has_lost_its_generations(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    """No event tells it."""
    file, out = write_requests(tmp_path / "in.jsonl", {str(n): quick(f"lost-{n}") for n in range(3)}), tmp_path / "out"
    async with gateway(own_redis.url) as api:
        process = await start_batch(api, file, out, look_every=0.2)
        await lose_generations(own_redis.url, api, 3)
        assert (await finish(process)).code == 0
    results = read_results(out.read_text().splitlines())
    assert [results[str(n)]["error"]["code"] for n in range(3)] == ["generation_gone"] * 3


async def test_requests_that_are_sent_again_replace_lost_generations(
    own_redis: EmbeddedRedis, sim: str, tmp_path: Path
) -> None:
    """The limit of the tenant makes the batch send its part again, with an idempotency key that Redis has lost. It does
    not look at the lost generations."""
    made = json.loads((await tokencast("key", "anna", "--json", url="")).out)
    file, out = write_requests(tmp_path / "in.jsonl", {str(n): quick(f"again-{n}") for n in range(3)}), tmp_path / "out"
    limits = {"TOKENCAST_API_KEYS": made["entry"], "TOKENCAST_TENANT_QUEUED": "2"}
    async with gateway(own_redis.url, **limits) as api:
        process = await start_batch(api, file, out, look_every=86_400, key=made["key"])
        await lose_generations(own_redis.url, api, 2, made["key"])
        async with worker(own_redis.url, sim, **limits):
            assert (await finish(process)).code == 0
    results = read_results(out.read_text().splitlines())
    assert [results[str(n)]["response"]["status_code"] for n in range(3)] == [200, 200, 200]


async def test_a_limit_of_the_tenant_delays_a_batch(own_redis: EmbeddedRedis, sim: str, tmp_path: Path) -> None:
    made = json.loads((await tokencast("key", "anna", "--json", url="")).out)
    file = write_requests(tmp_path / "in.jsonl", {str(n): quick(f"limit-{n}") for n in range(7)})
    limits = {"TOKENCAST_API_KEYS": made["entry"], "TOKENCAST_TENANT_QUEUED": "2"}
    async with gateway(own_redis.url, **limits) as api, worker(own_redis.url, sim, **limits):
        command = (*TOKENCAST, "batch", str(file))
        async with terminal(*command, url=api.url, columns=2000, TOKENCAST_API_KEY=made["key"]) as shown:
            assert await shown.end() == 0
            results = read_results(line for line in shown.lines if line.startswith("{"))
    assert len(results) == 7
    for number in range(7):
        assert len(await upstream_calls(sim, f"limit-{number}")) == 1


async def test_a_file_that_is_no_result_of_the_requests_is_not_changed(api: Gateway, tmp_path: Path) -> None:
    file = write_requests(tmp_path / "in.jsonl", {"a": quick("a")})
    before = file.read_bytes()
    done = await tokencast("batch", str(file), "-o", str(file), url=api.url)
    assert (done.code, file.read_bytes()) == (2, before)
    assert "choose another file" in done.err
    wrong = await tokencast("batch", "-", url=api.url, given=b'{"custom_id": "a", "body": {}}\n{}\n')
    assert (wrong.code, wrong.out) == (2, "")
    assert "line 2" in wrong.err
