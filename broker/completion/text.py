"""Strings of a message that grow piece by piece, and how what has grown becomes plain JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

from broker.json_depth import is_too_deep

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
    """The arguments of a call: JSON text in pieces, or an object where an upstream sends it decoded. One whole object
    after another is merged by key. `{}` or `null` says nothing where there is anything else."""

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
        elif self.say_nothing:
            if piece.strip() != "null":
                self.replace(piece)
        elif (whole or _opens(piece) or _says_nothing(piece)) and self.are_whole:
            self._add_to_whole(piece, whole)
        elif whole and self.are_repeated_by(piece):
            self.replace(piece)
        else:
            self.pieces.append(piece)
            self._changed(piece, self._length + len(piece))

    def _add_to_whole(self, piece: str, whole: bool) -> None:
        if _says_nothing(piece):
            return
        repeats = self.are_repeated_by(piece)
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
    def are_whole(self) -> bool:
        return self._object() is not None

    @property
    def say_nothing(self) -> bool:
        """Whether they are `{}` or `null`: some upstreams begin a call so, and send its arguments afterwards."""
        if self.fields is not None and not self.pieces:
            return not self.fields
        return not self.fields and self._length < 16 and _says_nothing(str(self))

    def are_repeated_by(self, piece: str) -> bool:
        return not self.fields and self.is_begun_by(piece)

    def are_left_by(self, more: object) -> bool:
        """Return whether they are a whole object, and more is the beginning of another: `{"a":1}{"b":2}` cannot be the
        arguments of one call."""
        return (isinstance(more, dict) or (isinstance(more, str) and _opens(more))) and self.are_whole

    def agree_with(self, more: object, *, wholly: bool) -> bool:
        """Return whether both are whole objects that contradict each other in no key. `wholly`: more has all keys."""
        known, fields = self._object(), object_of(more)
        if known is None or fields is None or (wholly and not known.keys() <= fields.keys()):
            return False
        return _agree(known, fields)

    def _object(self) -> Json | None:
        """The object that they are; None if they are none. Reads all of them, and so not more than eight times in vain:
        `}` and `{` may stand in a string."""
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


def says_nothing(arguments: object) -> bool:
    return arguments in (None, {}, []) or (isinstance(arguments, str) and _says_nothing(arguments))


def _says_nothing(text: str) -> bool:
    return text.strip() in ("{}", "null")


def _opens(text: str) -> bool:
    return text.lstrip().startswith("{")


def object_of(value: object) -> Json | None:
    """Return an object, or the one whose JSON text is given; None for anything else."""
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
    """Merge by key, without a change to what is in `more`."""
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
