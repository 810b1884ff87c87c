#!/usr/bin/env python3
"""Serves under mixed load for a long time and fails when the memory of a process goes on growing.

    tests/overload/soak.py --binaries FOLDER [--seconds S] [--rate R]

A coordinator, a gateway, an attention node and two expert nodes, each a process, serve the demo model. Short and long answers
are asked for, streams are left in the middle, and requests come that cannot be answered. Memory (RSS) is looked at every few seconds.
After a warm-up of a quarter of the time no process may hold more than a tenth and 16 MiB above the most that it held in the warm-up.
The result is written into docs/reliability.md. Needs nothing but Python.
"""

import argparse
import datetime
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- written by `tests/overload/soak.py` -->", "<!-- end -->"
HOST, PORT = "127.0.0.1", 8780
GROWTH, SLACK_MIB = 1.10, 16
EVERY_S = 5
ROLES = ["coordinator", "gateway", "attention-node", "expert-node", "expert-node-2"]


def start(binaries, folder):
    """Every role by its example's configuration, on ports of its own."""
    processes = {}
    coordinators = f'["{HOST}:7480"]'
    for place, name in enumerate(ROLES):
        role = name.removesuffix("-2")
        settings = {"ADMIN__ADDRESS": f"{HOST}:{9580 + place}", "TELEMETRY__LOG": "warn"}
        if role == "coordinator":
            settings |= {"CONTROL__LISTEN": f"{HOST}:7480", "CLUSTER__EXPERT_NODES_MIN": "2"}
        else:
            settings |= {"CLUSTER__COORDINATORS": coordinators, "MODEL__PATH": str(ROOT / "models/demo")}
        if role == "gateway":
            settings |= {"SERVER__ADDRESS": f"{HOST}:{PORT}", "MODEL__SERVED_NAMES": '["demo"]'}
        if role.endswith("-node"):
            settings |= {"NODE__NAME": name, "NODE__LISTEN": f"{HOST}:{7580 + place}", "DEVICE__THREADS": "1"}
        environment = {f"AMOE_{key}": value for key, value in settings.items()}
        log = open(folder / f"{name}.log", "w")
        command = [binaries / role, "--config", ROOT / f"deploy/examples/{role}.toml"]
        processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    return processes


def ask(path, body, leave_after=None):
    """The status of an answer, which is left after so many bytes."""
    connection = http.client.HTTPConnection(HOST, PORT, timeout=120)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read(leave_after)
        return answer.status
    finally:
        connection.close()


class Load:
    """What clients do until they are told to stop."""

    def __init__(self, binaries, rate):
        self.amoe, self.rate = binaries / "amoe", rate
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.counts = {"answered": 0, "failed": 0, "refused": 0, "left": 0, "senseless": 0}

    def add(self, **counts):
        with self.lock:
            for name, count in counts.items():
                self.counts[name] += count

    def bench(self, requests, *flags):
        with tempfile.NamedTemporaryFile() as result:
            command = [self.amoe, "bench", "--base-url", f"http://{HOST}:{PORT}", "--model", "demo", "--vocab", "2000"]
            command += ["--num-prompts", str(requests), "--save-result", result.name, *map(str, flags)]
            done = subprocess.run(command, capture_output=True)
            if done.returncode:
                return self.add(failed=requests)
            said = json.load(open(result.name))
            self.add(answered=said["completed"], failed=said["failed"], refused=said["refused"])

    def crowd(self):
        self.bench(192, "--max-concurrency", 96, "--random-input-len", 400, "--random-output-len", 100, "--ignore-eos")

    def short(self):
        self.bench(round(self.rate * 20), "--request-rate", self.rate, "--random-input-len", 64, "--random-output-len", 32)

    def long(self):
        self.bench(6, "--max-concurrency", 2, "--random-input-len", 400, "--random-output-len", 200, "--ignore-eos")

    def leave(self):
        body = {"model": "demo", "prompt": "And it came to pass", "max_tokens": 300, "stream": True, "ignore_eos": True}
        ask("/v1/completions", json.dumps(body), leave_after=400)
        self.add(left=1)

    def senseless(self):
        for path, body in [("/v1/completions", "{"), ("/v1/chat/completions", "{}"), ("/nowhere", ""), ("/tokenize", '{"prompt": "x"}')]:
            ask(path, body)
            self.add(senseless=1)

    def again(self, act, pause_s):
        while not self.over.wait(pause_s):
            try:
                act()
            except OSError as error:
                print(f"soak: {error}", file=sys.stderr)
                self.add(failed=1)

    def begin(self):
        self.crowd()
        acts = [(self.short, 0), (self.long, 1), (self.leave, 0.5), (self.senseless, 0.5)]
        threads = [threading.Thread(target=self.again, args=act, daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        return threads


def rss_mib(process):
    for line in open(f"/proc/{process.pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {process.pid} has ended")


def until_ready(processes):
    for _ in range(600):
        try:
            if ask("/v1/completions", '{"model": "demo", "prompt": "In", "max_tokens": 1}') == 200:
                return
        except OSError:
            pass
        if any(process.poll() is not None for process in processes.values()):
            break
        time.sleep(0.1)
    raise SystemExit("the cluster does not get ready")


def watch(processes, seconds):
    begun, samples = time.monotonic(), []
    while (now := time.monotonic() - begun) < seconds:
        samples.append((now, {name: rss_mib(process) for name, process in processes.items()}))
        time.sleep(EVERY_S)
    return samples


def report(samples, counts, seconds, load):
    warm = [held for at, held in samples if at < seconds / 4]
    late = [held for at, held in samples if at >= seconds / 4]
    rows, grown = [], []
    for name in ROLES:
        before, after = max(held[name] for held in warm), max(held[name] for held in late)
        rows.append(f"| {name} | {warm[0][name]:.0f} | {before:.0f} | {after:.0f} | {late[-1][name]:.0f} |")
        if after > before * GROWTH + SLACK_MIB:
            grown.append(name)
    lines = [
        f"Measured on {datetime.date.today()}: {seconds} s ({os.cpu_count()} processors for everything, release build, load average {load} before). "
        f"{counts['answered']} requests answered, {counts['refused']} refused by 429, {counts['failed']} failed; {counts['left']} streams "
        f"left by their clients, {counts['senseless']} requests that make no sense or need no node.",
        "",
        "| process | MiB at the start | most in the warm-up, a quarter of the time | most after it | at the end |",
        "|---|---|---|---|---|",
        *rows,
    ]
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])
    print("\n".join(lines))
    if grown or counts["failed"]:
        sys.exit(f"memory grew: {', '.join(grown) or 'nowhere'}; {counts['failed']} requests failed")


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--binaries", type=lambda path: pathlib.Path(path).resolve(), required=True)
    flags.add_argument("--seconds", type=int, default=3600)
    flags.add_argument("--rate", type=float, default=4.0, help="short requests per second")
    flags = flags.parse_args()
    average = open("/proc/loadavg").read().split()[0]
    processes = start(flags.binaries, pathlib.Path(tempfile.mkdtemp()))
    try:
        until_ready(processes)
        load = Load(flags.binaries, flags.rate)
        threads = load.begin()
        samples = watch(processes, flags.seconds)
        load.over.set()
        for thread in threads:
            thread.join(timeout=120)
        report(samples, load.counts, flags.seconds, average)
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for process in processes.values():
            process.wait(timeout=90)


main()
