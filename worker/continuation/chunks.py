"""`Continuation`: turns the chunks of a call that goes on into chunks that continue the completion in the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from broker.chunks import decode_chunk, dicts_in
from broker.completion.fold import finish_reason
from broker.events import CHUNK
from worker.continuation.overlap import Overlap
from worker.continuation.usage import total
from worker.upstream.chunks import Chunk

Json = dict[str, Any]
_IDENTITY = ("id", "created", "model")
_DROPPED = ("role", "reasoning", "reasoning_content", "reasoning_details")
"""Fields of a delta that are not repeated: the role is known, and the thoughts about a text precede it."""
_LASTING = ("content_filter_results",)
"""Fields of a choice that matter without a delta."""
_PARTS = ("content", "refusal", "tool_calls", "function_call", "audio", "images")
"""Fields of a delta whose order matters: text before them cannot be held back."""


def identity_of(payload: Json) -> Json:
    """Return what the chunks of one completion have in common; {} if a chunk does not say it."""
    return {name: payload[name] for name in _IDENTITY if name in payload} if payload.get("id") else {}


def final_chunk(identity: Json, reason: str) -> Chunk:
    """Return the chunk that ends a completion of one choice. `identity`: what its chunks have in common."""
    choice = {"index": 0, "delta": Json(), "finish_reason": reason}
    payload = {"object": "chat.completion.chunk", **identity, "choices": [choice]}
    return _encoded(Chunk(CHUNK, b"", 0, (0,), None), payload)


class Continuation:
    """The chunks of one call. They get the identity of the completion's first chunks, lose the role and repeated text,
    and their usage includes the earlier calls."""

    def __init__(self, identity: Json, overlap: Overlap, spent: Json, prompt_tokens: int, tokens_before: int) -> None:
        """`spent`: usage of the earlier calls. `prompt_tokens`: estimate for this one. `tokens_before`: tokens of the
        attempt before it."""
        self._identity = identity
        self._overlap: Overlap | None = overlap
        self._held: list[tuple[Chunk, Json]] = []
        self.spent = spent
        self.prompt_tokens = prompt_tokens
        self.tokens_before = tokens_before
        self.reported = False
        """Whether the upstream reported the usage of this call."""

    def rewrite(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return what follows the completion so far. Text is held back while it may be a repetition."""
        return [each for chunk in chunks for each in self._rewrite(chunk)]

    def end(self) -> list[Chunk]:
        """Return the text that is still held back, without the part that is a repetition."""
        return [] if self._overlap is None else self._release(self._overlap.result())

    def _rewrite(self, chunk: Chunk) -> list[Chunk]:
        payload = self._prepared(chunk)
        if payload is None:
            return []
        if self._overlap is None:
            return [_encoded(chunk, payload)]
        text = _text_of(payload)
        if text is None:
            ended = self.end() if any(map(_follows_text, payload["choices"])) else []
            return [*ended, _encoded(chunk, payload)]
        self._held.append((chunk, payload))
        repeated = self._overlap.add(text)
        if chunk.finished:
            repeated = self._overlap.result()
        return [] if repeated is None else self._release(repeated)

    def _prepared(self, chunk: Chunk) -> Json | None:
        """Return the payload with the completion's identity and total usage; None if it says nothing new."""
        decoded = decode_chunk(chunk.data)
        payload = {**self._identity, **{name: value for name, value in decoded.items() if name not in _IDENTITY}}
        usage = decoded.get("usage")
        has_usage = isinstance(usage, dict) and any(cast(Json, usage).values())
        if has_usage:
            payload["usage"] = total(self.spent, cast(Json, usage))
            self.reported = True
        choices = [_without_repeated_fields(choice) for choice in dicts_in(decoded.get("choices"))]
        payload["choices"] = choices
        return payload if has_usage or any(map(_says_something, choices)) else None

    def _release(self, repeated: int) -> list[Chunk]:
        """Return the held chunks without their first `repeated` characters."""
        self._overlap, held, self._held = None, self._held, []
        released: list[Chunk] = []
        for chunk, payload in held:
            delta = payload["choices"][0]["delta"]
            text = delta["content"]
            delta["content"] = text[repeated:]
            repeated = max(0, repeated - len(text))
            if payload.get("usage") or any(map(_says_something, payload["choices"])):
                released.append(_encoded(chunk, payload))
        return released


def _without_repeated_fields(choice: Json) -> Json:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return choice
    kept = {name: value for name, value in cast(Json, delta).items() if name not in _DROPPED}
    # A complete message at the end of a stream repeats the text of this call only.
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": kept}


def _says_something(choice: Json) -> bool:
    delta = choice.get("delta")
    has_delta = isinstance(delta, dict) and any(cast(Json, delta).values())
    return has_delta or _is_finished(choice) or any(choice.get(name) for name in _LASTING)


def _follows_text(choice: Json) -> bool:
    delta = choice.get("delta")
    fields = cast(Json, delta) if isinstance(delta, dict) else {}
    return _is_finished(choice) or any(fields.get(name) for name in _PARTS)


def _is_finished(choice: Json) -> bool:
    return finish_reason(choice.get("finish_reason")) is not None


def _text_of(payload: Json) -> str | None:
    """Return the text of a chunk that has nothing else than text."""
    choices = payload["choices"]
    delta = choices[0].get("delta") if len(choices) == 1 else None
    text = cast(Json, delta).get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) and text else None


def _encoded(chunk: Chunk, payload: Json) -> Chunk:
    """Return a chunk with another payload. The encoding is ASCII: some upstreams split surrogate pairs."""
    data = json.dumps(payload, separators=(",", ":"), allow_nan=False).encode()
    tokens = int(any(any(cast(Json, choice.get("delta") or {}).values()) for choice in payload["choices"]))
    return chunk._replace(data=data, tokens=min(chunk.tokens, tokens))
