#!/bin/sh
# Makes random secrets, one file each, in deploy/secrets/; those that are there are kept.
set -eu
umask 077
directory=$(dirname "$0")/secrets
mkdir -p "$directory"
random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
# Readable in the containers, where other users own the processes; the directory is closed to everybody else here.
make() { [ -e "$directory/$1" ] || { printf '%s' "$2" > "$directory/$1"; chmod 644 "$directory/$1"; echo "made $directory/$1"; }; }
make database_password "$(random 32)"
make ray_token "$(random 32)"
make bootstrap_key "fsk_$(random 8)_$(random 32)"
