"""The composed system, as `docker compose up` starts it: no key, no .env, and only HTTP to observe it.

The tests run on machines with a container engine and Compose. If these or a base image are not available, the tests are
skipped and name the missing part. They start no engine.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import httpx2
import pytest

from broker.settings.secret_files import variable_of
from broker.settings.settings import Settings
from tests.support import ROOT
from worker.simulator.text import pieces

SERVICES = ("redis", "upstream-sim", "worker", "api")
TERMINAL = ("completed", "failed", "cancelled", "gone")
WORKER_DRAIN = 1  # seconds; shorter than the rest of a long generation below when its worker is stopped
T = TypeVar("T")

pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(900),  # the first run builds the image
]


# -- The stack ---------------------------------------------------------------------------------------------


def run(command: Sequence[str], deadline: float = 180, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output. A failure shows all of it."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline,
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def works(*command: str, deadline: float = 30) -> bool:
    try:
        run(command, deadline)
    except (AssertionError, OSError, subprocess.TimeoutExpired):
        return False
    return True


def eventually(what: str, look: Callable[[], T], deadline: float, every: float = 0.25) -> T:
    """The first true result of `look`."""
    end = time.monotonic() + deadline
    while not (found := look()):
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(every)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Event(NamedTuple):
    name: str
    cursor: str
    data: dict[str, Any]

    @property
    def position(self) -> tuple[int, int]:
        attempt, seq = self.cursor.split("-")
        return int(attempt), int(seq)


@dataclass
class Stack:
    """One composed system with a project name and a port of its own."""

    compose: list[str]
    project: str
    env: dict[str, str]
    http: httpx2.Client

    def command(self, *arguments: str) -> list[str]:
        return [*self.compose, "-p", self.project, *arguments]

    def docker_compose(self, *arguments: str) -> str:
        return run(self.command(*arguments), env=self.env)

    def up(self, *arguments: str) -> None:
        self.docker_compose("up", "-d", "--no-build", *arguments)
        self.until_healthy()

    def containers(self, service: str) -> list[dict[str, Any]]:
        """The containers as described by `docker inspect`."""
        labels = (f"project={self.project}", f"service={service}")
        chosen = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
        ids = run(["docker", "ps", "-q", *chosen], env=self.env).split()
        return json.loads(run(["docker", "inspect", *ids], env=self.env)) if ids else []

    def until_healthy(self, **expected: int) -> None:
        """Wait until every container is healthy, and each service has the expected number of them (by default one)."""
        for service in SERVICES:
            eventually(
                f"{service} is healthy",
                lambda service=service: (
                    [each["State"]["Health"]["Status"] for each in self.containers(service)]
                    == ["healthy"] * expected.get(service, 1)
                ),
                deadline=90,
                every=0.5,
            )

    @property
    def ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    @property
    def models(self) -> list[str]:
        return [model["id"] for model in self.http.get("/v1/models").json()["data"]]

    def create(self, seed: int, length: int, speed: float, **parameters: str) -> "Subscriber":
        """Create a generation with a known text; the simulated upstream takes `length / speed` seconds for it."""
        content = f"Tell me something. [[sim seed={seed} length={length} speed={speed:g}]]"
        answer = self.http.post(
            "/v1/generations",
            json={"model": "sim", "messages": [{"role": "user", "content": content}], **parameters},
        )
        assert answer.status_code == 202, answer.text
        return Subscriber(self, answer.json()["id"], expected="".join(pieces(seed, length)))

    def generation(self, generation_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/generations/{generation_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()


@dataclass
class Subscriber:
    """A subscriber. It reconnects with its cursor as often as necessary, and shows the text that a page would show."""

    stack: Stack
    id: str
    expected: str
    text: str = ""
    events: list[Event] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].name in TERMINAL

    def until_chunks(self, amount: int) -> "Subscriber":
        return self._read(lambda: self.ended or self.names.count("chunk") >= amount)

    def until_end(self) -> "Subscriber":
        return self._read(lambda: self.ended)

    def assert_complete(self) -> None:
        """The shown text, the stored text and the upstream's text are equal."""
        assert self.names[0] == "created"
        assert self.names[-1] == "completed", self.events[-1]
        assert self.text == self.expected
        self.assert_stored()

    def assert_stored(self) -> None:
        stored = self.stack.generation(self.id)
        assert (stored["status"], stored["text"]) == ("completed", self.expected)
        assert stored["cursor"] == self.events[-1].cursor

    def _read(self, enough: Callable[[], bool], deadline: float = 60) -> "Subscriber":
        end = time.monotonic() + deadline
        while not enough():
            try:
                self._read_one_connection(enough, end)
            except httpx2.TransportError:
                time.sleep(0.1)  # no process listens at the moment
            assert time.monotonic() < end, f"not within {deadline:g} s; so far {self.names} and {self.text!r}"
        return self

    def _read_one_connection(self, enough: Callable[[], bool], end: float) -> None:
        headers = {"Last-Event-ID": self.events[-1].cursor} if self.events else {}
        with self.stack.http.stream("GET", f"/v1/generations/{self.id}/events", headers=headers) as answer:
            assert answer.status_code == 200, f"{answer.status_code} at {headers}"
            for event in parse(answer.iter_lines()):
                if event:
                    self._show(event)
                if enough() or time.monotonic() > end:
                    return

    def _show(self, event: Event) -> None:
        attempt, seq = event.position
        if self.events and event.name not in TERMINAL:
            before = self.events[-1].position
            begins = seq == 0 and attempt > before[0] and event.name in ("started", "reset")
            assert begins or (attempt, seq) == (before[0], before[1] + 1), f"{event} after {self.events[-1]}"
        if event.name == "reset":
            self.text = ""
        if event.name == "chunk":
            self.text += "".join(choice["delta"].get("content") or "" for choice in event.data["choices"])
        self.events.append(event)


def parse(lines: Iterable[str]) -> Iterator[Event | None]:
    """Yield each event of an SSE body, and None for each other part: a comment, `retry:`, or a frame without data."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif line or "data" not in fields:
            yield None
        else:
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
        if not line:
            fields = {}


# -- Requirements ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> list[str]:
    """The Compose command; skips the tests if no engine answers or a base image is not available."""
    if not shutil.which("docker"):
        pytest.skip("skipped: the composed system needs a container engine, and there is no `docker` command")
    if not works("docker", "info"):
        pytest.skip("skipped: the composed system needs a container engine, and none answers `docker info`")
    compose = compose_command()
    for image in base_images():
        if not works("docker", "image", "inspect", image) and not works("docker", "pull", image, deadline=300):
            pytest.skip(f"skipped: the base image {image} is not available and cannot be pulled")
    return compose


def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if works(*command, "version"):
            return command
    pytest.skip("skipped: neither `docker compose` nor `docker-compose` is installed")


def base_images() -> list[str]:
    """The base images named in Dockerfile and docker-compose.yml."""
    python = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    redis = re.search(r"^ +image: (redis:\S+)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert python
    assert redis
    return [python[1], redis[1]]


@pytest.fixture(scope="module")
def stack(engine: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    project = f"tokencast-test-{uuid4().hex[:8]}"
    no_settings = tmp_path_factory.mktemp("compose") / "empty.env"  # ignore the .env file of this checkout
    no_settings.touch()
    ours = re.compile(r"(TOKENCAST|OPENAI|GABFORGE|REDIS|COMPOSE|BUILD)_|(HOST|PORT)$")
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not ours.match(name)} | {
        "PORT": str(port),
        "TOKENCAST_IMAGE": project,
        "TOKENCAST_WORKER_DRAIN": str(WORKER_DRAIN),
        "TOKENCAST_DRAIN": "1",
    }
    # With the host's network, because in some environments a build can reach the package index only from there.
    run(["docker", "build", "--network=host", "-t", project, "."], deadline=600, env=env)
    compose = [*engine, "--env-file", str(no_settings)]
    timeout = httpx2.Timeout(5, read=30)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout, trust_env=False) as http:
        stack = Stack(compose, project, env, http)
        try:
            stack.up()
            yield stack
            print(stack.docker_compose("logs", "--tail=100"))  # pytest shows this for a failed test
        finally:
            try:
                stack.docker_compose("down", "-v", "--remove-orphans")
            finally:
                run(["docker", "image", "rm", "--force", project], env=env)


# -- Without an engine -------------------------------------------------------------------------------------


def test_every_setting_is_passed_to_a_container() -> None:
    """In .env: a variable that docker-compose.yml does not name would not reach a container."""
    named = set(re.findall(r"^ +([A-Z_]+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    assert {variable_of(name, field) for name, field in Settings.model_fields.items()} - named == set()


# -- The composed system -----------------------------------------------------------------------------------


def test_the_system_runs_without_an_upstream_key(stack: Stack) -> None:
    assert stack.ready
    stack.create(seed=1, length=40, speed=40).until_end().assert_complete()
    assert "SIMULATED" in stack.docker_compose("logs", "worker")
    # The gateway gets the list of models from the worker.
    eventually("the models are listed", lambda: "sim" in stack.models, deadline=30)


def test_the_containers_have_minimal_permissions(stack: Stack) -> None:
    for service in SERVICES:
        (container,) = stack.containers(service)
        host, name = container["HostConfig"], container["Name"].removeprefix("/")
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        users = run(["docker", "top", name, "-eo", "pid,uid"], env=stack.env).split()[3::2]
        assert users, service
        assert "0" not in users, f"{service} runs as {users}"
        assert not works("docker", "exec", name, "touch", "/etc/tokencast"), f"{service} can write to /etc"


def test_only_the_gateway_is_published_on_loopback(stack: Stack) -> None:
    published: dict[str, list[tuple[str, str]]] = {
        service: [
            (binding["HostIp"], port)
            for container in stack.containers(service)
            for port, bindings in container["NetworkSettings"]["Ports"].items()
            for binding in bindings or []
        ]
        for service in SERVICES
    }
    assert published == {"redis": [], "upstream-sim": [], "worker": [], "api": [("127.0.0.1", "8000/tcp")]}
    (redis,) = stack.containers("redis")
    for network in redis["NetworkSettings"]["Networks"]:
        assert json.loads(run(["docker", "network", "inspect", network], env=stack.env))[0]["Internal"]


def test_the_stop_timeout_of_compose_exceeds_the_drain(stack: Stack) -> None:
    drains = {"worker": WORKER_DRAIN, "api": 1}
    for service, drain in drains.items():
        (container,) = stack.containers(service)
        assert container["Config"]["StopTimeout"] > drain


def test_redis_is_persistent_and_requires_the_password(stack: Stack) -> None:
    (container,) = stack.containers("redis")

    def redis(*words: str) -> str:
        return run(["docker", "exec", container["Name"].removeprefix("/"), "redis-cli", *words], env=stack.env)

    known = ("--user", "tokencast")  # its container knows the password
    info = dict(line.split(":", 1) for line in redis(*known, "info", "all").split() if line.count(":") == 1)
    assert (info["aof_enabled"], info["maxmemory_policy"]) == ("1", "noeviction")
    assert int(info["maxmemory"]) > 0
    assert "NOAUTH" in redis("ping")
    assert "NOPERM" in redis(*known, "flushall")
    assert "NOPERM" in redis(*known, "config", "get", "*")


@pytest.mark.parametrize("service", SERVICES)
def test_a_restart_loses_nothing(stack: Stack, service: str) -> None:
    earlier = stack.create(seed=2, length=30, speed=0).until_end()
    earlier.assert_complete()
    # A broken upstream call cannot be resumed: the request asks for a restart.
    policy = {"on_upstream_error": "restart"} if service == "upstream-sim" else {}
    running = stack.create(seed=3, length=75, speed=12.5, **policy).until_chunks(5)
    with subprocess.Popen(
        stack.command("restart", service),
        env=stack.env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as restart:
        running.until_end()
        output, _ = restart.communicate(timeout=120)
    assert restart.returncode == 0, output
    running.assert_complete()
    resets = running.names.count("reset")
    assert resets >= 1 if service in ("worker", "upstream-sim") else resets == 0
    eventually("the gateway is ready", lambda: stack.ready, deadline=30)
    earlier.assert_stored()
    stack.create(seed=4, length=30, speed=0).until_end().assert_complete()


def test_every_generation_completes_while_workers_are_scaled(stack: Stack) -> None:
    stack.docker_compose("up", "-d", "--no-build", "--scale", "worker=3")
    stack.until_healthy(worker=3)
    running = [stack.create(seed=seed, length=60, speed=10).until_chunks(1) for seed in range(10, 16)]
    stack.up("--scale", "worker=1")
    for each in running:
        each.until_end().assert_complete()


def test_containers_are_replaced_start_first(stack: Stack) -> None:
    """With the simulated upstream, whose containers start and stop quickly: there is always one that runs."""
    (before,) = stack.containers("upstream-sim")
    replace = subprocess.Popen(
        ["sh", "docs/compose/replace.sh", "upstream-sim"],
        cwd=ROOT,
        env=stack.env | {"COMPOSE": " ".join(stack.command())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with replace:
        own = [f"label=com.docker.compose.project={stack.project}", "label=com.docker.compose.service=upstream-sim"]
        listing = ["docker", "ps", "-q", *(word for label in own for word in ("--filter", label))]
        while replace.poll() is None:
            assert run(listing, env=stack.env), "no container runs"
        assert replace.stdout
        assert replace.returncode == 0, replace.stdout.read()
    (after,) = stack.containers("upstream-sim")
    assert after["Id"] != before["Id"]
    stack.create(seed=30, length=10, speed=40).until_end().assert_complete()


def test_down_and_up_again_loses_nothing(stack: Stack) -> None:
    earlier = stack.create(seed=5, length=30, speed=0).until_end()
    running = stack.create(seed=6, length=80, speed=10).until_chunks(5)
    stack.docker_compose("down")
    stack.up()
    running.until_end().assert_complete()
    earlier.assert_complete()
