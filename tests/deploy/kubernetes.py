"""Holds manifests, as kustomize makes them, to the schemas of Kubernetes and of the Prometheus operator, to the
"restricted" level of pod security, and the memory of the daemon's container to the sum of its configuration."""

import sys
import tomllib

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

# One that many clusters still have, so that nothing newer is used.
VERSION = "1.30"
UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MIB = 1 << 20
# Volumes that need nothing of the node.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
# What the daemon takes beside what its configuration bounds: program, runtime, metadata of the arenas, connections.
BASE_BYTES = 128 * MIB


def size(value):
    if isinstance(value, int):
        return value
    number = value.rstrip("BKMGi ")
    return int(number) * UNITS[value[len(number):].strip()]


def restricted(pod):
    """What the level asks of a pod that https://kubernetes.io/docs/concepts/security/pod-security-standards/ lists."""
    assert not any(pod.get(name) for name in ["hostNetwork", "hostPID", "hostIPC"])
    for volume in pod.get("volumes", []):
        assert set(volume) - {"name"} <= VOLUMES, volume
    own = pod.get("securityContext", {})
    for container in pod["containers"] + pod.get("initContainers", []):
        given = container["securityContext"]
        name = container["name"]
        assert given["allowPrivilegeEscalation"] is False and not given.get("privileged"), name
        assert given["capabilities"] == {"drop": ["ALL"]}, name
        assert given.get("runAsNonRoot", own.get("runAsNonRoot")) is True, name
        assert given.get("runAsUser", own.get("runAsUser")) != 0, name
        profile = given.get("seccompProfile", own.get("seccompProfile"))
        assert profile["type"] in ("RuntimeDefault", "Localhost"), name
        assert not any("hostPort" in port for port in container.get("ports", [])), name
        # Not of the level, but of this house.
        assert given["readOnlyRootFilesystem"] is True, name
        assert container["resources"]["limits"]["memory"], name


def memory(container, config):
    """deploy/README.md: Memory."""
    defaults = tomllib.load(open("config.toml", "rb"))
    get = lambda section, key: size(config.get(section, {}).get(key, defaults[section][key]))
    executors = get("exec", "executors")
    assert executors > 0, "as many as there are cores is no number"
    needed = (
        get("cache", "budget_bytes") * 1.05
        + executors * (get("exec", "call_memory_max_bytes") + get("exec", "stack_bytes"))
        + get("server", "requests_in_flight_max") * get("server", "unary_max_bytes")
        + get("server", "streams_max") * get("server", "stream_chunk_max_bytes")
        + BASE_BYTES
    )
    limit = size(container["resources"]["limits"]["memory"])
    assert needed <= limit <= 1.3 * needed, f"{needed / MIB:.0f} MiB are needed, the limit is {limit / MIB:.0f} MiB"
    assert size(container["resources"]["requests"]["memory"]) == limit
    print(f"memory: {needed / MIB:.0f} MiB of {limit / MIB:.0f} MiB")


def daemon(pod, documents):
    container = next(it for it in pod["containers"] if it["name"] == "codecached")
    name = next(it["configMap"]["name"] for it in pod["volumes"] if it["name"] == "config")
    text = next(it["data"]["config.toml"] for it in documents if it["metadata"]["name"] == name)
    config = tomllib.loads(text)
    memory(container, config)
    assert pod["terminationGracePeriodSeconds"] * 1000 >= config["server"]["grace_ms"] + 5000
    port = int(config["server"]["metrics"].rsplit(":", 1)[1])
    assert {it["name"]: it["containerPort"] for it in container["ports"]} == {"metrics": port}
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
        assert container[probe]["httpGet"]["port"] == "metrics"
    profile = container["securityContext"]["seccompProfile"]
    assert profile["type"] == "Localhost" and profile["localhostProfile"].startswith("profiles/codecached-thread")


def selected(selector, labels):
    return selector and all(labels.get(key) == value for key, value in selector.items())


def check(path):
    documents = list(yaml.safe_load_all(open(path)))
    kinds = {}
    for document in documents:
        kinds.setdefault(document["kind"], []).append(document)
        if document["kind"] == "ServiceMonitor":
            ServiceMonitor.model_validate(document)
        else:
            kubernetes_validate.validate(document, VERSION, strict=True)
    for namespace in kinds["Namespace"]:
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (deployment,) = kinds["Deployment"]
    template = deployment["spec"]["template"]
    restricted(template["spec"])
    daemon(template["spec"], documents)
    labels = template["metadata"]["labels"]
    assert selected(deployment["spec"]["selector"]["matchLabels"], labels)
    assert selected(kinds["PodDisruptionBudget"][0]["spec"]["selector"]["matchLabels"], labels)
    assert selected(kinds["NetworkPolicy"][0]["spec"]["podSelector"]["matchLabels"], labels)
    (service,) = kinds["Service"]
    assert selected(service["spec"]["selector"], labels)
    for monitor in kinds.get("ServiceMonitor", []):
        assert selected(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
        assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
        assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]
    print(", ".join(f"{len(them)} {kind}" for kind, them in sorted(kinds.items())))


for path in sys.argv[1:]:
    print(path)
    check(path)
