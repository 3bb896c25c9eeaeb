#!/bin/bash
# Makes this machine a node of the cluster; goes on with what a former run has
# begun, and changes nothing where all is done. Machines know each other by
# GRAVITY_TOKEN.
set -eu
image=$1 number=$2 nodes=$3 address=$4 first=$5 install_flags=$6 join_flags=$7
log=/root/gravity-install.log

if [ ! -s "$image" ]; then
    echo "There is no cluster image: IMAGE names the file that \`tele build\` made" >&2
    exit 1
fi
chmod 755 "$image"

gravity() {
    if "$image" plan >/dev/null 2>&1; then
        "$image" resume
    else
        "$image" "$@"
    fi
}

# Flags are words: they are split.
# shellcheck disable=SC2086
if [ "$number" != 1 ]; then
    gravity join "$first" --advertise-addr="$address" $join_flags
elif [ "$nodes" = 1 ]; then
    gravity install --advertise-addr="$address" $install_flags
else
    # With a flavor of several nodes it waits for those that come after this one.
    (umask 077 && : >"$log")
    gravity install --advertise-addr="$address" $install_flags </dev/null >"$log" 2>&1 &
    until grep -q 'Waiting for .* to join' "$log" || ! kill -0 $! 2>/dev/null; do
        sleep 1
    done
    cat "$log"
    kill -0 $! 2>/dev/null || wait $!
fi

if [ "$number" = "$nodes" ]; then
    # The first node runs the install hooks when the last one has joined.
    timeout 1800 bash -c 'until "$0" status >/dev/null 2>&1; do sleep 5; done' "$image" || true
    "$image" status
fi
