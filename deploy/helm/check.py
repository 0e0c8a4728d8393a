"""Checks the chart without a cluster: `helm lint --strict`, and each rendered object by Kubernetes' own schemas.

    pip install helm-python-sdk kubernetes-validate pyyaml
    python deploy/helm/check.py [PROGRAM]

With the program, it loads the configuration of each rendered ConfigMap too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml

CHART = Path(__file__).resolve().parent / "mini-lb"

#: The oldest and a newer version of Kubernetes.
VERSIONS = ["1.27", "1.33"]

#: Kinds that are not of Kubernetes itself.
FOREIGN = {"ServiceMonitor"}

#: Values, and the kinds that are made of them besides ConfigMap, Deployment and Service.
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "defaults": ({}, {"PodDisruptionBudget", "Role", "RoleBinding", "ServiceAccount"}),
    "workers by name": (
        {
            "replicaCount": 1,
            "discovery": {"enabled": False},
            "config": {
                "prefill": [{"url": "http://p-0.prefill:30000", "bootstrap_port": 8998}],
                "decode": ["dns+http://decode:30000"],
                "policy": "least_requests",
                "shutdown_grace_period_secs": 600,
            },
            "podDisruptionBudget": {"enabled": False},
            "serviceAccount": {"create": False},
        },
        set(),
    ),
    "everything": (
        {
            "image": {"repository": "registry.example/mini-lb", "tag": "1"},
            "imagePullSecrets": [{"name": "pull"}],
            "discovery": {"kind": "endpointslices", "namespace": "ai"},
            "keysSecret": "keys",
            "extraArgs": ["--log-json"],
            "extraEnv": [{"name": "MINI_LB_LOG_LEVEL", "value": "debug"}],
            "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
            "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "serviceMonitor": {"enabled": True, "labels": {"release": "p"}, "authorization": {"name": "keys", "key": "one"}},
            "podAnnotations": {"a": "b"},
            "podLabels": {"team": "a"},
            "nodeSelector": {"pool": "cpu"},
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
        },
        {"PodDisruptionBudget", "Role", "RoleBinding", "ServiceAccount", "ServiceMonitor"},
    ),
}


def rendered(chart: helm.Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    manifests = chart.render(values, name="r", namespace="n")
    texts = [text for path, text in manifests.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in documents if document["kind"] == kind)


def load(program: str, text: str) -> None:
    """The program takes the file, where it was built with the feature that the file needs."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([program, "--conf", file.name, "--test"], capture_output=True, text=True)
    if done.returncode and "--features kubernetes" in done.stderr and len(done.stderr.splitlines()) == 1:
        print(f"  the file has no other problem: {done.stderr.strip()}")
    elif done.returncode:
        raise SystemExit(done.stderr)


def main() -> None:
    chart = helm.Chart.load(CHART)
    for name, (values, kinds) in CASES.items():
        print(f"{name}:")
        for finding in helm.lint(CHART, values, strict=True)["messages"]:
            # An icon is recommended, and no more.
            if finding["severity"] > 1:
                raise SystemExit(f"{finding['path']}: {finding['error']}")
        documents = rendered(chart, values)
        found = {document["kind"] for document in documents}
        expected = kinds | {"ConfigMap", "Deployment", "Service"}
        if found != expected:
            raise SystemExit(f"the kinds are {sorted(found)}, not {sorted(expected)}")
        for document in documents:
            if document["kind"] not in FOREIGN:
                for version in VERSIONS:
                    kubernetes_validate.validate(document, version, strict=True)
        config = of_kind(documents, "ConfigMap")["data"]["mini-lb.yaml"]
        settings = yaml.safe_load(config)
        pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
        ends = settings["shutdown_grace_period_secs"] + settings["drain_settle_secs"]
        if not pod["terminationGracePeriodSeconds"] > ends:
            raise SystemExit("the pod is killed before its requests end")
        probe = pod["containers"][0]["readinessProbe"]
        if settings["drain_settle_secs"] < probe["periodSeconds"] * probe["failureThreshold"]:
            raise SystemExit("connections end before the pod is known to be unready")
        if len(sys.argv) > 1:
            load(sys.argv[1], config)
        print(f"  {len(documents)} objects: {', '.join(sorted(found))}")
    check_restarts(chart)


def check_restarts(chart: helm.Chart) -> None:
    """A key that a reload takes restarts no pod; another one does."""

    def annotations(config: dict[str, Any]) -> dict[str, str]:
        template = of_kind(rendered(chart, {"config": config}), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]

    if annotations({}) != annotations({"policy": "least_requests"}):
        raise SystemExit("a change of the policy restarts the pods")
    for key, value in {"port": 1, "engine": "vllm", "threads": 2}.items():
        if annotations({}) == annotations({key: value}):
            raise SystemExit(f"a change of {key} restarts no pod")
    print("restarts: only where a key needs a new process")


if __name__ == "__main__":
    main()
