"""Secrets read from files: for each variable in SECRETS, `<NAME>_FILE` can hold the path of a file instead."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from broker.runtime.environment import read_file_of

SECRETS = (
    "REDIS_URL",
    "TOKENCAST_STREAMS_URL",
    "OPENAI_API_KEY",
    "TOKENCAST_API_KEYS",
    "TOKENCAST_SECRET",
    "TOKENCAST_TENANTS",
    "TOKENCAST_WEBHOOK_SECRET",
    "TOKENCAST_API_KEY",
)


class SecretFiles(PydanticBaseSettingsSource):
    """Settings source for the variables in SECRETS."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value from the file, if there is one, and the field's name."""
        name = variable_of(field_name, field)
        return (read_file_of(name) if name in SECRETS else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of all fields that are set through a file."""
        found: dict[str, Any] = {}
        for field_name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, field_name)
            if value is not None:
                found[str(field.validation_alias or field_name)] = value
        return found


def variable_of(field_name: str, field: FieldInfo) -> str:
    """Return the name of a field's environment variable."""
    return str(field.validation_alias or f"TOKENCAST_{field_name.upper()}")
