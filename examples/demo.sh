#!/usr/bin/env bash
# Three hosts on this machine, two tenants with the same addresses, and a topology that changes while traffic flows.
#
# usage: [MODE=auto|clsact] [BIN=target/release/tunnel-mesh] examples/demo.sh        (as root)
#
#   host0 172.16.1.100 ──┐                      Each host is a network namespace with a daemon of its own; all three
#   host1 172.16.1.101 ──┼── underlay bridge    read one topology directory. A tenant has a bridge on each host,
#   host2 172.16.1.102 ──┘                      which the daemon makes, and a workload (another namespace) behind it.
#
# Every claim below is checked; the first that doesn't hold ends the demo with a failure. Nothing is left behind.
set -euo pipefail

mode=${MODE:-auto}
bin=${BIN:-target/release/tunnel-mesh}
id=tm-demo-$$
pins=/sys/fs/bpf/$id
hosts=(0 1 2)
red=72656421  # "red!", what red's pings carry, as hex
blue=626c7565 # "blue"
patience=${TUNNEL_MESH_SLOW:+10}
patience=${patience:-1}
processes=()
daemons=()

bold='' red_ink='' green_ink='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\033[1m' red_ink=$'\033[31m' green_ink=$'\033[32m' plain=$'\033[0m'
fi

fail() {
    printf '\n%sdemo: %s%s\n' "$red_ink" "$*" "$plain" >&2
    local log
    for log in "$work"/host*.log; do
        [ ! -s "$log" ] || { printf -- '--- the end of %s\n' "${log##*/}" && tail -n 15 "$log"; } >&2
    done
    exit 1
}
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
ok() { printf '   %sok%s  %s\n' "$green_ink" "$plain" "$*"; }

# -- Cleaning up, however the demo ends. Processes by their ids, namespaces and pins by our prefix.

stop() {
    local pid
    for pid; do kill "$pid" 2>/dev/null || true; done
    for pid; do wait "$pid" 2>/dev/null || true; done
}
cleanup() {
    trap '' INT TERM
    stop "${processes[@]}" "${daemons[@]}"
    local namespace
    for namespace in /run/netns/"$id"-*; do
        [ ! -e "$namespace" ] || ip netns del "${namespace##*/}"
    done
    rm -rf "$pins" "$work"
}

[ "$(id -u)" = 0 ] || { echo 'demo: needs root, for network namespaces and eBPF: make demo' >&2 && exit 77; }
[ -x "$bin" ] || { echo "demo: no $bin: run make build, or set BIN" >&2 && exit 1; }
bin=$(realpath "$bin")
case $mode in
    auto) ;;
    clsact) export TUNNEL_MESH_HOOK=clsact ;;
    *) echo "demo: MODE=$mode: auto or clsact" >&2 && exit 64 ;;
esac
# The options of this demo are given on the command line: nothing of the caller's shell may change them.
unset TUNNEL_MESH_TOPOLOGY TUNNEL_MESH_NODE TUNNEL_MESH_PIN_DIR TUNNEL_MESH_RUN_DIR TUNNEL_MESH_STATE_DIR
work=$(mktemp -d "/tmp/$id.XXXXXX")
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# -- Namespaces, hosts and workloads.

# inside NAME COMMAND...: in that namespace. `ip netns exec` would hide the bpffs.
inside() { nsenter --net="/run/netns/$id-$1" -- "${@:2}"; }

# spawn NAME COMMAND...: the same in the background. nsenter becomes the command: $! is its process, and no shell's.
spawn() { nsenter --net="/run/netns/$id-$1" -- "${@:2}" & }

namespace() {
    ip netns add "$id-$1"
    ip -n "$id-$1" link set lo up
}

# host N: a namespace with an uplink into the underlay's bridge.
host() {
    namespace "host$1"
    ip -n "$id-host$1" link add name eth0 type veth peer name "uplink$1" netns "$id-underlay"
    ip -n "$id-host$1" address add "172.16.1.$((100 + $1))/24" dev eth0
    ip -n "$id-host$1" link set eth0 up
    ip -n "$id-underlay" link set "uplink$1" master underlay up
}

# workload TENANT N: a namespace behind the tenant's bridge on host N, with the MTU that the bridge has.
workload() {
    local bridge=br-$1 mtu
    mtu=$(ip -n "$id-host$2" -o link show "$bridge" | sed -nE 's/.* mtu ([0-9]+) .*/\1/p')
    namespace "$1$2"
    ip -n "$id-$1$2" link add name eth0 mtu "$mtu" type veth peer name "$1" mtu "$mtu" netns "$id-host$2"
    ip -n "$id-$1$2" address add "10.1.1.$((1 + $2))/24" brd + dev eth0
    ip -n "$id-$1$2" link set eth0 up
    ip -n "$id-host$2" link set "$1" master "$bridge" up
}

# options N: sets `options` to those that make host N's program one of three on this machine.
options() {
    options=(--topology "$work/topology" --node "host$1" --pin-dir "$pins/host$1"
        --run-dir "$work/host$1/run" --state-dir "$work/host$1/state")
}

# tunnel_mesh N COMMAND...: the program, as host N would run it.
tunnel_mesh() {
    options "$1"
    inside "host$1" "$bin" "${@:2}" "${options[@]}"
}

# start_daemon N: the program runs as host N's daemon.
start_daemon() {
    mkdir -p "$work/host$1/run" "$work/host$1/state"
    options "$1"
    spawn "host$1" "$bin" run "${options[@]}" </dev/null >"$work/host$1.log" 2>&1
    daemons+=($!)
}

# -- Checks.

# await SECONDS WHAT COMMAND...: until the command succeeds. An emulated machine (TUNNEL_MESH_SLOW) gets more time.
await() {
    local limit=$(($1 * patience))
    local end=$((SECONDS + limit))
    until "${@:3}" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "$2: not within $limit s"
        sleep 0.1
    done
}

address() { echo "10.1.1.$((1 + $1))"; }
answers() { inside "$1$2" ping -n -q -c 1 -W 1 "$(address "$3")"; }
silent() { ! answers "$@"; }
ports() { [ "$(ip -n "$id-host$1" -o link show master "$2" | wc -l)" = "$3" ]; }
gone() { ! ip -n "$id-host$1" link show "$2"; }

# lossless TENANT FROM TO PATTERN: three pings that carry the pattern, three answers.
lossless() {
    local result
    result=$(inside "$1$2" ping -n -q -c 3 -i 0.2 -W 2 -p "$4" "$(address "$3")") || true
    grep -q ' 0% packet loss' <<<"$result" || fail "$1: host$2 to host$3: $(tail -n 2 <<<"$result")"
    ok "$(printf '%-6s' "$1") host$2 -> host$3  $(sed -nE 's|^rtt min/avg.* = [0-9.]+/([0-9.]+)/.*|\1 ms|p' <<<"$result")"
}

# capture NAME: from now on, what a workload receives goes to a file.
capture() {
    spawn "$1" tcpdump -Z root -i eth0 -Q in -U --immediate-mode -w "$work/$1.pcap" 'icmp[icmptype] = icmp-echo' \
        >/dev/null 2>"$work/$1.tcpdump"
    processes+=($!)
    await 10 "tcpdump in $1" grep -q 'listening on' "$work/$1.tcpdump"
}

# received NAME FILTER: how many of these a workload got.
received() { tcpdump -nn -r "$work/$1.pcap" "$2" 2>/dev/null | wc -l; }
carrying() { echo "icmp[24:4] = 0x$1"; }

# underlay_packets: how many packets all hosts together have received and sent.
# shellcheck disable=SC2016 # awk's own fields
underlay_packets() { inside underlay awk '/uplink/ { n += $3 + $11 } END { print n }' /proc/net/dev; }

# drop_file NAME: puts standard input there as a pipeline should: complete at once, by a rename.
drop_file() {
    cat >"$work/topology/.$1"
    mv "$work/topology/.$1" "$work/topology/$1"
}

show() {
    printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"
    "${@:2}" || fail "that failed"
}

# ------------------------------------------------------------------------------------------------------------------

say 'Three hosts on an underlay, one topology directory'
namespace underlay
ip -n "$id-underlay" link add name underlay type bridge
ip -n "$id-underlay" link set underlay up
for n in "${hosts[@]}"; do host "$n"; done
await 10 'the underlay' inside host0 ping -n -q -c 1 -W 1 172.16.1.102

mkdir -p "$work/topology" "$pins"
drop_file hosts.yaml <<'YAML'
version: 1
nodes:
  host0: 172.16.1.100
  host1: 172.16.1.101
  host2: 172.16.1.102
tunnels:
  vxlan0: {kind: vxlan, create: true}
YAML
drop_file red.yaml <<'YAML'
version: 1
tenants:
  red: {id: 10000, bridge: br-red}
YAML
drop_file blue.yaml <<'YAML'
version: 1
tenants:
  blue: {id: 10001, bridge: br-blue}
YAML
tail -n +1 "$work"/topology/*.yaml | sed "s|$work/||"

say 'A daemon on each: it makes the tunnel device, a bridge for each tenant and a port for each remote host'
for n in "${hosts[@]}"; do start_daemon "$n"; done
for n in "${hosts[@]}"; do
    await 30 "host$n: two ports in br-red" ports "$n" br-red 2
    await 30 "host$n: two ports in br-blue" ports "$n" br-blue 2
    ok "host$n has vxlan0, br-red and br-blue"
done

say 'A workload of each tenant on each host; both tenants use 10.1.1.1 to 10.1.1.3'
for n in "${hosts[@]}"; do
    workload red "$n" && capture "red$n"
    workload blue "$n" && capture "blue$n"
done
for tenant in red blue; do
    for from in "${hosts[@]}"; do
        for to in "${hosts[@]}"; do
            [ "$from" = "$to" ] || await 10 "$tenant: host$from reaches host$to" answers "$tenant" "$from" "$to"
        done
    done
done
for from in "${hosts[@]}"; do
    for to in "${hosts[@]}"; do
        [ "$from" = "$to" ] && continue
        lossless red "$from" "$to" $red
        lossless blue "$from" "$to" $blue
    done
done

say 'Nothing leaks between the tenants'
for n in "${hosts[@]}"; do
    for pair in "red$n $red $blue" "blue$n $blue $red"; do
        read -r workload own foreign <<<"$pair"
        got=$(received "$workload" "$(carrying "$own")")
        leaked=$(received "$workload" "$(carrying "$foreign")")
        [ "$got" -ge 6 ] || fail "$workload: $got of its own pings captured, at least 6 were sent to it"
        [ "$leaked" = 0 ] || fail "$workload received $leaked packets of the other tenant"
        ok "$workload received $got pings of its own tenant, 0 of the other"
    done
done
ip -n "$id-red2" address add 10.1.1.99/24 dev eth0
await 10 '10.1.1.99, which only red has' inside red0 ping -n -q -c 1 -W 1 10.1.1.99
! inside blue0 ping -n -q -c 2 -i 0.2 -W 1 10.1.1.99 >/dev/null || fail 'blue reaches an address that only red has'
ok 'an address that only red has answers red, and not blue'

say 'A broadcast reaches each host of its tenant once, and nothing circles'
inside red0 ping -n -q -b -c 5 -i 0.2 -p $red 10.1.1.255 >/dev/null 2>&1 || true # nobody answers a broadcast ping
sleep 1
for expected in 'red0 0' 'red1 5' 'red2 5' 'blue0 0' 'blue1 0' 'blue2 0'; do
    read -r workload number <<<"$expected"
    got=$(received "$workload" 'dst 10.1.1.255')
    [ "$got" = "$number" ] || fail "$workload received $got copies of 5 broadcasts from red0, not $number"
    ok "$workload received $got copies of 5 broadcasts from red0"
done
before=$(underlay_packets)
[ "$before" -gt 100 ] || fail "only $before packets on the underlay: that was not where they went"
sleep 1
circling=$(($(underlay_packets) - before))
[ "$circling" -lt 50 ] || fail "$circling packets on the underlay in a second in which nobody sent any"
ok "$circling packets on the underlay in the second after"

say 'An edit while traffic flows: blue leaves host2, green comes to host0 and host2'
spawn red0 ping -n -i 0.02 "$(address 1)" >"$work/red.ping" 2>&1
steady=$!
processes+=("$steady")
drop_file blue.yaml <<'YAML'
version: 1
tenants:
  blue: {id: 10001, bridge: br-blue, members: [host0, host1]}
YAML
drop_file green.yaml <<'YAML'
version: 1
tenants:
  green: {id: 10002, bridge: br-green, members: [host0, host2]}
YAML
for n in 0 2; do
    await 10 "host$n: a port in br-green" ports "$n" br-green 1
    workload green "$n"
done
await 10 'green: host0 reaches host2' answers green 0 2
ok 'green  host0 -> host2  works'
await 15 'blue: host2 is cut off' silent blue 0 2
ok 'blue   host0 -> host2  is cut off'
lossless blue 0 1 $blue
stop "$steady"
read -r answered sent < <(sed -nE 's/.* icmp_seq=([0-9]+) .*/\1/p' "$work/red.ping" | awk '{ last = $1 } END { print NR, last }')
[ "$answered" = "$sent" ] || fail "red meanwhile: $answered answers to $sent pings"
ok "red    host0 -> host1  untouched: $answered answers to $sent pings meanwhile"

say 'What an operator sees on host0'
show 'tunnel-mesh plan' tunnel_mesh 0 plan
show 'tunnel-mesh status' tunnel_mesh 0 status
show "bpftool map dump pinned $pins/host0/tunkey2if" bpftool map dump pinned "$pins/host0/tunkey2if"
show "bpftool map dump pinned $pins/host0/if2tunkey" bpftool map dump pinned "$pins/host0/if2tunkey"
show "bpftool map lookup pinned $pins/host0/conf key 1 0 0 0" \
    bpftool map lookup pinned "$pins/host0/conf" key 1 0 0 0
show 'bpftool prog show name handle_ingress' bpftool prog show name handle_ingress
filters=$(inside host0 tc filter show dev vxlan0 ingress)
if [ "$mode" = clsact ] && ! grep -q handle_ingress <<<"$filters"; then
    fail 'MODE=clsact, but there is no filter with handle_ingress on vxlan0'
fi
if [ -n "$filters" ]; then show 'tc filter show dev vxlan0 ingress' echo "$filters"; fi

say 'The data plane works without the daemons; down takes it away'
stop "${daemons[@]}"
daemons=()
lossless red 0 1 $red
lossless red 2 0 $red
for n in "${hosts[@]}"; do
    tunnel_mesh "$n" down >"$work/host$n.log" 2>&1 || fail "tunnel-mesh down on host$n"
    await 5 "host$n: vxlan0 gone after down" gone "$n" vxlan0
    [ -z "$(find "$pins/host$n" -type f 2>/dev/null)" ] || fail "host$n: pins are left after down"
    ok "host$n: tunnel device and pins are gone"
done

printf '\n%sdemo: all of that was checked.%s\n' "$green_ink" "$plain"
