#!/usr/bin/env bash
# Runs a cluster of paced processes in both schedules under three skews, the simulator on the same
# description, and writes docs/live-check.md: does the simulator say of amoe what amoe does?
#
#     tests/live/run.sh [FOLDER]      checkpoints and results go to FOLDER, by default a temporary one
#
# Two attention nodes and four expert nodes compute a tiny model on the processor and are held to the
# curves below (`device = "paced:FILE"`), slow enough for two cores to keep up. Needs curl and python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath "${1:-$(mktemp -d)}")
bin=$(realpath "${CARGO_TARGET_DIR:-target}")/release
clients=64 output=32 layers=6 experts=32 latency_us=150 head_ns=400000

PROTOC=$(cargo xtask protoc) cargo build --release --workspace --bins --features coordinator/etcd

# Attention is bound by what it reads. Experts are up to eight tokens, and by their tokens from there on.
attention='[[1,3000000],[16,3000000],[32,3200000],[64,3800000]]'
expert='[[1,300000],[4,300000],[8,350000],[16,600000],[32,1100000],[64,2100000],[128,4100000]]'
echo "{\"nodes\":[{\"name\":\"any\",\"layer\":$attention,\"expert\":$expert}]}" >"$folder/curves.json"

export AMOE_TELEMETRY__LOG=warn
# A role in the background, as its example says but for what the arguments set.
start() {
    local role=$1
    shift
    env "$@" "$bin/$role" --config "deploy/examples/$role.toml" &
    processes+=($!)
}

# Tokens per second of the cluster in one schedule, on the model in $1.
live() {
    local model=$1 schedule=$2 number process
    local node=(AMOE_NODE__SCHEDULE="$schedule" AMOE_NODE__DEVICE="paced:$folder/curves.json" AMOE_MODEL__PATH="$model" AMOE_DEVICE__THREADS=1)
    processes=()
    trap 'kill "${processes[@]}" 2>/dev/null || true' EXIT
    start coordinator AMOE_CLUSTER__EXPERT_NODES_MIN=4 AMOE_STORE__KIND=memory
    for number in 0 1 2 3; do
        start expert-node AMOE_NODE__NAME=expert-$number AMOE_NODE__LISTEN=127.0.0.1:763$number AMOE_ADMIN__ADDRESS=127.0.0.1:963$number \
            "${node[@]}"
    done
    for number in 0 1; do
        start attention-node AMOE_NODE__NAME=attention-$number AMOE_NODE__LISTEN=127.0.0.1:753$number AMOE_ADMIN__ADDRESS=127.0.0.1:953$number \
            "${node[@]}"
    done
    start gateway AMOE_SERVER__ADDRESS=127.0.0.1:8763 AMOE_MODEL__PATH="$model" AMOE_MODEL__SERVED_NAMES='["tiny"]'
    until curl -sf -o /dev/null http://127.0.0.1:8763/readyz; do
        for process in "${processes[@]}"; do kill -0 "$process"; done
        sleep 0.1
    done
    "$bin/amoe" bench --base-url http://127.0.0.1:8763 --model tiny --max-concurrency $clients --num-prompts $((8 * clients)) \
        --vocab 2048 --random-input-len 4 --random-output-len $output --ignore-eos --save-result "$folder/bench.json" >"$folder/bench.log" 2>&1
    kill "${processes[@]}"
    wait "${processes[@]}" || true
    python3 -c "import json; print(json.load(open('$folder/bench.json'))['output_throughput'])"
}

# The same in virtual time, as a scenario of two runs.
scenario() {
    cat <<TOML
[base]
duration_s = 40.0
nodes = { attention = 2, expert = 4 }
workload = { kind = "closed", in_flight = $clients, lengths = { prompt = [4, 4], output = [$output, $output] } }
skew = { kind = "zipf", s = $1 }
placement = { policy = "linear" }
links = { latency_us = $latency_us, gbps = 100.0 }

[base.hardware]
model = "mixtral-8x7b"
experts = $experts
layers = $layers
top_k = 2
device = { measured = { profile = "curves.json", attention = $attention, head = [[1, $head_ns]] } }

[[run]]
id = "async"

[[run]]
id = "lockstep"
schedule = "lockstep"

[[result]]
id = "async"
quantity = "tokens per second"
value = { kind = "measured", of = "throughput", run = "async" }

[[result]]
id = "lockstep"
quantity = "tokens per second"
value = { kind = "measured", of = "throughput", run = "lockstep" }
TOML
}

row() {
    local skew=$1 zipf=$2
    [ -e "$folder/$skew/config.json" ] || "$bin/amoe" synth --layers $layers --hidden 64 --experts $experts --top-k 2 --moe-intermediate 32 \
        --heads 4 --kv-heads 2 --head-dim 16 --vocab 2048 --router-zipf "$zipf" --out "$folder/$skew" >/dev/null
    scenario "$zipf" >"$folder/$skew.toml"
    "$bin/amoe" simulate "$folder/$skew.toml" --json >"$folder/$skew.json"
    python3 - "$skew" "$(live "$folder/$skew" async)" "$(live "$folder/$skew" lockstep)" "$folder/$skew.json" <<'PYTHON'
import json, sys
skew, live_async, live_lockstep, file = sys.argv[1:]
live = float(live_async), float(live_lockstep)
simulated = {result["id"]: result["measured"] for result in json.load(open(file))["results"]}
ratio, predicted = live[0] / live[1], simulated["async"] / simulated["lockstep"]
print(f"| {skew} | {live[0]:.0f} | {live[1]:.0f} | {ratio:.2f} | {simulated['async']:.0f} | {simulated['lockstep']:.0f} | {predicted:.2f} | {100 * (predicted / ratio - 1):+.0f} % |")
PYTHON
}

{
    echo "# Live check of the simulator"
    echo
    echo "Written by \`tests/live/run.sh\` on $(date -u +%F) at commit $(git rev-parse --short HEAD) on $(nproc) cores; load average before the run: $(cut -d' ' -f1-3 /proc/loadavg)."
    echo
    echo "Two attention nodes and four expert nodes, each a process, compute a model of $layers layers of $experts experts, top-2, and are held to cost"
    echo "curves (\`node.device = \"paced:FILE\"\`): an attention layer takes 3.0 ms up to 16 rows and 3.8 ms for 64, an expert 0.3 ms up to 4 tokens and"
    echo "1.1 ms for 32. $clients clients in a closed loop, $output tokens each, experts placed linearly. The simulator has the same curves,"
    echo "$latency_us µs a hop and $((head_ns / 1000)) µs for the LM head."
    echo
    echo "| skew | live: async, tok/s | lockstep | ratio | simulated: async, tok/s | lockstep | ratio | difference |"
    echo "|---|---|---|---|---|---|---|---|"
    row even 0
    row zipf-0.7 0.7
    row zipf-1.2 1.2
} >docs/live-check.md
cat docs/live-check.md
