#!/usr/bin/env bash
# Builds the image by deploy/Dockerfile without a container engine or a registry of images, and starts what is in it.
#
#     tests/deploy/image.sh
#
# Wants Debian 12, root, this repository's toolchain in rustup. buildah builds without isolation that this would need, and
# the base image, which cannot be had from package registries, is made from Debian and the toolchain under its name. Takes
# as long as a release build. Leaves `localhost/amoe-demo` in buildah's store (STORAGE_DRIVER=vfs).
set -euo pipefail
cd "$(dirname "$0")/../.."
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
version=$(sed -n 's/^ARG RUST_VERSION=\(.*\)/\1/p' deploy/Dockerfile | head -1)
base=docker.io/library/rust:$version-bookworm
cache=$PWD/target/image

# The base image as its publisher makes it: Debian, a C compiler, one toolchain.
make_base() {
    local tree container toolchain named
    tree=$(mktemp -d)
    debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$tree" http://deb.debian.org/debian >/dev/null
    toolchain=$(rustup run "$version" rustc --print sysroot)
    mkdir -p "$tree/usr/local/cargo/bin" "$tree/usr/local/rustup/toolchains"
    # Under the name of its version, whatever it is called here.
    named=$tree/usr/local/rustup/toolchains/$version-$("$toolchain/bin/rustc" -vV | sed -n 's/^host: //p')
    mkdir "$named"
    tar -C "$toolchain" --exclude ./share/doc -cf - . | tar -C "$named" -xf -
    cp "$(command -v rustup)" "$tree/usr/local/cargo/bin/rustup"
    ln -s rustup "$tree/usr/local/cargo/bin/cargo"
    ln -s rustup "$tree/usr/local/cargo/bin/rustc"
    printf 'version = "12"\n' >"$tree/usr/local/rustup/settings.toml"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$tree" / >/dev/null
    buildah config --env PATH=/usr/local/cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env RUSTUP_HOME=/usr/local/rustup --env CARGO_HOME=/usr/local/cargo "$container"
    buildah commit --quiet --rm "$container" "$base" >/dev/null
    rm -rf "$tree"
}

build() {
    local context
    context=$(mktemp -d)
    # What is committed and what is not yet, without what git ignores.
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --no-dereference --preserve=timestamps --parents -t "$context"
    mkdir -p "$cache"
    buildah bud --quiet --layers=false --pull-never --target demo --tag localhost/amoe-demo:latest \
        --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry" --volume "$cache:/src/target" \
        --file deploy/Dockerfile "$context" >/dev/null
    rm -rf "$context"
}

# Every program starts from the image alone, and the demo answers.
start() {
    local container program port=8764 server
    container=$(buildah from --pull-never localhost/amoe-demo:latest)
    for program in gateway coordinator attention-node expert-node amoe; do
        buildah run "$container" -- "/bin/$program" --version
    done
    [ "$(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")" = 65532:65532 ]
    local serve="/bin/amoe serve /models/demo --host 127.0.0.1 --port $port"
    # shellcheck disable=SC2086
    buildah run "$container" -- $serve --log warn &
    server=$!
    until curl -sf "http://127.0.0.1:$port/readyz"; do
        kill -0 $server
        sleep 0.2
    done
    curl -sf "http://127.0.0.1:$port/v1/completions" -H 'content-type: application/json' \
        -d '{"model": "demo", "prompt": "And it came to pass", "max_tokens": 8, "temperature": 0}' | grep '"text"'
    pkill -TERM -f "^$serve"
    wait $server
    buildah rm "$container" >/dev/null
}

command -v buildah >/dev/null && command -v debootstrap >/dev/null ||
    apt-get install -qq --no-install-recommends buildah debootstrap >/dev/null
buildah inspect --type image "$base" >/dev/null 2>&1 || make_base
build
buildah images --format '{{.Name}} {{.Size}}' | grep -E '^localhost/amoe'
start
