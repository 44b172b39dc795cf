"""`/openapi.json` matches the gateway: it is compared with the routes and the parameters in the code, and fuzzed."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from starlette.routing import Route

from api.app import DIALECTS, create_app
from api.errors import _STATUS
from api.ops.openapi import document
from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import ROOT, Gateway, clean_environment, gateway, worker

STATIC = ROOT / "api/static"
PAGES = {"/", "/favicon.ico", *(f"/static/{file.relative_to(STATIC)}" for file in STATIC.rglob("*.*"))}
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
# generations one that is named twice counts once, and what is no id is answered with `gone`.
[[operations]]
include-operation-id = ["followGeneration", "followSeveral", "getChatCompletion"]
checks.negative_data_rejection.enabled = false

# A completion waits for its upstream, which another request may have paused.
[[operations]]
include-operation-id = "createChatCompletion"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
"""

FUZZING_HOOKS = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    # A completion that may wait for days, or is scheduled for later, gets its response then.
    options = case.body.get("tokencast") if isinstance(case.body, dict) else None
    if case.operation.path == "/v1/chat/completions" and isinstance(options, dict):
        for name in ("delay_seconds", "run_at", "queue_timeout"):
            if type(options.get(name)) in (int, float) and 1 < options[name] <= 7 * 86400:
                options[name] = 1
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
    of_http = {"accept", "authorization", "content-encoding", "content-length", "content-type"}
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
    assert all(len(operation["tags"]) == 1 for operation in OPERATIONS.values())


def test_every_schema_exists_and_is_used() -> None:
    text = str(DOCUMENT)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named == set(DOCUMENT["components"]["schemas"])
    identities = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(identities)) == len(identities)


async def test_the_documentation_page_loads_nothing_external(api: Gateway) -> None:
    page = await api.http.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script" not in page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|https?://|//\w", page.text)
    for operation in OPERATIONS.values():
        assert f'id="{operation["operationId"]}"' in page.text
    for target in set(re.findall(r'href="#([^"]+)"', page.text)):
        assert f'id="{target}"' in page.text
    for path in re.findall(r'href="(/[^"]*)"', page.text):
        assert (await api.http.get(path)).status_code == 200


async def test_a_gateway_behaves_as_described(own_redis: EmbeddedRedis, sim: str, tmp_path: Path) -> None:
    """Schemathesis: valid and invalid requests on every route, and sequences of requests."""
    only = {"TOKENCAST_MODELS": "*", "TOKENCAST_RETRY_BUDGET": "1"}
    (tmp_path / "schemathesis.toml").write_text(FUZZING_SETTINGS)
    (tmp_path / "fuzzing_hooks.py").write_text(FUZZING_HOOKS)
    async with gateway(own_redis.url, **only) as api, worker(own_redis.url, sim, **only):
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "10", "--no-shrink", "--seed", "1"),
            *("--exclude-path", "/v1/activity"),  # this stream does not end
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
