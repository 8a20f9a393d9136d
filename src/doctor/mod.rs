//! `doctor`: what on this host keeps tunnel-mesh from working, or from working well, and what to do about it.
//!
//! A *finding* is one thing that is wrong, with its severity and its remedy. A *check* is a pure function from [`Facts`] to
//! findings; [`CHECKS`] lists them. The rule: facts are gathered in one place and change nothing; what can't be looked at
//! is a fact as well, and is told, never passed over.
//!
//! To add a check: gather what it needs in `facts`, write the function, list it here; its findings get codes in `code`, and
//! a test each that makes the condition.

mod code;
mod facts;
mod files;
mod hooks;
mod kernel;
mod lanes;
mod mtu;
mod pins;
mod ports;
mod privileges;
mod sockets;

pub use code::Code;
pub use facts::{Blind, Facts, KernelFacts, Live, PathFacts, Privileges};
pub use sockets::Socket;

use crate::model::LaneReason;
use serde::{Deserialize, Serialize};

/// Version of the doctor's JSON.
pub const FORMAT_VERSION: u32 = 1;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something doesn't work.
    Error,
    /// Something works worse than it could, or may stop working.
    Warning,
    /// Good to know: what is done without, and why.
    Note,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check that found it.
    pub check: String,
    /// Stable name of the kind of finding.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: an interface, a tunnel, a file; absent where it is about the host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// What is wrong, and what comes of it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// The kind of a finding: one of ours, or a reason for the device lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(&'static str);

impl From<Code> for Kind {
    fn from(code: Code) -> Self {
        Self(code.name())
    }
}

impl From<LaneReason> for Kind {
    fn from(reason: LaneReason) -> Self {
        Self(reason.name())
    }
}

/// What a check finds, as it goes.
#[derive(Debug, Default)]
pub struct Findings {
    check: &'static str,
    found: Vec<Finding>,
}

impl Findings {
    /// Adds an error.
    pub fn error(
        &mut self,
        code: impl Into<Kind>,
        subject: Option<&str>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Error, code.into(), subject, what.into(), remedy.into());
    }

    /// Adds a warning.
    pub fn warning(
        &mut self,
        code: impl Into<Kind>,
        subject: Option<&str>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Warning, code.into(), subject, what.into(), remedy.into());
    }

    /// Adds a note.
    pub fn note(
        &mut self,
        code: impl Into<Kind>,
        subject: Option<&str>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Note, code.into(), subject, what.into(), remedy.into());
    }

    fn add(&mut self, severity: Severity, kind: Kind, subject: Option<&str>, what: String, remedy: String) {
        let (check, code, subject) = (self.check.to_owned(), kind.0.to_owned(), subject.map(str::to_owned));
        self.found.push(Finding { check, code, severity, subject, what, remedy });
    }
}

/// The first of many, and how many more there are.
fn few(mut all: Vec<String>) -> String {
    const SHOWN: usize = 5;
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let list = all.join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Name, as in the output.
    pub name: &'static str,
    /// What it looks for. Where it can't look, it says so.
    pub run: fn(&Facts, &mut Findings),
}

/// Every check, in the order of the output.
pub const CHECKS: &[Check] = &[
    Check { name: "kernel", run: kernel::check },
    Check { name: "privileges", run: privileges::check },
    Check { name: "pins", run: pins::check },
    Check { name: "topology", run: files::check },
    Check { name: "daemon", run: files::check_daemon },
    Check { name: "ports", run: ports::check },
    Check { name: "mtu", run: mtu::check },
    Check { name: "lanes", run: lanes::check },
    Check { name: "programs", run: hooks::check_programs },
    Check { name: "tc_index", run: hooks::check_tc_index },
];

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub format_version: u32,
    /// Release of the kernel.
    pub kernel: String,
    /// Node, where the topology knows it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Worst first, then in the order of the checks.
    pub findings: Vec<Finding>,
    /// Checks that found nothing.
    pub passed: Vec<String>,
    /// How many errors.
    pub errors: usize,
    /// How many warnings.
    pub warnings: usize,
    /// How many notes.
    pub notes: usize,
}

impl Report {
    /// Runs every check.
    pub fn of(facts: &Facts) -> Self {
        let mut all: Vec<Finding> = Vec::new();
        let mut passed = Vec::new();
        for check in CHECKS {
            let mut findings = Findings { check: check.name, found: Vec::new() };
            (check.run)(facts, &mut findings);
            if findings.found.is_empty() {
                passed.push(check.name.to_owned());
            }
            all.append(&mut findings.found);
        }
        all.sort_by_key(|f| f.severity);
        let count = |severity| all.iter().filter(|f| f.severity == severity).count();
        Self {
            format_version: FORMAT_VERSION,
            kernel: facts.kernel.release.clone(),
            node: facts.desired().and_then(|d| d.node.clone()),
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            notes: count(Severity::Note),
            findings: all,
            passed,
        }
    }
}
