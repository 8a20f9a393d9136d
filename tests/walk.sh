#!/usr/bin/env bash
# A user's walk: writes a topology with five mistakes, mends them by what the errors say alone, plans, applies, sends
# traffic, loses an interface, reads from status why the traffic stopped, and mends that too.
#
# usage: BIN=path/to/tunnel-mesh tests/walk.sh      (as root; makes namespaces of its own and removes them)
set -euo pipefail

bin=$(realpath "${BIN:?the tunnel-mesh binary}")
id=walk$$
work=$(mktemp -d)
mkdir "$work/topology"
file=$work/topology/mesh.yaml
export NO_COLOR=1 TUNNEL_MESH_TOPOLOGY=$work/topology

die() {
    printf 'walk: %s\n' "$*" >&2
    exit 1
}

# shellcheck disable=SC2329
cleanup() {
    local host
    for host in host0 host1; do
        rm -rf "/sys/fs/bpf/$id-$host"
        ip netns del "$id-$host" 2>/dev/null || true
        ip netns del "$id-$host-work" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n== %s\n' "$*"; }

inside() {
    local namespace=$1
    shift
    nsenter --net="/run/netns/$id-$namespace" "$@"
}

# mesh HOST ARGUMENTS...: the command as HOST's user gives it.
mesh() {
    local host=$1
    shift
    TUNNEL_MESH_NODE=$host TUNNEL_MESH_PIN_DIR=/sys/fs/bpf/$id-$host TUNNEL_MESH_RUN_DIR=$work/$host/run \
        TUNNEL_MESH_STATE_DIR=$work/$host/state inside "$host" "$bin" "$@"
}

# expect CODE COMMAND...: prints what it says; fails unless it exits with that code.
expect() {
    local wanted=$1 code=0
    shift
    "$@" >"$work/said" 2>&1 || code=$?
    cat "$work/said"
    [ "$code" = "$wanted" ] || die "exit code $code instead of $wanted: $*"
}

said() { grep -qE -- "$1" "$work/said" || die "nothing of '$1' was said"; }

answers() { inside host0-work ping -c 1 -W 2 -q 10.1.0.1 >/dev/null; }

workload() {
    local host=$1 address=$2
    ip -n "$id-$host" link add veth-w type veth peer name eth0 netns "$id-$host-work"
    ip -n "$id-$host" link set veth-w up
    ip -n "$id-$host-work" link set eth0 mtu 1450 up
    ip -n "$id-$host-work" addr add "$address/24" dev eth0
}

say 'two hosts on one underlay, a workload behind each'
for host in host0 host1; do
    ip netns add "$id-$host"
    ip netns add "$id-$host-work"
    ip -n "$id-$host" link set lo up
done
ip -n "$id-host0" link add under type veth peer name under netns "$id-host1"
for n in 0 1; do
    ip -n "$id-host$n" addr add "172.16.9.$((100 + n))/24" dev under
    ip -n "$id-host$n" link set under up
    workload "host$n" "10.1.0.$n"
done

say 'a topology with five mistakes'
cat >"$file" <<'YAML'
version: 1
nodes:
  host0: 172.16.9.100
  host1: 172.16.9.101
tunels:
  vxlan0: {kind: vxlan, crate: true}
tenants:
  red:
    id: 16777216
    members:
      host0: {interface: veth-w, atach: endpoint}
      hots1: {interface: veth-w, attach: endpoint}
YAML
expect 78 mesh host0 validate
[ "$(grep -c '^error\[TM' "$work/said")" = 5 ] || die 'not five errors at once'
expect 78 mesh host0 apply
[ ! -e "/sys/fs/bpf/$id-host0" ] || die 'a wrong topology had an effect'

say 'mended by what the errors say, and by nothing else'
mesh host0 validate --format short >"$work/errors" || true
while IFS= read -r error; do
    [[ $error =~ ^(.+):([0-9]+):([0-9]+):\ error\[(TM[0-9]{4})\]:\ (.*)$ ]] || die "no place in: $error"
    where=${BASH_REMATCH[1]} line=${BASH_REMATCH[2]} column=${BASH_REMATCH[3]} told=${BASH_REMATCH[5]}
    if [[ $told =~ did\ you\ mean\ \`([^\`]+)\` ]] || [[ $told =~ at\ most\ ([0-9]+) ]]; then
        right=${BASH_REMATCH[1]}
    else
        die "the error doesn't say what to write: $error"
    fi
    text=$(sed -n "${line}p" "$where")
    before=${text:0:column-1} rest=${text:column-1}
    wrong=${rest%%[!A-Za-z0-9_-]*}
    printf '%s:%s: %s becomes %s\n' "${where##*/}" "$line" "$wrong" "$right"
    mended=$before$right${rest:${#wrong}}
    { head -n "$((line - 1))" "$where" && printf '%s\n' "$mended" && tail -n "+$((line + 1))" "$where"; } >"$work/mended"
    mv "$work/mended" "$where"
done <"$work/errors"
expect 0 mesh host0 validate

say 'plan, then apply, on both hosts'
for host in host0 host1; do
    expect 2 mesh "$host" plan --detailed-exitcode
    said '\+ veth-w'
    expect 0 mesh "$host" apply
    expect 0 mesh "$host" plan --detailed-exitcode
    said 'No changes'
done
for _ in 1 2 3 4 5 6 7 8 9 10; do answers && break; done
answers || die 'no answer through the tunnel'
expect 0 mesh host1 status
said 'veth-w.* active'

say 'an interface is deleted on host1, and the traffic stops'
ip -n "$id-host1" link del veth-w
if answers; then die 'an answer from a workload that is gone'; fi
expect 0 mesh host0 status
said 'veth-w.* active'
expect 0 mesh host1 status
said 'veth-w.*pending'
said "interface veth-w doesn't exist"
said 'target_gone'

say 'it comes back, and so does the traffic'
workload host1 10.1.0.1
expect 0 mesh host1 plan
said 'veth-w'
expect 0 mesh host1 apply
for _ in 1 2 3 4 5 6 7 8 9 10; do answers && break; done
answers || die 'no answer after the interface came back'

for host in host0 host1; do expect 0 mesh "$host" down; done
say 'done'
