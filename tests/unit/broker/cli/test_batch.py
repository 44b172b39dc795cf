"""The files of `batch`: requests, results, and the text of the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from broker.cli.batch.bar import bar
from broker.cli.batch.requests import Requests, read_requests
from broker.cli.batch.results import Results


def line(custom_id: object = "a", **more: Any) -> bytes:
    body = {"model": "m", "messages": []}
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **more}
    return json.dumps(request).encode() + b"\n"


def requests(*names: str) -> Requests:
    return read_requests(b"".join(map(line, names)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no requests"),
        (b"\n \n", "no requests"),
        (b"{", "line 1: "),
        (b"[" * 100_000, "line 1: "),
        (line() + b"\xff", "line 2: "),
        (b"[]", "not a JSON object"),
        (line(7), "`custom_id` must be a string"),
        (line(""), "`custom_id` must be a string"),
        (line(body="hello"), "`body` must be an object"),
        (line(method="GET"), "must be POST and /v1/chat/completions"),
        (line(url="/v1/embeddings"), "must be POST and /v1/chat/completions"),
        (line("a") + b"\n" + line("b") + line("a"), "line 4: the custom_id 'a' occurs twice"),
    ],
)
def test_an_invalid_file_is_refused_with_the_line(content: bytes, said: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        read_requests(content)
    assert said in caught.value.message


def test_parts_depend_only_on_the_content() -> None:
    """A part has at most 100 requests and 4 MiB. Its key is that of no other part or file."""
    many = requests(*map(str, range(250)))
    parts = list(many.parts())
    assert [len(part) for part in parts] == [100, 100, 50]
    assert [one.custom_id for part in parts for one in part] == [str(n) for n in range(250)]
    other = requests(*map(str, range(251)))
    keys = [read.key_of(part) for read in (many, other) for part in read.parts()]
    assert len(set(keys)) == len(keys) == 6
    assert keys[:3] == [many.key_of(part) for part in requests(*map(str, range(250))).parts()]
    big = read_requests(b"".join(line(str(n), body={"x": "y" * 3_000_000}) for n in range(3)))
    assert [len(part) for part in big.parts()] == [1, 1, 1]


def test_a_byte_order_mark_and_blank_lines_are_ignored() -> None:
    read = read_requests(b"\xef\xbb\xbf" + line("a") + b"\r\n\n" + line("b").rstrip())
    assert [one.custom_id for one in read.lines] == ["a", "b"]


OK: dict[str, Any] = {"status_code": 200, "request_id": "gen_1", "body": {}}


def test_results_are_appended_once(tmp_path: Path) -> None:
    path, read = tmp_path / "out.jsonl", requests("a", "b", "c")
    with Results(path, read) as results:
        results.write("a", OK, None)
        results.write("b", {**OK, "status_code": 502}, None)
        results.write("a", None, {"code": "generation_gone"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "batch')
    with Results(path, read) as results:
        assert results.done == {"a": True, "b": False}
        assert path.read_bytes() == whole
        results.write("c", None, {"code": "generation_gone", "message": "It was deleted."})
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [one["custom_id"] for one in lines] == ["a", "b", "c"]
    assert lines[2] == {
        "id": read.id_of("c"),
        "custom_id": "c",
        "response": None,
        "error": {"code": "generation_gone", "message": "It was deleted."},
    }


def test_half_a_line_alone_is_removed(tmp_path: Path) -> None:
    path, read = tmp_path / "out.jsonl", requests("a")
    path.write_bytes(b'{"id": "ba')
    with Results(path, read) as results:
        assert results.done == {}
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "content", [b"hello\n", b"[]\n", b'{"custom_id": "a"}\n', b'{"id": "x", "custom_id": "a"}\n\n']
)
def test_another_file_is_not_changed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(click.ClickException, match="line 1 is not a result"), Results(path, requests("a")):
        pass
    assert path.read_bytes() == content


def test_results_of_another_file_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(path, requests("a")) as results:
        results.write("a", OK, None)
    with pytest.raises(click.ClickException, match="choose another file"), Results(path, requests("a", "b")):
        pass


def test_two_commands_do_not_write_to_one_file(tmp_path: Path) -> None:
    path, read = tmp_path / "out.jsonl", requests("a")
    with (
        Results(path, read),
        pytest.raises(click.ClickException, match="Another command"),
        Results(path, read),
    ):
        pass
    with pytest.raises(click.BadParameter, match="No such file"), Results(tmp_path / "no" / "out", read):
        pass


def test_the_text_of_the_bar() -> None:
    assert bar(8, 0, 0, 0) == f"[{'-' * 24}]   0%  0 of 8 done, 8 waiting"
    assert bar(8, 3, 1, 2) == f"[{'#' * 9}{'-' * 15}]  37%  3 of 8 done, 1 failed, 2 running, 3 waiting"
    assert bar(8, 8, 0, 0) == f"[{'#' * 24}] 100%  8 of 8 done"
