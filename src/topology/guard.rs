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
    let keys: BTreeSet<&TunnelKey> = new.mappings.values().map(|m| &m.key).collect();
    let goes = |interface: &str, key: &TunnelKey| !new.mappings.contains_key(interface) && !keys.contains(key);
    let removed: Vec<String> =
        accepted.mappings.values().filter(|m| goes(&m.interface, &m.key)).map(|m| m.interface.clone()).collect();
    let total = accepted.mappings.len();
    let all = !removed.is_empty() && removed.len() == total;
    let many = removed.len() > FREE && removed.len() * 100 > total * SHARE;
    Verdict { held: all || many, removed }
}
