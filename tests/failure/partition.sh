#!/usr/bin/env bash
# Cuts connections between processes in network namespaces of this machine, and loses packets, under load; writes the part of
# docs/reliability.md about networks. Fails when a request failed or an answer changed.
#
#     tests/failure/partition.sh [--binaries FOLDER]
#
# --binaries  release binaries that are there already; by default they are built
#
# Needs root, ip and nft (Debian's packages iproute2 and nftables), and etcd. One namespace for the gateway, a coordinator, etcd and
# the clients, one for each node; a bridge between them.
set -euo pipefail
cd "$(dirname "$0")/../.."

binaries=''
while [ $# -gt 0 ]; do
    case $1 in
    --binaries) binaries=$2 ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" && exit 64 ;;
    esac
    shift 2
done
if [ -z "$binaries" ]; then
    PROTOC=$(cargo xtask protoc) cargo build --release --workspace --bins --features coordinator/etcd
    binaries=${CARGO_TARGET_DIR:-target}/release
fi
folder=$(mktemp -d)
net=10.77.0 bridge=amoe-bridge processes=()
hosts=(center attention-0 attention-1 expert-0 expert-1 expert-2)

cleanup() {
    local host
    for host in "${hosts[@]}"; do
        # What runs there is what was started below.
        ip netns pids "amoe-$host" 2>/dev/null | xargs -r kill -9 || true
        ip netns del "amoe-$host" 2>/dev/null || true
    done
    ip link del $bridge 2>/dev/null || true
}
trap cleanup EXIT

# The address of a host: its place in the list.
address() {
    local place
    for place in "${!hosts[@]}"; do [ "${hosts[place]}" != "$1" ] || echo "$net.$((place + 1))"; done
}

inside() {
    local host=$1
    shift
    ip netns exec "amoe-$host" "$@"
}

build_network() {
    local place host
    ip link add $bridge type bridge
    ip link set $bridge up
    for place in "${!hosts[@]}"; do
        host=${hosts[place]}
        ip netns add "amoe-$host"
        ip link add "amoe-$place" type veth peer name eth0 netns "amoe-$host"
        ip link set "amoe-$place" master $bridge up
        inside "$host" ip address add "$(address "$host")/24" dev eth0
        inside "$host" ip link set eth0 up
        inside "$host" ip link set lo up
        inside "$host" nft 'add table inet fault; add chain inet fault in { type filter hook input priority 0; }'
    done
}

# role HOST PROGRAM VARIABLE...: a process of a host, in the background.
role() {
    local host=$1 program=$2
    shift 2
    inside "$host" env AMOE_TELEMETRY__LOG=warn AMOE_ADMIN__ADDRESS=0.0.0.0:9464 AMOE_MODEL__PATH=models/demo "$@" \
        "$binaries/$program" >>"$folder/$host-$program.log" 2>&1 &
    processes+=($!)
}

node() {
    local host=$1 program=$2 port=$3
    shift 3
    role "$host" "$program" AMOE_NODE__NAME="$host" AMOE_NODE__LISTEN="$(address "$host"):$port" AMOE_DEVICE__THREADS=1 \
        AMOE_CLUSTER__COORDINATORS="[\"$center:7400\"]" "$@"
}

start_cluster() {
    local host
    inside center etcd --data-dir "$folder/etcd" --log-level error >"$folder/etcd.log" 2>&1 &
    processes+=($!)
    inside center env -u AMOE_MODEL__PATH AMOE_TELEMETRY__LOG=warn AMOE_ADMIN__ADDRESS=127.0.0.1:9465 AMOE_CONTROL__LISTEN="$center:7400" \
        AMOE_CLUSTER__EXPERT_NODES_MIN=3 AMOE_CLUSTER__HEARTBEAT_MS=200 AMOE_CLUSTER__LEASE_MS=2000 \
        AMOE_PLACEMENT__FILL_SPARE_SLOTS=true AMOE_STORE__KIND=etcd AMOE_STORE__ENDPOINTS='["http://127.0.0.1:2379"]' \
        "$binaries/coordinator" >"$folder/coordinator.log" 2>&1 &
    processes+=($!)
    role center gateway AMOE_CLUSTER__NAME=gateway AMOE_CLUSTER__COORDINATORS="[\"$center:7400\"]" AMOE_SERVER__ADDRESS="$center:8000"
    for host in "${hosts[@]}"; do
        case $host in
        attention-*) node "$host" attention-node 7500 ;;
        expert-*) node "$host" expert-node 7600 AMOE_NODE__PROFILE=false ;;
        esac
    done
    for host in "${hosts[@]}"; do
        until inside "$host" curl -sf -o /dev/null "http://127.0.0.1:9464/readyz"; do
            for process in "${processes[@]}"; do kill -0 "$process"; done
            sleep 0.2
        done
    done
}

# Host $1 hears nothing of the hosts that follow.
deaf() {
    local host=$1 from
    shift
    for from in "$@"; do inside "$host" nft "add rule inet fault in ip saddr $(address "$from") drop"; done
}

# Neither hears the other.
cut() {
    deaf "$1" "$2"
    deaf "$2" "$1"
}

# What is done, to whom, and for how long; then 10 s without faults. Commands that make the fault come from standard input.
fault() {
    local what=$1 whom=$2 seconds=$3 host
    echo "$what: $whom"
    eval "$(cat)"
    sleep "$seconds"
    for host in "${hosts[@]}"; do inside "$host" nft 'flush chain inet fault in'; done
    echo
    sleep 10
}

# Requests that the gateway has answered.
answered() {
    inside center curl -s "http://$center:8000/metrics" | awk '/^vllm:request_success_total/ { sum += $NF } END { print sum + 0 }'
}

faults() {
    # The first two dozen are those that the answers are compared with.
    until [ "$(answered)" -gt 40 ]; do sleep 0.5; done
    sleep 5
    fault 'expert node cut off from everybody' expert-1 12 <<<'for host in "${hosts[@]}"; do [ $host = expert-1 ] || cut expert-1 $host; done'
    fault 'attention node cut off from everybody' attention-1 12 <<<'for host in "${hosts[@]}"; do [ $host = attention-1 ] || cut attention-1 $host; done'
    fault 'attention node and expert node cut off from each other' 'attention-0 expert-2' 12 <<<'cut attention-0 expert-2'
    fault 'attention node cut off from coordinator and gateway, one way' attention-0 8 <<<'deaf attention-0 center'
    fault 'expert node cut off from its coordinator only' expert-0 8 <<<'cut expert-0 center'
    fault 'all nodes cut off from coordinator and gateway' center 6 <<<'for host in "${hosts[@]:1}"; do cut $host center; done'
    fault '1 % of all packets lost' everywhere 15 <<<'for host in "${hosts[@]}"; do inside $host nft "add rule inet fault in iifname eth0 numgen random mod 100 < 1 drop"; done'
    fault '10 % of all packets lost' everywhere 15 <<<'for host in "${hosts[@]}"; do inside $host nft "add rule inet fault in iifname eth0 numgen random mod 100 < 10 drop"; done'
}

cleanup
center=$(address center)
build_network
start_cluster
faults | inside center "$binaries/amoe" chaos --endpoint "http://$center:8000" --told --seconds 185 --report docs/reliability.md
