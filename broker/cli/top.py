"""`tokencast top`: what happens to all generations, as a live table in a terminal.

One thread follows the activity, one asks each second how far the running ones are and how the gateway is; the main
thread draws what they bring.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import click

from broker.cli.options import end_with_reader, examples, json_line, open_client
from broker.cli.output import Printer, json_event
from broker.cli.screen import Screen, is_screen
from broker.cli.tables import one_line
from broker.cli.top_table import Line, TopTable, pad
from broker.errors import BrokerError
from broker.events import STATUSES
from broker.gateway_client.client import Client, Json, Received, RequestRefused

_EVERY = 1.0  # seconds between two looks at what runs
_PAUSE = 0.1  # between two drawings: nobody sees more
_LISTED = 100  # the most that the gateway lists at once
_FILTERS = (None, *STATUSES)


@click.command(
    short_help="Watch all generations, live.",
    epilog="\b\nKeys: q quits, the arrows and Page Up/Down scroll, f shows one status only.\n\n"
    + examples(
        "tokencast top",
        "tokencast top --once",
        "tokencast top --once --json",
        "tokencast top --json | head -n 3",
    ),
)
@click.option("--once", is_flag=True, help="Print the table as it is now; so it is where stdout is no terminal.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Lines of it.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='One line per change, from what is kept of the past on: {"id", "event", "data"}; data is the generation. '
    'With --once: {"overview", "generations"}.',
)
@click.option("--after", metavar="ID", help="With --json: begin behind that line, or `latest`: with what comes now.")
def top(once: bool, limit: int, as_json: bool, after: str | None) -> None:
    """Watch all generations: what runs, what waits, what has ended, over gateways that come and go.

    AGE is since it was enqueued, FIRST how long the first token took, TOKENS of the answer (of a running one its
    chunks, `~` where they were counted), TOK/S from the first token on.
    """
    if after and not (as_json and not once):
        raise click.UsageError("--after goes with --json, and not with --once.")
    client = open_client()  # not closed: a thread may be reading when all ends
    if as_json and not once:
        end_with_reader()
        for received in client.activity(after, notice=Printer().note):
            click.echo(json_event(received))
    elif once or not is_screen():
        _print_once(client, limit, as_json)
    else:
        _Top(client).run()


def _print_once(client: Client, limit: int, as_json: bool) -> None:
    overview, generations = _overview(client), list(client.generations(None, limit))
    if as_json:
        click.echo(json_line({"overview": overview, "generations": generations}))
        return
    board = TopTable()
    board.overview = overview
    for generation in generations:
        board.take(generation)
    click.echo(board.summary())
    for line in board.table(board.rows(None), _now(overview), 0):
        click.echo(line.text.rstrip())


def _overview(client: Client) -> Json | None:
    """How the gateway is; None of one that does not say."""
    try:
        return client.get("/v1/overview")
    except RequestRefused:
        return None


def _now(overview: Json | None) -> float:
    return overview["at"] if overview else time.time()


class _Top:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._board = TopTable()
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._trouble = ""
        self._ahead = 0.0  # seconds that the gateway's clock is
        self._filter = 0
        self._offset = 0

    def run(self) -> None:
        """Until `q`. What is wrong at the start is raised, what goes wrong later is shown."""
        self._look(_LISTED)
        with Screen() as screen:
            for work in (self._keep_looking, self._follow):
                threading.Thread(target=work, args=(screen.wake,), daemon=True).start()
            keys: list[str] = []
            while "q" not in keys:
                for key in keys:
                    self._press(key, screen.size()[1])
                while not self._news.empty():
                    self._news.get()()
                screen.draw(self._lines(*screen.size()))
                drawn = time.monotonic()
                keys = screen.wait(_EVERY)
                if not keys:
                    time.sleep(max(0.0, drawn + _PAUSE - time.monotonic()))

    # --- the threads: they put what is to be done with the board, and do it not themselves ----------------------

    def _keep_looking(self, wake: Callable[[], None]) -> None:
        while True:
            time.sleep(_EVERY)
            try:
                self._look(_LISTED, status="in_progress")
            except BrokerError as error:
                self._tell(str(error))
            wake()

    def _look(self, limit: int, **which: str) -> None:
        page = self._client.get("/v1/generations", limit=limit, **which)["data"]
        overview, here = _overview(self._client), time.time()

        def seen() -> None:
            self._trouble = ""
            self._board.overview = overview
            self._ahead = overview["at"] - here if overview else 0.0
            for generation in page:
                self._board.take(generation)

        self._news.put(seen)

    def _follow(self, wake: Callable[[], None]) -> None:
        last = ""
        while True:
            try:
                for received in self._client.activity(last, notice=self._tell):
                    last = received.id or last
                    if received.event == "gap":  # away for too long: what happened meanwhile is in the list
                        self._news.put(self._board.clear)
                        self._look(_LISTED)
                        continue
                    self._news.put(lambda received=received: self._show(received))
                    wake()
            except BrokerError as error:  # also: away for so long that the client has given up
                self._tell(str(error))
                wake()
            time.sleep(_EVERY)

    def _tell(self, trouble: str) -> None:
        def told() -> None:
            self._trouble = trouble

        self._news.put(told)

    # --- the board ----------------------------------------------------------------------------------------------

    def _show(self, received: Received) -> None:
        generation = json.loads(received.data)
        if received.event == "gone":
            self._board.forget(generation["id"])
        else:
            self._board.take(generation)

    def _press(self, key: str, height: int) -> None:
        page = max(1, height - 5)
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page, "home": -self._offset}
        self._offset += moves.get(key, 0)
        if key == "f":
            self._filter, self._offset = (self._filter + 1) % len(_FILTERS), 0

    def _lines(self, width: int, height: int) -> list[Line]:
        """The whole screen."""
        status = _FILTERS[self._filter]
        rows = self._board.rows(status)
        room = max(0, height - 4)
        self._offset = max(0, min(self._offset, len(rows) - room))
        shown = rows[self._offset : self._offset + room]
        title = f"tokencast top  {one_line(self._client.url)}"
        if self._trouble:
            title += f"  ({one_line(self._trouble)})"
        table = list(self._board.table(shown, time.time() + self._ahead, width))
        place = f"{self._offset + 1}-{self._offset + len(shown)} of {len(rows)}" if shown else "none"
        foot = f"{place}  {status or 'all'}  q quit  f filter  ↑↓ scroll"
        blank = [Line("")] * (room - len(shown))
        lines = [Line(pad(title, width)), Line(pad(self._board.summary(), width)), *table, *blank]
        return [*lines, Line(pad(foot, width), "faint")][:height]
