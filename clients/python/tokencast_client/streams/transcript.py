"""The text of a generation, from its events."""

from __future__ import annotations

from tokencast_client.records import Event


class Transcript:
    """The text of choice 0 so far. A `reset` makes it empty: the generation begins again."""

    def __init__(self, text: str = "") -> None:
        self._parts = [text]

    @property
    def text(self) -> str:
        text = "".join(self._parts)
        self._parts = [text]
        # Some upstreams send the two halves of a surrogate pair in two chunks.
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def add(self, event: Event) -> bool:
        """Process an event; return whether the text has changed."""
        if event.name == "reset":
            changed, self._parts = any(self._parts), []
            return changed
        if text := event.text:
            self._parts.append(text)
        return bool(text)
