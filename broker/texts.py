"""Strings of a message that grow piece by piece, and how what has grown becomes plain JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

Json = dict[str, Any]


class Growing:
    """What stands for a JSON value until it is read."""

    __slots__ = ()

    def plain(self) -> object:
        """Return the value, its strings as they came."""
        raise NotImplementedError


class Text(Growing):
    """A string that grows: joining it at each piece would copy a long answer as often as it has chunks."""

    __slots__ = ("_counted", "_size", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._size = self._counted = 0

    def add(self, piece: str, *, whole: bool) -> None:
        """`whole`: the piece is of a whole message, which may repeat what came in pieces before."""
        if whole and self.is_begun_by(piece):
            self.replace(piece)
        else:
            self.pieces.append(piece)

    def replace(self, piece: str) -> None:
        self.pieces = [piece]
        self._size = self._counted = 0

    def is_begun_by(self, text: str) -> bool:
        """Return whether a text begins with this one. Costs no more than the text is long."""
        self._size += sum(map(len, self.pieces[self._counted :]))
        self._counted = len(self.pieces)
        return len(text) >= self._size and text.startswith("".join(self.pieces))

    def plain(self) -> object:
        return str(self)

    def __str__(self) -> str:
        return "".join(self.pieces)


class Name(Text):
    """The name of a function: once, although some upstreams repeat it in each piece of a call."""

    __slots__ = ()

    def add(self, piece: str, *, whole: bool) -> None:
        super().add(piece, whole=True)


class Url(Text):
    """An address, or a picture as a `data:` URL."""

    __slots__ = ()
    _SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

    def add(self, piece: str, *, whole: bool) -> None:
        if self._SCHEME.match(piece):
            self.replace(piece)
        else:
            super().add(piece, whole=whole)


class Arguments(Text):
    """The arguments of a call: JSON text in pieces, or an object where an upstream sends it decoded."""

    __slots__ = ("_last", "_parses", "fields")

    def __init__(self) -> None:
        super().__init__()
        self.fields: Json | None = None
        self._last = ""
        self._parses = 8

    def add(self, piece: str, *, whole: bool) -> None:
        super().add(piece, whole=whole or self.are_left_by(piece))  # the whole object, said again
        self._last = piece.rstrip()[-1:] or self._last

    def add_object(self, fields: Json) -> None:
        self.fields = {} if self.fields is None else self.fields
        self.fields.update(fields)

    @property
    def begun(self) -> bool:
        return bool(self.pieces or self.fields)

    def are_left_by(self, more: object) -> bool:
        """Return whether they are a whole object, and more is the beginning of another: `{"a":1}{"b":2}` cannot be the
        arguments of one call."""
        if self._last != "}" and not self.fields:
            return False
        opens = isinstance(more, dict) or (isinstance(more, str) and more.lstrip().startswith("{"))
        return opens and (bool(self.fields) or self._is_object())

    def _is_object(self) -> bool:
        """Reads all of them, and so not more than eight times in vain: `}` and `{` may stand in a string."""
        if not self._parses:
            return False
        try:
            return isinstance(json.loads(str(self)), dict)
        except (ValueError, RecursionError):
            self._parses -= 1
            return False

    def __str__(self) -> str:
        if self.fields or (self.fields is not None and not self.pieces):
            return json_text(rendered(self.fields))
        return super().__str__()


def rendered(value: Any) -> Any:
    """Return merged values as plain JSON that every encoder takes and every parser reads: no half surrogate pair, no
    infinity."""
    if isinstance(value, Growing):
        value = value.plain()
    if isinstance(value, str):
        return paired(value)
    if isinstance(value, dict):
        return {paired(key): rendered(item) for key, item in cast(Json, value).items()}
    if isinstance(value, list):
        return [rendered(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def paired(text: str) -> str:
    """Join surrogate pairs that came in two chunks; a half that stays alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def json_text(value: object) -> str:
    """As JavaScript's JSON.stringify writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
