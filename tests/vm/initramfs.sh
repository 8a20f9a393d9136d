#!/usr/bin/env bash
# Makes the guest's root file system out of this machine's own files: a cpio archive on standard output.
#
# usage: initramfs.sh DIRECTORY PROGRAM [EXECUTABLE...]
# DIRECTORY is the project: what git tracks under tests/ and examples/ is there in the guest, at the same path.
# PROGRAM (the tunnel-mesh binary, may be /dev/null) is there at the same path too, since tests have it baked in.
# Each EXECUTABLE is a test. Variables that start with VM_ENV_ go to the tests without that prefix. VM_PARTS has NAME=PART for those
# of which only the tests run whose name holds PART.
set -euo pipefail

project=$(realpath "$1") program=$2
shift 2
here=$(dirname "$(realpath "$0")")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

tools=(dash bash busybox ip tc bridge bpftool nsenter unshare setpriv ping tcpdump strace dnsmasq udhcpc iperf3 ethtool timeout clang git nft iptables-legacy)

# copy FILE [AS]: the file, under its own path, and the libraries it is linked with.
copy() {
    local to=${2:-$1} library
    mkdir -p "$root${to%/*}"
    cp -L "$1" "$root$to"
    # ldd fails on what isn't a dynamic executable.
    { ldd "$1" 2>/dev/null || true; } | grep -oE '/[^ :]+( |$)' | while read -r library; do
        [ -e "$root$library" ] || { mkdir -p "$root${library%/*}" && cp -L "$library" "$root$library"; }
    done || true
}

# copy_executable FILE: the same without debug information, which is most of a debug build.
copy_executable() {
    copy "$1"
    case $1 in *.sh) ;; *) strip --strip-debug "$root$1" ;; esac
}

mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,dev,proc,sys,tmp,run,root,vm,var/lib}
for name in bin sbin lib lib64; do
    ln -s "usr/$name" "$root/$name"
done
ln -s ../run "$root/var/run"

for tool in "${tools[@]}"; do
    path=$(PATH=$PATH:/usr/sbin:/sbin type -P "$tool") || {
        echo "initramfs: no $tool on this machine: run make deps-vm" >&2
        exit 1
    }
    copy "$path"
done
# dash is the shell: Debian's busybox prefers its own applets of ip, ping and nsenter to the real ones.
ln -sf dash "$root/usr/bin/sh"
while read -r applet; do
    [ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] ||
        ln -s "$(PATH=$PATH:/usr/sbin type -P busybox)" "$root/usr/bin/$applet"
done < <(busybox --list)
for file in /etc/protocols /etc/services /etc/udhcpc/default.script; do
    [ ! -e "$file" ] || copy "$file"
done
getent passwd root nobody tcpdump dnsmasq >"$root/etc/passwd" || true
getent group root nogroup tcpdump dnsmasq >"$root/etc/group" || true
echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
chmod 0755 "$root"
chmod 1777 "$root/tmp"

git -C "$project" ls-files -z tests examples | while IFS= read -r -d '' file; do
    mkdir -p "$root$project/$(dirname "$file")"
    cp -P "$project/$file" "$root$project/$file"
done
[ "$program" = /dev/null ] || copy_executable "$program"

for executable; do
    path=$(realpath "$executable")
    copy_executable "$path"
    name=$(basename "$path")
    # cargo adds a hash: kernel_traffic-0123456789abcdef
    name=$(sed -E 's/-[0-9a-f]{16}$//' <<<"$name")
    part=$(tr ' ' '\n' <<<"${VM_PARTS:-}" | sed -n "s/^$name=//p")
    echo "$name $path $part"
done >"$root/vm/tests"
{
    printf 'directory=%q\nlimit=%q\nfilter=%q\n' "$project" "${VM_TEST_TIMEOUT:?}" "${VM_FILTER:-}"
    for variable in "${!VM_ENV_@}"; do
        printf '%s=%q\n' "${variable#VM_ENV_}" "${!variable}"
    done
} >"$root/vm/environment"
cp "$here/init" "$root/init"

cd "$root"
find . | busybox cpio -o -H newc -R 0:0 2>/dev/null
