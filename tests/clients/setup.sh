#!/bin/sh
# Makes .venv with the pinned clients and prints its Python. Does nothing when it is there already.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/.venv"
want="$here/requirements.txt"
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    echo "the clients need python3 with venv and pip: install Debian's package python3-venv" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ] || ! cmp -s "$want" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    if ! "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$want" >&2; then
        echo "the clients in $want cannot be installed: pip needs PyPI or its mirror" >&2
        exit 1
    fi
    cp "$want" "$venv/requirements.txt"
fi
echo "$venv/bin/python"
