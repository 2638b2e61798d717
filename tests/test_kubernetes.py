"""The Kubernetes manifests are consistent: names, labels, ports, settings, probes, schemas."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.manifests import FOLDER, OVERLAYS, Document, load, mistake, rendered, written
from service.settings import Settings
from tests.test_container import NAMES, ROOT

DOCUMENTS = list(written())
KUSTOMIZATIONS = {path.parent: load(path)[0] for path in FOLDER.rglob("kustomization.yaml")}
CONFIG = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
KUBECTL = shutil.which("kubectl")


def one(kind: str, name: str) -> Document:
    """Return the resource with this kind and name."""
    (found,) = (d for d in DOCUMENTS if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Yield name, pod specification and labels of each Deployment."""
    for document in DOCUMENTS:
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            yield document["metadata"]["name"], template["spec"], template["metadata"]["labels"]


PODS = {name: (spec, labels) for name, spec, labels in pods()}
REPLICA, PROXY = (PODS[name][0]["containers"][0] for name in ("deltaw", "haproxy"))


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether a selector selects pods with these labels."""
    return selector.items() <= labels.items()


def ports_of(container: dict[str, Any]) -> dict[str, int]:
    """Return the ports of a container by name."""
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_kustomizations_list_every_file_that_exists() -> None:
    """Each resource, component and patch of a kustomization exists, and each YAML file is listed
    by the kustomization in its folder."""
    for folder, kustomization in KUSTOMIZATIONS.items():
        listed = [*kustomization.get("resources", []), *kustomization.get("components", [])]
        listed += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        for name in listed:
            assert (folder / name).exists(), f"{folder.name}: {name}"
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files <= set(listed)


def test_patches_name_resources_of_the_base() -> None:
    """Each patch changes a resource and a container of the base."""
    known = {(d["kind"], d["metadata"]["name"]) for d in DOCUMENTS}
    for kustomization in KUSTOMIZATIONS.values():
        for patch in kustomization.get("patches", []):
            if "target" in patch:
                assert (patch["target"]["kind"], patch["target"]["name"]) in known
    for overlay in FOLDER.glob("overlays/*/replicas.yaml"):
        (document,) = load(overlay)
        assert (document["kind"], document["metadata"]["name"]) in known
        containers = document["spec"]["template"]["spec"]["containers"]
        assert [container["name"] for container in containers] == ["deltaw"]


def selectors(document: Document) -> list[dict[str, str]]:
    """Return the labels by which a resource selects pods."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Service":
            return [spec["selector"]]
        case "PodDisruptionBudget":
            return [spec["selector"]["matchLabels"]]
        case "NetworkPolicy":
            return [spec["podSelector"]["matchLabels"]]
        case "Deployment":
            spread = spec["template"]["spec"]["topologySpreadConstraints"]
            inner = [constraint["labelSelector"]["matchLabels"] for constraint in spread]
            return [spec["selector"]["matchLabels"], *inner]
    return []


def test_selectors_match_the_pods_that_they_mean() -> None:
    """Each Service, budget, policy and spread constraint selects the pods of exactly one
    Deployment, and each Deployment selects its own."""
    for document in DOCUMENTS:
        for selector in selectors(document):
            selected = [name for name, (_, labels) in PODS.items() if matches(selector, labels)]
            assert len(selected) == 1, document["metadata"]["name"]
            if document["kind"] == "Deployment":
                assert selected == [document["metadata"]["name"]]


def test_monitors_and_the_autoscaler_name_what_exists() -> None:
    """Each ServiceMonitor selects one Service and its port, and reads `/metrics`. The autoscaler
    scales the replicas by a metric that they export."""
    services = [d for d in DOCUMENTS if d["kind"] == "Service"]
    for monitor in (d for d in DOCUMENTS if d["kind"] == "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (d for d in services if matches(selector, d["metadata"]["labels"]))
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
            assert endpoint["path"] == "/metrics"
    scaler = one("HorizontalPodAutoscaler", "deltaw")["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "deltaw")
    name = scaler["metrics"][0]["pods"]["metric"]["name"]
    assert f"| `{name}` |" in (ROOT / "docs/operations.md").read_text()
    slots = re.search(r"server-template replica (\d+) ", CONFIG)
    assert slots is not None
    assert scaler["maxReplicas"] <= int(slots[1])


def test_ports_agree_from_the_service_to_the_process() -> None:
    """Services name ports of the containers, and policies open only these and DNS.

    The replicas have the default port, which HAProxy finds by the headless Service.
    """
    assert ports_of(REPLICA) == {"http": Settings.model_fields["port"].default}
    variables = {one["name"]: one.get("value") for one in PROXY["env"]}
    assert variables["FRONT_BIND"] == f":{ports_of(PROXY)['http']}"
    assert variables["FRONT_OPERATIONS_BIND"] == f":{ports_of(PROXY)['operations']}"
    headless = one("Service", "replicas")
    assert headless["spec"]["clusterIP"] == "None"
    expected = f"replicas.$(NAMESPACE).svc.cluster.local:{headless['spec']['ports'][0]['port']}"
    assert variables["FRONT_REPLICAS"] == expected
    for service in (d for d in DOCUMENTS if d["kind"] == "Service"):
        (target,) = (
            spec["containers"][0]
            for spec, labels in PODS.values()
            if matches(service["spec"]["selector"], labels)
        )
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports_of(target)
            if service["spec"].get("clusterIP") == "None":
                assert port["port"] == ports_of(target)[port["targetPort"]]
    opened = {*ports_of(REPLICA).values(), *ports_of(PROXY).values(), 53}
    for policy in (d["spec"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy"):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        for rule in (*policy["ingress"], *policy["egress"]):
            assert rule.get("from") or rule.get("to")
            assert {port["port"] for port in rule["ports"]} <= opened


def test_settings_of_the_replicas_exist() -> None:
    """Each `DELTAW_` variable of the base and of each overlay is a setting. Service links, which
    would add others, are off, because deltaw refuses unknown settings."""
    given = {literal.partition("=")[0] for literal in literals()}
    for path in (FOLDER / "base/replicas.yaml", *FOLDER.glob("overlays/*/replicas.yaml")):
        for document in load(path):
            if document["kind"] == "Deployment":
                (container,) = document["spec"]["template"]["spec"]["containers"]
                given |= {variable["name"] for variable in container.get("env", [])}
    assert {name for name in given if name.startswith("DELTAW_")} <= NAMES
    assert all(spec["enableServiceLinks"] is False for spec, _ in PODS.values())


def literals() -> list[str]:
    """The settings that the replicas and HAProxy share."""
    (generator,) = KUSTOMIZATIONS[FOLDER / "base"]["configMapGenerator"]
    found: list[str] = generator["literals"]
    return found


def test_limits_of_bodies_are_those_of_the_service() -> None:
    """The shared limits and HAProxy's own defaults equal the defaults of the settings."""
    names = ("max_body_bytes", "max_ndjson_bytes")
    expected = {f"DELTAW_{n.upper()}": str(Settings.model_fields[n].default) for n in names}
    assert dict(literal.split("=") for literal in literals()) == expected
    assert dict(re.findall(r"presetenv (DELTAW_\w+) (\d+)", CONFIG)) == expected
    for container in (REPLICA, PROXY):
        assert container["envFrom"] == [{"configMapRef": {"name": "limits"}}]


def test_time_limits_of_the_proxy_contain_those_of_the_service() -> None:
    """HAProxy waits longer than the deadlines of requests and of adapters, and pods are killed only
    after the drain."""
    seconds = {
        name: float(field.default)
        for name, field in Settings.model_fields.items()
        if name.endswith("_seconds")
    }
    waits = [int(found) for found in re.findall(r"timeout server (\d+)s", CONFIG)]
    assert min(waits) > seconds["deadline_seconds"]
    assert max(waits) > seconds["adapter_seconds"]
    (keeps,) = re.findall(r"timeout http-keep-alive (\d+)s", CONFIG)
    assert int(keeps) <= seconds["idle_seconds"]
    values = {one["name"]: one.get("value") for one in REPLICA["env"]}
    grace = PODS["deltaw"][0]["terminationGracePeriodSeconds"]
    assert grace > float(values["DELTAW_DRAIN_SECONDS"])
    (hard,) = re.findall(r"hard-stop-after (\d+)s", CONFIG)
    sleep = int(PROXY["lifecycle"]["preStop"]["exec"]["command"][1])
    assert PODS["haproxy"][0]["terminationGracePeriodSeconds"] >= int(hard) + sleep


def test_probes_ask_routes_that_need_no_key() -> None:
    """The probes of a replica are those of docs/operations.md, and ask routes of the service. The
    liveness probe of HAProxy asks its monitor."""
    paths = json.loads((ROOT / "docs/openapi.json").read_text())["paths"].keys()
    text = (ROOT / "docs/operations.md").read_text()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = REPLICA[probe]["httpGet"]["path"]
        assert path in paths & {"/readyz", "/livez"}
        assert f"{probe}:\n  httpGet: {{path: {path}, port: 8000}}" in text
    assert f"monitor-uri {PROXY['livenessProbe']['httpGet']['path']}\n" in CONFIG


def test_containers_are_hardened() -> None:
    """No container runs as root, has or gains a capability, or can write to its root file system.

    None has a token of the Kubernetes API, and each has limits. The namespace enforces the
    restricted standard.
    """
    namespace = one("Namespace", "deltaw")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    for spec, _ in PODS.values():
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_replicas_need_keys_and_share_adapters() -> None:
    """No replica starts without the Secret of the keys, and none is insecure. All replicas mount
    the same claim where the image keeps adapters."""
    volumes = {one["name"]: one for one in PODS["deltaw"][0]["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in REPLICA["volumeMounts"]}
    assert set(volumes) == set(mounts)
    variables = {one["name"]: one.get("value") for one in REPLICA["env"]}
    keys = volumes["keys"]["secret"]
    assert "optional" not in keys
    assert variables["DELTAW_API_KEYS_FILE"] == f"{mounts['keys']}/{keys['items'][0]['path']}"
    assert not any("INSECURE" in path.read_text() for path in FOLDER.rglob("*.yaml"))
    assert mounts["adapters"] == "/var/lib/deltaw"
    claim = one("PersistentVolumeClaim", volumes["adapters"]["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "image: haproxy:latest" not in (FOLDER / "base/proxy.yaml").read_text()
    image = re.findall(r"image: (haproxy:\S+)", (ROOT / "docker-compose.yml").read_text())
    assert [PROXY["image"]] == image


@pytest.mark.slow
def test_schemas_accept_the_resources_and_refuse_mistakes() -> None:
    """Kubernetes' schemas accept every resource, and refuse one with a misspelt field."""
    assert [said for document in DOCUMENTS if (said := mistake(document))] == []
    for kind, name in (("Deployment", "deltaw"), ("ServiceMonitor", "deltaw")):
        wrong = copy.deepcopy(one(kind, name))
        wrong["spec"]["selektor"] = wrong["spec"].pop("selector")
        assert mistake(wrong) is not None


@pytest.mark.slow
@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl to render the overlays")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_render(overlay: str) -> None:
    """`kubectl kustomize` renders valid resources for each overlay, with haproxy.cfg and with each
    claim and ConfigMap that a pod names."""
    assert KUBECTL is not None
    documents = rendered(overlay, KUBECTL)
    assert [said for document in documents if (said := mistake(document))] == []
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    configs = [d["data"] for d in documents if d["kind"] == "ConfigMap"]
    assert any(data.get("haproxy.cfg") == CONFIG for data in configs)
    for document in documents:
        if document["kind"] != "Deployment":
            continue
        spec = document["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        for source in container["envFrom"]:
            assert ("ConfigMap", source["configMapRef"]["name"]) in names
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in names
        assert {one["name"] for one in spec["volumes"]} == {
            mount["name"] for mount in container["volumeMounts"]
        }
