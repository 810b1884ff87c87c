#!/usr/bin/env bash
# Loads one server with more than it can do and writes the section Overload of docs/reliability.md. Fails when what it answers in
# time at three times its capacity is less than nine tenths of the most that it answers in time at any load.
#
#     tests/overload/run.sh [--seconds S] [--binaries FOLDER] [--checkpoint FOLDER]
#
# --seconds     of each load; 40 by default
# --binaries    release binaries that are there already; by default they are built
# --checkpoint  what is served; by default one with random weights (`amoe synth`)
#
# Needs curl and python3. Nothing else should run meanwhile: client and server share the machine's cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=40 binaries='' checkpoint=''
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2 ;;
    --binaries) binaries=$2 ;;
    --checkpoint) checkpoint=$2 ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 64 ;;
    esac
    shift 2
done
load=$(cut -d' ' -f1-3 /proc/loadavg)
priority=$(sed -n 's/.* nice //p' /proc/self/autogroup 2>/dev/null || true)
[ "${priority:-0}" -eq 0 ] || load="$load, share of the cores raised by autogroup priority $priority"
if [ -z "$binaries" ]; then
    cargo build --release --package cli
    binaries=${CARGO_TARGET_DIR:-target}/release
fi
results=$(mktemp -d)
if [ -z "$checkpoint" ]; then
    checkpoint=$results/checkpoint
    "$binaries/amoe" synth --out "$checkpoint"
fi

# What a good answer keeps to, and what the server is told: how many run at once sets the time between tokens.
ttft_ms=2000 tpot_ms=200 at_once=96 prompt=128
port=8770 url=http://127.0.0.1:8770

"$binaries/amoe" serve "$checkpoint" --host 127.0.0.1 --port $port --served-model-name measured --log warn \
    --max-num-seqs $at_once --first-token-ms $ttft_ms --no-enable-prefix-caching >"$results/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 600); do
    curl -sf -o /dev/null "$url/readyz" && break
    kill -0 $server || { tail -5 "$results/server.log" >&2 && exit 1; }
    sleep 0.1
done

# One client for each length of answers: answers that are all as long would end all at once, again and again.
# bench NAME REQUESTS-OF-EACH FLAG...
bench() {
    local name=$1 requests=$2 output clients=()
    shift 2
    for output in 16 48 80; do
        "$binaries/amoe" bench --base-url $url --model measured --num-prompts "$requests" --random-input-len $prompt \
            --random-output-len $output --ignore-eos --goodput ttft:$ttft_ms tpot:$tpot_ms --seed $output \
            --save-result "$results/$name-$output.json" "$@" >>"$results/bench.log" 2>&1 &
        clients+=($!)
    done
    wait "${clients[@]}"
}
product() { python3 -c "print($1)"; }

# What it does when as many run as may, and there always is another one: the saturating rate.
bench warm $at_once --max-concurrency $((at_once / 3))
begun=$(date +%s.%N)
bench full $((at_once * 2)) --max-concurrency $((at_once / 3))
capacity=$(product "3 * $at_once * 2 / ($(date +%s.%N) - $begun)")
# Some come twice: what lies between the two is what the machine does on its own.
levels='0.5 1.0 2.0 3.0 1.0 3.0'
place=0
for level in $levels; do
    rate=$(product "$capacity * $level / 3")
    bench "level-$place" "$(product "round($rate * $seconds)")" --request-rate "$rate"
    place=$((place + 1))
done
memory=$(($(sed -n 's/VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$server/status) >> 10))

python3 tests/overload/report.py "$results" "$capacity" "$seconds" "$load" "$memory" $levels
