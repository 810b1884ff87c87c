# shellcheck shell=bash
# A Kubernetes of one machine, for tests/deploy/kubernetes.sh: built, started in a network namespace, and taken away again.

built=$PWD/target/kubernetes
tools=$PWD/target/deploy
work=$(mktemp -d)
helm=$tools/helm4/helm/helm
kubectl=$tools/helm4/kubectl/kubectl
netns=amoe-kubernetes
# Where the node and its DNS are, beside the pods' 10.66.0.0/17.
node=10.66.128.1
dns=10.66.128.53
api=https://127.0.0.1:16443
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
pids=()
# Network namespaces that were there before; those of pods are named by containerd.
before=$(ip netns list | cut -d' ' -f1)
export KUBECONFIG=$work/kubeconfig STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot

# In the network of the cluster.
inside() {
    nsenter --net="/run/netns/$netns" "$@"
}

kube() {
    inside "$kubectl" "$@"
}

daemon() {
    local name=$1
    shift
    nsenter --net="/run/netns/$netns" "$@" >"$work/$name.log" 2>&1 &
    pids+=($!)
}

# Waits for a command to succeed: $1 says what for.
wait_for() {
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ]; then
            echo "$what: not within five minutes; logs are in $work" >&2
            return 1
        fi
        sleep 0.25
    done
}

packages() {
    apt-get install -qq --no-install-recommends golang-go rsync jq golang-github-modern-go-reflect2-dev dpkg-dev gcc \
        libc6-dev containerd runc containernetworking-plugins buildah conntrack iptables busybox-static etcd-server >/dev/null
}

# Debian's source has the whole tree; its own package is only kubectl.
build() {
    [ -x "$built/kubelet" ] && return
    local source=$built/source reflect=vendor/github.com/modern-go/reflect2
    mkdir -p "$source" "$built/lists/partial"
    echo "deb-src http://deb.debian.org/debian bookworm main" >"$built/sources.list"
    local apt=(-qq -o "Dir::Etc::sourcelist=$built/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$built/lists")
    apt-get "${apt[@]}" update
    (cd "$built" && apt-get "${apt[@]}" source --download-only kubernetes && tar -xzf kubernetes_*.orig.tar.gz -C source --strip-components=1)
    # The vendored version crashes when built with Go 1.18 or newer; Debian's does not.
    rm "$source/$reflect"/*.{go,s}
    cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$source/$reflect/"
    rm -f "$source/$reflect"/*_test.go
    # Without the cloud providers, whose libraries take most of the time.
    (cd "$source" && unset GOFLAGS GO111MODULE &&
        KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=archive \
            nice make all GOFLAGS=-tags=providerless WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler cmd/kubelet cmd/kube-proxy")
    cp "$source"/_output/local/go/bin/kube* "$built/"
    rm -rf "$source"
}

network_up() {
    ip netns add "$netns"
    inside ip link set lo up
    inside ip link add node0 type veth peer name node1
    inside ip link set node1 up
    inside ip address add "$node/32" dev node0
    inside ip address add "$dns/32" dev node0
    inside ip link set node0 up
    # Service addresses have to have a way out before kube-proxy turns them around.
    inside ip route add 10.0.0.0/24 dev node0
    inside sysctl -qw net.ipv4.ip_forward=1
    mkdir -p "$work/cni"
    cat >"$work/cni/10-ptp.conflist" <<'JSON'
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.66.0.0/17", "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
}

control_plane_up() {
    daemon etcd etcd --data-dir="$work/etcd" --log-level=error --listen-client-urls=http://127.0.0.1:12379 \
        --advertise-client-urls=http://127.0.0.1:12379 --listen-peer-urls=http://127.0.0.1:12380 \
        --initial-advertise-peer-urls=http://127.0.0.1:12380 --initial-cluster=default=http://127.0.0.1:12380
    openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
    echo "$token,admin,admin,\"system:masters\"" >"$work/tokens.csv"
    cat >"$KUBECONFIG" <<YAML
{apiVersion: v1, kind: Config, current-context: c,
 clusters: [{name: c, cluster: {server: "$api", insecure-skip-tls-verify: true}}],
 users: [{name: u, user: {token: "$token"}}], contexts: [{name: c, context: {cluster: c, user: u}}]}
YAML
    daemon apiserver "$built/kube-apiserver" --etcd-servers=http://127.0.0.1:12379 --bind-address=127.0.0.1 \
        --advertise-address="$node" --secure-port=16443 --insecure-port=0 --cert-dir="$work/certificates" \
        --service-cluster-ip-range=10.0.0.0/24 --token-auth-file="$work/tokens.csv" --authorization-mode=RBAC \
        --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$work/accounts.key" \
        --service-account-key-file="$work/accounts.key" --allow-privileged=true --endpoint-reconciler-type=none
    wait_for "the API server" kube get --raw /readyz
    daemon controllers "$built/kube-controller-manager" --kubeconfig="$KUBECONFIG" --leader-elect=false --port=0 \
        --service-account-private-key-file="$work/accounts.key" --use-service-account-credentials --cert-dir="$work/certificates"
    daemon scheduler "$built/kube-scheduler" --kubeconfig="$KUBECONFIG" --leader-elect=false --port=0
}

node_up() {
    cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/containerd"
state = "$work/containerd-state"
[grpc]
address = "$work/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$work/cni"
TOML
    daemon containerd containerd --config "$work/containerd.toml"
    wait_for containerd ctr --address "$work/containerd.sock" version
    cat >"$work/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupsPerQOS: true
enforceNodeAllocatable: []
failSwapOn: false
resolvConf: ""
healthzPort: 0
clusterDNS: ["$dns"]
clusterDomain: cluster.local
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {nodefs.available: 1%, imagefs.available: 1%, memory.available: 200Mi}
YAML
    mkdir -p "$work/kubelet"
    daemon kubelet "$built/kubelet" --config="$work/kubelet.yaml" --kubeconfig="$KUBECONFIG" --container-runtime=remote \
        --container-runtime-endpoint="unix://$work/containerd.sock" --hostname-override=node-1 --node-ip="$node" \
        --root-dir="$work/kubelet" --cert-dir="$work/certificates"
    daemon proxy "$built/kube-proxy" --kubeconfig="$KUBECONFIG" --proxy-mode=iptables --hostname-override=node-1 \
        --cluster-cidr=10.66.0.0/17 --conntrack-max-per-core=0 --healthz-bind-address=127.0.0.1:10256 \
        --metrics-bind-address=127.0.0.1:10249
    daemon names python3 -B tests/deploy/names.py "$dns" "$api" "$token"
    wait_for "the node" kube wait --for=condition=Ready node/node-1 --timeout=1s
}

# Into containerd: an image of buildah's store, $1, by its name there.
import() {
    buildah push --quiet "$1" "docker-archive:$work/image.tar:$1" >/dev/null
    ctr --address "$work/containerd.sock" --namespace k8s.io images import "$work/image.tar" >/dev/null
    rm "$work/image.tar"
}

# An image of a program of this machine with the libraries it needs: $1 is its name, $2 the program, then its arguments.
image_of() {
    local name=$1 program=$2 tree=$work/tree container
    shift 2
    mkdir -p "$tree/bin"
    cp "$program" "$tree/bin/"
    # A static program has none.
    { ldd "$program" | grep -o '/[^ ]*' || true; } 2>/dev/null | while read -r library; do
        install -D "$library" "$tree$library"
    done
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$tree" / >/dev/null
    buildah config --env PATH=/bin --entrypoint "[\"/bin/$(basename "$program")\"]" "$container"
    buildah commit --quiet --rm "$container" "$name" >/dev/null
    rm -rf "$tree"
}

images_in() {
    printf '#include <unistd.h>\nint main(void) { for (;;) pause(); }\n' >"$work/pause.c"
    gcc -static -Os -o "$work/pause" "$work/pause.c"
    image_of localhost/pause:1 "$work/pause"
    image_of localhost/etcd:latest "$(command -v etcd)"
    local image
    for image in localhost/pause:1 localhost/etcd:latest localhost/amoe-demo:latest; do
        import "$image"
    done
}

machine_down() {
    local mounted
    trap - EXIT
    set +e
    [ -S "$work/containerd.sock" ] && ctr --address "$work/containerd.sock" --namespace k8s.io tasks ls -q |
        while read -r task; do ctr --address "$work/containerd.sock" --namespace k8s.io tasks kill -s KILL -a "$task"; done
    kill "${pids[@]}" 2>/dev/null
    sleep 2
    kill -9 "${pids[@]}" 2>/dev/null
    ip netns pids "$netns" 2>/dev/null | xargs -r kill -9 2>/dev/null
    sleep 1
    for mounted in $(awk -v at="$work" 'index($2, at) == 1 {print $2}' /proc/mounts | sort -r); do
        umount -l "$mounted"
    done
    ip netns list | cut -d' ' -f1 | grep -E "^(cni-.*|$netns)$" | grep -vxF "${before:-none}" | xargs -r -n 1 ip netns delete
    find /sys/fs/cgroup/*/kubepods -depth -type d -exec rmdir {} + 2>/dev/null
    rm -rf /var/log/pods/llm_amoe-*
    [ -n "${KEEP:-}" ] || rm -rf "$work"
}

machine_up() {
    packages
    build
    trap machine_down EXIT
    network_up
    control_plane_up
    node_up
}
