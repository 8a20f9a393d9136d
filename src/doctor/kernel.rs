//! What the kernel has, and what is done without.

use super::{Code, Facts, Findings};
use crate::model::TunnelKind;

/// The oldest kernel that is supported.
const FLOOR: (u32, u32) = (6, 1);

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let kernel = &facts.kernel;
    if release(&kernel.release).is_some_and(|version| version < FLOOR) {
        let what = format!("Linux {} is older than 6.1: the data plane doesn't load there", kernel.release);
        out.error(Code::KernelTooOld, None, what, "boot a kernel of series 6.1 or newer");
    }
    if kernel.tcx == Some(false) {
        out.note(
            Code::NoTcx,
            None,
            "this kernel has no TCX (Linux 6.6): programs are attached as clsact filters, which work the same",
            "nothing needs doing; TCX attachments are safer from `tc qdisc del`, from Linux 6.6 on",
        );
    }
    for ((kind, ip6), known) in &kernel.kinds {
        if !known {
            let (name, module) = names(*kind, *ip6);
            let what = format!("this kernel can't make {name} devices, which the topology asks for");
            let remedy = format!("modprobe {module}; or install the kernel package that has it; or use another kind");
            out.error(Code::NoTunnelKind, Some(name), what, remedy);
        }
    }
    if kernel.jit == Some(0) {
        out.warning(
            Code::JitOff,
            None,
            "eBPF programs are interpreted, not compiled: every packet costs several times as much",
            "sysctl net.core.bpf_jit_enable=1, and in /etc/sysctl.d",
        );
    }
    let bridged = facts.desired().is_some_and(|d| !d.bridges.is_empty());
    if bridged && !kernel.bridge_netfilter.is_empty() {
        let what = format!(
            "tenants' frames on bridges go through netfilter ({}), which costs a quarter of the throughput and may \
             filter them by the host's rules",
            kernel.bridge_netfilter.join(", ")
        );
        let settings: Vec<String> = kernel.bridge_netfilter.iter().map(|n| format!("net.bridge.{n}=0")).collect();
        out.warning(Code::BridgeNetfilter, None, what, format!("sysctl {}, unless it is meant", settings.join(" ")));
    }
}

fn names(kind: TunnelKind, ip6: bool) -> (&'static str, &'static str) {
    match (kind, ip6) {
        (TunnelKind::Vxlan, _) => ("vxlan", "vxlan"),
        (TunnelKind::Geneve, _) => ("geneve", "geneve"),
        (TunnelKind::Gretap, false) => ("gretap", "ip_gre"),
        (TunnelKind::Gretap, true) => ("ip6gretap", "ip6_gre"),
    }
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::{Facts, KernelFacts, Report};

    #[test]
    fn an_old_kernel_is_an_error_and_a_new_one_is_not() {
        let errors = |text: &str| {
            let kernel = KernelFacts { release: text.to_owned(), ..KernelFacts::default() };
            let report = Report::of(&Facts { kernel, ..Facts::default() });
            report.findings.iter().any(|f| f.code == "kernel-too-old")
        };
        assert!(errors("5.10.0-32-amd64") && errors("6.0.9"));
        assert!(!errors("6.1.0-40-cloud-amd64") && !errors("6.18.5") && !errors("10.0-rc1") && !errors("odd"));
    }
}
