#!/usr/bin/env bash
# Runs the scenarios of the papers and beyond, and writes docs/reproduction.md from what they come to.
#
#     tests/reproduction/run.sh [FOLDER]     results are kept in FOLDER as JSON, by default in a temporary one
#
# Virtual time, seeded: every run gives the same numbers. Takes a few minutes on two cores and needs python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
results=${1:-$(mktemp -d)}
amoe=${CARGO_TARGET_DIR:-target}/release/amoe

cargo build --quiet --release --package cli
mkdir -p "$results"
begun=$SECONDS
for scenario in scenarios/papers/*.toml scenarios/beyond/*.toml; do
    "$amoe" simulate "$scenario" --json >"$results/$(basename "$scenario" .toml).json"
done
python3 tests/reproduction/render.py tests/reproduction/reproduction.md "$results" $((SECONDS - begun)) >docs/reproduction.md
