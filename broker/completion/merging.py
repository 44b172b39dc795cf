"""Rules for merging the pieces of a streamed message: which values are joined, replaced, or begin a new item.

A piece is the `delta` of a choice. Merging never raises on any JSON, and takes time linear in its size. Keys that are
not in the table are preserved too: strings are joined, the items of lists are collected, objects are merged key by key,
and the newest number or boolean counts.

    key                                 a later value
    any                                 null, "" and [] mean "unchanged": they never replace a value
    id, type, role, index, … (NAMING)   replaces the previous one; lists, objects and booleans do not
    index                               replaces; digits as text are a number, one out of range (`INDEXES`) is ignored
    name                                is joined, but one that begins with the name so far is the whole name again
    url                                 is joined, but one with a scheme (`https:`, `data:`) is another whole URL
    arguments                           is joined; successive whole objects are merged by key, as JSON text;
                                        `{}` and `null` are ignored if there is anything else
    content, reasoning, … (TEXTS)       is joined, whether text or a list of typed parts; text among parts is a part
    function, audio, … (OBJECTS)        is merged key by key; other types do not replace an object
    tool_calls                          continues a call, or begins one: see `Items`

Sources: the reference of OpenAI's chat.completions (`index` in tool_calls), Mistral's `thinking` parts, OpenRouter's
`reasoning_details` (one detail per `index` and `type`), Gemini's compatible endpoint (calls without an index, or all
with index 0), and recorded streams of proxies that repeat, clear or change the id, the name and the role in each piece.
Each rule has test data in tests/integration/broker/completion/cases.json; the dashboard's rules are in completion.js.
"""

from __future__ import annotations

from typing import Any, cast

from broker.chunks import as_index, index_of
from broker.completion.text import Arguments, Growing, Name, Text, Url, is_empty_arguments, json_text, rendered

Json = dict[str, Any]

NAMING = frozenset(
    {"id", "type", "role", "format", "signature", "thought_signature", "object", "status", "channel", "recipient"}
    | {"model", "title", "language", "detail", "mime_type", "media_type", "filename", "file_id", "tool_call_id"}
    | {"provider", "phase"}
)
"""Keys whose value identifies or signs an item: the newest value counts."""

TEXTS = frozenset({"content", "reasoning_content", "reasoning", "refusal", "thinking", "text", "summary"})
"""Keys with text or a list of typed parts: `{"type": "text", "text"}`, `{"type": "thinking", "thinking": […]}`."""

OBJECTS = frozenset({"function", "custom", "function_call", "audio"})
"""Keys whose value is an object: other types do not replace it."""

GROWING = frozenset(
    {"text", "output_text", "summary_text", "thinking", "reasoning", "reasoning_text", "refusal"}
    | {"reasoning.text", "reasoning.summary"}
)
"""Types of items that arrive in pieces: one without an index continues the last item if that has the same type."""


_TEXT_OF_KEY: dict[str, type[Text]] = {"name": Name, "url": Url, "arguments": Arguments}


class Items(Growing):
    """A list whose items grow. A piece continues

    - with an `index`: the item with that index and type; but a different non-empty `id` means another item, as does a
      call with a different name once there are arguments (some upstreams give index 0 to every call);
    - without an `index`: the item with the same `id`; without an `id` too, the last call, or the last item of a type
      in GROWING, unless a `signature` has completed it;
    - with any id: a call whose arguments are incomplete, if the piece has arguments and no name (some proxies create
      an id for each piece; the first one counts).

    A piece with a name also begins a call if the arguments so far are a whole object and the piece has another one.
    Everything else is a new item. If the name and arguments of a call are not in a `function`, they are moved into one.
    """

    __slots__ = ("_ids", "_places", "calls", "items")

    def __init__(self, *, calls: bool = False) -> None:
        self.calls = calls
        self.items: list[Any] = []
        self._places: dict[tuple[int, str | None], Json] = {}
        self._ids: dict[tuple[int | None, str | float], Json] = {}

    def add(self, part: object, *, whole: bool = False, position: int = -1) -> None:
        """Add a part. `position`: its index in its list, which identifies a part without index and id in a whole
        message."""
        if not isinstance(part, dict):
            self.items.append(part)
            return
        piece = as_call(cast(Json, part)) if self.calls else cast(Json, part)
        item = self._known(piece, position if whole else -1)
        if item is not None and self.calls and _begins_call(item, piece, whole):
            item = None
        if item is None:
            item = {}
            self.items.append(item)
        name = _id(piece)
        if name is not None and _id(item) not in (None, name):
            self._register(item, name)
            piece = {**piece, "id": None}
        merge(item, piece, whole=whole or self._is_repeatable(piece))
        self._register(item, _id(item))

    def plain(self) -> object:
        """Return the items."""
        return self.items

    def _is_repeatable(self, piece: Json) -> bool:
        """Return whether a piece may repeat a whole item: some upstreams list their sources in each chunk."""
        return not self.calls and _id(piece) is not None and index_of(piece) is None and _type(piece) not in GROWING

    def _register(self, item: Json, name: str | float | None) -> None:
        index = index_of(item)
        if index is not None:
            self._places[index, _type(item)] = self._places[index, None] = item
        if name is not None:
            self._ids[index, name] = self._ids[None, name] = item

    def _known(self, piece: Json, position: int) -> Json | None:
        index, name = index_of(piece), _id(piece)
        if name is not None:
            item = self._ids.get((index, name)) or self._ids.get((None, name))
            if item is not None and (index is None or index_of(item) in (None, index)):
                return item
        if index is None and name is None:
            return self._unnamed(_type(piece), position)
        item = self._dict_at(position) if index is None else self._at(index, _type(piece))
        is_its_own = index is not None and (name is None or item is None or _id(item) is None)
        return item if is_its_own or (self.calls and item is not None and _lacks(item, piece)) else None

    def _unnamed(self, kind: str | None, position: int) -> Json | None:
        """Return the item that a piece without index and id continues. `position` is -1 if it is unknown."""
        there, last = self._dict_at(position), self._dict_at(-1)
        if self.calls:
            return there
        if position >= 0 and there is not None and _type(there) == kind:
            return there
        grows = kind in GROWING and last is not None and _type(last) == kind and not last.get("signature")
        return last if grows else None

    def _dict_at(self, position: int) -> Json | None:
        item = self.items[position] if self.items and position < len(self.items) else None
        return cast(Json, item) if isinstance(item, dict) else None

    def _at(self, index: int, kind: str | None) -> Json | None:
        item = self._places.get((index, kind))
        if item is None and kind is not None:
            untyped = self._places.get((index, None))
            return untyped if untyped is not None and _type(untyped) is None else None
        return item


def as_call(piece: Json) -> Json:
    """Return a call with its name and arguments in an object, as in OpenAI's format."""
    if isinstance(piece.get("function"), dict) or isinstance(piece.get("custom"), dict):
        return piece
    kind, said = ("custom", "input") if piece.get("type") == "custom" else ("function", "arguments")
    body = {key: piece[key] for key in ("name", said) if key in piece}
    return {**{key: value for key, value in piece.items() if key not in body}, kind: body} if body else piece


def _lacks(call: Json, piece: Json) -> bool:
    """Return whether a call's arguments are incomplete and the piece has only arguments."""
    known, function = call.get("function"), piece.get("function")
    if not isinstance(known, dict) or not isinstance(function, dict):
        return False
    name: object = cast(Json, function).get("name")
    arguments: object = cast(Json, known).get("arguments")
    if name not in (None, "") or not isinstance(more := cast(Json, function).get("arguments"), str) or not more:
        return False
    return not (isinstance(arguments, Arguments) and arguments.are_complete)


def _begins_call(call: Json, piece: Json, whole: bool) -> bool:
    """Return whether a piece begins another call instead of continuing this one, by its name or its arguments."""
    known, function = call.get("function"), piece.get("function")
    if not isinstance(known, dict) or not isinstance(function, dict):
        return False
    name: object = cast(Json, function).get("name")
    if not isinstance(name, str) or not name:
        return False
    so_far, arguments = cast(Json, known).get("name"), cast(Json, known).get("arguments")
    is_another = isinstance(so_far, Text) and not so_far.is_prefix_of(name)
    if not isinstance(arguments, Arguments) or not arguments.begun:
        return is_another and _id(call) is None and ("id" in piece or index_of(piece) is None)
    if is_another or whole:
        return is_another
    more: object = cast(Json, function).get("arguments")
    return arguments.are_followed_by_object(more) and not _is_of(call, arguments, piece, more)


def _is_of(call: Json, arguments: Arguments, piece: Json, more: object) -> bool:
    """Return whether a piece with a name and another whole object still belongs to the same call: the arguments so far
    are empty, or the id is the same and the piece repeats them or adds to them."""
    is_same, is_placed = _id(piece) is not None and _id(piece) == _id(call), index_of(piece) is not None
    if arguments.are_empty and not is_empty_arguments(more):
        return is_same or is_placed
    repeats = isinstance(more, str) and arguments.are_repeated_in(more)
    return is_same and (repeats or arguments.are_consistent_with(more, wholly=not is_placed))


def merge(known: Json, piece: Json, *, whole: bool = False) -> None:
    """Merge a piece into an object. `whole`: the piece is the whole object, as in a `message`; it can repeat known
    values, and a text that begins with the known one replaces it."""
    for key, value in piece.items():
        old = known.get(key)
        if type(old) is Text and type(value) is str and not whole:  # the common case
            old.pieces.append(value)
        elif value is None or value == "":
            if old is None:
                known[key] = value
        else:
            known[key] = _merged(key, old, value, whole)


def _merged(key: str, old: Any, value: Any, whole: bool) -> Any:
    if key == "index" and (number := as_index(value)) is not None:
        return number
    if key == "index":
        return value if old in (None, "") else old
    if key in NAMING:
        return value if _is_name(value) or old in (None, "") else old
    if key == "tool_calls":
        return _with_items(old if isinstance(old, Items) else Items(calls=True), _listed(value), whole)
    if key in TEXTS or key in _TEXT_OF_KEY:
        if isinstance(value, bool):  # not text
            return old
        if isinstance(value, int | float):
            value = json_text(value)
    if key == "arguments":
        return _with_arguments(old, value, whole)
    if key in OBJECTS and not isinstance(value, dict):
        return cast(Any, old) if isinstance(old, dict) else value
    if isinstance(value, str):
        return _with_string(key, old, value, whole)
    if key in _TEXT_OF_KEY:
        return old
    if isinstance(value, list):
        return _with_items(_as_items(key, old), _parts(key, cast("list[Any]", value)), whole)
    if isinstance(value, dict):
        return _with_object(key, old, cast(Json, value), whole)
    return _with_scalar(old, value)


def _is_name(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _with_scalar(old: object, value: object) -> object:
    """Merge a number or a boolean."""
    if isinstance(old, Items):
        old.add(value)
    return cast(object, old) if isinstance(old, Items | dict) else value


def _with_string(key: str, old: object, value: str, whole: bool) -> object:
    if isinstance(old, Items):
        return _with_items(old, _parts(key, [value]), whole)
    if isinstance(old, dict) and old:
        return cast(object, old)
    text = old if isinstance(old, Text) else _TEXT_OF_KEY.get(key, Text)()
    text.add(value, whole=whole)
    return text


def _with_arguments(old: object, value: object, whole: bool) -> object:
    arguments = old if isinstance(old, Arguments) else Arguments()
    if isinstance(value, str):
        arguments.add(value, whole=whole)
    elif isinstance(value, dict) or value == []:  # PHP encodes an empty object so
        arguments.add_object(cast(Json, value or {}))
    else:
        arguments.add(json_text(rendered(value)), whole=whole)
    return arguments


def _with_object(key: str, old: object, value: Json, whole: bool) -> object:
    """Merge an object: as a typed part if the key can have a list of them, otherwise key by key or instead of a
    scalar."""
    if not value:
        return {} if old is None or old == "" else old
    if isinstance(old, Items) or key in TEXTS:
        return _with_items(_as_items(key, old), [value], whole)
    item = cast(Json, old) if isinstance(old, dict) else {}
    merge(item, value, whole=whole)
    return item


def _with_items(items: Items, parts: list[Any], whole: bool) -> Items:
    for position, part in enumerate(parts):
        items.add(part, whole=whole, position=position)
    return items


def _as_items(key: str, old: object) -> Items:
    """Return a list that contains the previous value."""
    if isinstance(old, Items):
        return old
    items = Items()
    if isinstance(old, Text) and key in TEXTS:
        items.items.append({"type": "text", "text": old})
    elif isinstance(old, Text):
        items.items.append(str(old))
    elif isinstance(old, dict) and old:
        items.items.append(old)
    return items


def _parts(key: str, values: list[Any]) -> list[Any]:
    if key not in TEXTS:
        return values
    parts = [{"type": "text", "text": value} if isinstance(value, str) else value for value in values]
    return [part for part in parts if part is not None and part != {}]


def _listed(value: object) -> list[Any]:
    """Return the objects of a list, or a single object in place of a list."""
    values = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, dict) and item]


def _id(fields: Json) -> str | float | None:
    name = fields.get("id")
    return name if _is_name(name) and name != "" else None


def _type(fields: Json) -> str | None:
    kind = fields.get("type")
    return kind if isinstance(kind, str) and kind else None
