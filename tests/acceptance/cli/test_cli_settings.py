"""`tokencast settings`: what is in force and from where, without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broker.settings.loading import variables
from tests.acceptance.cli.test_cli import tokencast
from tests.support import gather

SECRET = "hunter2-hunter2-hunter2"


async def test_settings_in_force_are_shown_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    entries = [{"name": "a", "base_url": "http://a/v1", "api_key_env": "A_KEY", "headers": {"x": "${X_KEY}"}}]
    given = {
        "REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
        "TOKENCAST_SLOTS": "7",
        "TOKENCAST_SECRET_FILE": str(tmp_path / "key"),
        "TOKENCAST_API_KEYS": f"anna:{'a' * 64}:read",
        "TOKENCAST_UPSTREAMS": json.dumps(entries),
        "A_KEY": SECRET,
        "TOKENCAST_SLTOS": "5",
        "TOKENCAST_WEBHOOK_SECRET": "whsec_" + "s3cret00" * 4,
        "TOKENCAST_WEBHOOK_URL": "https://example.com/hunter2-hunter2",
    }
    text, asked = await gather(
        tokencast("settings", url="", **given), tokencast("settings", "--json", url="http://127.0.0.1:9", **given)
    )
    assert (text.code, asked.code, asked.err) == (0, 0, "")
    assert text.err == "tokencast: warning: TOKENCAST_SLTOS is not a setting; did you mean TOKENCAST_SLOTS?\n"
    assert "hunter2" not in text.out + asked.out
    assert "s3cret" not in text.out + asked.out
    report: dict[str, Any] = json.loads(asked.out)
    rows = {row["name"]: (row["value"], row["source"]) for row in report["settings"]}
    assert rows.keys() == {name for name, _, _ in variables()} | {"A_KEY", "X_KEY"}
    assert rows["TOKENCAST_SLOTS"] == ("7", "environment")
    assert rows["TOKENCAST_LEASE"] == ("15", "default")
    assert rows["TOKENCAST_SECRET"] == ("***", "TOKENCAST_SECRET_FILE")
    assert rows["TOKENCAST_API_KEYS"] == ("anna:aaaaaaaa…:read", "environment")
    assert rows["TOKENCAST_URL"] == ("http://127.0.0.1:9", "environment")
    assert (rows["A_KEY"], rows["X_KEY"]) == (("***", "environment"), ("", "default"))
    assert (report["problems"], len(report["warnings"])) == ([], 1)
    assert text.out.splitlines()[0].split() == ["NAME", "VALUE", "SOURCE"]


async def test_what_would_keep_a_process_from_starting_is_an_error() -> None:
    invalid, gateway, worker, both = await gather(
        tokencast("settings", url="", PORT="many", TOKENCAST_LEASE="0", TOKENCAST_SLOTS="7"),
        tokencast("settings", "--for", "api", url="", HOST="0.0.0.0"),
        tokencast("settings", "--for", "worker", url=""),
        tokencast("settings", url="", HOST="0.0.0.0"),
    )
    assert (invalid.code, gateway.code, worker.code, both.code) == (2, 2, 2, 0)
    assert [line.partition(": ")[2].partition(": ")[0] for line in invalid.err.splitlines()] == [
        "PORT",
        "TOKENCAST_LEASE",
    ]
    lines = [line.split() for line in invalid.out.splitlines()]
    assert ["PORT", "(invalid)", "environment"] in lines
    assert ["TOKENCAST_SLOTS", "7", "environment"] in lines
    assert gateway.err.startswith("tokencast: HOST=0.0.0.0 would be open to anyone")
    assert worker.err.startswith("tokencast: OPENAI_API_KEY is not set")
