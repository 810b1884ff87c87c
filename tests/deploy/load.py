"""Asks a gateway without a pause, compares every answer with what the idle cluster said, and writes what came of it.

    load.py URL RESULT.json [CONCURRENCY]

SIGUSR1 begins the next phase, whose name is the next line of standard input; SIGTERM ends. A request that is refused,
breaks off or says something else than at first counts; nothing is tried again.
"""

import http.client
import json
import signal
import sys
import threading
import time
from urllib.parse import urlsplit

OPENINGS = ["And it came to pass", "In the beginning", "And God said", "The king of", "Behold, I", "And the children of"]
# Long enough that every disturbance meets requests in the middle.
TOKENS = [16, 48, 96, 160]
ASKS = [(f"{opening} {number}", tokens, stream)
        for number, opening in enumerate(OPENINGS) for tokens in TOKENS for stream in (False, True)]
TIMEOUT_S = 120


def ask(address, prompt, tokens, stream):
    """The text of an answer. A connection of its own each time, so that every request may meet another gateway."""
    body = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream})
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {text[:200]}")
    if not stream:
        return json.loads(text)["choices"][0]["text"]
    events = [line[len("data: "):] for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise ValueError(f"a stream broke off: {text[-200:]}")
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


class Load:
    def __init__(self, address):
        self.address = address
        self.lock = threading.Lock()
        self.phase, self.phases = "undisturbed", []
        self.records, self.stop, self.begun = [], False, time.monotonic()

    def learn(self):
        self.expected = [ask(self.address, *each) for each in ASKS]

    def client(self, number):
        while not self.stop:
            at = number % len(ASKS)
            number += 1
            begun, phase, outcome = time.monotonic(), self.phase, "good"
            try:
                text = ask(self.address, *ASKS[at])
                if text != self.expected[at]:
                    outcome = "changed"
                    self.complain(phase, f"{ASKS[at]}: {text!r} instead of {self.expected[at]!r}")
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                outcome = "failed"
                self.complain(phase, f"{ASKS[at]}: {error!r}")
            with self.lock:
                self.records.append((phase, outcome, time.monotonic() - begun, ASKS[at][1]))
            if outcome == "failed":
                time.sleep(0.05)

    def complain(self, phase, sentence):
        print(f"{phase}: {sentence}", file=sys.stderr, flush=True)

    def next_phase(self, *_):
        self.phases.append((self.phase, time.monotonic() - self.begun))
        self.phase, self.begun = sys.stdin.readline().strip(), time.monotonic()

    def result(self):
        rows = []
        for phase, seconds in self.phases:
            mine = [record for record in self.records if record[0] == phase]
            times = sorted(record[2] for record in mine)
            rows.append({
                "phase": phase, "seconds": round(seconds, 1), "requests": len(mine),
                "failed": sum(record[1] == "failed" for record in mine),
                "changed": sum(record[1] == "changed" for record in mine),
                "p50_s": round(times[len(times) // 2], 2) if times else None,
                "max_s": round(times[-1], 2) if times else None,
            })
        return rows


def main():
    address, path = urlsplit(sys.argv[1]).netloc, sys.argv[2]
    concurrency = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    load = Load(address)
    load.learn()
    signal.signal(signal.SIGUSR1, load.next_phase)
    threads = [threading.Thread(target=load.client, args=(7 * number,)) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    print("loading", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: setattr(load, "stop", True))
    while not load.stop:
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    load.next_phase()
    with open(path, "w") as file:
        json.dump(load.result(), file, indent=1)


if __name__ == "__main__":
    main()
