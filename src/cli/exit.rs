//! Exit codes, and which error means which: the one place that decides.

use crate::reconcile::instance::LockHeld;
use crate::reconcile::saved::Stale;
use std::process::ExitCode;

/// Exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// `plan --detailed-exitcode`: changes are pending.
    Changes = 2,
    /// Deletions are held.
    Held = 3,
    /// Partly applied.
    Partly = 4,
    /// The lock is held, or the plan is stale.
    Busy = 5,
    /// `status --wait` timed out.
    TimedOut = 6,
    /// Wrong usage (`EX_USAGE` of sysexits.h).
    Usage = 64,
    /// Privileges are missing (`EX_NOPERM`).
    Denied = 77,
    /// The topology is invalid (`EX_CONFIG`).
    Invalid = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that was told in full already; only its exit code is left.
#[derive(Debug, thiserror::Error)]
#[error("exit {0:?}")]
pub struct Told(pub Exit);

/// The exit code of an error, and what could be done about it.
pub fn classify(error: &anyhow::Error) -> (Exit, Option<String>) {
    if let Some(Told(exit)) = error.downcast_ref() {
        return (*exit, None);
    }
    if error.downcast_ref::<LockHeld>().is_some() || error.downcast_ref::<Stale>().is_some() {
        return (Exit::Busy, None);
    }
    let refused = |c: &(dyn std::error::Error + 'static)| {
        c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    };
    if crate::reconcile::is_denied(error) || error.chain().any(refused) {
        let missing = missing_capabilities();
        let hint = if missing.is_empty() {
            "the kernel or a security module refused it although CAP_BPF and CAP_NET_ADMIN are there".to_owned()
        } else {
            format!(
                "missing: {}; run it as root, or give the unit AmbientCapabilities=CAP_BPF CAP_NET_ADMIN",
                missing.join(", ")
            )
        };
        return (Exit::Denied, Some(hint));
    }
    (Exit::Failed, None)
}

/// Which of the needed capabilities the process lacks, from `/proc/self/status`.
fn missing_capabilities() -> Vec<&'static str> {
    const NEEDED: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_BPF", 39)];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    NEEDED.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect()
}
