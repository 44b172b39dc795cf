"""Environment variables of this process: read one or its file, hand them to a child process, find misspelled ones.

The only module that reads the environment. No message here holds a value.
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
)  # docker-compose.yml and the tests
# Kubernetes (enableServiceLinks) and Docker links describe a service called tokencast-… in such variables.
_SERVICE_LINK = re.compile(
    r"TOKENCAST_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|(PORT|ENV|NAME))"
)
_FILE = "_FILE"


def read_variable(name: str) -> str | None:
    """A variable's value, or the content of the file that `<NAME>_FILE` names."""
    return read_file_of(name) or os.environ.get(name)


def read_file_of(name: str) -> str | None:
    """The content of the file that `<NAME>_FILE` names, without the white space around it. Misconfigured if it cannot
    be read or is empty: without keys everybody would be served."""
    path = os.environ.get(f"{name}{_FILE}")
    if not path:
        return None
    if os.environ.get(name):
        raise Misconfigured(f"{name} and {name}_FILE are both set; unset one of them.")
    try:
        value = Path(path).read_text("utf-8-sig").strip()
    except OSError as error:  # without the path: somebody may have set the secret itself
        raise Misconfigured(
            f"{name}_FILE: {error.strerror}; it must be the path of a file that contains {name}"
        ) from None
    except UnicodeDecodeError:
        raise Misconfigured(f"{name}_FILE: the file is not UTF-8 text") from None
    if not value:
        raise Misconfigured(f"{name}_FILE: the file is empty")
    return value


def is_utf8(value: str) -> bool:
    """Whether a variable's bytes were text: Python keeps others as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def environment(*without: str, **variables: str) -> dict[str, str]:
    """The environment for a child process: this one's, `without` some names and with some variables set, whether or
    not they were in files here."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in without and name.removesuffix(_FILE) not in variables
    }
    return {**kept, **variables}


def misspelled(known: Collection[str], secrets: Collection[str]) -> dict[str, str]:
    """Variables that nothing reads although their names look like Tokencast's: name → one line about it, which names
    the nearest of the `known` ones. `secrets` are those that may be in a file."""
    named_by_upstreams = os.environ.get(UPSTREAMS, "")  # an entry's key may be in a variable of any name
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
    """Names of the variables, as they are spelled here, that choose a proxy for requests of that scheme."""
    for kind in (f"{scheme}_proxy", "all_proxy"):
        yield from (name for name in (kind, kind.upper()) if os.environ.get(name))


def _nearest(name: str, known: Collection[str]) -> str | None:
    """By what follows the prefix, which all of them share. TOKENCAST_PORT is PORT."""
    rests = {each.removeprefix(PREFIX): each for each in sorted(known)}
    rest = name.removeprefix(PREFIX)
    near = [rest] if rest in rests else difflib.get_close_matches(rest, rests, n=1)
    return rests[near[0]] if near else None


def _is_service_link(name: str) -> bool:
    if not _SERVICE_LINK.fullmatch(name):
        return False
    return not name.endswith("PORT") or "SERVICE_" in name or not os.environ[name].isdigit()
