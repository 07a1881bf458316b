#!/bin/sh
# Usage: install.sh api|worker SOURCE VENV
# Installs SOURCE (this repository) into a new virtual environment, at the versions of its constraints.txt.
# worker: TORCH_INDEX_URL chooses the build of torch, by default that for CPUs.
set -eu
[ $# -eq 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
role=$1 source=$2 venv=$3

install() { "$venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --constraint "$source/constraints.txt" "$@"; }

case $role in
    api | worker) python3 -m venv "$venv" ;;
    *) echo "install.sh: api or worker, not $role" >&2; exit 2 ;;
esac
if [ "$role" = worker ]; then
    install --index-url "${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}" --no-deps torch
    install "$source[cli,huggingface,service,telemetry,workers]"
else
    install "$source[cli,service,telemetry]"
fi
