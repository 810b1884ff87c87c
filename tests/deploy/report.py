"""Writes what the load under disturbances came to into a document, between the two comments that mark the place.

    report.py DOCUMENT RESULT.json ROLLOUT_SECONDS
"""

import json
import sys
from datetime import date
from pathlib import Path

BEGIN, END = "<!-- written by tests/deploy/kubernetes.sh -->", "<!-- end -->"


def main():
    document, result, rollout_s = sys.argv[1:]
    rows = json.loads(Path(result).read_text())
    rows = [row for row in rows if row["requests"]]
    total = {key: sum(row[key] for row in rows) for key in ("seconds", "requests", "failed", "changed")}
    lines = [
        BEGIN,
        f"Measured on {date.today()}: everything ready {rollout_s} s after `helm install`; then, under load from six clients:",
        "",
        "| meanwhile | seconds | requests | failed | changed | median | longest |",
        "|---|---|---|---|---|---|---|",
        *(f"| {row['phase']} | {row['seconds']:.0f} | {row['requests']} | {row['failed']} | {row['changed']}"
          f" | {row['p50_s']:.2f} s | {row['max_s']:.2f} s |" for row in rows),
        f"| **in all** | {total['seconds']:.0f} | {total['requests']} | {total['failed']} | {total['changed']} | | |",
        END,
    ]
    text = Path(document).read_text()
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    Path(document).write_text(before + "\n".join(lines) + after)
    print("\n".join(lines[1:-1]))


if __name__ == "__main__":
    main()
