"""The chart in charts/tokencast: it installs the same pods as docs/kubernetes, and its options give valid objects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import all_versions, validate

from broker.version import __version__
from tests.acceptance.deploy.rendering import CHART, Object, chart, one, program, run
from tests.acceptance.ops.test_kubernetes import OBJECTS, PODS, object_of

pytestmark = pytest.mark.kubernetes

EVERYTHING = """
image: {tag: "7"}
imagePullSecrets: [{name: registry}]
settings: {TOKENCAST_MAX_BODY: 20971520, TOKENCAST_DRAIN: 12.5, TOKENCAST_QUEUE_AGEING: "60"}
gateway: {extraEnv: [{name: A, value: b}], nodeSelector: {disk: ssd}, tolerations: [{operator: Exists}]}
worker:
  autoscaling: {enabled: true}
  extraEnv: [{name: GABFORGE_API_KEY, valueFrom: {secretKeyRef: {name: upstreams, key: gabforge}}}]
redis: {storageClass: fast}
ingress: {enabled: true}
podMonitor: {enabled: true, labels: {release: prometheus}}
"""
FOREIGN = ("PodMonitor", "ScaledObject")  # not Kubernetes's own


@pytest.fixture(scope="module")
def rendered() -> list[Object]:
    return chart()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    values = tmp_path_factory.mktemp("helm") / "values.yaml"
    values.write_text(EVERYTHING)
    return chart("--values", values, release="shop")


def test_the_chart_is_clean() -> None:
    done = run(program("helm"), "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout


def test_versions_are_those_of_the_product() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


def test_a_misspelled_value_is_refused() -> None:
    done = run(program("helm"), "template", "x", CHART, "--set", "gatway.minReplicas=3")
    assert done.returncode != 0
    assert "gatway" in done.stderr


@pytest.mark.parametrize("version", ["1.30", all_versions()[-1]])
def test_kubernetes_accepts_the_objects(rendered: list[Object], everything: list[Object], version: str) -> None:
    for each in [*rendered, *everything]:
        if each["kind"] not in FOREIGN:
            validate(each, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_those_of_the_kustomization(rendered: list[Object], name: str) -> None:
    kind = "StatefulSet" if name == "redis" else "Deployment"
    here, there = one(rendered, kind, f"tokencast-{name}"), object_of(kind, f"tokencast-{name}")
    assert comparable(here["spec"]["template"]["spec"]) == comparable(there["spec"]["template"]["spec"])
    for field in ("replicas", "strategy", "serviceName"):
        assert here["spec"].get(field) == there["spec"].get(field)


def comparable(spec: dict[str, Any]) -> dict[str, Any]:
    """Without the image of the product, and without the labels of the release."""
    spec = copy.deepcopy(spec)
    spec["containers"][0].pop("imagePullPolicy", None)
    if "tokencast" in spec["containers"][0]["image"]:
        del spec["containers"][0]["image"]
    for spread in spec.get("topologySpreadConstraints", []):
        spread["labelSelector"]["matchLabels"].pop("app.kubernetes.io/instance", None)
    return spec


def test_other_objects_are_those_of_the_kustomization() -> None:
    kinds = {each["kind"] for each in chart("--set", "ingress.enabled=true")}
    assert kinds == {each["kind"] for each in OBJECTS} - {"Namespace"} | {"ConfigMap"}
    here = one(chart("--set", "ingress.enabled=true"), "Ingress", "tokencast")
    assert here["spec"] == object_of("Ingress", "tokencast")["spec"]
    assert here["metadata"]["annotations"] == object_of("Ingress", "tokencast")["metadata"]["annotations"]


def test_objects_find_each_other(everything: list[Object]) -> None:
    """With another name of the release: each selector matches one pod, and each reference exists."""
    names = {(each["kind"], each["metadata"]["name"]) for each in everything}
    assert all(name.startswith("shop-tokencast") for _, name in names)
    pods = [each["spec"]["template"] for each in everything if each["kind"] in ("Deployment", "StatefulSet")]
    for each in everything:
        spec = each.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if selector:
            wanted = selector.get("matchLabels", selector).items()
            assert len([pod for pod in pods if wanted <= pod["metadata"]["labels"].items()]) == 1, each
        if "scaleTargetRef" in spec:
            assert ("Deployment", spec["scaleTargetRef"]["name"]) in names
        if each["kind"] == "Ingress":
            backend = spec["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"]
            assert ("Service", backend) in names
    for pod in pods[:2]:
        assert ("ConfigMap", pod["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"]) in names


def test_options_reach_the_pods(everything: list[Object]) -> None:
    settings = one(everything, "ConfigMap", "shop-tokencast")["data"]
    assert settings["TOKENCAST_MAX_BODY"] == "20971520"
    assert settings["TOKENCAST_DRAIN"] == "12.5"
    gateway = one(everything, "Deployment", "shop-tokencast-gateway")["spec"]["template"]["spec"]
    assert gateway["terminationGracePeriodSeconds"] == 13 + 50
    assert gateway["containers"][0]["image"].endswith("/tokencast:7")
    assert gateway["nodeSelector"] == {"disk": "ssd"}
    worker = one(everything, "Deployment", "shop-tokencast-worker")["spec"]
    assert "replicas" not in worker
    names = [variable["name"] for variable in worker["template"]["spec"]["containers"][0]["env"]]
    assert "GABFORGE_API_KEY" in names


def test_a_redis_of_your_own_leaves_nothing_behind() -> None:
    without = chart("--set", "redis.enabled=false")
    assert [each["metadata"]["name"] for each in without if "redis" in each["metadata"]["name"]] == []


def test_policies_are_those_of_the_kustomization(rendered: list[Object]) -> None:
    """The same connections are allowed. The policy that denies all others is left out: it would apply to other
    releases too."""

    def allowed(policy: Object) -> set[str]:
        rules = copy.deepcopy(policy["spec"]["ingress"])
        for source in (source for rule in rules for source in rule["from"] if "podSelector" in source):
            source["podSelector"]["matchLabels"].pop("app.kubernetes.io/instance", None)
        return {f"{source} {rule['ports']}" for rule in rules for source in rule["from"]}

    for here, there in (("gateway", "to-gateways"), ("worker", "to-workers"), ("redis", "to-redis")):
        ours = one(rendered, "NetworkPolicy", f"tokencast-{here}")
        assert allowed(ours) == allowed(object_of("NetworkPolicy", there)), here
