"""Writes what fuzz/run.sh ran into fuzz/README.md: report.py LOGS TARGET..."""

import datetime
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
BEGIN, END = "<!-- written by `fuzz/run.sh` -->", "<!-- end -->"


def row(log, target):
    text = log.read_text(errors="replace")
    stat = lambda name: int(re.search(rf"stat::{name}:\s+(\d+)", text)[1])
    edges = int(re.findall(r"cov: (\d+)", text)[-1])
    seconds = int(re.findall(r"Done \d+ runs in (\d+) second", text)[-1])
    kept = [path.stat().st_size for path in (HERE / "corpus" / target).iterdir()]
    findings = len(re.findall(r"^SUMMARY: ", text, re.M))
    return (
        f"| `{target}` | {seconds} s | {stat('number_of_executed_units'):,} | {edges:,} | {stat('peak_rss_mb')} MiB | {findings} "
        f"| {len(kept)}, {sum(kept) >> 10} KiB |"
    )


def main():
    logs, *targets = sys.argv[1:]
    lines = [
        f"Run on {datetime.date.today()}, with the address sanitizer.",
        "",
        "| target | time | inputs tried | edges reached | memory at most | panics, hangs, leaks | kept inputs |",
        "|---|---|---|---|---|---|---|",
        *(row(pathlib.Path(logs, f"{target}.log"), target) for target in targets),
    ]
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


main()
