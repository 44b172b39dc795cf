"""docs/kubernetes: valid objects that match the product. Gateway, worker and Redis are started with the same arguments,
variables and secrets, and their probes are called."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from kubernetes_validate.utils import all_versions, validate

from api.app import create_app
from broker import connect
from broker.cli import cli
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.settings.loading import variables
from broker.settings.secret_files import SECRETS
from broker.settings.settings import Settings
from tests.support import DEADLINE, ENGINES, ROOT, Service, service, upstream_sim, wait_until

HERE = ROOT / "docs/kubernetes"
KUSTOMIZATION = yaml.safe_load((HERE / "kustomization.yaml").read_text("utf-8"))
OBJECTS: list[dict[str, Any]] = [
    one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((HERE / name).read_text("utf-8"))
]
MOUNTED = "/run/secrets/tokencast"


def object_of(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in OBJECTS if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


@dataclass(frozen=True)
class Pod:
    """The pod that a Deployment or StatefulSet with one container starts."""

    spec: dict[str, Any]
    labels: dict[str, str]

    @classmethod
    def of(cls, kind: str, name: str) -> Pod:
        template = object_of(kind, name)["spec"]["template"]
        return cls(template["spec"], template["metadata"]["labels"])

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.spec["containers"]
        return container

    def variables(self, secrets: Path) -> dict[str, str]:
        """The variables of the container, with the secrets in a local directory."""
        lines = (HERE / "settings.env").read_text("utf-8").splitlines()
        shared = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        own = {one["name"]: one["value"].replace(MOUNTED, str(secrets)) for one in self.container["env"]}
        return {**shared, **own}

    @property
    def grace(self) -> float:
        return self.spec["terminationGracePeriodSeconds"]

    def port(self, name: str) -> int:
        return next(one["containerPort"] for one in self.container["ports"] if one["name"] == name)


GATEWAY = Pod.of("Deployment", "tokencast-gateway")
WORKER = Pod.of("Deployment", "tokencast-worker")
REDIS = Pod.of("StatefulSet", "tokencast-redis")
PODS = {"gateway": GATEWAY, "worker": WORKER, "redis": REDIS}
OURS = [GATEWAY, WORKER]


# --- objects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", all_versions()[-1]])  # the first version with preStop's `sleep`
@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_accepts_the_object(one: dict[str, Any], version: str) -> None:
    """Strictly: unknown fields are errors."""
    validate(one, version, strict=True)


def test_a_misspelled_field_is_detected() -> None:
    wrong = {**object_of("Service", "tokencast-gateway"), "spek": {}}
    with pytest.raises(Exception, match="spek"):
        validate(wrong, all_versions()[-1], strict=True)


def test_the_pod_for_restoring_has_the_volume_of_redis() -> None:
    """It runs as the same user (docs/backup.md)."""
    pod = yaml.safe_load((HERE / "restore/pod.yaml").read_text("utf-8"))
    validate(pod, "1.30", strict=True)
    redis = object_of("StatefulSet", "tokencast-redis")["spec"]
    (template,) = redis["volumeClaimTemplates"]
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == f"{template['metadata']['name']}-tokencast-redis-0"
    assert pod["spec"]["securityContext"] == redis["template"]["spec"]["securityContext"]
    assert pod["spec"]["containers"][0]["image"] == REDIS.container["image"]


def test_every_file_is_used() -> None:
    there = {path.name for path in HERE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == there


def test_selectors_match_pods() -> None:
    def labels(selector: dict[str, str]) -> int:
        return sum(selector.items() <= pod.labels.items() for pod in PODS.values())

    for one in OBJECTS:
        spec = one.get("spec", {})
        if one["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            assert labels(spec["selector"]["matchLabels"]) == 1, one
        elif one["kind"] == "Service":
            assert labels(spec["selector"]) == 1, one
        elif one["kind"] == "NetworkPolicy" and spec["podSelector"]:
            assert labels(spec["podSelector"]["matchLabels"]) == 1, one
    named = {port["name"] for pod in PODS.values() for port in pod.container["ports"]}
    policies = [one["spec"] for one in OBJECTS if one["kind"] == "NetworkPolicy"]
    allowed = {port["port"] for spec in policies for rule in spec.get("ingress", []) for port in rule["ports"]}
    assert allowed == named
    (rule,) = object_of("NetworkPolicy", "to-gateways")["spec"]["ingress"]
    assert {"namespaceSelector": {"matchLabels": {"tokencast-client": "true"}}} in rule[
        "from"
    ]  # callers in the cluster
    deployments = {one["metadata"]["name"] for one in OBJECTS if one["kind"] == "Deployment"}
    assert object_of("HorizontalPodAutoscaler", "tokencast-gateway")["spec"]["scaleTargetRef"]["name"] in deployments


def test_mounted_files_are_generated() -> None:
    """Names of ConfigMap and Secrets, and each of their keys."""
    made = {one["name"]: {Path(file).name for file in one["files"]} for one in KUSTOMIZATION["secretGenerator"]}
    (settings,) = KUSTOMIZATION["configMapGenerator"]
    for pod in PODS.values():
        for source in pod.container.get("envFrom", []):
            assert source == {"configMapRef": {"name": settings["name"]}}
        for variable in pod.container["env"]:
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] in made[reference["name"]]
        for volume in pod.spec["volumes"]:
            for item in volume.get("secret", {}).get("items", []):
                assert item["key"] in made[volume["secret"]["secretName"]]


# --- the product ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pod", OURS)
def test_variables_are_settings_and_secrets_their_files(pod: Pod) -> None:
    known = {name for name, _, _ in variables()} | {f"{name}_FILE" for name in SECRETS}
    given = pod.variables(Path(MOUNTED))
    assert set(given) <= known
    (volume,) = [one for one in pod.spec["volumes"] if one["name"] == "secrets"]
    files = {f"{MOUNTED}/{item['path']}" for item in volume["secret"]["items"]}
    assert files == {value for name, value in given.items() if name.endswith("_FILE")}
    assert {"name": "secrets", "mountPath": MOUNTED, "readOnly": True} in pod.container["volumeMounts"]
    assert set(SECRETS) & set(given) == set()  # secrets are files
    assert pod.spec["enableServiceLinks"] is False


def test_only_the_worker_has_the_upstream_key() -> None:
    assert "OPENAI_API_KEY_FILE" in WORKER.variables(Path())
    assert "OPENAI_API_KEY_FILE" not in GATEWAY.variables(Path())


@pytest.mark.parametrize("pod", OURS)
def test_arguments_are_commands(pod: Pod) -> None:
    (command,) = pod.container["args"]
    assert command in cli.commands
    assert 'ENTRYPOINT ["tokencast"]' in (ROOT / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("pod", OURS)
def test_pods_run_as_the_user_of_the_image(pod: Pod) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    context, own = pod.spec["securityContext"], pod.container["securityContext"]
    assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
    assert context["runAsNonRoot"] is True
    assert own["readOnlyRootFilesystem"] is True
    home = re.search(r"HOME=(\S+)", dockerfile)
    assert home is not None
    assert {"name": "tmp", "mountPath": home[1]} in pod.container["volumeMounts"]  # the only writable directory


def test_the_grace_period_of_pods_exceeds_the_drain() -> None:
    settings = {name: float(value) for name, value in GATEWAY.variables(Path()).items() if name.endswith("_DRAIN")}
    defaults = Settings.model_fields
    pre_stop = GATEWAY.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    slow = defaults["send_timeout"].default + 5  # api/server/server.py
    assert GATEWAY.grace > pre_stop + settings["TOKENCAST_DRAIN"] + slow
    assert WORKER.grace > settings["TOKENCAST_WORKER_DRAIN"] + 10
    assert "TOKENCAST_SEND_TIMEOUT" not in GATEWAY.variables(Path())


async def test_the_ingress_exposes_all_routes_except_metrics_and_probes(redis: EmbeddedRedis) -> None:
    """Every route of the application, matched like Kubernetes does: complete paths, or prefixes up to a slash."""
    async with connect(redis.url) as broker:
        paths: list[str] = [route.path for route in create_app(broker).routes]  # type: ignore[attr-defined]
    (rule,) = object_of("Ingress", "tokencast")["spec"]["rules"]

    def public(path: str) -> bool:
        return any(
            path == one["path"] or (one["pathType"] == "Prefix" and path.startswith(one["path"] + "/"))
            for one in rule["http"]["paths"]
        )

    assert {path for path in paths if not public(path)} == {"/metrics", "/healthz", "/readyz"}
    services = {one["backend"]["service"]["name"] for one in rule["http"]["paths"]}
    assert services == {object_of("Service", "tokencast-gateway")["metadata"]["name"]}


# --- running pods --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that secrets.sh creates; its Redis is at a port of this machine."""
    directory = tmp_path_factory.mktemp("kubernetes")
    script = shutil.copy(HERE / "secrets.sh", directory)
    key = {"PATH": "/usr/bin:/bin", "OPENAI_API_KEY": "simulated"}
    subprocess.run(["sh", script], check=True, env=key)
    before = {path: path.read_bytes() for path in (directory / "secrets").iterdir()}
    subprocess.run(["sh", script], check=True, env=key)
    assert {path: path.read_bytes() for path in (directory / "secrets").iterdir()} == before
    made = {Path(file).name for one in KUSTOMIZATION["secretGenerator"] for file in one["files"]}
    assert {path.name for path in before} == made | {"first-api-key"}
    return directory / "secrets"


@pytest.fixture(scope="module")
async def running_redis(secrets: Path) -> AsyncGenerator[int, None]:
    """The StatefulSet's Redis, with a directory and a port of its own; yields the port."""
    program, *arguments = REDIS.container["args"]
    assert program == "redis-server"
    (secrets.parent / "data").mkdir()
    port, files = (
        free_port(),
        {"/data": str(secrets.parent / "data"), "/run/secrets/redis/users.acl": str(secrets / "users.acl")},
    )
    process = await asyncio.create_subprocess_exec(
        ENGINES["valkey"] or ENGINES["redis"] or "redis-server",
        *(files.get(argument, argument) for argument in arguments),
        *("--port", str(port), "--bind", "127.0.0.1"),
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    url = (secrets / "redis-url").read_text()
    assert "@tokencast-redis:6379/" in url
    assert object_of("Service", "tokencast-redis")["spec"]["ports"][0]["port"] == REDIS.port("redis") == 6379
    (secrets / "redis-url").write_text(url.replace("tokencast-redis:6379", f"127.0.0.1:{port}"))
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def start_pod(pod: Pod, secrets: Path, **here: str) -> AsyncGenerator[Service, None]:
    given = {**pod.variables(secrets), "HOST": "127.0.0.1", "TOKENCAST_DRAIN": "0.2", **here}
    async with service("broker", *pod.container["args"], **given) as process:
        yield process


async def wait_until_healthy(pod: Pod, process: Service, url: str) -> None:
    """Wait until each probe of the pod answers 200."""
    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE) as http:
        for name in ("readinessProbe", "livenessProbe"):
            probe = pod.container[name]["httpGet"]

            async def is_healthy(path: str = probe["path"]) -> bool:
                assert process.process.returncode is None, process.output
                try:
                    return (await http.get(path)).status_code == 200
                except httpx2.TransportError:
                    return False

            await wait_until(is_healthy)


async def test_gateway_and_worker_start_and_answer_their_probes(secrets: Path, running_redis: int) -> None:
    """A generation runs from end to end, requested with the key that secrets.sh created."""
    worker_port, gateway_port = free_port(), free_port()
    at = WORKER.container["readinessProbe"]["httpGet"]["port"]
    assert WORKER.port(at) == int(WORKER.variables(secrets)["TOKENCAST_METRICS_PORT"])
    assert GATEWAY.port("http") == Settings.model_fields["port"].default
    async with (
        upstream_sim() as upstream,
        start_pod(WORKER, secrets, TOKENCAST_METRICS_PORT=str(worker_port), OPENAI_BASE_URL=upstream) as worker,
        start_pod(GATEWAY, secrets, PORT=str(gateway_port)) as gateway,
    ):
        await wait_until_healthy(WORKER, worker, f"http://127.0.0.1:{worker_port}")
        await wait_until_healthy(GATEWAY, gateway, f"http://127.0.0.1:{gateway_port}")
        key = {"authorization": f"Bearer {(secrets / 'first-api-key').read_text()}"}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{gateway_port}", timeout=DEADLINE) as http:
            body = {"model": "sim-fast", "messages": [{"role": "user", "content": "Hello"}]}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 401
            answer = await http.post("/v1/chat/completions", json=body, headers=key)
            assert answer.status_code == 200, answer.text
