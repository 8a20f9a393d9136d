//! Reports of `doctor`, and the account of which findings were really made.

use crate::world::*;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;

thread_local! {
    /// Codes of all findings since the test began.
    static SEEN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Holds a test to what `PROVEN` says of it: at its end each of those findings was in a report.
pub struct Proof(&'static [&'static str]);

impl Proof {
    pub fn of(codes: &'static [&'static str]) -> Self {
        SEEN.with_borrow_mut(BTreeSet::clear);
        Self(codes)
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let missing: Vec<_> = SEEN.with_borrow(|seen| self.0.iter().filter(|c| !seen.contains(**c)).collect());
            assert!(missing.is_empty(), "no report had {missing:?}");
        }
    }
}

/// Takes note of a report; it is well formed and its exit code fits it.
fn noted(output: &std::process::Output) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let expected = i32::from(report["errors"].as_u64().unwrap() > 0);
    assert_eq!(output.status.code(), Some(expected), "{report:#}");
    SEEN.with_borrow_mut(|seen| seen.extend(codes(&report)));
    report
}

/// A host's report.
pub fn doctor(host: &Host) -> Value {
    noted(&host.run(&["doctor", "--format", "json"]))
}

/// As [`doctor`], with these options.
pub fn doctor_with(host: &Host, options: &[&str]) -> Value {
    noted(&host.run(&[options, &["doctor", "--format", "json"]].concat()))
}

/// As [`doctor`], by another command.
pub fn doctor_by(host: &Host, prefix: &[&str]) -> Value {
    noted(&user::wrapped(host, prefix, &["doctor", "--format", "json"]).output().unwrap())
}

/// What that command reports.
pub fn report_of(mut command: Command) -> Value {
    noted(&command.output().unwrap())
}

/// The report of facts, for what only other kernels have.
pub fn report(facts: &tunnel_mesh::doctor::Facts) -> Value {
    let report = serde_json::to_value(tunnel_mesh::doctor::Report::of(facts)).unwrap();
    SEEN.with_borrow_mut(|seen| seen.extend(codes(&report)));
    report
}

pub fn codes(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().map(|f| f["code"].as_str().unwrap().to_owned()).collect()
}

/// The finding with that code, with its severity; it must have a remedy.
pub fn finding_in(report: &Value, code: &str, severity: &str) -> Value {
    let found = report["findings"].as_array().unwrap().iter().find(|f| f["code"] == code).cloned();
    let found = found.unwrap_or_else(|| panic!("no finding {code} in {report:#}"));
    assert_eq!(found["severity"], severity, "{found:#}");
    assert!(!found["remedy"].as_str().unwrap().is_empty(), "{found:#}");
    found
}

/// As [`finding_in`], of a host.
pub fn finding(host: &Host, code: &str, severity: &str) -> Value {
    finding_in(&doctor(host), code, severity)
}

/// Nothing of that code.
pub fn without(host: &Host, code: &str) {
    let report = doctor(host);
    assert!(!codes(&report).contains(&code.to_owned()), "{report:#}");
}
