#!/usr/bin/env python3
"""Writes the Grafana board and Prometheus's rules into the chart; with --check only says whether they are as written."""

import json
import sys
from pathlib import Path

from board import board
from rules import rules

FILES = Path(__file__).resolve().parent.parent / "helm/amoe/files"


def yaml(value, indent=""):
    """As much of YAML as rules need: maps and lists of maps in blocks, texts quoted as JSON quotes them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, (dict, list)):
                yield f"{indent}{key}:"
                yield from yaml(inner, indent + "  ")
            else:
                yield f"{indent}{key}: {json.dumps(inner, ensure_ascii=False)}"
    else:
        for inner in value:
            first, *others = yaml(inner, indent + "  ")
            yield f"{indent}- {first.strip()}"
            yield from others


def main():
    written_by = "# Written by deploy/observability/generate.py; a change made here is lost.\n"
    texts = {
        "dashboard.json": json.dumps(board(), indent=1, ensure_ascii=False) + "\n",
        "rules.yaml": written_by + "\n".join(yaml(rules())) + "\n",
    }
    stale = [name for name, text in texts.items()
             if not (FILES / name).exists() or (FILES / name).read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"{', '.join(stale)} in {FILES}: not what the generator writes; run deploy/observability/generate.py")
        return
    for name in stale:
        (FILES / name).write_text(texts[name])


if __name__ == "__main__":
    main()
