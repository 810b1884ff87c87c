"""Writes what tests/overload/run.sh measured into docs/reliability.md, and fails when an overloaded server does too little.

report.py RESULTS CAPACITY SECONDS LOAD PEAK_MIB LEVEL...
"""

import datetime
import json
import os
import pathlib
import sys

BEGIN, END = "<!-- written by `tests/overload/run.sh` -->", "<!-- end -->"
DOCUMENT = pathlib.Path("docs/reliability.md")
LEAST = 0.9


def merged(folder, place):
    """What the clients of one load saw together: sums, and the worst of their times."""
    runs = [json.loads(path.read_text()) for path in pathlib.Path(folder).glob(f"level-{place}-*.json")]
    sums = {key: sum(run[key] for run in runs) for key in ("request_goodput", "completed", "refused", "failed", "num_prompts")}
    times = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms")
    return sums | {key: max(run[key] for run in runs) for key in times}


def row(level, asked, run):
    refused = run["refused"] / run["num_prompts"]
    return (
        f"| {level}× | {asked:.1f} | {run['request_goodput']:.2f} | {run['completed']} | {run['refused']} ({refused:.0%}) | {run['failed']} "
        f"| {run['median_ttft_ms']:.0f} / {run['p99_ttft_ms']:.0f} | {run['median_tpot_ms']:.0f} / {run['p99_tpot_ms']:.0f} |"
    )


def main():
    folder, capacity, seconds, load, peak, *levels = sys.argv[1:]
    capacity = float(capacity)
    runs = [merged(folder, place) for place in range(len(levels))]
    best = max(run["request_goodput"] for run in runs)
    tripled = min(run["request_goodput"] for run, level in zip(runs, levels) if level == "3.0") / best
    lines = [
        f"Measured on {datetime.date.today()} ({os.cpu_count()} processors for server and client, release build, load average "
        f"{load} before; {seconds} s at each load). Saturating rate: {capacity:.2f} requests per second.",
        "",
        "| load | requests per second asked | in time, per second | answered | refused by 429 | failed "
        "| first token, ms: median / p99 | per token, ms: median / p99 |",
        "|---|---|---|---|---|---|---|---|",
        *(row(level, capacity * float(level), run) for level, run in zip(levels, runs)),
        "",
        f"**At 3× the saturating rate {tripled:.0%} of the best.** The server's memory was {peak} MiB at most.",
    ]
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)
    print("\n".join(lines))
    failed = sum(run["failed"] for run in runs)
    if tripled < LEAST or failed:
        sys.exit(f"{tripled:.0%} of the best at 3×, expected {LEAST:.0%}; {failed} requests failed, expected none")


main()
