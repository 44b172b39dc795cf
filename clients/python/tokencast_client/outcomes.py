"""The end of a generation: its final text, or the error of one that has none."""

from __future__ import annotations

from tokencast_client.errors import TokencastError
from tokencast_client.records import Generation


class GenerationFailed(TokencastError):
    """The generation failed, so it has no final text."""

    def __init__(self, generation: Generation) -> None:
        error = generation.error or {}
        super().__init__(str(error.get("message") or "The generation failed."))
        self.generation = generation
        self.code: str | None = error.get("code")


class GenerationCancelled(TokencastError):
    """The generation was cancelled, so it has no final text."""

    def __init__(self, generation: Generation) -> None:
        super().__init__("The generation was cancelled.")
        self.generation = generation


def final_text(generation: Generation) -> str:
    """Return the text of a generation that has ended. Raises GenerationFailed and GenerationCancelled."""
    if generation.status == "failed":
        raise GenerationFailed(generation)
    if generation.status == "cancelled":
        raise GenerationCancelled(generation)
    return generation.text
