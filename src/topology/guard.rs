//! The deletion guard: how much the files may remove at once.
//!
//! Counted in mappings that the *files* remove from the accepted state. A mapping whose interface or whose key goes on
//! in the new state is changed, not removed; one whose interface vanished from the host is still in the files.

use crate::model::{Desired, TunnelKey};
use std::collections::BTreeSet;

/// Removals up to this many are never held, unless they are all there is.
const FREE: usize = 9;
/// Removals of more than this share of the accepted mappings are held, in percent.
const SHARE: usize = 30;

/// What the guard says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Interfaces whose mappings the files remove.
    pub removed: Vec<String>,
    /// Whether their removal is held.
    pub held: bool,
}

/// Compares the accepted state with the new one.
pub fn check(accepted: &Desired, new: &Desired) -> Verdict {
    let unmapped = || accepted.mappings_not_in(new);
    if unmapped().next().is_none() {
        return Verdict::default();
    }
    let keys: BTreeSet<&TunnelKey> = new.mappings.values().map(|m| &m.key).collect();
    let removed: Vec<String> = unmapped().filter(|m| !keys.contains(&m.key)).map(|m| m.interface.to_string()).collect();
    let total = accepted.mappings.len();
    let all = !removed.is_empty() && removed.len() == total;
    let many = removed.len() > FREE && removed.len() * 100 > total * SHARE;
    Verdict { held: all || many, removed }
}
