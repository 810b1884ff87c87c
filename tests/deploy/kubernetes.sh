#!/usr/bin/env bash
# Installs the chart on a real Kubernetes on this one machine and disturbs it under load: no request may fail and no
# answer may change. Writes what came of it into docs/deployment.md.
#
#     tests/deploy/kubernetes.sh
#
# Wants Debian 12, root, Helm as tests/deploy/check.sh fetches it, and an image `localhost/amoe-demo:latest` in buildah's store
# (STORAGE_DRIVER=vfs), as tests/deploy/image.sh makes it. The newest Kubernetes whose server parts can be had from Debian
# is 1.20; it is built from Debian's source the first time, which takes a quarter of an hour and 4 GB for a while. Everything
# runs in a network namespace of its own and is gone afterwards; with KEEP=1 the logs stay.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/deploy/machine.sh
. tests/deploy/machine.sh

namespace=llm
gateway=""
load=""

# The chart's values: a machine of two cores, and the pause before SIGTERM as a command, since 1.20 has no hook that sleeps.
values() {
    cat <<'YAML'
fullnameOverride: amoe
image: {repository: localhost/amoe-demo, tag: latest, pullPolicy: Never}
telemetry: {format: text}
gateway: &door
  config: {}
  resources: {requests: {cpu: 20m, memory: 64Mi}}
  lifecycle: {preStop: {exec: {command: [/tools/busybox, sleep, "5"]}}}
  extraVolumes: [{name: tools, hostPath: {path: /bin}}]
  extraVolumeMounts: [{name: tools, mountPath: /tools, readOnly: true}]
coordinator: *door
attention: &node
  replicas: 2
  config: {device: {threads: 1}}
  resources: {requests: {cpu: 50m, memory: 128Mi}}
expert:
  <<: *node
  config: {device: {threads: 1}, node: {profile: false}}
etcd:
  image: localhost/etcd:latest
  replicas: 1
  persistence: {enabled: false}
YAML
}

install_chart() {
    values | inside "$helm" upgrade --install amoe deploy/helm/amoe --namespace "$namespace" --create-namespace --values - "$@" >/dev/null
}

rolled_out() {
    local workload
    for workload in deployment/amoe-coordinator deployment/amoe-gateway statefulset/amoe-attention statefulset/amoe-expert; do
        kube --namespace "$namespace" rollout status "$workload" --timeout 600s >/dev/null
    done
}

# A phase of the load under a name.
phase() {
    echo "── $1"
    echo "$1" >&3
    kill -USR1 "$load"
    sleep 1
}

measure() {
    gateway=$(kube --namespace "$namespace" get service amoe-gateway -o 'jsonpath={.spec.clusterIP}')
    mkfifo "$work/phases"
    # Not `inside`, a function: signals are for the program itself.
    nsenter --net="/run/netns/$netns" python3 -B tests/deploy/load.py "http://$gateway:8000" "$work/result.json" 6 \
        <"$work/phases" >"$work/load.log" 2>"$work/complaints.log" &
    load=$!
    exec 3>"$work/phases"
    wait_for "the load" grep -q loading "$work/load.log"

    sleep 30
    phase "expert nodes from 2 to 4"
    kube --namespace "$namespace" scale statefulset amoe-expert --replicas 4 >/dev/null
    rolled_out
    sleep 5
    phase "one pod of every role deleted, one after the other"
    local pod
    for pod in amoe-expert-1 amoe-attention-0 \
        "$(pod_of coordinator)" "$(pod_of gateway)" amoe-etcd-0; do
        kube --namespace "$namespace" delete pod "$pod" --wait=true >/dev/null
        rolled_out
    done
    sleep 5
    phase "an expert node's process killed by SIGKILL"
    local container
    container=$(kube --namespace "$namespace" get pod amoe-expert-3 -o 'jsonpath={.status.containerStatuses[0].containerID}')
    ctr --address "$work/containerd.sock" --namespace k8s.io tasks kill --signal SIGKILL "${container#containerd://}"
    sleep 10
    rolled_out
    phase "rolling upgrade of everything"
    install_chart --set expert.replicas=4 --set telemetry.log=warn
    rolled_out
    sleep 5
    phase "expert nodes from 4 to 2"
    kube --namespace "$namespace" scale statefulset amoe-expert --replicas 2 >/dev/null
    wait_for "two expert nodes" gone amoe-expert-2
    wait_for "two expert nodes" gone amoe-expert-3
    sleep 5
    phase "after it all"
    sleep 20
    echo end >&3
    kill -TERM "$load"
    wait "$load"
}

pod_of() {
    kube --namespace "$namespace" get pod --selector "app.kubernetes.io/component=$1" -o 'jsonpath={.items[0].metadata.name}'
}

gone() {
    ! kube --namespace "$namespace" get pod "$1" >/dev/null 2>&1
}

machine_up
images_in
begun=$SECONDS
install_chart
rolled_out
rollout=$((SECONDS - begun))
echo "── rolled out after $rollout s"
inside "$helm" test amoe --namespace "$namespace" >/dev/null
measure
python3 -B tests/deploy/report.py docs/deployment.md "$work/result.json" "$rollout"
if [ -s "$work/complaints.log" ]; then
    cat "$work/complaints.log"
    exit 1
fi
