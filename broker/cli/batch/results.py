"""The output of `batch`: one result per line, in the format of OpenAI's batches, each custom_id once."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import click

from broker.chunks import Json
from broker.cli.batch.requests import Requests
from broker.cli.options import json_line


class Results:
    """A context manager. With a path, the results that the file has are kept, and others appended; without one they go
    to stdout. `done`: for each custom_id with a result, whether it completed.
    """

    def __init__(self, path: Path | None, requests: Requests) -> None:
        self._path = path
        self._requests = requests
        self._file: BinaryIO | None = None
        self.done: dict[str, bool] = {}

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        try:
            self._file = self._path.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._resume(self._file)
        except BlockingIOError:
            self._close()
            raise click.ClickException(f"Another command is writing to {self._path}.") from None
        except OSError as error:
            self._close()
            raise click.BadParameter(f"{self._path}: {error.strerror}", param_hint="-o") from None
        except click.ClickException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _resume(self, file: BinaryIO) -> None:
        """Read the results of an earlier run, and remove a line that it did not write to its end."""
        file.seek(0)
        whole, _, rest = file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        for number, text in enumerate(lines, 1):
            self._add(text, number)
        if rest:
            file.truncate(len(whole) + bool(lines))

    def _add(self, text: bytes, number: int) -> None:
        try:
            result: object = json.loads(text)
        except (ValueError, RecursionError):
            result = None
        fields = cast(Json, result) if isinstance(result, dict) else {}
        custom_id = fields.get("custom_id")
        if not isinstance(custom_id, str) or fields.get("id") != self._requests.id_of(custom_id):
            message = f"{self._path} exists, and line {number} is not a result of these requests; choose another file."
            raise click.BadParameter(message, param_hint="-o")
        self.done[custom_id] = is_completed(fields)

    def write(self, custom_id: str, response: Json | None, error: Json | None) -> None:
        """Write the result of a request, unless it has one."""
        if custom_id in self.done:
            return
        result: Json = {
            "id": self._requests.id_of(custom_id),
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        if self._file is None:
            click.echo(json_line(result))
        else:
            _write(self._file, json.dumps(result, separators=(",", ":")).encode() + b"\n")
        self.done[custom_id] = is_completed(result)


def is_completed(result: Json) -> bool:
    """Return whether a result is that of a completed generation."""
    response: Any = result.get("response")
    return isinstance(response, dict) and cast(Json, response).get("status_code") == 200


def _write(file: BinaryIO, line: bytes) -> None:
    while line:
        line = line[os.write(file.fileno(), line) :]
