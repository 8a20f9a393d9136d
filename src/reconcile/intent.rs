//! From what the files say to what is to be in force: the deletion guard and the delay of removals. Pure.

use super::hold;
use crate::model::{Desired, Intent};
use crate::topology::guard;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How removals are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removals {
    /// Releases what the guard would hold.
    pub allow: bool,
    /// Keeps what goes until the directory was seen unchanged once more.
    pub delay: bool,
}

/// Why the files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something may have changed.
    Changed,
    /// The directory looked unchanged, and removals wait for that.
    Confirm,
    /// Somebody asked for a pass.
    Asked {
        /// And allowed what the guard holds.
        allow_deletes: bool,
    },
}

impl Cause {
    /// What that means for removals, where `steady` says whether the files read are those that were read before.
    pub fn removals(self, steady: bool) -> Removals {
        match self {
            Self::Changed => Removals { allow: false, delay: true },
            // What changed between the look and the reading has yet to be confirmed.
            Self::Confirm => Removals { allow: false, delay: !steady },
            Self::Asked { allow_deletes } => Removals { allow: allow_deletes, delay: false },
        }
    }
}

/// A host that takes itself for another node (it was renamed, say) would give up its own mappings for that node's.
///
/// # Errors
///
/// What happened and how to allow it, unless it is allowed.
pub fn same_node(before: Option<&Intent>, new: &Desired, allow: bool) -> Result<(), String> {
    match (before.and_then(|b| b.desired.node.as_ref()), &new.node) {
        (Some(was), Some(now)) if was != now && !allow => Err(format!(
            "this host was node {was} and would now be {now}: say --node {was}, or `tunnel-mesh apply --allow-deletes` if it \
             is meant"
        )),
        _ => Ok(()),
    }
}

/// Compares the files' new state with what is in force.
///
/// What is held stays held until the files have it again or somebody allows it: it must not slip through because other
/// mappings came meanwhile and made it a smaller share.
pub fn intend(before: Option<&Intent>, new: Arc<Desired>, removals: Removals) -> Intent {
    let Some(before) = before else { return Intent { desired: new, ..Intent::default() } };
    if Arc::ptr_eq(&before.desired, &new) {
        return Intent { desired: new, ..Intent::default() };
    }
    let removed = |state: &Desired| guard::check(state, &new);
    let all: BTreeSet<String> = removed(&before.desired).removed.into_iter().collect();
    if all.is_empty() {
        return Intent { desired: new, ..Intent::default() };
    }
    let still_held: BTreeSet<String> = before.held.intersection(&all).cloned().collect();
    let mut judged = Desired::clone(&before.desired);
    judged.mappings.retain(|interface, _| !still_held.contains(interface.as_str()));
    let verdict = removed(&judged);
    let fresh: BTreeSet<String> = verdict.removed.into_iter().collect();

    // Who allows deletions has seen what is held, and nothing else; what came since is judged by itself. Where nothing was
    // held, what goes now is what is meant.
    let (mut held, mut delayed) = (BTreeSet::new(), BTreeSet::new());
    let all_allowed = removals.allow && still_held.is_empty();
    if !removals.allow {
        held = still_held;
    }
    if verdict.held && !all_allowed {
        held.extend(fresh);
    } else if removals.delay && !removals.allow {
        delayed = fresh;
    }
    let kept: BTreeSet<String> = held.union(&delayed).cloned().collect();
    if kept.is_empty() {
        return Intent { desired: new, held, delayed };
    }
    Intent { desired: hold::keep(&before.desired, &new, &kept).into(), held, delayed }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::topology::{NodeChoice, SourceFile, merge, parse};

    /// A state with these interfaces mapped, each with a key of its own.
    fn state(interfaces: std::ops::Range<u32>) -> Arc<Desired> {
        let mut text = String::from("version: 1\ntunnels: {v0: {kind: vxlan, local: 10.1.0.1}}\nmappings:\n");
        for n in interfaces {
            text.push_str(&format!("  - {{interface: e{n}, id: {n}, remote: 10.0.0.2}}\n"));
        }
        let parsed = parse(&SourceFile { name: "t".to_owned(), text: text.into_bytes() });
        merge([&parsed]).unwrap().compile(&NodeChoice::Unknown).unwrap().into()
    }

    const ASK: Removals = Removals { allow: false, delay: false };

    #[test]
    fn what_is_held_stays_held_whatever_comes_besides() {
        let before = Intent { desired: state(0..1), ..Intent::default() };
        let held = intend(Some(&before), state(1..30), ASK);
        assert_eq!(held.held.len(), 1);
        assert_eq!(held.desired.mappings.len(), 30);
        // Looked at again, e0 is one of thirty, and still held.
        let again = intend(Some(&held), state(1..30), ASK);
        assert_eq!(again, held);
        // Few more removals pass by themselves.
        let fewer = intend(Some(&held), state(1..29), ASK);
        assert_eq!((fewer.held.len(), fewer.desired.mappings.len()), (1, 29));
        // In the files again, or allowed, it is no longer held.
        assert!(intend(Some(&held), state(0..30), ASK).held.is_empty());
        let allowed = intend(Some(&held), state(1..30), Removals { allow: true, delay: false });
        assert_eq!((allowed.held.len(), allowed.desired.mappings.len()), (0, 29));
    }

    #[test]
    fn what_is_allowed_is_what_was_held_and_no_more() {
        let allow = Removals { allow: true, delay: false };
        let before = Intent { desired: state(0..60), ..Intent::default() };
        // 20 of 60 are held; before somebody allows them, the files lose 20 more.
        let held = intend(Some(&before), state(20..60), ASK);
        assert_eq!((held.held.len(), held.desired.mappings.len()), (20, 60));
        let released = intend(Some(&held), state(40..60), allow);
        assert_eq!(released.desired.mappings.len(), 40);
        let still: Vec<u32> = released.held.iter().map(|name| name[1..].parse().unwrap()).collect();
        assert!(still.len() == 20 && still.iter().all(|n| (20..40).contains(n)), "{still:?}");
        // Those were not seen by whoever allowed: they need a word of their own.
        let again = intend(Some(&released), state(40..60), ASK);
        assert_eq!(again, released);
        let all = intend(Some(&again), state(40..60), allow);
        assert_eq!((all.held.len(), all.desired.mappings.len()), (0, 20));
    }

    #[test]
    fn a_bridge_stays_with_the_tenant_whose_ports_are_held() {
        let mesh = |tenant: &str, id: u32| -> Arc<Desired> {
            let text = format!(
                "version: 1\nnodes: {{a: 10.0.0.1, b: 10.0.0.2}}\ntunnels: {{v: {{kind: vxlan}}}}\n\
                 tenants: {{{tenant}: {{id: {id}, bridge: br-x}}}}\n"
            );
            let parsed = parse(&SourceFile { name: "t".to_owned(), text: text.into_bytes() });
            merge([&parsed]).unwrap().compile(&NodeChoice::Named("a".to_owned())).unwrap().into()
        };
        let before = Intent { desired: mesh("red", 1), ..Intent::default() };
        let held = intend(Some(&before), mesh("blue", 2), ASK);
        assert_eq!(held.held.len(), 1);
        let tenants: Vec<&str> = held.desired.mappings.values().map(|m| m.tenant.as_str()).collect();
        assert_eq!((tenants, held.desired.bridges["br-x"].tenant.as_str()), (vec!["red"], "red"));
        let released = intend(Some(&held), mesh("blue", 2), Removals { allow: true, delay: false });
        assert_eq!(released.desired, mesh("blue", 2));
    }

    #[test]
    fn delayed_removals_stay_in_force_until_they_are_confirmed() {
        let before = Intent { desired: state(0..20), ..Intent::default() };
        let waiting = intend(Some(&before), state(0..19), Removals { allow: false, delay: true });
        assert_eq!((waiting.delayed.len(), waiting.desired.mappings.len()), (1, 20));
        let confirmed = intend(Some(&waiting), state(0..19), ASK);
        assert_eq!((confirmed.delayed.len(), confirmed.desired.mappings.len()), (0, 19));
    }
}
