"""Strings of a message that grow piece by piece, and their conversion to plain JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

from broker.json_depth import is_too_deep

Json = dict[str, Any]


class Growing:
    """Placeholder for a JSON value that is still growing."""

    __slots__ = ()

    def plain(self) -> object:
        """Return the value, with strings unchanged."""
        raise NotImplementedError


class Text(Growing):
    """A growing string. Its pieces are joined on demand: joining at each piece would take quadratic time."""

    __slots__ = ("_counted", "_size", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._size = self._counted = 0

    def add(self, piece: str, *, whole: bool) -> None:
        """Add a piece. `whole`: it is part of a whole message, which can repeat earlier pieces."""
        if whole and self.is_prefix_of(piece):
            self.replace(piece)
        else:
            self.pieces.append(piece)

    def replace(self, piece: str) -> None:
        """Replace the string."""
        self.pieces = [piece]
        self._size = self._counted = 0

    def is_prefix_of(self, text: str) -> bool:
        """Return whether a text begins with this one, in time linear in the length of that text."""
        self._size += sum(map(len, self.pieces[self._counted :]))
        self._counted = len(self.pieces)
        return len(text) >= self._size and text.startswith("".join(self.pieces))

    def plain(self) -> object:
        """Return the joined string."""
        return str(self)

    def __str__(self) -> str:
        return "".join(self.pieces)


class Name(Text):
    """The name of a function. Some upstreams repeat it in each piece of a call."""

    __slots__ = ()

    def add(self, piece: str, *, whole: bool) -> None:
        super().add(piece, whole=True)


class Url(Text):
    """A URL, including images as `data:` URLs."""

    __slots__ = ()
    _SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

    def add(self, piece: str, *, whole: bool) -> None:
        if self._SCHEME.match(piece):
            self.replace(piece)
        else:
            super().add(piece, whole=whole)


class Arguments(Text):
    """The arguments of a call: JSON text in pieces, or an object if the upstream sends it decoded. Successive whole
    objects are merged by key. `{}` and `null` are ignored if there is anything else."""

    __slots__ = ("_last", "_length", "_parses", "_read", "_unread", "fields")

    def __init__(self) -> None:
        super().__init__()
        self.fields: Json | None = None
        self._last = ""
        self._length = 0
        self._parses = 8
        self._read: Json | None = None
        self._unread = False

    def add(self, piece: str, *, whole: bool) -> None:
        if not piece.strip():
            if self.fields is None:
                self.pieces.append(piece)
                self._length += len(piece)
        elif self.are_empty:
            if piece.strip() != "null":
                self.replace(piece)
        elif (whole or _opens(piece) or _is_empty_text(piece)) and self.are_complete:
            self._add_to_whole(piece, whole)
        elif whole and self.are_repeated_in(piece):
            self.replace(piece)
        else:
            self.pieces.append(piece)
            self._changed(piece, self._length + len(piece))

    def _add_to_whole(self, piece: str, whole: bool) -> None:
        if _is_empty_text(piece):
            return
        repeats = self.are_repeated_in(piece)
        fields = None if repeats else object_of(piece)
        if fields is not None and not whole:
            self.add_object(fields)
        elif fields is not None or repeats:
            self.replace(piece)
        else:
            self.pieces.append(piece)
            self._changed(piece, self._length + len(piece))

    def replace(self, piece: str) -> None:
        super().replace(piece)
        self.fields = None
        self._changed(piece, len(piece))

    def _changed(self, piece: str, length: int) -> None:
        self._last, self._length = piece.rstrip()[-1:], length
        self._read, self._unread = None, True

    def add_object(self, fields: Json) -> None:
        if self.fields is None:
            self.fields = {}
            if self.pieces and fields and (known := self._object()) is not None:
                _grow(self.fields, known)
        _grow(self.fields, fields)

    @property
    def begun(self) -> bool:
        return bool(self.pieces) or self.fields is not None

    @property
    def are_complete(self) -> bool:
        return self._object() is not None

    @property
    def are_empty(self) -> bool:
        """Whether they are `{}` or `null`: some upstreams begin a call so, and send its arguments later."""
        if self.fields is not None and not self.pieces:
            return not self.fields
        return not self.fields and self._length < 16 and _is_empty_text(str(self))

    def are_repeated_in(self, piece: str) -> bool:
        return not self.fields and self.is_prefix_of(piece)

    def are_followed_by_object(self, more: object) -> bool:
        """Return whether they are a whole object and `more` begins another: `{"a":1}{"b":2}` is not valid as the
        arguments of one call."""
        return (isinstance(more, dict) or (isinstance(more, str) and _opens(more))) and self.are_complete

    def are_consistent_with(self, more: object, *, wholly: bool) -> bool:
        """Return whether both are whole objects with equal values for common keys. `wholly`: `more` must have all
        keys."""
        known, fields = self._object(), object_of(more)
        if known is None or fields is None or (wholly and not known.keys() <= fields.keys()):
            return False
        return _agree(known, fields)

    def _object(self) -> Json | None:
        """Return the object; None if they are incomplete. Parses the whole text, at most eight times without success: a
        `}` at the end of a piece can be inside a string."""
        if self.fields or (self.fields is not None and not self.pieces):
            return self.fields
        if self._unread and self._last == "}" and self._parses:
            self._unread = False
            self._read = object_of(str(self))
            self._parses -= self._read is None
        return self._read

    def __str__(self) -> str:
        if self.fields or (self.fields is not None and not self.pieces):
            return json_text(rendered(self.fields))
        return super().__str__()


def is_empty_arguments(arguments: object) -> bool:
    return arguments in (None, {}, []) or (isinstance(arguments, str) and _is_empty_text(arguments))


def _is_empty_text(text: str) -> bool:
    return text.strip() in ("{}", "null")


def _opens(text: str) -> bool:
    return text.lstrip().startswith("{")


def object_of(value: object) -> Json | None:
    """Return an object, or the object in a JSON text; None for anything else."""
    if isinstance(value, dict):
        return cast(Json, value)
    if not isinstance(value, str) or not _opens(value) or is_too_deep(value.encode("utf-8", "surrogatepass")):
        return None
    try:
        return json.loads(value, parse_constant=_refuse)
    except ValueError:
        return None


def _refuse(constant: str) -> object:
    raise ValueError(constant)


def _grow(known: Json, more: Json) -> None:
    """Merge by key, without modifying the values in `more`."""
    for key, value in more.items():
        if isinstance(value, dict):
            old = known.get(key)
            known[key] = old if isinstance(old, dict) else {}
            _grow(cast(Json, known[key]), cast(Json, value))
        else:
            known[key] = value


def _agree(known: Json, more: Json) -> bool:
    for key in more.keys() & known.keys():
        old, new = known[key], more[key]
        if isinstance(old, dict) and isinstance(new, dict):
            if not _agree(cast(Json, old), cast(Json, new)):
                return False
        elif old != new:
            return False
    return True


def rendered(value: Any) -> Any:
    """Return merged values as plain JSON that every encoder and parser accepts: without lone surrogates and
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
    """Join surrogate pairs that were split over two chunks; a lone surrogate becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def json_text(value: object) -> str:
    """Encode a value as JavaScript's JSON.stringify does."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
