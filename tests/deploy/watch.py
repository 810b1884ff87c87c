"""Runs what operators watch against a live cluster: every query of the board and of the rules has to find something.

    tests/deploy/watch.py [FOLDER OF THE BINARIES]

Starts etcd, a coordinator, two attention nodes, two expert nodes and a gateway as processes, a Prometheus that scrapes
them and has the rules, and asks the gateway for a while. Then it walks the board's panels and the rules. A query that is
refused, finds nothing or finds nothing but NaN is a failure: a misspelt metric or label looks like that. An alert finds
nothing while all is well, so of an alert every selector is asked on its own.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy/helm/amoe/files"
EXAMPLES = ROOT / "deploy/examples"
# Nothing here takes this long unless it hangs.
PATIENCE_S = 120
# How long the cluster is asked; rates need several scrapes, a second apart.
LOAD_S = 12


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % probe.getsockname()[1]


def get(url, timeout_s=10):
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return answer.read().decode()


def until(what, true):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if true():
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    sys.exit(f"{what}: not within {PATIENCE_S} s")


class Cluster:
    """Processes by name; all are killed at the end."""

    def __init__(self, binaries, folder):
        self.binaries, self.folder = binaries, Path(folder)
        self.children, self.scraped = {}, {}

    def __enter__(self):
        etcd, peer = self.etcd()
        control, self.gateway = free_address(), free_address()
        self.role("coordinator", "coordinator", {
            "CONTROL__LISTEN": control, "STORE__KIND": "etcd", "STORE__ENDPOINTS": f'["http://{etcd}"]',
            "CLUSTER__EXPERT_NODES_MIN": "2",
        })
        joined = {"CLUSTER__COORDINATORS": f'["{control}"]', "MODEL__PATH": str(ROOT / "models/demo")}
        for kind in ("attention", "expert"):
            for number in range(2):
                name = f"{kind}-{number}"
                profile = {"NODE__PROFILE": "false"} if kind == "expert" else {}
                self.role(name, f"{kind}-node",
                          joined | profile | {"NODE__NAME": name, "NODE__LISTEN": free_address()})
        self.role("gateway", "gateway", joined | {"SERVER__ADDRESS": self.gateway})
        for name, admin in self.scraped.items():
            until(f"{name} ready", lambda: get(f"http://{admin}/readyz"))
        return self

    def __exit__(self, *_):
        for child in self.children.values():
            child.kill()
            child.wait()

    def start(self, name, command, environment):
        log = (self.folder / f"{name}.log").open("w")
        self.children[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def etcd(self):
        client, peer = free_address(), free_address()
        self.start("etcd", [
            "etcd", f"--data-dir={self.folder}/etcd", f"--listen-client-urls=http://{client}",
            f"--advertise-client-urls=http://{client}", f"--listen-peer-urls=http://{peer}",
            f"--initial-advertise-peer-urls=http://{peer}", f"--initial-cluster=default=http://{peer}",
        ], {"PATH": os.environ["PATH"]})
        until("etcd healthy", lambda: get(f"http://{client}/health"))
        return client, peer

    def role(self, name, program, differs):
        admin = free_address()
        environment = {f"AMOE_{key}": value for key, value in differs.items()}
        environment |= {"AMOE_ADMIN__ADDRESS": admin, "AMOE_TELEMETRY__LOG": "warn"}
        self.start(name, [self.binaries / program, "--config", EXAMPLES / f"{program}.toml"], environment)
        self.scraped[name] = admin

    def prometheus(self):
        address = free_address()
        targets = json.dumps(list(self.scraped.values()))
        config = self.folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{FILES}/rules.yaml]\n"
            f"scrape_configs: [{{job_name: amoe, static_configs: [{{targets: {targets}}}]}}]\n")
        self.start("prometheus", [
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={self.folder}/tsdb",
            f"--web.listen-address={address}", "--log.level=warn",
        ], {"PATH": os.environ["PATH"]})
        until("Prometheus ready", lambda: get(f"http://{address}/-/ready"))
        return f"http://{address}"


def ask(gateway, number):
    body = json.dumps({"model": "demo", "prompt": f"{number} And it came to pass", "max_tokens": 24, "stream": True})
    request = urllib.request.Request(f"http://{gateway}/v1/completions", body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    if "data: [DONE]" not in text:
        sys.exit(f"an answer broke off: {text[-200:]}")


def load(gateway):
    """Asks from four threads; also for what is not there, so that refusals are seen."""
    end = time.monotonic() + LOAD_S

    def client(number):
        while time.monotonic() < end:
            ask(gateway, number)
            number += 4
        try:
            get(f"http://{gateway}/v1/nothing-here")
        except urllib.error.HTTPError as refusal:
            refusal.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def complaint(prometheus, query):
    """What is wrong with a query, or nothing."""
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        answer = json.loads(get(url))
    except urllib.error.HTTPError as refused:
        return json.loads(refused.read())["error"]
    data = answer["data"]
    samples = [data["result"]] if data["resultType"] == "scalar" else [found["value"] for found in data["result"]]
    if not samples:
        return "finds nothing"
    if all(math.isnan(float(value)) for _, value in samples):
        return "finds nothing but NaN"
    return None


def panels(board):
    """(panel, query) of the whole board, with Grafana's variables replaced."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            query = re.sub(r"\$__(rate_)?interval|\$__range", "1m", target["expr"])
            yield f"panel {panel['title']}", re.sub(r"\$\w+", ".*", query)
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()
            yield f"variable {variable['name']}", f"count by ({label}) ({metric})"


def rules(prometheus):
    """(rule, query) as Prometheus has read them: of alerts, what they select."""
    for group in json.loads(get(f"{prometheus}/api/v1/rules"))["data"]["groups"]:
        for rule in group["rules"]:
            if rule["type"] == "recording":
                yield f"rule {rule['name']}", rule["query"]
                continue
            selectors = re.findall(r"\b(?:amoe|vllm|process)[\w:]+(?:\{[^}]*\})?", rule["query"])
            if not selectors:
                sys.exit(f"alert {rule['name']} selects nothing of ours: {rule['query']}")
            for selector in selectors:
                yield f"alert {rule['name']}", selector


def main():
    binaries = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug").resolve()
    board = json.loads((FILES / "dashboard.json").read_text())
    with tempfile.TemporaryDirectory() as folder, Cluster(binaries, folder) as cluster:
        prometheus = cluster.prometheus()
        load(cluster.gateway)
        # Rules are evaluated once more over all of it.
        time.sleep(3)
        checked = list(panels(board)) + list(rules(prometheus))
        wrong = [(where, query, why) for where, query in checked if (why := complaint(prometheus, query))]
        if os.environ.get("AMOE_WATCH_METRICS"):
            for name, admin in cluster.scraped.items():
                Path(os.environ["AMOE_WATCH_METRICS"], name).write_text(get(f"http://{admin}/metrics"))
    for where, query, why in wrong:
        print(f"{where}: {why}: {query}")
    print(f"{len(checked) - len(wrong)} of {len(checked)} queries find what they ask for")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
