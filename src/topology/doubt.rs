//! What of a broken topology isn't known: nothing is said to be missing that may only be misspelt.

use super::diagnostic::Diagnostic;
use std::collections::BTreeSet;

/// Names of things that are declared, and wrongly; what they are is left out of the topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    /// Whether anything may have been declared that couldn't be read.
    pub(super) everything: bool,
    pub(super) nodes: BTreeSet<String>,
    pub(super) tunnels: BTreeSet<String>,
    pub(super) tenants: BTreeSet<String>,
}

impl Doubt {
    /// Takes over another one.
    pub(super) fn extend(&mut self, other: &Self) {
        self.everything |= other.everything;
        self.nodes.extend(other.nodes.iter().cloned());
        self.tunnels.extend(other.tunnels.iter().cloned());
        self.tenants.extend(other.tenants.iter().cloned());
    }

    /// The names of a section, where that section declares names.
    pub(super) fn section(&mut self, section: &str) -> Option<&mut BTreeSet<String>> {
        match section {
            "nodes" => Some(&mut self.nodes),
            "tunnels" => Some(&mut self.tunnels),
            "tenants" => Some(&mut self.tenants),
            _ => None,
        }
    }

    pub(super) fn node(&self, name: &str) -> bool {
        self.everything || self.nodes.contains(name)
    }

    pub(super) fn tunnel(&self, name: &str) -> bool {
        self.everything || self.tunnels.contains(name)
    }

    pub(super) fn any_node(&self) -> bool {
        self.everything || !self.nodes.is_empty()
    }

    pub(super) fn any_tunnel(&self) -> bool {
        self.everything || !self.tunnels.is_empty()
    }
}

/// Sorts by place and drops what is said twice.
pub(super) fn in_order(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort_by(|a, b| (&a.place, &a.code, &a.message).cmp(&(&b.place, &b.code, &b.message)));
    diagnostics.dedup();
    diagnostics
}
