"""The files of Compose in docs/compose, and docker-compose.yml, as Compose reads them. No engine is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.redis.url import parse_redis_url
from tests.acceptance.ops.test_compose import SERVICES, compose_command, run
from tests.support import ROOT

pytestmark = pytest.mark.compose


def configured(tmp_path: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """The services as Compose reads them, with these variables alone."""
    empty = tmp_path / "empty.env"
    empty.touch()
    command = [*compose_command(), "--env-file", str(empty), *arguments, "config"]
    return yaml.safe_load(run(command, env={"PATH": os.environ["PATH"], **variables}))["services"]


def test_every_container_has_limits_of_memory_and_log(tmp_path: Path) -> None:
    services = configured(tmp_path, "--profile", "proxy")
    assert set(services) == {*SERVICES, "api-2", "proxy"}
    for name, service in services.items():
        assert service["logging"]["options"]["max-size"], name
        assert service["mem_limit"], name
    assert services["api-2"].get("ports", []) == []
    assert services["api-2"]["environment"] == services["api"]["environment"]
    published = str(services["proxy"]["ports"])
    assert published.count("127.0.0.1") == 2, published


@pytest.mark.parametrize(
    ("name", "variable", "servers"),
    [("sentinel", "REDIS_URL", "sentinel-[123]"), ("cluster", "TOKENCAST_STREAMS_URL", "logs-[123]")],
)
def test_the_examples_of_several_servers_fit_together(tmp_path: Path, name: str, variable: str, servers: str) -> None:
    """The URL names servers of the file, which are started before, and whose limits are those of the single one."""
    files = ("-f", "docker-compose.yml", "-f", f"docs/compose/{name}.yml")
    services = configured(tmp_path, *files, "--profile", "proxy", REDIS_PASSWORD="secret")
    for process in ("api", "api-2", "worker"):
        url = parse_redis_url(services[process]["environment"][variable])
        assert url.password == "secret"
        addresses = {
            each["networks"]["data"]["ipv4_address"]: each for each in services.values() if "ipv4" in str(each)
        }
        assert len([host for host, _ in url.nodes if host in services or host in addresses]) == 3, url
    for service in services.values():
        assert service["logging"]["options"]["max-size"]
        assert service["mem_limit"]
    added = [each for each in services if re.fullmatch(servers, each)]
    assert len(added) == 3


def test_a_managed_redis_replaces_the_container(tmp_path: Path) -> None:
    """With the variables that docs/deploying.md names."""
    page = (ROOT / "docs/deploying.md").read_text("utf-8")
    (block,) = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)
    variables = dict(line.split("=", 1) for line in block.splitlines())
    services = configured(tmp_path, "--profile", "proxy", **variables)
    for name in ("api", "api-2", "worker"):
        assert services[name]["environment"]["REDIS_URL"] == variables["REDIS_URL"]
    redis = services["redis"]
    assert redis.get("scale", redis.get("deploy", {}).get("replicas")) == 0
