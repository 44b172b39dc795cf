"""Environment variables of this process: reading them or the files they name, the environment of child processes, and
detection of misspelled names.

The only module that reads the environment. None of its messages contains a value.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from broker.errors import Misconfigured

PREFIX = "TOKENCAST_"
UPSTREAMS = "TOKENCAST_UPSTREAMS"
OF_THE_PROJECT = frozenset(
    {"TOKENCAST_IMAGE", "TOKENCAST_TEST_SERVER", "TOKENCAST_EXAMPLES", "TOKENCAST_PICTURES"}
)  # used by docker-compose.yml and the tests
# Variables of Kubernetes (enableServiceLinks) and of Docker links for a service named tokencast-….
_SERVICE_LINK = re.compile(
    r"TOKENCAST_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|(PORT|ENV|NAME))"
)
_FILE = "_FILE"


def read_variable(name: str) -> str | None:
    """Return a variable's value, or the content of the file in `<NAME>_FILE`."""
    return read_file_of(name) or os.environ.get(name)


def read_file_of(name: str) -> str | None:
    """Return the content of the file in `<NAME>_FILE`, without surrounding white space. Raises Misconfigured if it
    cannot be read or is empty: without keys, the gateway would serve without authentication."""
    path = os.environ.get(f"{name}{_FILE}")
    if not path:
        return None
    if os.environ.get(name):
        raise Misconfigured(f"{name} and {name}_FILE are both set; unset one of them.")
    try:
        value = Path(path).read_text("utf-8-sig").strip()
    except OSError as error:  # without the path: the variable may contain the secret itself by mistake
        raise Misconfigured(
            f"{name}_FILE: {error.strerror}; it must be the path of a file that contains {name}"
        ) from None
    except UnicodeDecodeError:
        raise Misconfigured(f"{name}_FILE: the file is not UTF-8 text") from None
    if not value:
        raise Misconfigured(f"{name}_FILE: the file is empty")
    return value


def file_of(name: str) -> str | None:
    """Return the path in `<NAME>_FILE`; None if it is not set."""
    return os.environ.get(f"{name}{_FILE}") or None


def source_of(name: str, *, file: bool) -> str:
    """Return where a variable's value comes from: `default`, `environment`, or `<NAME>_FILE` if it can be in a
    `file`."""
    if file and os.environ.get(f"{name}{_FILE}"):
        return f"{name}{_FILE}"
    return "environment" if any(value and each.upper() == name for each, value in os.environ.items()) else "default"


def is_utf8(value: str) -> bool:
    """Return whether a variable is valid UTF-8: Python represents other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def environment(*without: str, **variables: str) -> dict[str, str]:
    """Return the environment for a child process: that of this process `without` some names, and with these variables,
    which also replace their `<NAME>_FILE`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in without and name.removesuffix(_FILE) not in variables
    }
    return {**kept, **variables}


def find_unread(known: Collection[str], secrets: Collection[str]) -> dict[str, str]:
    """Find variables that look like Tokencast's but are not read: name → a message of one line, with the closest of the
    `known` names. `secrets` are the variables that can be read from files."""
    named_by_upstreams = os.environ.get(UPSTREAMS, "")  # an entry's key can be in a variable of any name
    read = {*known, *(f"{name}{_FILE}" for name in secrets), *OF_THE_PROJECT}
    found: dict[str, str] = {}
    for name in sorted(os.environ):
        if name.upper() in read or name.removesuffix(_FILE) in named_by_upstreams or _is_service_link(name):
            continue
        plain = name.upper().removesuffix(_FILE)
        if plain != name.upper() and plain in known and plain not in ("HOST", "PORT"):
            found[name] = f"{name} is ignored: only secrets can be read from files; set {plain} instead"
        elif name.upper().startswith(PREFIX):
            near = _nearest(name.upper(), read)
            found[name] = f"{name} is not a setting" + (f"; did you mean {near}?" if near else "")
    return found


def proxy_variables(scheme: str) -> Iterator[str]:
    """Yield the names of the variables that are set and select a proxy for a URL scheme, in their actual spelling."""
    for kind in (f"{scheme}_proxy", "all_proxy"):
        yield from (name for name in (kind, kind.upper()) if os.environ.get(name))


def _nearest(name: str, known: Collection[str]) -> str | None:
    """Return the closest known name, compared without the common prefix. TOKENCAST_PORT matches PORT."""
    rests = {each.removeprefix(PREFIX): each for each in sorted(known)}
    rest = name.removeprefix(PREFIX)
    near = [rest] if rest in rests else difflib.get_close_matches(rest, rests, n=1)
    return rests[near[0]] if near else None


def _is_service_link(name: str) -> bool:
    if not _SERVICE_LINK.fullmatch(name):
        return False
    return not name.endswith("PORT") or "SERVICE_" in name or not os.environ[name].isdigit()
