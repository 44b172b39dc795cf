"""`report_settings`: each variable with its value in force and its source, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import ValidationError

from broker.errors import Misconfigured
from broker.redis.url import without_password
from broker.runtime.environment import source_of
from broker.settings.client_settings import ClientSettings
from broker.settings.inspection.processes import check_open, check_usable
from broker.settings.loading import AnySettings, format_setting, settings_errors, unknown_variables
from broker.settings.secret_files import SECRETS, variable_of
from broker.settings.settings import Settings
from broker.settings.upstream_entries import REFERENCE

MASK = "***"
INVALID = "(invalid)"
Process = Literal["api", "worker"]


class SettingRow(NamedTuple):
    """A variable. `source`: `default`, `environment`, or the name of the variable that names its file."""

    name: str
    value: str
    source: str


class SettingsReport(NamedTuple):
    """The variables; problems, with which no process starts; and warnings."""

    settings: list[SettingRow]
    problems: list[str]
    warnings: list[str]


def report_settings(process: Process | None = None) -> SettingsReport:
    """Read the environment. `process`: also check what this kind of process requires."""
    rows: list[SettingRow] = []
    problems: list[str] = []
    settings = _report(Settings, rows, problems)
    if settings is not None and not problems:
        try:
            rows += _named_by_upstreams(settings)
            settings.check_tenants()
            for kind, check in (("api", check_open), ("worker", check_usable)):
                if kind == process:
                    check(settings)
        except Misconfigured as error:
            problems.append(str(error))
    _report(ClientSettings, rows, problems)
    return SettingsReport(rows, problems, list(unknown_variables().values()))


def _report(kind: type[AnySettings], rows: list[SettingRow], problems: list[str]) -> AnySettings | None:
    """Add the rows of one kind of settings and their problems. Return the settings, with defaults in the place of
    invalid values; None if a file cannot be read."""
    try:
        loaded, invalid = _load_valid(kind, problems)
    except Misconfigured as error:
        problems.append(str(error))
        return None
    for name, field in kind.model_fields.items():
        variable = variable_of(name, field)
        value = INVALID if variable in invalid else _shown(variable, name, loaded)
        if value != INVALID and field.repr is False and variable not in _SHOWN_IN_PART:
            value = MASK if getattr(loaded, name) else ""
        rows.append(SettingRow(variable, value, source_of(variable, file=variable in SECRETS)))
    return loaded


def _load_valid(kind: type[AnySettings], problems: list[str]) -> tuple[AnySettings, set[str]]:
    """Return the settings, with defaults in the place of invalid ones, whose variables are returned too."""
    replaced: dict[str, object] = {}
    invalid: set[str] = set()
    while True:
        try:
            return kind(**replaced), invalid  # pyright: ignore[reportArgumentType]
        except ValidationError as error:
            found = settings_errors(kind, error)
            problems += [one for one in found if one not in problems]
            wrong = {str(one["loc"][0]) for one in error.errors() if one["loc"]} - replaced.keys()
            if not wrong:
                raise Misconfigured("; ".join(found)) from None
            for name, field in kind.model_fields.items():
                if (known := str(field.validation_alias or name)) in wrong:
                    replaced[known] = field.default
                    invalid.add(variable_of(name, field))


def _named_by_upstreams(settings: Settings) -> Iterator[SettingRow]:
    """Yield the variables that the entries of TOKENCAST_UPSTREAMS name."""
    names = [entry.api_key_env for entry in settings.upstreams]
    names += [
        name for entry in settings.upstreams for value in entry.headers.values() for name in REFERENCE.findall(value)
    ]
    missing = {name for upstream in settings.all_upstreams() for name in upstream.missing}
    for name in dict.fromkeys(names):
        if name and name not in SECRETS:
            source = source_of(name, file=True)
            yield SettingRow(name, "" if name in missing or source == "default" else MASK, source)


def _keys(settings: Settings) -> str:
    try:
        return ",".join(key.entry(digest[:8] + "…") for digest, key in settings.keys.items())
    except Misconfigured:
        return INVALID


def _webhook_url(settings: Settings) -> str:
    """Receivers know their senders by secrets in the path."""
    if settings.webhook_url is None:
        return ""
    parts = urlsplit(settings.webhook_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{MASK}"


_SHOWN_IN_PART: dict[str, Callable[[Settings], str]] = {
    "REDIS_URL": lambda settings: without_password(settings.redis_url),
    "TOKENCAST_STREAMS_URL": lambda settings: without_password(settings.logs_url),
    "TOKENCAST_API_KEYS": _keys,
    "TOKENCAST_TENANTS": lambda settings: ",".join(settings.tenant_settings),
    "TOKENCAST_UPSTREAMS": lambda settings: ",".join(entry.name for entry in settings.upstreams),
    "TOKENCAST_WEBHOOK_URL": _webhook_url,
}
"""What is shown of settings that contain secrets."""


def _shown(variable: str, name: str, loaded: Settings | ClientSettings) -> str:
    show = _SHOWN_IN_PART.get(variable)
    if isinstance(loaded, Settings):
        if show is not None:
            return show(loaded)
        if variable == "OPENAI_BASE_URL" and not loaded.upstreams:
            return loaded.all_upstreams()[0].base_url
    return format_setting(getattr(loaded, name))
