"""Parsing of arguments and formatting of output."""

from __future__ import annotations

import json
import threading
import time
from typing import get_args

import click
import pytest

from broker.chunks import text_of_chunk
from broker.cli import tables
from broker.cli.generations import enqueue
from broker.cli.generations.progress import ProgressLine
from broker.cli.output import LinePrinter, Printer, json_event
from broker.cli.times import Duration, Moment
from broker.events import WaitingReason
from tokencast_client import Client, Event

ID = "gen_01kbn2h8v010" + "0" * 22
GENERATION = {
    "id": ID,
    "status": "completed",
    "model": "gabforge-coder",
    "created_at": 1000.0,
    "started_at": 1000.25,
    "first_token_at": 1000.5,
    "ended_at": 1002.25,
    "attempt": 1,
    "cursor": "7-3",
    "text": "hello",
    "usage": {"completion_tokens": 5},
    "error": None,
    "metadata": {"order": "17"},
    "priority": 3,
    "group": "nightly",
    "upstream": "default",
    "retry_of": None,
    "queue": None,
}


def chunk(content: str, index: int = 0) -> Event:
    data = {"choices": [{"index": index, "delta": {"content": content}}]}
    return Event("1-1", "chunk", json.dumps(data))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0s"), (0.4, "0s"), (59.9, "59s"), (60, "1m"), (7199, "1h"), (7200, "2h"), (2e5, "2d")]
)
def test_a_duration_is_abbreviated(seconds: float, shown: str) -> None:
    assert tables.duration(seconds) == shown


@pytest.mark.parametrize(
    ("usage", "shown"),
    [
        (None, "-"),
        ({}, "-"),
        ({"completion_tokens": 0}, "0"),
        ({"completion_tokens": 12, "estimated": True}, "~12"),
    ],
)
def test_an_estimated_number_of_tokens_is_marked(usage: dict[str, object] | None, shown: str) -> None:
    assert tables.tokens(usage) == shown


def test_a_table_is_aligned_and_free_of_control_characters() -> None:
    lines = list(tables.table([("ID", "MODEL"), ("gen_1", "a\x1b[2J\nb"), ("g", "")]))
    assert lines == ["ID     MODEL", "gen_1  a\ufffd[2J b", "g"]


def test_a_row_of_ls() -> None:
    assert tables.row(GENERATION, 1063.0) == (ID, "completed", "gabforge-coder", "1m", "1", "5", "-")
    failed = {**GENERATION, "status": "failed", "error": {"code": "upstream_busy"}}
    assert tables.row(failed, 1063.0)[-1] == "upstream_busy"
    queued = {**GENERATION, "status": "queued", "attempt": 0, "usage": None, "queue": {"reason": "paused"}}
    assert tables.row(queued, 1001.0) == (ID, "queued", "gabforge-coder", "1s", "-", "-", "paused")


def test_the_fields_of_show() -> None:
    facts = dict(tables.facts({**GENERATION, "error": {"message": "gone", "code": "x"}}, 1005.0))
    assert facts["first token"] == "after 0.500 s"
    assert facts["duration"] == "2.000 s"
    assert facts["metadata.order"] == "17"
    assert facts["error"] == "gone (x)"
    assert (facts["priority"], facts["group"], facts["upstream"]) == ("3", "nightly", "default")
    assert not {"waiting", "retry_of"} & facts.keys()
    waiting = {**GENERATION, "queue": {"reason": "upstream_busy", "position": None, "retry_at": 1008.5}}
    assert dict(tables.facts(waiting, 1005.0))["waiting"] == "the upstream is busy, next try in 4s"


@pytest.mark.parametrize(
    ("queue", "shown"),
    [
        ({"reason": "queued", "position": 3, "retry_at": None}, "all workers are busy, position 3"),
        ({"reason": "scheduled", "position": None, "retry_at": 7300.0}, "scheduled for later, starts in 2h"),
        ({"reason": "upstream_down", "position": None, "retry_at": 99.0}, "the upstream is down"),
        ({"reason": "paused", "retry_at": None}, "the queue is paused"),
        ({"reason": "new\x1b", "position": None, "retry_at": None}, "new\ufffd"),
    ],
)
def test_the_reason_of_waiting(queue: dict[str, object], shown: str) -> None:
    assert tables.why(queue, 100.0) == shown


def test_every_reason_of_waiting_has_a_text() -> None:
    assert set(tables.REASONS) == set(get_args(WaitingReason))


def test_only_the_content_of_choice_0_is_text() -> None:
    for delta in ({}, {"content": None}, {"reasoning_content": "hm"}, {"role": "assistant"}):
        assert text_of_chunk({"choices": [{"index": 0, "delta": delta}]}) == ""
    assert text_of_chunk({"choices": []}) == ""
    assert text_of_chunk({"usage": {}}) == ""
    assert text_of_chunk({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}) == "a"


def test_an_event_in_json_is_one_line_with_its_data_unchanged() -> None:
    line = json_event(Event("7-1", "chunk", '{"a": "\\ud83d",\n "b": 1.0}'))
    assert "\n" not in line
    assert '"data":{"a": "\\ud83d",  "b": 1.0}' in line
    assert json.loads(line)["id"] == "7-1"


def test_text_is_printed_unchanged_and_ends_with_a_line_break(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for event in (chunk("Hel"), chunk("lo"), chunk("other", index=1), Event("1-4", "completed", "{}")):
        printer.show(event)
    assert capsys.readouterr() == ("Hello\n", "")


def test_halves_of_a_surrogate_pair_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for content in ("a\ud83d", "\ude00b", "c\ud83d", "d\ude00"):
        printer.show(chunk(content))
    assert capsys.readouterr().out == "a😀bc\ufffdd\ufffd"


def test_a_notice_goes_to_stderr_without_changing_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.show(chunk("Hel"))
    printer.note("connection lost, reconnecting")
    printer.show(chunk("lo"))
    assert capsys.readouterr() == ("Hello", "tokencast: connection lost, reconnecting\n")


def test_a_reset_is_announced_on_stderr_and_text_begins_on_a_new_line(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    reset = Event("2-0", "reset", '{"attempt": 2, "reason": "worker_lost"}')
    for event in (chunk("Hel"), reset, chunk("Hello"), Event("2-2", "completed", "{}")):
        printer.show(event)
    out, err = capsys.readouterr()
    assert out == "Hel\nHello\n"
    assert err == "tokencast: restarted (worker_lost); discard the text above\n"


@pytest.mark.parametrize(
    ("event", "data", "message"),
    [
        ("gap", "{}", "part of the text is no longer stored"),
        ("waiting", '{"reason": "rate limited"}', "waiting (rate limited)"),
        ("waiting", '{"reason": "upstream_busy"}', "waiting: the upstream is busy (upstream_busy)"),
        ("failed", '{"error": {"message": "It broke.", "code": "upstream_error"}}', "It broke. (upstream_error)"),
        ("cancelled", "{}", "cancelled"),
        ("gone", "{}", "deleted"),
        ("unknown", "not even JSON", ""),
    ],
)
def test_events_without_text_go_to_stderr(
    event: str, data: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Printer().show(Event("1-1", event, data))
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_a_prompt_must_be_nonempty_utf_8() -> None:
    assert enqueue.read_prompt("hi\n") == "hi\n"
    with pytest.raises(click.UsageError, match="UTF-8"):
        enqueue.read_prompt("\udcff")
    with pytest.raises(click.UsageError, match="empty"):
        enqueue.read_prompt("")


def test_metadata_has_the_form_key_value() -> None:
    assert enqueue.parse_metadata(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(click.BadParameter):
            enqueue.parse_metadata([wrong])


def test_a_parameter_has_the_form_key_json() -> None:
    parsed = enqueue.parse_parameters(["temperature=0.2", 'stop=["="]', 'user="anna"', "n=null"])
    assert parsed == {"temperature": 0.2, "stop": ["="], "user": "anna", "n": None}
    for wrong, said in (("user=anna", "quotes"), ("n", "KEY=JSON"), ("=1", "KEY=JSON")):
        with pytest.raises(click.BadParameter, match=said):
            enqueue.parse_parameters([wrong])


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("15m", 900), ("2h", 7200), ("7d", 604800)])
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1w", "1 h", "nan", "1e3"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="duration"):
        Duration().convert(text, None, None)


def test_a_time_is_relative_or_absolute() -> None:
    before = time.time()
    ago, ahead = Moment().convert("2h", None, None), Moment(ahead=True).convert("2h", None, None)
    after = time.time()
    assert before <= ago + 7200 <= after
    assert before <= ahead - 7200 <= after
    for text in ("1763790000.5", "2025-11-22T05:40:00.5Z", "2025-11-22T06:40:00.5+01:00"):
        assert Moment().convert(text, None, None) == 1763790000.5
    for wrong in ("yesterday", "2025-13-01", ""):
        with pytest.raises(click.BadParameter, match="time"):
            Moment().convert(wrong, None, None)


def test_several_generations_are_prefixed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is printed when it is complete, or at the end of its generation; notices go to stderr."""
    one, other = "gen_" + "0" * 33 + "1", "gen_" + "0" * 33 + "2"
    lines = LinePrinter()
    for gid, content in ((one, "Hel"), (other, "a\nb"), (one, "lo\n2nd "), (one, "half")):
        lines.show(Event("1-1", "chunk", chunk(content).raw, gid))
    assert capsys.readouterr().out.splitlines() == ["00000002 | a", "00000001 | Hello"]
    lines.show(Event("1-2", "completed", "{}", one))
    lines.show(Event("1-2", "failed", '{"error": {"message": "It broke.", "code": "x"}}', other))
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["00000001 | 2nd half", "00000002 | b"]
    assert shown.err.splitlines() == ["tokencast: 00000001: completed", "tokencast: 00000002: failed: It broke. (x)"]
    assert json_event(Event("1-1", "chunk", "{}", one), named=True).startswith(f'{{"generation":"{one}","id":"1-1",')


def test_no_progress_is_written_to_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """No requests are sent either: no thread is started."""
    before = threading.active_count()
    with ProgressLine(Client("http://127.0.0.1:9"), ID) as progress:
        assert threading.active_count() == before
        progress.update(Event("0-1", "created", "{}"))
    assert capsys.readouterr() == ("", "")
