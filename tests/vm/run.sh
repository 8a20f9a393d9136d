#!/usr/bin/env bash
# Boots Debian kernels under QEMU and runs the kernel tests in them, in clsact mode.
#
# usage: run.sh [EXECUTABLE...]      (default: cargo's tests named bpf_* and netlink_*, those named kernel_* that depend on what the
#        kernel does, and the demo; of kernel_lanes, with more packets than an emulated machine gets through, those of Geneve)
#   VM_TESTS         extended regular expression of the names of tests to run instead, without the demo
#   VM_FILTER        run only tests whose name holds that, of each executable
#   KERNELS          series to run, one after the other; default: 6.1 (6.12 works too)
#   TUNNEL_MESH_HOOK what the tests attach by; default: clsact, whatever the kernel has; auto: as the daemon would
#   VM_MACHINES      how many of them run side by side, each with its share of the executables; default: one for each CPU
#   VM_TIMEOUT       seconds for all of one machine, boot included; default: 3900
#   VM_TEST_TIMEOUT  seconds for one executable; default: 1800
#   VM_MEMORY        MiB of one machine; default: 2048
#   VM_DIRECTORY     where kernels are kept and logs are left; default: target/vm
# Exit status: 0 if every kernel booted and every executable passed without a complaint of the kernel; else 1.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
project=$(realpath "$here/../..")
dir=${VM_DIRECTORY:-$project/target/vm}
export VM_TEST_TIMEOUT=${VM_TEST_TIMEOUT:-1800}

die() {
    printf 'vm: %s\n' "$*" >&2
    exit 1
}

work=
machines=()
cleanup() {
    # Only what this run started, by its id.
    [ ${#machines[@]} = 0 ] || kill "${machines[@]}" 2>/dev/null || true
    if [ -n "$work" ]; then rm -rf "$work"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(uname -m)" = x86_64 ] || die "the kernels are x86-64, this machine is $(uname -m)"
mkdir -p "$dir"
work=$(mktemp -d "$dir/run.XXXXXX")

# -- What runs inside.
# executables KIND NAME: what cargo built of that kind, whose name matches.
executables() {
    grep -F "\"kind\":[\"$1\"]" "$work/cargo.json" | grep -E "\"name\":\"$2\"" | sed -nE 's/.*"executable":"([^"]+)".*/\1/p'
}
by_default='(kernel_(cli|crash|drift|fast|faults|lanes|lifecycle|links|mesh|mtu|safety|scale|trace|traffic)|(bpf|netlink)_[a-z0-9_]*)'
program=/dev/null
if [ $# = 0 ]; then
    echo 'vm: building the tests'
    (cd "$project" && cargo test --no-run --message-format=json-render-diagnostics >"$work/cargo.json") || die 'the tests do not build'
    # The program itself, not its unit tests: those have a hash in their name.
    program=$(executables bin tunnel-mesh | grep '/tunnel-mesh$') || true
    [ -n "$program" ] || die "cargo named no tunnel-mesh binary"
    mapfile -t tests < <(executables test "${VM_TESTS:-$by_default}" | sort -u)
    [ ${#tests[@]} != 0 ] || die 'no such test under tests/'
    set -- "${tests[@]}"
    if [ -z "${VM_TESTS:-}" ]; then
        set -- "$@" "$project/examples/demo.sh"
        export VM_PARTS='kernel_lanes=geneve'
    fi
fi
export VM_ENV_TUNNEL_MESH_SLOW=1 VM_ENV_RUST_BACKTRACE=1 VM_ENV_RUST_TEST_THREADS=${RUST_TEST_THREADS:-1}
hook=${TUNNEL_MESH_HOOK:-clsact}
[ "$hook" = auto ] || export VM_ENV_TUNNEL_MESH_HOOK=$hook VM_ENV_MODE=$hook
export VM_ENV_INSTA_WORKSPACE_ROOT=$project VM_ENV_CARGO_MANIFEST_DIR=$project VM_ENV_BIN=$program
"$here/initramfs.sh" "$project" "$program" "$@" >"$work/base.cpio"

# KVM only with real virtualisation underneath. TCG's own threading trips over the kernel patching its text.
accelerate=(-accel 'tcg,thread=single')
if grep -qE '\b(vmx|svm)\b' /proc/cpuinfo && [ -w /dev/kvm ]; then accelerate=(-accel kvm -cpu host); fi

# boot SERIES: machines side by side, of which each runs its share; leaves their statuses in `codes`. Consoles are shown as
# they run, and kept; each guest's report lands in a file of its own.
boot() {
    local kernel=$dir/$1 n name shown=()
    cat "$work/base.cpio" "$kernel/modules.cpio" >"$work/initrd"
    for ((n = 0; n < count; n++)); do
        name=$dir/$1.$n
        : >"$name.console" && : >"$name.report"
        timeout --foreground -k 5 "${VM_TIMEOUT:-3900}" qemu-system-x86_64 -M pc "${accelerate[@]}" -smp 2 -m "${VM_MEMORY:-2048}" \
            -nodefaults -no-user-config -no-reboot -display none \
            -serial "file:$name.console" -serial "file:$name.report" -kernel "$kernel/vmlinux" -initrd "$work/initrd" \
            -append "console=ttyS0 quiet rcupdate.rcu_cpu_stall_suppress=1 panic=-1 oops=panic mitigations=off cryptomgr.notests random.trust_cpu=on no_timer_check tsc=reliable nowatchdog audit=0 apparmor=0 rcupdate.rcu_expedited=1 machine=$n machines=$count" \
            </dev/null 2>"$name.qemu" &
        machines[n]=$!
        tail -n +1 -f --pid="${machines[n]}" "$name.console" | sed -u "s/\r$//; s/^/$n: /" &
        shown+=($!)
    done
    codes=()
    for n in "${!machines[@]}"; do
        codes[n]=0
        wait "${machines[n]}" || codes[n]=$?
    done
    machines=()
    wait "${shown[@]}" || true
}

# summarise SERIES: one line for each executable; fails unless all of them passed and the guests came to their ends.
summarise() {
    local series=$1 bad=0 kind name rest n file
    for n in "${!codes[@]}"; do cat "$dir/$series.$n.report"; done >"$dir/$series.report"
    printf '\n=== Linux %s\n' "$(<"$dir/$series/release")"
    while read -r kind name rest; do
        case $kind in
            boot) printf 'booted in %s s\n' "$rest" ;;
            pass) printf 'ok      %-40s %s s\n' "$name" "$rest" ;;
            fail) printf 'FAILED  %-40s %s s: %s\n' "$name" "${rest%% *}" "${rest#* }" && bad=1 ;;
            kernel) printf 'kernel  %-40s %s\n' "$name" "$rest" && bad=1 ;;
        esac
    done <"$dir/$series.report"
    if [ "$(grep -c -E '^(pass|fail) ' "$dir/$series.report")" -lt "$tests_expected" ]; then bad=1; fi
    for n in "${!codes[@]}"; do
        file=$dir/$series.$n
        if ! grep -qx 'done' "$file.report"; then
            bad=1
            case ${codes[n]} in
                124 | 137) printf 'FAILED  the guest did not end within %s s\n' "${VM_TIMEOUT:-3900}" ;;
                0) printf 'FAILED  the guest died; the end of its console:\n' && tail -n 30 "$file.console" ;;
                *) printf 'FAILED  QEMU ended with status %s: %s\n' "${codes[n]}" "$(<"$file.qemu")" ;;
            esac
        fi
    done
    return "$bad"
}

tests_expected=$#
count=${VM_MACHINES:-$(nproc)}
[ "$count" -le $# ] || count=$#
codes=()
failed=()
for series in ${KERNELS:-6.1}; do
    "$here/kernel.sh" "$series" "$dir/$series"
    boot "$series"
    summarise "$series" || failed+=("$series")
done
[ ${#failed[@]} = 0 ] || die "failed on Linux ${failed[*]}; consoles are in $dir"
echo "vm: all passed on Linux ${KERNELS:-6.1}"
