#!/usr/bin/env bash
# Measures amoe on this machine and writes docs/performance.md. Nothing else should run meanwhile.
#
#     tests/performance/run.sh [FOLDER]      a checkpoint is made in FOLDER, by default a temporary one
#
# Needs curl and python3. Takes some ten minutes, most of them for the release build.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-$(mktemp -d)}
model=$folder/m12
port=8760
amoe=${CARGO_TARGET_DIR:-target}/release/amoe
results=$(mktemp -d)

# What clients see at one concurrency, in the middle of three runs, as a row of the table.
level() {
    local run
    for run in 1 2 3; do
        "$amoe" bench --base-url "http://127.0.0.1:$port" --model m12 --max-concurrency "$1" \
            --num-prompts "$2" --random-input-len "$3" --random-output-len "$4" --ignore-eos \
            --seed "$run" --save-result "$results/$run.json" >/dev/null 2>&1
    done
    python3 - "$1" "$3" "$4" "$results" <<'PYTHON'
import json, sys
concurrency, prompt, output, folder = sys.argv[1:]
runs = sorted((json.load(open(f"{folder}/{run}.json")) for run in (1, 2, 3)), key=lambda r: r["output_throughput"])
middle, rates = runs[1], [round(run["output_throughput"], 1) for run in runs]
print(f"| {concurrency} | {prompt} / {output} | {rates[1]} ({rates[0]}–{rates[2]}) | {middle['median_ttft_ms']:.0f} | {middle['median_tpot_ms']:.1f} |")
PYTHON
}

serve() {
    "$amoe" serve "$model" --host 127.0.0.1 --port $port --log warn &
    server=$!
    begun=$(date +%s%N)
    until curl -sf -o /dev/null "http://127.0.0.1:$port/readyz"; do sleep 0.02; done
    ready_ms=$((($(date +%s%N) - begun) / 1000000))
}

cargo build --release --package cli
cargo bench --package kernels --bench products --no-run
load=$(cut -d' ' -f1-3 /proc/loadavg)
[ -e "$model/config.json" ] || "$amoe" synth --out "$model"
{
    echo "# Performance"
    echo
    echo "Written by \`tests/performance/run.sh\` on $(date -u +%F) at commit $(git rev-parse --short HEAD). Machine: $(nproc) cores,"
    echo "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), instruction set $(grep -q amx_bf16 /proc/cpuinfo && echo AMX || echo 'without AMX'); load average before the run: $load."
    echo "Each figure is the median of its runs; the range stands beside it. The same machine's limits are in the first block."
    echo
    echo "## Kernels"
    echo
    echo '```text'
    cargo bench --package kernels --bench products 2>/dev/null
    echo '```'
    echo
    echo "## Through HTTP"
    echo
    echo "\`amoe serve\`, one process, all cores, on the checkpoint that \`amoe synth\` writes by default (701 million parameters, bf16,"
    echo "even routing). Closed loop, streaming, temperature 1; the client shares the cores."
    echo
    echo "| clients | prompt / output tokens | output tok/s | median TTFT, ms | median time per token, ms |"
    echo "|---|---|---|---|---|"
    serve
    level 1 4 128 64
    level 4 8 128 64
    level 16 32 128 64
    level 64 128 128 64
    level 1 8 512 2
    echo
    echo "Ready after $ready_ms ms; peak memory $(($(sed -n 's/VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$server/status) / 1024)) MiB, weights on disk $(($(stat -c %s "$model/model.safetensors") >> 20)) MiB."
    echo
    echo "Not measured here: other engines on the same machine, separate processes, a busy neighbour, GPUs."
    kill "$server"
    wait "$server"
} >docs/performance.md
