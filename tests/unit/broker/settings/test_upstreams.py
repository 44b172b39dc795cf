"""Upstreams and their resources: what of the settings of several upstreams reaches the queue and the calls."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pytest

from broker.settings.loading import load
from broker.settings.settings import Settings
from broker.settings.upstream_entries import UpstreamSettings
from broker.settings.upstreams import MOST_LABELS, NO_LANE, OTHER_MODELS, ModelLabels, Resource
from tests.support import ROOT

URL = "http://a.example/v1"


def settings(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, object], **variables: str) -> Settings:
    if entries:
        whole = [{"name": f"u{number}", "base_url": URL, **entry} for number, entry in enumerate(entries)]
        monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps(whole))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(Settings)


def test_upstreams_are_asked_in_the_order_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, {"models": ["b"]}, {"models": ["a", "b"]}, {"models": ["*"]})
    assert [[upstream.name for upstream in given.route(model)] for model in "abc"] == [
        ["u1", "u2"],
        ["u0", "u1", "u2"],
        ["u2"],
    ]
    assert [given.lane_of(model) for model in "abc"] == ["u1,u2", "u0,u1,u2", "u2"]


def test_a_model_of_no_upstream_has_a_lane_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, {"name": "-", "models": ["a"]})
    assert given.lane_of("b") == NO_LANE != given.lane_of("a")
    assert given.upstream_of(NO_LANE) is None


def test_limits_belong_to_an_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max_concurrency": 4, "requests_per_minute": 60, "tokens_per_minute": 90_000, "weight": 2.5}
    given = settings(monkeypatch, {**limits, "adaptive": False}, {"weight": None, "api_key_env": "A_KEY"})
    assert given.resources() == (
        Resource("u0", "u0", "", 4, 60, 90_000, adaptive=False, weight=2.5, usable=True),
        Resource("u1", "u1", "", None, None, None, adaptive=True, weight=None, usable=False),
    )
    assert given.upstream_of("u1") is given.all_upstreams()[1]


def test_limits_belong_to_each_model_if_the_entry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"gpt-5": "gpt-5", "gpt-*": "gpt-4.1", "any": "x"}
    given = settings(monkeypatch, {"limits": "model", "models": models, "max_concurrency": 3})
    assert [(each.name, each.pattern, each.max_concurrency) for each in given.resources()] == [
        ("u0/gpt-5", "gpt-5", 3),
        ("u0/gpt-%2A", "gpt-*", 3),
        ("u0/any", "any", 3),
    ]
    assert [given.lane_of(model) for model in ("gpt-5", "gpt-6", "any")] == ["u0/gpt-5", "u0/gpt-%2A", "u0/any"]
    assert {given.upstream_of(each.name) for each in given.resources()} == set(given.all_upstreams())


@pytest.mark.parametrize(
    ("url", "limits", "names"),
    [
        ("https://api.openai.com/v1", None, ["u0/a", "u0/b"]),
        ("https://api.openai.com/v1", "upstream", ["u0"]),
        (URL, None, ["u0"]),
        (URL, "model", ["u0/a", "u0/b"]),
    ],
)
def test_openai_limits_each_model(
    monkeypatch: pytest.MonkeyPatch, url: str, limits: str | None, names: list[str]
) -> None:
    entry = {"base_url": url, "models": ["a", "b", "a"], **({"limits": limits} if limits else {})}
    assert [each.name for each in settings(monkeypatch, entry).resources()] == names


def test_names_cannot_be_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and lanes join them with commas, colons, slashes and spaces."""
    names = ["a,b", "a", "b", "a/b", "a b", "a:b", "a%2Fb", "ä"]
    entries: list[dict[str, object]] = [{"name": name, "models": ["x/y, z", "*"], "limits": "model"} for name in names]
    given = settings(monkeypatch, *entries)
    resources = given.resources()
    assert len({each.name for each in resources}) == len(resources) == 2 * len(names)
    for each in resources:
        assert re.fullmatch(r"[\w.~%-]+/[\w.~%-]+", each.name, re.ASCII)
        assert [unquote(part) for part in each.name.split("/")] == [each.upstream, each.pattern]
    assert given.lane_of("x/y, z").split(",") == [each.name for each in resources if each.pattern != "*"]


def test_a_single_upstream_has_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {f"TOKENCAST_UPSTREAM_{name}": value for name, value in (("CONCURRENCY", "4"), ("RPM", "60"))}
    [resource] = settings(monkeypatch, OPENAI_BASE_URL=URL, **variables).resources()
    assert (resource.name, resource.max_concurrency, resource.rpm, resource.tpm) == ("default", 4, 60, None)
    assert resource.usable
    monkeypatch.delenv("OPENAI_BASE_URL")
    [resource] = settings(monkeypatch, TOKENCAST_UPSTREAM_TPM="1000").resources()
    assert (resource.name, resource.tpm, resource.usable) == ("default", 1000, False)


def test_upstreams_are_asked_to_go_on_in_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, {}, {"continue_with": "prefix"})
    assert [one.continue_with for one in given.all_upstreams()] == ["plain", "prefix"]
    monkeypatch.delenv("TOKENCAST_UPSTREAMS")
    [single] = settings(monkeypatch, TOKENCAST_UPSTREAM_CONTINUE_WITH="continue_final_message").all_upstreams()
    assert single.continue_with == "continue_final_message"


def test_models_are_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, {"models": {"coder": "qwen", "gpt-*": "gpt-5"}}, {"models": ["coder"]})
    first, second = given.all_upstreams()
    assert [first.sent_model(model) for model in ("coder", "gpt-4")] == ["qwen", "gpt-5"]
    assert second.sent_model("coder") == "coder"
    assert first.named == ("coder",)
    assert [given.label_of(model) for model in ("coder", "gpt-4", "qwen")] == [
        ("u0", "coder"),
        ("u0", "gpt-*"),
        ("", ""),
    ]


def test_the_labels_of_models_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ModelLabels(settings(monkeypatch, {"models": ["coder", "gpt-*"]}))
    assert [labels.of(model) for model in ("coder", "gpt-4", "qwen")] == [("u0", "coder"), ("u0", "gpt-4"), ("", "")]
    assert labels.of('gpt-"\n') == labels.of("gpt-" + "x" * 200) == ("u0", OTHER_MODELS)
    made = {labels.of(f"gpt-{number}") for number in range(1000)}
    assert made == {("u0", f"gpt-{number}") for number in range(MOST_LABELS)} | {("u0", OTHER_MODELS)}
    assert labels.of("gpt-4") == ("u0", "gpt-4")
    assert labels.of("coder") == ("u0", "coder")


def test_every_field_of_an_entry_is_documented() -> None:
    page = (ROOT / "docs/upstreams.md").read_text("utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(cells)) == list(UpstreamSettings.model_fields)


def test_the_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/upstreams.md").read_text("utf-8")
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", page.partition("TOKENCAST_UPSTREAMS='")[2].partition("'")[0])
    given = load(Settings)
    assert given.lane_of("coder") == "local,openai/coder"
    assert [upstream.sent_model("coder") for upstream in given.route("coder")] == ["qwen-coder-32b", "gpt-5"]


@pytest.mark.parametrize("key", ["x", "none", "EMPTY", "test", "7-chars"])
def test_a_placeholder_for_a_key_is_no_secret(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Local servers accept any key. Such a word is part of ordinary messages, which must stay as they are."""
    [default] = settings(monkeypatch, OPENAI_API_KEY=key).all_upstreams()
    entry = {"models": ["a"], "headers": {"X-Key": "${A_KEY}"}}
    [configured] = settings(monkeypatch, entry, A_KEY=key).all_upstreams()
    assert default.api_key == configured.api_key == key
    assert default.secrets == configured.secrets == ()


def test_a_key_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    [default] = settings(monkeypatch, OPENAI_API_KEY="8-charac").all_upstreams()
    [entry] = settings(monkeypatch, {"models": ["a"]}).all_upstreams()
    assert default.secrets == entry.secrets == ("8-charac",)
