#!/bin/sh
# Makes .venv with the pinned clients and prints its Python. Does nothing when it is there already.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/.venv"
want="$here/requirements.txt"
if ! cmp -s "$want" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$want"
    cp "$want" "$venv/requirements.txt"
fi
echo "$venv/bin/python"
