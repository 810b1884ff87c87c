"""Checks deploy/compose.yaml: the processes accept their configurations, and everybody is found where others look.

    compose.py BINARIES
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROMETHEUS = DEPLOY / "observability/prometheus.yml"


def check(name, service, services, binaries):
    """A process of ours: its files are there, it accepts its configuration, and the names in it are services."""
    program, _, config = service["entrypoint"]
    mounted = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    file = (DEPLOY / mounted[config]).resolve(strict=True)
    environment = {key: str(value) for key, value in service["environment"].items()}
    done = subprocess.run([binaries / Path(program).name, "--config", file, "--check-config"],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stderr}"
    for key, value in environment.items():
        for host in re.findall(r"([a-z][a-z0-9-]*):\d+", value):
            assert host in services, f"{name}: {key} names {host}, which is no service"
    own = environment.get("AMOE_NODE__NAME", name)
    assert own == name and environment.get("AMOE_NODE__ADVERTISE", name).split(":")[0] == name, f"{name} is called {own}"
    drain_s = int(re.search(r"^drain_ms = ([\d_]+)$", file.read_text(), re.M)[1].replace("_", "")) / 1000
    assert int(service["stop_grace_period"].rstrip("s")) > drain_s, f"{name}: killed before it has drained"


def main():
    binaries = Path(sys.argv[1]).resolve()
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours = {name: service for name, service in services.items() if service["image"] == "amoe-demo"}
    for name, service in ours.items():
        check(name, service, services, binaries)
    scraped = {target for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
               for targets in job["static_configs"] for target in targets["targets"]}
    assert scraped == {f"{name}:9464" for name in ours}, f"Prometheus scrapes {scraped}"
    for volume in services["prometheus"]["volumes"]:
        (DEPLOY / volume.split(":")[0]).resolve(strict=True)
    print(f"compose.yaml: {len(ours)} processes")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as wrong:
        sys.exit(str(wrong))
