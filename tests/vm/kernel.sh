#!/usr/bin/env bash
# Fetches the newest Debian cloud kernel of a series (6.1, 6.12) and prepares it for QEMU, once.
#
# usage: kernel.sh SERIES DIRECTORY
# Leaves in DIRECTORY: vmlinux (uncompressed, booted through PVH), modules.cpio (the modules that the tests need and
# what those need, with their load order in /modules/order), and release, written last, which says that all is there.
set -euo pipefail

series=$1 dir=$2

# What tunnel-mesh and its tests use. What the kernel has built in is skipped.
modules=(veth bridge vxlan geneve ip_gre ip6_gre dummy ifb tun sch_ingress cls_bpf act_bpf sch_netem
    vrf nf_tables iptable_mangle xfrm_user)

die() {
    printf 'kernel %s: %s\n' "$series" "$*" >&2
    exit 1
}

# What was prepared for fewer modules is prepared anew.
if [ -e "$dir/release" ] && [ "$(cat "$dir/wanted" 2>/dev/null)" = "${modules[*]}" ]; then exit 0; fi
rm -f "$dir/release"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The mirror that this machine's apt uses for that suite, or else Debian's own.
mirror() {
    local uri
    # shellcheck disable=SC2016 # apt's own fields, not the shell's
    uri=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v pattern="$1" '$1 == "Debian" && $2 ~ pattern { print $3; exit }')
    echo "${uri:-http://deb.debian.org/$2}"
}

case $series in
    6.1 | 6.12) uri=$(mirror -security debian-security/) suite=bookworm-security ;;
    *) uri=$(mirror '^[a-z]+$' debian/) suite=trixie-backports ;;
esac
keyring=$(find /usr/share/keyrings -name 'debian-archive-keyring.*' | sort | head -n 1)
[ -n "$keyring" ] || die 'no keyring of Debian under /usr/share/keyrings: install debian-archive-keyring'

# An apt of its own, so that nothing of the machine's is touched.
mkdir -p "$work"/apt/{lists,cache}/partial "$work/apt/cache/archives/partial" "$work/root"
echo "deb [signed-by=$keyring arch=amd64] $uri $suite main" >"$work/apt/sources.list"
apt=(-qq -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" -o APT::Architecture=amd64
    -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3)
apt-get "${apt[@]}" update || die "cannot read $suite from $uri"

image=$(apt-cache "${apt[@]}" pkgnames "linux-image-$series." |
    grep -E "^linux-image-${series//./\\.}\.[0-9]+[-+].*cloud-amd64$" | sort -V | tail -n 1) ||
    die "no cloud kernel of that series in $suite"
release=${image#linux-image-}
packages=("$image")
# From 6.19 on, the image and the modules are packages of their own.
for package in "linux-binary-$release" "linux-modules-$release"; do
    if apt-cache "${apt[@]}" show "$package" >/dev/null 2>&1; then packages+=("$package"); fi
done
printf 'kernel %s: fetching %s\n' "$series" "${packages[*]}" >&2
(cd "$work" && apt-get "${apt[@]}" download "${packages[@]}") || die "cannot download ${packages[*]}"
for deb in "$work"/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
done

# -- The uncompressed kernel out of the bzImage (Documentation/arch/x86/boot.rst). It spares the emulated CPU the work.
bzimage=$(find "$work/root" -name 'vmlinuz*' -type f | head -n 1)
[ -n "$bzimage" ] || die "no vmlinuz in ${packages[*]}"
# field OFFSET SIZE: a little-endian number of the setup header.
field() {
    od -An -t "u$2" -j "$1" -N "$2" "$bzimage" | tr -d ' '
}
setup_sects=$(field 497 1)
payload_offset=$(field 584 4)
payload_length=$(field 588 4)
payload=$(((setup_sects + 1) * 512 + payload_offset))
# The payload ends with four bytes of length that belong to no compression format.
tail -c "+$((payload + 1))" "$bzimage" | head -c "$((payload_length - 4))" >"$work/payload" || true
case $(od -An -t x1 -N 4 "$work/payload" | tr -d ' ') in
    28b52ffd) unpack=(zstd -qdc) ;;
    fd377a58) unpack=(xz -qdc --single-stream) ;;
    1f8b*) unpack=(gzip -dc) ;;
    *) unpack=(lz4 -qdc) ;;
esac
"${unpack[@]}" <"$work/payload" >"$work/vmlinux" || die "cannot decompress the kernel with ${unpack[0]}"
[ "$(od -An -c -j 1 -N 3 "$work/vmlinux" | tr -d ' ')" = ELF ] || die 'what was unpacked is no ELF file'

# -- The modules, in load order. Their dependencies are in themselves (.modinfo): no depmod needed.
tree=$(find "$work/root" -type d -path "*/lib/modules/$release" | head -n 1)
[ -n "$tree" ] || die "no modules in ${packages[*]}"
mkdir -p "$work/cpio/modules"
: >"$work/cpio/modules/order"
find "$tree" -name '*.ko*' >"$work/index"

add_module() {
    local name=${1//-/_} file dependency
    [ ! -e "$work/cpio/modules/$name.ko" ] || return 0
    file=$(grep -E "/${name//_/[-_]}\.ko(\.[a-z]+)?$" "$work/index" | head -n 1) || true
    if [ -z "$file" ]; then
        tr - _ <"$tree/modules.builtin" | grep -q "/$name\.ko$" || die "has no module $name, nor built in"
        return 0
    fi
    case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -qdc "$file" ;;
        *) cat "$file" ;;
    esac >"$work/cpio/modules/$name.ko"
    for dependency in $(tr '\0' '\n' <"$work/cpio/modules/$name.ko" | sed -n 's/^depends=//p' | head -n 1 | tr , ' '); do
        add_module "$dependency"
    done
    echo "$name.ko" >>"$work/cpio/modules/order"
}
for module in "${modules[@]}"; do
    add_module "$module"
done

mkdir -p "$dir"
(cd "$work/cpio" && find modules | busybox cpio -o -H newc 2>/dev/null) >"$dir/modules.cpio"
mv "$work/vmlinux" "$dir/vmlinux"
echo "${modules[*]}" >"$dir/wanted"
echo "$release" >"$dir/release"
