#!/usr/bin/env bash
# Checks and measures the CUDA kernels on a machine with a GPU, with what is built on one without.
#
#   tests/gpu/run.sh build               compiles kernels and program into target/gpu, a folder to take along
#   target/gpu/run.sh measure FOLDER     on the GPU machine: writes report.json, report.md and clocks.csv there
#
# The GPU machine needs its driver and nothing else. What follows FOLDER goes to gpu-check as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

build() {
    cd "$here/../.."
    cargo xtask kernels --check
    cargo build --release --package kernels --bin gpu-check
    mkdir -p target/gpu
    install -m 755 "${CARGO_TARGET_DIR:-target}/release/gpu-check" tests/gpu/run.sh target/gpu/
    strip target/gpu/gpu-check
    du -sh target/gpu
}

machine() {
    date -u +"%F %H:%M UTC"
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --format=csv,noheader \
            --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total
    fi
}

measure() {
    folder=${1:?name the folder for the report}
    shift
    mkdir -p "$folder"
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --format=csv --loop=1 --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu \
            >"$folder/clocks.csv" &
        trap "kill $!" EXIT
    fi
    "$here/gpu-check" --report "$folder" --notes "$(machine)" "$@"
    cat "$folder/report.md"
}

case "${1:-}" in
    build) build ;;
    measure) measure "${@:2}" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
