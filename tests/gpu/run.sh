#!/usr/bin/env bash
# Checks and measures the CUDA kernels, and a server on them, on a machine with a GPU, with what is built on one without.
#
#   tests/gpu/run.sh build               compiles kernels and programs into target/gpu, a folder to take along
#   target/gpu/run.sh measure FOLDER     on the GPU machine: writes report.json, report.md and clocks.csv there
#   target/gpu/run.sh serve FOLDER       there, too: serves random weights, writes serve.txt and the clients' *.json there
#
# The GPU machine needs its driver and nothing else but curl. What follows FOLDER goes to gpu-check, or to `amoe synth` in place
# of the shape of 12 of the 48 layers of Qwen3-30B-A3B (15 GB).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

build() {
    cd "$here/../.."
    cargo xtask kernels --check
    cargo build --release --package kernels --bin gpu-check --package cli --bin amoe
    mkdir -p target/gpu
    for program in gpu-check amoe; do install -m 755 "${CARGO_TARGET_DIR:-target}/release/$program" target/gpu/; done
    install -m 755 tests/gpu/run.sh target/gpu/
    strip target/gpu/gpu-check target/gpu/amoe
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

# Decoding by one client and by many, each with prompts of 128 tokens and answers of 128.
serve() {
    folder=${1:?name the folder for the report}
    shift
    shape=("$@")
    if [ $# -eq 0 ]; then
        shape=(--layers 12 --experts 128 --top-k 8 --hidden 2048 --moe-intermediate 768 --heads 32 --kv-heads 4 --head-dim 128
            --vocab 32000)
    fi
    mkdir -p "$folder"
    "$here/amoe" synth --out "$folder/checkpoint" "${shape[@]}"
    "$here/amoe" serve "$folder/checkpoint" --device cuda:0 --host 127.0.0.1 --port 8770 --served-model-name measured --log warn \
        --no-enable-prefix-caching >"$folder/server.log" 2>&1 &
    server=$!
    trap "kill $server" EXIT
    until curl -sf -o /dev/null http://127.0.0.1:8770/readyz; do
        kill -0 $server 2>/dev/null || { cat "$folder/server.log" >&2; exit 1; }
        sleep 0.2
    done
    { machine; echo "${shape[@]}"; } >"$folder/serve.txt"
    for clients in 1 8 32 128; do
        "$here/amoe" bench --base-url http://127.0.0.1:8770 --model measured --num-prompts $((clients * 2)) \
            --max-concurrency $clients --random-input-len 128 --random-output-len 128 --ignore-eos \
            --save-result "$folder/clients-$clients.json" | tee -a "$folder/serve.txt"
    done
    rm -r "$folder/checkpoint"
}

case "${1:-}" in
    build) build ;;
    measure) measure "${@:2}" ;;
    serve) serve "${@:2}" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
