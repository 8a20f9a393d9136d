#!/usr/bin/env bash
# Proves that run.sh tells a pass from a failure, a hang, a panic and a complaint of the kernel: one boot for each.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# executable NAME LINE...: a test for the guest.
executable() {
    local path=$work/$1.sh
    { echo '#!/bin/sh' && printf '%s\n' "${@:2}"; } >"$path"
    chmod 0755 "$path"
}

# expect WHAT STATUS PATTERN VARIABLE=VALUE... -- NAME...: runs these tests and looks for PATTERN in the summary.
expect() {
    local what=$1 status=$2 pattern=$3 code=0 settings=()
    shift 3
    while [ "$1" != -- ]; do settings+=("$1") && shift; done
    shift
    env "${settings[@]}" "$here/run.sh" "${@/#/$work/}" >"$work/output" 2>&1 || code=$?
    if [ "$code" != "$status" ] || ! grep -qE "$pattern" "$work/output"; then
        cat "$work/output"
        printf 'FAILED  %s: exit status %s instead of %s, or no /%s/ above\n' "$what" "$code" "$status" "$pattern"
        exit 1
    fi
    printf 'ok      %s\n' "$what"
}

# shellcheck disable=SC2016 # for the guest's shell
executable devices 'set -e' \
    'ip link add name v type vxlan external dstport 4789' 'ip link add name g type geneve external' \
    'ip link add name r type gretap external' 'ip link add name s type ip6gretap external' \
    'ip link add name d type dummy' 'ip link add name i type ifb' 'ip link add name b type bridge' \
    'ip link add name x type veth peer name y' 'tc qdisc add dev d clsact' 'bpftool feature probe kernel >/dev/null' \
    'ip netns add n' 'nsenter --net=/run/netns/n ip link set lo up' 'nsenter --net=/run/netns/n ping -c 1 127.0.0.1' \
    'test "$TUNNEL_MESH_SLOW" = 1'
executable failing 'exit 3'
executable hanging 'sleep 1000'
executable complaining 'echo "WARNING: a complaint" >/dev/kmsg'
executable panicking 'echo c >/proc/sysrq-trigger' 'sleep 10'

expect 'a pass, with every device kind' 0 '^ok +devices' -- devices.sh
expect 'a failure fails the run, others still run' 1 'FAILED +failing.*exit status 3' -- failing.sh devices.sh
expect 'a hanging executable is killed' 1 'FAILED +hanging.*time limit' VM_TEST_TIMEOUT=5 -- hanging.sh
expect 'a hanging guest is ended' 1 'did not end within 15 s' VM_TIMEOUT=15 -- hanging.sh
expect 'a complaint of the kernel fails the run' 1 'kernel +complaining.*a complaint' -- complaining.sh
expect 'a panic fails the run' 1 'the guest died' -- devices.sh panicking.sh
