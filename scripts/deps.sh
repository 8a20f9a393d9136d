#!/usr/bin/env bash
# Installs, by apt-get, what a set of jobs needs beyond Rust and isn't there yet. Quick and silent when nothing is missing.
#
# usage: deps.sh build|demo|test|bench|lint|vm...
set -euo pipefail

die() {
    printf 'deps: %s\n' "$*" >&2
    exit 1
}

# One line for each need: what proves that it is there (a command, or a file by its absolute path) and its package.
needs() {
    case $1 in
        build)
            echo 'clang clang'
            echo 'cc gcc'
            echo '/usr/include/bpf/bpf_helpers.h libbpf-dev'
            echo '/usr/include/linux/bpf.h linux-libc-dev'
            ;;
        demo)
            echo 'ip iproute2'
            echo 'ping iputils-ping'
            echo 'nsenter util-linux'
            echo 'tcpdump tcpdump'
            echo 'bpftool bpftool'
            ;;
        test)
            needs demo
            echo 'dnsmasq dnsmasq-base'
            echo 'udhcpc udhcpc'
            echo 'ethtool ethtool'
            echo 'iperf3 iperf3'
            echo 'strace strace'
            echo 'git git'
            echo 'promtool prometheus'
            echo 'groff groff-base'
            echo 'ansible-playbook ansible-core'
            echo 'nft nftables'
            echo 'iptables-legacy iptables'
            echo 'dot graphviz'
            echo 'zsh zsh'
            echo 'fish fish'
            echo 'python3 python3'
            ;;
        bench)
            echo 'ip iproute2'
            echo 'bridge iproute2'
            echo 'ethtool ethtool'
            echo 'nsenter util-linux'
            echo 'bpftool bpftool'
            echo 'python3 python3'
            ;;
        lint)
            echo 'clang-format clang-format'
            echo 'shellcheck shellcheck'
            ;;
        vm)
            needs test
            echo 'qemu-system-x86_64 qemu-system-x86'
            echo 'busybox busybox-static'
            echo 'strip binutils'
            echo 'xz xz-utils'
            echo 'zstd zstd'
            echo 'lz4 lz4'
            [ -n "$(find /usr/share/keyrings -name 'debian-archive-keyring.*' 2>/dev/null)" ] ||
                echo 'debian-archive-keyring debian-archive-keyring'
            ;;
        *) die "unknown job '$1'; one of build, demo, test, bench, lint, vm" ;;
    esac
}

present() {
    case $1 in
        /*) [ -e "$1" ] ;;
        *) PATH=$PATH:/usr/sbin:/sbin type -P "$1" >/dev/null ;;
    esac
}

# The packages of everything that is missing.
missing() {
    local job proof package
    for job; do
        needs "$job"
    done | sort -u | while read -r proof package; do
        present "$proof" || echo "$package"
    done | sort -u
}

command -v cargo >/dev/null || die 'cargo not found: install Rust 1.88 or newer, see https://rustup.rs'

wanted=$(missing "$@")
[ -n "$wanted" ] || exit 0

command -v apt-get >/dev/null ||
    die "missing, and there is no apt-get to install them with: $(tr '\n' ' ' <<<"$wanted")"
root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "missing, and neither root nor sudo to install them: $(tr '\n' ' ' <<<"$wanted")"
    root=(sudo)
fi

# promtool alone: the package would bring a server along, and start it.
install_promtool() {
    local dir
    dir=$(mktemp -d)
    (cd "$dir" && apt-get -qq download prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb >all.tar &&
        tar -xf all.tar ./usr/bin/promtool)
    "${root[@]}" install -m 755 "$dir/usr/bin/promtool" /usr/local/bin/promtool
    rm -rf "$dir"
}

mapfile -t packages <<<"$wanted"
printf 'deps: installing %s\n' "${packages[*]}" >&2
"${root[@]}" apt-get -qq update
for i in "${!packages[@]}"; do
    if [ "${packages[i]}" = prometheus ]; then
        install_promtool
        unset "packages[i]"
    fi
done
# Ubuntu has bpftool in its kernel tools.
for i in "${!packages[@]}"; do
    if [ "${packages[i]}" = bpftool ] && [ -z "$(apt-cache madison bpftool)" ]; then
        packages[i]=linux-tools-generic
    fi
done
[ ${#packages[@]} = 0 ] || "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 \
    install "${packages[@]}" </dev/null

still=$(missing "$@")
[ -z "$still" ] || die "installed, but still not to be found: $(tr '\n' ' ' <<<"$still")"
