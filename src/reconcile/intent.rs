//! From what the files say to what is to be in force: the deletion guard and the delay of removals. Pure.

use super::hold;
use crate::model::{Desired, Intent};
use crate::topology::guard;
use std::collections::BTreeSet;

/// How removals are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removals {
    /// Releases what the guard would hold.
    pub allow: bool,
    /// Keeps what goes until the directory was seen unchanged once more.
    pub delay: bool,
}

/// Compares the files' new state with the accepted one.
pub fn intend(accepted: Option<&Desired>, new: Desired, removals: Removals) -> Intent {
    let Some(accepted) = accepted else { return Intent { desired: new, ..Intent::default() } };
    let verdict = guard::check(accepted, &new);
    let removed: BTreeSet<String> = verdict.removed.into_iter().collect();
    let (held, delayed) = match (verdict.held && !removals.allow, removals.delay) {
        (true, _) => (removed.clone(), BTreeSet::new()),
        (false, true) => (BTreeSet::new(), removed.clone()),
        (false, false) => (BTreeSet::new(), BTreeSet::new()),
    };
    let kept: BTreeSet<String> = held.union(&delayed).cloned().collect();
    if kept.is_empty() {
        return Intent { desired: new, held, delayed };
    }
    Intent { desired: hold::keep(accepted, &new, &kept), held, delayed }
}
