"""Area: CORS, and the guard of a gateway without keys."""

from __future__ import annotations

import json

from tests.contract.recorder import Recorder
from tests.contract.stage import ORIGIN, Stage, prompt

GENERATIONS = "/v1/generations"
STRANGER = "https://evil.example"


async def record(stage: Stage, rec: Recorder) -> None:
    await _cors(stage, rec)
    await _guard(stage, rec)
    api = stage.keyed
    await rec.ask("with keys: another origin", api, "GET", "/healthz", headers={"origin": STRANGER})
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
    await rec.ask("with keys, and no origins: preflight", api, "OPTIONS", GENERATIONS, headers=preflight)


async def _cors(stage: Stage, rec: Recorder) -> None:
    api = stage.open
    for title, origin, more in (
        ("preflight", ORIGIN, {}),
        ("preflight with headers", ORIGIN, {"access-control-request-headers": "authorization, x-stainless-os"}),
        ("preflight from a public page", ORIGIN, {"access-control-request-private-network": "true"}),
        ("preflight with malformed headers", ORIGIN, {"access-control-request-headers": "a b"}),
        ("preflight of a stranger", STRANGER, {}),
    ):
        headers = {"origin": origin, "access-control-request-method": "POST", **more}
        await rec.ask(title, api, "OPTIONS", GENERATIONS, headers=headers)
    headers = {"origin": ORIGIN, "access-control-request-method": "PATCH"}
    await rec.ask("preflight of an unknown method", api, "OPTIONS", GENERATIONS, headers=headers)
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", f"{GENERATIONS}/nothing"),
        ("GET", f"{GENERATIONS}/nothing/events"),
    ):
        await rec.ask("from a listed origin", api, method, path, headers={"origin": ORIGIN})


async def _guard(stage: Stage, rec: Recorder) -> None:
    api = stage.open
    own = api.url
    for title, headers in (
        ("its own origin", {"origin": own}),
        ("another origin", {"origin": STRANGER}),
        ("an opaque origin", {"origin": "null"}),
        ("another site", {"sec-fetch-site": "cross-site"}),
        ("its own site", {"sec-fetch-site": "same-origin"}),
        ("an allowed host", {"host": "tokencast.example"}),
        ("an allowed host, of a browser", {"host": "tokencast.example", "user-agent": "Mozilla/5.0"}),
        ("another host", {"host": "rebound.example"}),
        ("another host, of a browser", {"host": "rebound.example", "user-agent": "Mozilla/5.0"}),
    ):
        await rec.ask(title, api, "GET", "/healthz", headers=headers)
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    await rec.ask("a link to a page", api, "HEAD", "/", headers=visit)
    await rec.ask("a link to the interface", api, "GET", "/v1/models", headers=visit)
    content = json.dumps(prompt("length=1")).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        headers = {"content-type": kind}
        await rec.ask(
            f"a body of {kind}", api, "POST", GENERATIONS, content=content, headers=headers, show_request=False
        )
    headers = {"content-type": "application/x-www-form-urlencoded", "origin": own}
    await rec.ask("a page's form", api, "POST", GENERATIONS, content=content, headers=headers, show_request=False)
