"""`/openapi.json` matches the gateway: it is compared with the routes and the parameters in the code, and fuzzed."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from starlette.routing import Route

from api.app import DIALECTS, create_app
from api.errors import _STATUS
from api.pages.openapi import document
from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import ROOT, Gateway, clean_environment, gateway, worker

STATIC = ROOT / "api/static"
PAGES = {
    "/",
    "/favicon.ico",
    *(f"/static/{file.relative_to(STATIC)}".removesuffix(".gz") for file in STATIC.rglob("*.*")),
}
"""Routes of the dashboard, which are not part of the interface."""

FUZZING_SETTINGS = """
# A limit that is never reached: without one, a 429 is repeated after its Retry-After (half a minute in each run).
rate-limit = "1000/s"

# For an invalid request a gateway may also respond that the generation is gone.
[checks.negative_data_rejection]
expected-statuses = ["4xx", "5xx"]

# A valid request may still be refused: its key belongs to another body, or its generation is gone.
[checks.positive_data_acceptance]
enabled = false

# Last-Event-ID wins over `after`, a stream asks for no `limit`, a whole completion for no `after`; of several
# generations one that is named twice counts once, and what is no id is answered with `gone`. No `minutes` may be empty.
[[operations]]
include-operation-id = ["followGeneration", "followSeveral", "getHistory"]
checks.negative_data_rejection.enabled = false

# A completion waits for its upstream, which another request may have paused.
[[operations]]
include-operation-id = "createChatCompletion"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]

[[operations]]
include-operation-id = "getChatCompletion"
checks.negative_data_rejection.enabled = false
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
"""

FUZZING_HOOKS = """
from contextlib import suppress

import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    # The response to a generation that may wait for days, or is scheduled for later, ends then, and so do its streams.
    options = case.body.get("tokencast") if isinstance(case.body, dict) else None
    if case.operation.path in ("/v1/chat/completions", "/v1/generations") and isinstance(options, dict):
        for name in ("delay_seconds", "run_at", "queue_timeout"):
            if type(options.get(name)) in (int, float) and 1 < options[name] <= 7 * 86400:
                options[name] = 1
    # A slow replay takes as long as it is slow.
    if case.query and isinstance(case.query.get("speed"), (int, float, str)):
        with suppress(ValueError):
            if 0.01 <= float(case.query["speed"]) < 100:
                case.query["speed"] = 100
"""

DOCUMENT = document(DIALECTS)
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (method, path): {**operation, "parameters": [*item.get("parameters", []), *operation.get("parameters", [])]}
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}


async def test_exactly_the_routes_are_described(broker: Broker) -> None:
    routes = [route for route in create_app(broker).routes if isinstance(route, Route) and route.path not in PAGES]
    served = {
        (method.lower(), re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path))
        for route in routes
        for method in (route.methods or ())
        if method != "HEAD"
    }
    assert set(OPERATIONS) == served


def test_exactly_the_used_parameters_are_described() -> None:
    root = ROOT / "api"
    sources = {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    assert {name for name, source in sources.items() if "query_params" in source} == {"query.py"}
    source = "".join(sources.values())
    read = set(re.findall(r"""(?:text|texts|whole|choice|flag|list|pairs)_of\(\w+, "([\w-]+)\"""", source))
    read |= {name for names in re.findall(r"""time_of\(\w+, "(\w+)", "(\w+)"\)""", source) for name in names}
    read |= set(re.findall(r"""(?:request|connection)\.headers\.get\("([\w-]+)\"""", source))
    read |= set(re.findall(r"""request\.headers\.getlist\("([\w-]+)\"""", source))
    read |= {"lastEventId"} if "last_event_id_of(request)" in source else set()
    named = {p["name"] for operation in OPERATIONS.values() for p in operation["parameters"] if p["in"] != "path"}
    known = {name.lower() if name[0].isupper() else name for name in named}
    of_http = {"accept", "accept-encoding", "authorization", "content-encoding", "content-length", "content-type"}
    assert read - {*of_http, "token"} == known
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert schemes["token"]["name"] in read


def test_every_error_status_is_described() -> None:
    described = {int(status) for operation in OPERATIONS.values() for status in operation["responses"]}
    assert set(_STATUS.values()) <= described
    for (_, path), operation in OPERATIONS.items():
        if path.startswith("/v1/"):
            assert {"401", "503"} <= set(operation["responses"]), path


def test_every_operation_has_a_known_tag() -> None:
    known = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == known
    assert OPERATIONS["patch", "/v1/upstreams/{name}"]["tags"] == ["Queue"]
    assert OPERATIONS["get", "/v1/generations/{id}/events"]["tags"] == ["Streams"]
    assert all(len(operation["tags"]) == 1 for operation in OPERATIONS.values())


def test_every_schema_exists_and_is_used() -> None:
    text = str(DOCUMENT)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named == set(DOCUMENT["components"]["schemas"])
    identities = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(identities)) == len(identities)


# --- examples -----------------------------------------------------------------------------------------------------

SCHEMAS = {"components": DOCUMENT["components"]}


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The media types of an operation's request and responses."""
    for part in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from part.get("content", {}).items()


def check(value: Any, schema: dict[str, Any]) -> None:
    Draft202012Validator({**SCHEMAS, **schema}).validate(value)


def test_every_example_has_the_form_of_its_schema() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            check(example, schema)
    for operation in OPERATIONS.values():
        for kind, content in contents(operation):
            examples = [one["value"] for one in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            for example in examples:
                if kind != "text/event-stream":
                    check(example, content["schema"])
                    continue
                for block in example.removesuffix("\n\n").split("\n\n"):
                    fields = dict(line.split(": ", 1) for line in block.split("\n"))
                    check(fields, content["schema"])
                    assert fields["data"] == "[DONE]" or json.loads(fields["data"])


def test_every_body_and_every_response_has_an_example() -> None:
    for (method, path), operation in OPERATIONS.items():
        for kind, content in contents(operation):
            if kind in ("application/json", "text/event-stream") and path != "/openapi.json":
                named = content["schema"].get("$ref", "").rpartition("/")[2]
                exists = {"example", "examples"} & {*content, *DOCUMENT["components"]["schemas"].get(named, ())}
                assert exists, (method, path, kind)


REQUESTS = [
    (method, path, kind, name, example["value"])
    for (method, path), operation in OPERATIONS.items()
    for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    for name, example in content["examples"].items()
]


async def test_a_gateway_accepts_every_example(running: Gateway) -> None:
    """And its JSON responses have the fields of the examples of responses."""
    gid = (await running.create())["id"]
    await running.ended(gid)
    places = {"{id}": gid, "{name}": "default"}
    for method, path, kind, name, example in REQUESTS:
        content = example.encode() if isinstance(example, str) else json.dumps(example).encode()
        target = re.sub(r"\{\w+\}", lambda found: places[found[0]], path)
        response = await running.http.request(method, target, content=content, headers={"content-type": kind})
        assert response.status_code in (200, 202), (path, name, response.text)
        documented = OPERATIONS[method, path]["responses"][str(response.status_code)]["content"]
        if response.headers["content-type"] == "application/json":
            content_type = documented["application/json"]
            schema = DOCUMENT["components"]["schemas"][content_type["schema"]["$ref"].rpartition("/")[2]]
            expected = content_type.get("example") or schema["examples"][0]
            assert response.json().keys() == expected.keys(), (path, name)


# --- the page -----------------------------------------------------------------------------------------------------


async def test_the_documentation_page_loads_only_files_of_the_gateway(api: Gateway) -> None:
    page = await api.http.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|//\w", page.text)
    for path in re.findall(r'(?:href|src)="(/[^"]*)"', page.text):
        assert (await api.http.get(path)).status_code == 200


async def test_a_library_is_sent_compressed_or_as_it_was_published(api: Gateway) -> None:
    [path] = re.findall(r'src="([^"]*bundle\.js)"', (await api.http.get("/docs")).text)
    bodies = {}
    for accepted in ("gzip", "br;q=1, gzip;q=0.5", "gzip;q=0", "identity"):
        async with api.http.stream("GET", path, headers={"accept-encoding": accepted}) as response:
            bodies[accepted] = b"".join([part async for part in response.aiter_raw()])
        assert response.headers["vary"] == "accept-encoding"
        assert "immutable" in response.headers["cache-control"]
        assert ("content-encoding" in response.headers) == (accepted in ("gzip", "br;q=1, gzip;q=0.5"))
    assert len(bodies["gzip"]) < 500_000
    assert gzip.decompress(bodies["gzip"]) == bodies["identity"] == bodies["gzip;q=0"]


async def test_a_gateway_behaves_as_described(own_redis: EmbeddedRedis, sim: str, tmp_path: Path) -> None:
    """Schemathesis: valid and invalid requests on every route, and sequences of requests. The examples are sent by
    another test."""
    only = {"TOKENCAST_MODELS": "*", "TOKENCAST_RETRY_BUDGET": "0.2", "TOKENCAST_QUEUE_TIMEOUT": "1"}
    (tmp_path / "schemathesis.toml").write_text(FUZZING_SETTINGS)
    (tmp_path / "fuzzing_hooks.py").write_text(FUZZING_HOOKS)
    async with gateway(own_redis.url, **only) as api, worker(own_redis.url, sim, **only):
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"),
            *("--phases", "coverage,fuzzing,stateful", "--max-examples", "10", "--no-shrink", "--seed", "1"),
            *("--exclude-path", "/v1/activity"),  # this stream does not end
            *("--exclude-path", "/v1/workers/{worker}/drain"),  # the only worker would exit
            *("--request-timeout", "20", "--suppress-health-check", "all", "--warnings", "off"),
        ]
        fuzzing = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            env=clean_environment(SCHEMATHESIS_HOOKS="fuzzing_hooks"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await fuzzing.communicate()
    errors = [line for line in api.process.lines if not re.search(r"^\S+ \S+ (INFO|WARNING) ", line)]
    assert fuzzing.returncode == 0, "\n".join([output.decode(), *errors])
