"""Output of events: text for people, one line of JSON per event for programs."""

from __future__ import annotations

import json
import sys
from typing import cast

import click

from broker.chunks import Json, text_of_chunk
from broker.cli.tables import REASONS
from tokencast_client import TERMINAL_EVENTS, Event

# The text of a model can contain escape sequences, which a terminal would execute.
CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def harmless(text: str) -> str:
    """Replace control characters if stdout is a terminal."""
    return text.translate(CONTROL) if sys.stdout.isatty() else text


def _waits(reason: str) -> str:
    """Describe a `waiting` event; the reason may be unknown to this version."""
    return f"waiting: {REASONS[reason]} ({reason})" if reason in REASONS else f"waiting ({reason})"


_PRINTED = frozenset({"chunk", "reset", "gap", "waiting", *TERMINAL_EVENTS})


class Printer:
    """Prints events for people: the text of choice 0 on stdout, everything else on stderr."""

    def __init__(self) -> None:
        self._in_line = False
        self._half: str = ""  # first half of a surrogate pair: some upstreams send its two escapes in two chunks

    def show(self, event: Event) -> None:
        if event.name not in _PRINTED:
            return
        data = cast(Json, json.loads(event.raw))
        if event.name not in ("chunk", "waiting", "gap"):
            self._end_line()
        match event.name:
            case "chunk":
                self._write(text_of_chunk(data))
            case "reset":
                self.note(f"restarted ({data.get('reason')}); discard the text above")
            case "gap":
                self.note("part of the text is no longer stored")
            case "waiting":
                self.note(_waits(str(data.get("reason"))))
            case "failed":
                self.note(f"failed: {data['error']['message']} ({data['error'].get('code')})")
            case "cancelled":
                self.note("cancelled")
            case "gone":
                self.note("deleted")
            case _:
                pass

    def note(self, text: str) -> None:
        """Print a notice on stderr.

        The text on stdout is not changed, since it may go to a file or a pipe: the line break is for a terminal only.
        """
        before = "\n" if self._in_line and sys.stdout.isatty() else ""
        click.echo(f"{before}tokencast: {text.translate(CONTROL)}", err=True)

    def _write(self, text: str) -> None:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = text.removesuffix(self._half).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text:
            self._print(text)

    def _print(self, text: str) -> None:
        click.echo(harmless(text), nl=False)
        self._in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        self._half = ""
        if self._in_line:
            click.echo()
            self._in_line = False


def json_event(event: Event, *, named: bool = False) -> str:
    """Return an event as one line of JSON, with its data unchanged. `named`: with its generation."""
    data = event.raw.replace("\n", " ")  # a raw line break in JSON is white space
    whose = f'"generation":"{event.generation}",' if named else ""
    return harmless(f'{{{whose}"id":{json.dumps(event.cursor)},"event":{json.dumps(event.name)},"data":{data}}}')


class LinePrinter:
    """Prints events of several generations: whole lines of text on stdout, everything else on stderr.

    Each line is prefixed with the end of its generation's id, the part that differs most.
    """

    def __init__(self) -> None:
        self._printers: dict[str, _Buffer] = {}

    def show(self, event: Event) -> None:
        gid = event.generation
        printer = self._printers.get(gid)
        if printer is None:
            printer = self._printers[gid] = _Buffer(gid[-8:])
        printer.show(event)
        if event.name == "completed":
            printer.note("completed")

    def note(self, text: str) -> None:
        click.echo(f"tokencast: {text.translate(CONTROL)}", err=True)


class _Buffer(Printer):
    """The printer of one generation: holds back its unfinished line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._line = ""

    def note(self, text: str) -> None:
        super().note(f"{self._name}: {text}")

    def _print(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            click.echo(f"{self._name} | {harmless(line)}")

    def _end_line(self) -> None:
        super()._end_line()
        if self._line:
            self._print("\n")
