//! `doctor` finds what is wrong with a host: each test makes the condition and expects the finding, and nothing without it.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use serde_json::Value;
use world::*;

const ONE: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}
mappings:
  - {tenant: red, interface: eth1, id: 123, remote: 172.16.1.101}
";

/// A host with an interface for a tenant that fits into the underlay.
fn host(underlay: &Underlay) -> Host {
    let host = underlay.host(0);
    host.netns.cmd("ip link add eth1 mtu 1450 type veth peer name eth1p");
    for end in ["eth1", "eth1p"] {
        host.netns.cmd(&format!("ip link set {end} up"));
    }
    host.write("a.yaml", ONE);
    host
}

/// The report; its exit code must fit it.
fn doctor(host: &Host) -> Value {
    let output = host.run(&["doctor", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let expected = i32::from(report["errors"].as_u64().unwrap() > 0);
    assert_eq!(output.status.code(), Some(expected), "{report:#}");
    report
}

fn codes(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().map(|f| f["code"].as_str().unwrap().to_owned()).collect()
}

/// The finding with that code, with its severity; it must have a remedy.
fn finding(host: &Host, code: &str, severity: &str) -> Value {
    let report = doctor(host);
    let found = report["findings"].as_array().unwrap().iter().find(|f| f["code"] == code).cloned();
    let found = found.unwrap_or_else(|| panic!("no finding {code} in {report:#}"));
    assert_eq!(found["severity"], severity, "{found:#}");
    assert!(!found["remedy"].as_str().unwrap().is_empty(), "{found:#}");
    found
}

/// Nothing of that code.
fn without(host: &Host, code: &str) {
    let report = doctor(host);
    assert!(!codes(&report).contains(&code.to_owned()), "{report:#}");
}

#[test]
fn a_good_host_has_no_findings_worth_a_warning() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let report = doctor(&host);
    assert_eq!((report["errors"].as_u64(), report["warnings"].as_u64()), (Some(0), Some(0)), "{report:#}");
    let daemon = host.daemon();
    let report = doctor(&host);
    assert_eq!((report["errors"].as_u64(), report["warnings"].as_u64()), (Some(0), Some(0)), "{report:#}");
    assert!(report["passed"].as_array().unwrap().iter().any(|c| c == "daemon"), "{report:#}");
    assert_eq!(daemon.stop(), Some(0));
    finding(&host, "no-daemon", "warning");
}

#[test]
fn an_mtu_that_does_not_fit_is_told_with_the_one_that_does() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    without(&host, "mtu-too-large");
    host.netns.cmd("ip link set eth1 mtu 1451");
    let found = finding(&host, "mtu-too-large", "warning");
    assert!(found["what"].as_str().unwrap().contains("eth1 (MTU 1451)"), "{found:#}");
    assert!(found["remedy"].as_str().unwrap().contains("mtu 1450"), "{found:#}");
}
