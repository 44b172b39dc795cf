"""Reads the settings from the environment, and names every variable.

Well-known variables keep their names (REDIS_URL, OPENAI_API_KEY, PORT …); all others have the prefix TOKENCAST_. A
secret can also be in a file, whose path is in `<NAME>_FILE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from broker.errors import Misconfigured
from broker.runtime.environment import find_unread, read_variable
from broker.settings.api_keys import API_KEYS, ApiKey, keys_of, split_entries
from broker.settings.client_settings import ClientSettings
from broker.settings.messages import format_errors
from broker.settings.secret_files import SECRETS, variable_of
from broker.settings.settings import Settings

AnySettings = TypeVar("AnySettings", Settings, ClientSettings)


def load(kind: type[AnySettings]) -> AnySettings:
    """Read the environment. Raises Misconfigured with the names of invalid variables, in one line, without their
    values."""
    try:
        return kind()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise Misconfigured("; ".join(settings_errors(kind, error))) from None


def settings_errors(kind: type[Settings] | type[ClientSettings], error: ValidationError) -> list[str]:
    """Return what is wrong, each with the name of its variable and without the value."""
    fields = kind.model_fields
    names = {str(field.validation_alias or name): variable_of(name, field) for name, field in fields.items()}
    return format_errors(names, error.errors())


class _Given(Settings):
    """Settings from arguments alone."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings_of_url(url: str | None) -> Settings:
    """Return the default settings, with this URL of Redis; the environment is not read. Raises Misconfigured."""
    try:
        return _Given() if url is None else _Given(REDIS_URL=url)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise Misconfigured("; ".join(format_errors({"REDIS_URL": "url"}, error.errors()))) from None


def load_for_process() -> Settings:
    """Return the settings of a gateway or a worker, with the parts checked that are otherwise read on first use."""
    settings = load(Settings)
    _ = settings.tenants, settings.all_upstreams()
    settings.check_tenants()
    return settings


def load_keys() -> dict[str, ApiKey]:
    """Read TOKENCAST_API_KEYS again. Raises Misconfigured, also if it contains no key: a gateway that requires keys
    never becomes open."""
    try:
        keys = keys_of(split_entries(read_variable(API_KEYS) or ""))
    except ValueError as error:
        raise Misconfigured(f"{API_KEYS}: {error}") from None
    if not keys:
        raise Misconfigured(f"{API_KEYS}: contains no key")
    return keys


def unknown_variables() -> dict[str, str]:
    """Return variables with Tokencast's prefix that are not read: name → a message of one line."""
    return find_unread([name for name, _, _ in variables()], SECRETS)


def variables() -> Iterator[tuple[str, str, str]]:
    """Yield (name, default, description) of every variable. A test compares them with the table in the
    documentation."""
    for kind in (Settings, ClientSettings):
        for name, field in kind.model_fields.items():
            yield variable_of(name, field), format_setting(field.default), field.description or ""


def format_setting(value: object) -> str:
    """Return a value as a variable would contain it."""
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)
