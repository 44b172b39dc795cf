"""docs/kubernetes as kubectl renders it, with its components for the operators of Prometheus and KEDA."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.acceptance.deploy.rendering import Object, chart, kustomized, one
from tests.acceptance.ops.test_kubernetes import HERE, PODS
from tests.support import ROOT


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """With the secrets that secrets.sh makes, and with every component."""
    directory = Path(shutil.copytree(HERE, tmp_path_factory.mktemp("kustomize") / "kubernetes"))
    environment = {"PATH": "/usr/bin:/bin", "OPENAI_API_KEY": "simulated"}
    subprocess.run(["sh", directory / "secrets.sh"], check=True, env=environment)
    file = directory / "kustomization.yaml"
    enabled = file.read_text("utf-8").replace("  # - pod-mon", "  - pod-mon").replace("  # - auto", "  - auto")
    file.write_text(enabled, "utf-8")
    return kustomized(directory)


@pytest.mark.kubernetes
def test_every_object_is_in_the_namespace(rendered: list[Object]) -> None:
    assert {each["metadata"].get("namespace") for each in rendered if each["kind"] != "Namespace"} == {"tokencast"}


@pytest.mark.kubernetes
def test_pod_monitors_select_pods_and_their_ports(rendered: list[Object]) -> None:
    for name in ("gateway", "worker"):
        spec = one(rendered, "PodMonitor", f"tokencast-{name}")["spec"]
        (endpoint,) = spec["podMetricsEndpoints"]
        assert spec["selector"]["matchLabels"].items() <= PODS[name].labels.items()
        assert PODS[name].port(endpoint["port"])
        assert endpoint["path"] == "/metrics"


@pytest.mark.kubernetes
def test_the_autoscaler_has_the_workers_to_itself(rendered: list[Object]) -> None:
    spec = one(rendered, "ScaledObject", "tokencast-worker")["spec"]
    worker = one(rendered, "Deployment", spec["scaleTargetRef"]["name"])
    assert "replicas" not in worker["spec"]
    ours = one(chart("--set", "worker.autoscaling.enabled=true"), "ScaledObject", "tokencast-worker")["spec"]
    assert ours == spec


@pytest.mark.prometheus
def test_the_query_counts_what_another_worker_would_help(tmp_path: Path) -> None:
    """Evaluated by Prometheus. Two gateways report the same; what waits for an upstream does not count."""
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed")
    spec = yaml.safe_load((HERE / "autoscaled-workers/scaled-object.yaml").read_text("utf-8"))["spec"]
    query = spec["triggers"][0]["metadata"]["query"]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "api/ops").glob("*.py"))
    assert all(f'"{name}"' in sources for name in re.findall(r"tokencast_[a-z_]+", query))
    series = [
        {"series": f'{name}{{namespace="tokencast",instance="{gateway}"{labels}}}', "values": f"{value}x10"}
        for gateway in ("a", "b")
        for name, labels, value in (
            ("tokencast_slots_busy", "", 120),
            ("tokencast_queue_waiting", ',priority="3",reason="queued"', 40),
            ("tokencast_queue_waiting", ',priority="1",reason="queued"', 5),
            ("tokencast_queue_waiting", ',priority="3",reason="upstream_busy"', 900),
        )
    ]
    expected = {"expr": query, "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": 165}]}
    test = {"rule_files": [], "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [expected]}]}
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps(test))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
