#!/usr/bin/env bash
# Fuzzes every target, one after the other, keeps the smallest corpus that reaches what was reached, and writes what was run into README.md.
# Fails when an input made a target panic, hang, or take too much memory; the input lies in fuzz/artifacts.
#
#     fuzz/run.sh [--seconds S] [--only TARGET,...] [--target-dir FOLDER]
#
# --seconds     for each target; 600 by default
# --only        some of http_bodies,frames,config,safetensors; all by default
# --target-dir  where cargo builds; fuzz/target by default
#
# Needs cargo-fuzz and a nightly compiler: rustup toolchain install nightly && cargo install cargo-fuzz
set -euo pipefail
cd "$(dirname "$0")"

seconds=600 only=http_bodies,frames,config,safetensors folder=$PWD/target
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2 ;;
    --only) only=$2 ;;
    --target-dir) folder=$2 ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 64 ;;
    esac
    shift 2
done
cargo +nightly fuzz build --fuzz-dir . --target-dir "$folder"
programs=$folder/$(rustc -vV | sed -n 's/^host: //p')/release
work=$(mktemp -d)
failed=0
for target in ${only//,/ }; do
    mkdir -p "$work/$target" "artifacts/$target"
    cp corpus/"$target"/* "$work/$target/"
    # A machine that stands still for a moment must not look like a hang.
    "$programs/$target" "$work/$target" -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -max_len=65536 \
        -rss_limit_mb=2048 -timeout=100 -print_final_stats=1 >"$work/$target.log" 2>&1 || failed=1
    mkdir "$work/least"
    # The least inputs that reach every edge, however often: small enough to be kept.
    "$programs/$target" -merge=1 -set_cover_merge=1 -use_counters=0 "$work/least" "corpus/$target" "$work/$target" >>"$work/merge.log" 2>&1
    rm -r "corpus/$target" && mv "$work/least" "corpus/$target"
done
python3 report.py "$work" ${only//,/ }
exit $failed
