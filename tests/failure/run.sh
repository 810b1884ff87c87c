#!/usr/bin/env bash
# Breaks a cluster of processes of this machine again and again under load, and writes the measured parts and the pictures of
# docs/reliability.md. Fails when a request failed or an answer changed.
#
#     tests/failure/run.sh [--seconds S] [--seed N] [--binaries FOLDER]
#
# --seconds   of the run with all kinds of faults; 600 by default
# --binaries  release binaries that are there already; by default they are built
#
# Needs etcd (Debian's package etcd-server). Nothing else should run meanwhile: the cores are shared by all processes.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=600 seed=1 binaries=''
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2 ;;
    --seed) seed=$2 ;;
    --binaries) binaries=$2 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 64 ;;
    esac
    shift 2
done
if [ -z "$binaries" ]; then
    PROTOC=$(cargo xtask protoc) cargo build --release --workspace --bins --features coordinator/etcd
    binaries=${CARGO_TARGET_DIR:-target}/release
fi

"$binaries/amoe" chaos --local --seconds "$seconds" --seed "$seed" --report docs/reliability.md
# Without a second replica of any expert, its loss is felt until it is loaded elsewhere.
"$binaries/amoe" chaos --local --replicas 1 --seconds 100 --seed "$seed" --faults expert-killed,expert-drained,attention-killed \
    --report docs/reliability.md
