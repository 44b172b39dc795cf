"""`tokencast top`: a live table of all generations in a terminal.

One thread follows `/v1/activity`; another one polls the running and waiting generations and the
overview once a second. The main
thread applies what they report and draws.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import click

from broker.chunks import Json
from broker.cli.options import examples, exit_when_stdout_closes, json_line, open_client
from broker.cli.output import Printer, json_event
from broker.cli.tables import one_line
from broker.cli.top.screen import Screen, is_screen
from broker.cli.top.table import Line, TopTable, pad
from broker.events import STATUSES
from tokencast_client import Client, Event, RequestRefused, TokencastError

_POLL_INTERVAL = 1.0  # seconds between two polls of the running and waiting generations
_MIN_REDRAW = 0.1  # seconds between two redraws
_PAGE = 100  # maximum page size of the gateway
LOST = "connection lost, reconnecting"
_FILTERS = (None, *STATUSES)


@click.command(
    short_help="Show a live table of all generations.",
    epilog="\b\nKeys: q quits, arrows and Page Up/Down scroll, f filters by status.\n\n"
    + examples(
        "tokencast top",
        "tokencast top --once",
        "tokencast top --once --json",
        "tokencast top --json | head -n 3",
    ),
)
@click.option("--once", is_flag=True, help="Print the table once and exit; the default if stdout is not a terminal.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of rows of it.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='One line of JSON per change, starting with the retained past ones: {"id", "event", "data"}, where data is '
    'the generation. With --once: {"overview", "generations"}.',
)
@click.option("--after", metavar="ID", help="With --json: start after this change; `latest`: only new ones.")
def top(once: bool, limit: int, as_json: bool, after: str | None) -> None:
    """Show a live table of all generations: running, queued, ended. Restarts of the gateway are survived.

    AGE: time since the generation was enqueued. FIRST: time to the first token. TOKENS: tokens of the answer (chunks
    while it is running; `~` marks an estimate). TOK/S: tokens per second since the first token. ERROR: error code, or
    the reason why a queued generation waits.
    """
    if after and not (as_json and not once):
        raise click.UsageError("--after requires --json and excludes --once.")
    client = open_client()  # never closed: at exit a thread may still be reading
    if as_json and not once:
        exit_when_stdout_closes()
        note = Printer().note
        for event in client.activity(after, on_disconnect=lambda _: note(LOST)):
            click.echo(json_event(event))
    elif once or not is_screen():
        _print_once(client, limit, as_json)
    else:
        _Top(client).run()


def _print_once(client: Client, limit: int, as_json: bool) -> None:
    overview, generations = _overview(client), [one.raw for one in client.list(limit=limit)]
    if as_json:
        click.echo(json_line({"overview": overview, "generations": generations}))
        return
    table = TopTable()
    table.overview = overview
    for generation in generations:
        table.update(generation)
    click.echo(table.summary())
    for line in table.lines(table.rows(None), _now(overview), 0):
        click.echo(line.text.rstrip())


def _overview(client: Client) -> Json | None:
    """Return the gateway's overview; None if it refuses to give one."""
    try:
        return client.request("GET", "/v1/overview")
    except RequestRefused:
        return None


def _now(overview: Json | None) -> float:
    return overview["at"] if overview else time.time()


class _Top:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._table = TopTable()
        self._updates: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._problem = ""
        self._ahead = 0.0  # seconds that the gateway's clock is ahead of this one
        self._filter = 0
        self._offset = 0

    def run(self) -> None:
        """Run until `q` is pressed. Errors are raised at the start and displayed later on."""
        self._poll(_PAGE)
        with Screen() as screen:
            for work in (self._keep_polling, self._follow):
                threading.Thread(target=work, args=(screen.wake,), daemon=True).start()
            keys: list[str] = []
            while "q" not in keys:
                for key in keys:
                    self._press(key, screen.size()[1])
                while not self._updates.empty():
                    self._updates.get()()
                screen.draw(self._lines(*screen.size()))
                drawn = time.monotonic()
                keys = screen.wait(_POLL_INTERVAL)
                if not keys:
                    time.sleep(max(0.0, drawn + _MIN_REDRAW - time.monotonic()))

    # --- the threads: they queue updates, which the main thread applies to the table ----------------------------

    def _keep_polling(self, wake: Callable[[], None]) -> None:
        while True:
            time.sleep(_POLL_INTERVAL)
            try:
                for status in ("in_progress", "queued"):
                    self._poll(_PAGE, status=status)
            except TokencastError as error:
                self._report(str(error))
            wake()

    def _poll(self, limit: int, status: str | None = None) -> None:
        page = [one.raw for one in self._client.list(status=status, limit=limit)]
        overview, here = _overview(self._client), time.time()

        def apply() -> None:
            self._problem = ""
            self._table.overview = overview
            self._ahead = overview["at"] - here if overview else 0.0
            for generation in page:
                self._table.update(generation)

        self._updates.put(apply)

    def _follow(self, wake: Callable[[], None]) -> None:
        last = ""
        while True:
            try:
                for event in self._client.activity(last, on_disconnect=lambda _: self._report(LOST)):
                    last = event.cursor or last
                    if event.name == "gap":  # away for too long: read the list again
                        self._updates.put(self._table.clear)
                        self._poll(_PAGE)
                        continue
                    self._updates.put(lambda event=event: self._show(event))
                    wake()
            except TokencastError as error:  # also if the client has given up reconnecting
                self._report(str(error))
                wake()
            time.sleep(_POLL_INTERVAL)

    def _report(self, problem: str) -> None:
        def apply() -> None:
            self._problem = problem

        self._updates.put(apply)

    # --- the table ----------------------------------------------------------------------------------------------

    def _show(self, event: Event) -> None:
        if event.name == "gone":
            self._table.remove(event.generation)
        else:
            self._table.update(event.data)

    def _press(self, key: str, height: int) -> None:
        page = max(1, height - 5)
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page, "home": -self._offset}
        self._offset += moves.get(key, 0)
        if key == "f":
            self._filter, self._offset = (self._filter + 1) % len(_FILTERS), 0

    def _lines(self, width: int, height: int) -> list[Line]:
        """Return the lines of the whole screen."""
        status = _FILTERS[self._filter]
        rows = self._table.rows(status)
        room = max(0, height - 4)
        self._offset = max(0, min(self._offset, len(rows) - room))
        shown = rows[self._offset : self._offset + room]
        title = f"tokencast top  {one_line(self._client.base_url)}"
        if self._problem:
            title += f"  ({one_line(self._problem)})"
        table = list(self._table.lines(shown, time.time() + self._ahead, width))
        position = f"{self._offset + 1}-{self._offset + len(shown)} of {len(rows)}" if shown else "none"
        foot = f"{position}  {status or 'all'}  q quit  f filter  ↑↓ scroll"
        blank = [Line("")] * (room - len(shown))
        lines = [Line(pad(title, width)), Line(pad(self._table.summary(), width)), *table, *blank]
        return [*lines, Line(pad(foot, width), "faint")][:height]
