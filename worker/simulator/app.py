"""The HTTP application: routes, API key, journal of calls, quota.

It uses aiohttp, whose handlers have access to the connection's transport, which the faults need, and are cancelled at
once when the client disconnects.
"""

import asyncio
import hashlib
import hmac
from dataclasses import asdict

import msgspec
from aiohttp import web

from worker.simulator.answers import answer, error_body, refuse
from worker.simulator.calls import Call, Journal
from worker.simulator.directives import MODELS, BadRequest, ChatRequest, UnknownModel, read
from worker.simulator.faults import Refusal
from worker.simulator.quota import Gate, Quota, read_quota

MAX_BODY = 64 * 1024 * 1024  # bytes
WRONG_KEY = Refusal(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.")


def create_app(required_key: str | None = None, quota: Quota | None = None) -> web.Application:
    """Return the application. `required_key`: API key that requests under /v1 must have. `quota`: what it admits until
    it is changed; default: every call."""
    simulator = Simulator(required_key, quota or Quota())
    app = web.Application(client_max_size=MAX_BODY)
    app.add_routes(
        [
            web.post("/v1/chat/completions", simulator.complete),
            web.get("/v1/models", simulator.models),
            web.get("/healthz", simulator.health),
            web.get("/sim/calls", simulator.calls),
            web.delete("/sim/calls", simulator.reset),
            web.get("/sim/counts", simulator.counts),
            web.get("/sim/quota", simulator.quota),
            web.put("/sim/quota", simulator.set_quota),
            web.patch("/sim/quota", simulator.set_quota),
            web.route("*", "/{path:.*}", simulator.not_found),
        ]
    )
    return app


class Simulator:
    """The route handlers and their shared state."""

    def __init__(self, required_key: str | None, quota: Quota) -> None:
        self._bearer = None if required_key is None else f"Bearer {required_key}".encode()
        self._journal = Journal()
        self._gate = Gate(quota, self._journal.counts)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Respond to a completion request; each call is recorded in the journal, whatever its outcome."""
        raw = await request.read()
        call = self._journal.open(hashlib.sha256(raw).hexdigest(), recorded_headers(request))
        try:
            if not self._is_authorized(request):
                return refuse(call, WRONG_KEY)
            chat = self._limit_fault(read(raw))
            record_request(call, chat)
            if refused := self._gate.refusal(call, chat):
                error, headers = refused
                return refuse(call, error, headers=headers)
            await asyncio.sleep(self._gate.quota.header_delay)
            return await answer(request, chat, call)
        except BadRequest as error:
            return refuse(call, Refusal(400, "invalid_request_error", None, error.message, error.param))
        except UnknownModel as error:
            call.model = error.model
            message = f"The model `{error.model}` does not exist or you do not have access to it."
            return refuse(call, Refusal(404, "invalid_request_error", "model_not_found", message, "model"))
        except (asyncio.CancelledError, ConnectionResetError):
            call.end("disconnected")
            raise
        finally:
            call.leave()

    def _limit_fault(self, chat: ChatRequest) -> ChatRequest:
        """Remove the fault from the request if it has occurred often enough or does not apply."""
        options = chat.directive
        inapplicable = chat.fault == "400-usage" and not chat.has_stream_options
        if chat.fault and (
            inapplicable or not self._journal.applies(chat.fault, options.times, options.label or str(chat.seed))
        ):
            return chat.with_directive(fault="")
        return chat

    async def models(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request):
            return web.json_response(error_body(WRONG_KEY), status=WRONG_KEY.status)
        known = [{"id": name, "object": "model", "created": 0, "owned_by": "upstream-sim"} for name in MODELS]
        return web.json_response({"object": "list", "data": known})

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def calls(self, request: web.Request) -> web.Response:
        return web.json_response(self._journal.listed(request.query.get("label")))

    async def reset(self, _: web.Request) -> web.Response:
        self._journal.reset()
        return web.Response(status=204)

    async def counts(self, _: web.Request) -> web.Response:
        return web.json_response(asdict(self._journal.counts))

    async def quota(self, _: web.Request) -> web.Response:
        return web.json_response(msgspec.structs.asdict(self._gate.quota))

    async def set_quota(self, request: web.Request) -> web.Response:
        """Replace the quota; a PATCH keeps the fields that it does not name."""
        try:
            base = self._gate.quota if request.method == "PATCH" else None
            self._gate.set(read_quota(await request.read(), base))
        except BadRequest as error:
            refusal = Refusal(400, "invalid_request_error", None, error.message, error.param)
            return web.json_response(error_body(refusal), status=refusal.status)
        return await self.quota(request)

    async def not_found(self, request: web.Request) -> web.Response:
        message = f"Unknown request URL: {request.method} {request.path}."
        error = Refusal(404, "invalid_request_error", "unknown_url", message)
        return web.json_response(error_body(error), status=error.status)

    def _is_authorized(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").encode()
        return self._bearer is None or hmac.compare_digest(given, self._bearer)


def record_request(call: Call, chat: ChatRequest) -> None:
    """Record the request's parameters in the journal."""
    call.model, call.seed, call.label = chat.model, chat.seed, chat.directive.label
    call.stream, call.fault, call.parameters = chat.stream, chat.fault, chat.parameters
    call.continues = chat.given.way


def recorded_headers(request: web.Request) -> dict[str, str | bool | None]:
    """Return the headers that tests check; of the API key only whether there was one."""
    return {
        "authorization": "Authorization" in request.headers,
        "accept": request.headers.get("Accept"),
        "accept-encoding": request.headers.get("Accept-Encoding"),
        "user-agent": request.headers.get("User-Agent"),
        "idempotency-key": request.headers.get("Idempotency-Key"),
        "cookie": request.headers.get("Cookie"),
    }
