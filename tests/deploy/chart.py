"""Checks what the chart renders: by Kubernetes's schemas, by the processes' own reading of their configuration, and by
what no schema knows: that names, ports, selectors and times in it fit together.

    chart.py BINARIES KUBECTL HELM...
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/amoe"
KUSTOMIZE = ROOT / "deploy/kustomize"
VALUES = sorted((ROOT / "tests/deploy/values").glob("*.yaml"))
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
OPERATOR = ["monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule"]
# Values that must be refused, with what the refusal has to name.
REFUSED = {
    "expert.replica=3": "replica",
    "expert.replicas=0": "replicas",
    "schedule=sometimes": "schedule",
    "shutdown.drainSeconds=0": "drainSeconds",
    "etcd.replicas=2": "replicas",
    "etcd.enabled=false": "etcd.endpoints",
    "etcd.persistence.enabled=false": "etcd.persistence.enabled",
    "gateway.config.server=8000": "server",
    "model.path=models/demo": "path",
    "tls.secrets.expert=expert-tls": "tls.secrets",
    "tls.admin=true": "tls.secrets",
}


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def template(helm, values, version, *more):
    return run(helm, "template", "prod", CHART, "--namespace", "llm", "--values", values,
               "--kube-version", f"{version}.0", *more)


def validate(rendered, version):
    for document in rendered:
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, version, strict=True)


def workloads(rendered):
    return [document for document in rendered if document["kind"] in ("Deployment", "StatefulSet")]


def selects(selector, pod):
    labels = pod["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.items())


def check_selectors(rendered):
    """Every selector finds pods of exactly one workload, and every port that is named is there."""
    pods = [workload["spec"]["template"] for workload in workloads(rendered)]

    def found(where, selector):
        hits = [pod for pod in pods if selects(selector, pod)]
        assert len(hits) == 1, f"{where}: {selector} selects {len(hits)} workloads"
        return {port["name"]: port["containerPort"] for port in hits[0]["spec"]["containers"][0]["ports"]}

    for document in rendered:
        kind, spec = document["kind"], document.get("spec", {})
        where = f"{kind} {document['metadata']['name']}"
        if kind == "Service":
            ports = found(where, spec["selector"])
            wanted = [port["targetPort"] for port in spec["ports"]]
        elif kind == "PodDisruptionBudget":
            ports, wanted = found(where, spec["selector"]["matchLabels"]), []
        elif kind == "NetworkPolicy":
            ports = found(where, spec["podSelector"]["matchLabels"])
            wanted = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            for rule in spec["ingress"]:
                for peer in rule.get("from", []):
                    if "podSelector" in peer:
                        found(where, peer["podSelector"]["matchLabels"])
        elif kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            same = [workload for workload in workloads(rendered)
                    if (workload["kind"], workload["metadata"]["name"]) == (target["kind"], target["name"])]
            assert len(same) == 1 and "replicas" not in same[0]["spec"], f"{where}: {target} has replicas of its own"
            continue
        else:
            continue
        for port in wanted:
            assert port in ports, f"{where}: no port {port} among {ports}"
    services = {document["metadata"]["name"] for document in rendered if document["kind"] == "Service"}
    for workload in workloads(rendered):
        service = workload["spec"].get("serviceName")
        assert service is None or service in services, f"{workload['metadata']['name']}: no service {service}"


def configuration(workload, rendered):
    """(program, its file, the configuration) of a workload of ours; nothing for others."""
    container = workload["spec"]["template"]["spec"]["containers"][0]
    maps = [volume["configMap"]["name"] for volume in workload["spec"]["template"]["spec"].get("volumes", [])
            if "configMap" in volume]
    if not maps:
        return None
    content = next(document["data"] for document in rendered
                   if document["kind"] == "ConfigMap" and document["metadata"]["name"] == maps[0])
    (file, text), = content.items()
    assert container["args"] == ["--config", f"/etc/amoe/{file}"], container["args"]
    return Path(container["command"][0]).name, file, text


def check_processes(rendered, binaries, folder):
    """The binaries read their configurations, with what the pods lay over them, and the pods are made for them."""
    programs = set()
    for workload in workloads(rendered):
        name, pod = workload["metadata"]["name"], workload["spec"]["template"]["spec"]
        container = pod["containers"][0]
        security = {**pod["securityContext"], **container["securityContext"]}
        assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"], name
        assert security["capabilities"] == {"drop": ["ALL"]} and not security["allowPrivilegeEscalation"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        found = configuration(workload, rendered)
        if found is None:
            continue
        program, file, text = found
        programs.add(program)
        (folder / file).write_text(text)
        variables = {"POD_NAME": f"{name}-0", "POD_IP": "10.1.2.3"}
        environment = {}
        for variable in container["env"]:
            value = re.sub(r"\$\((\w+)\)", lambda hit: variables[hit[1]], variable.get("value", ""))
            if variable["name"].startswith("AMOE_"):
                environment[variable["name"]] = value
        done = subprocess.run([binaries / program, "--config", folder / file, "--check-config"],
                              env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{program} refuses\n{text}\n{done.stderr}"
        check_ports_and_times(name, pod, text)
    assert programs == {"gateway", "coordinator", "attention-node", "expert-node"}, programs


def check_ports_and_times(name, pod, text):
    container = pod["containers"][0]
    listening = {int(port) for port in re.findall(r'^(?:listen|address) = "0\.0\.0\.0:(\d+)"', text, re.M)}
    ports = {port["containerPort"] for port in container["ports"]}
    assert listening == ports, f"{name} listens on {listening}, its pod has ports {ports}"
    drain_s = int(re.search(r"^drain_ms = (\d+)$", text, re.M)[1]) / 1000
    pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace_s = pod["terminationGracePeriodSeconds"]
    assert grace_s > pause_s + drain_s, f"{name}: a grace of {grace_s} s for {pause_s} s and {drain_s} s"


def check_chart(helms, binaries, folder):
    for helm in helms:
        for values in VALUES:
            run(helm, "lint", "--strict", CHART, "--values", values)
        for values, named in REFUSED.items():
            try:
                run(helm, "template", "prod", CHART, "--set", values)
            except AssertionError as refusal:
                assert named in str(refusal), f"{values} is refused without naming {named}: {refusal}"
            else:
                raise AssertionError(f"{helm} accepts --set {values}")
    for values in VALUES:
        # Nothing in the chart changes between the oldest and the newest version that it is for.
        texts = {template(helm, values, version) for helm in helms for version in (VERSIONS[0], VERSIONS[-1])}
        assert len(texts) == 1, f"{values.name}: the Helms, or Kubernetes's versions, make a difference"
        rendered = documents(texts.pop())
        for version in VERSIONS:
            validate(rendered, version)
        check_selectors(rendered)
        check_processes(rendered, binaries, folder)
        print(f"{values.name}: {len(rendered)} objects, Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}")


def check_monitoring(helms):
    apis = [word for api in OPERATOR for word in ("--api-versions", api)]
    for helm in helms:
        default = ROOT / "tests/deploy/values/default.yaml"
        with_operator = documents(template(helm, default, VERSIONS[-1], *apis))
        kinds = {document["kind"]: document for document in with_operator}
        assert "amoe-objectives" == kinds["PrometheusRule"]["spec"]["groups"][0]["name"]
        endpoint, = kinds["PodMonitor"]["spec"]["podMetricsEndpoints"]
        for workload in workloads(with_operator):
            container = workload["spec"]["template"]["spec"]["containers"][0]
            if container["name"] != "etcd":
                assert endpoint["port"] in {port["name"] for port in container["ports"]}
        without = {document["kind"] for document in documents(template(helm, default, VERSIONS[-1]))}
        assert not without & {"PodMonitor", "PrometheusRule"}


def check_kustomize(helms, kubectl, binaries, folder):
    base = run(helms[-1], "template", "amoe", CHART, "--values", KUSTOMIZE / "base/values.yaml",
               "--kube-version", "1.32.0", "--skip-tests")
    file = KUSTOMIZE / "base/amoe.yaml"
    assert file.read_text() == base, f"{file} is not what the chart renders; run tests/deploy/check.sh --write"
    rendered = documents(run(kubectl, "kustomize", KUSTOMIZE / "cpu-demo"))
    for version in VERSIONS:
        validate(rendered, version)
    check_selectors(rendered)
    check_processes(rendered, binaries, folder)
    print(f"kustomize/cpu-demo: {len(rendered)} objects")


def main():
    binaries, kubectl, *helms = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        check_chart(helms, binaries, Path(folder))
        check_monitoring(helms)
        check_kustomize(helms, kubectl, binaries, Path(folder))


if __name__ == "__main__":
    try:
        main()
    except AssertionError as wrong:
        sys.exit(str(wrong))
