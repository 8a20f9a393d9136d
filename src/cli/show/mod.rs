//! A plan as people, reviewers and scripts want it: as text, as Markdown, as JSON, as a diff.
//!
//! The rule: all forms tell the same, in the same order, and none says anything by colour alone.

pub(super) mod diff;
pub(super) mod json;
pub(super) mod markdown;
pub(super) mod text;

use crate::model::{Desired, Intent, Name, Observed, Throughput};
use crate::plan::room::{TooLarge, too_large};
use crate::plan::{Change, ChangeAction, Object, Plan, Reason};
use crate::topology::guard;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A plan and what explains it.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    /// Which node it is for.
    pub(super) node: Option<&'a str>,
    /// What is to be in force.
    pub(super) desired: &'a Desired,
    /// What was to be in force before.
    pub(super) before: Option<&'a Desired>,
    /// What is live; absent where only declarations are compared.
    pub(super) observed: Option<&'a Observed>,
    pub(super) plan: &'a Plan,
    pub(super) guard: &'a Guard,
    /// What flows through what is changed, by address.
    pub(super) flows: &'a BTreeMap<String, Throughput>,
}

/// What the deletion guard says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Guard {
    pub(super) verdict: Verdict,
    /// Mappings that the files remove.
    pub(super) removed: usize,
    /// Mappings that were accepted.
    pub(super) of: usize,
    /// Interfaces whose mappings stay until their deletion is allowed.
    pub(super) held: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The files remove nothing.
    Nothing,
    /// They remove little enough.
    Passed,
    /// They remove too much at once.
    Held,
    /// They remove too much at once, and it is allowed.
    Allowed,
}

impl Guard {
    /// What it says of the files' new state beside what is in force.
    pub(super) fn of(before: Option<&Intent>, new: &Desired, intent: &Intent) -> Self {
        let Some(before) = before else {
            return Self { verdict: Verdict::Nothing, removed: 0, of: 0, held: BTreeSet::new() };
        };
        let checked = guard::check(&before.desired, new);
        let verdict = if !intent.held.is_empty() {
            Verdict::Held
        } else if checked.removed.is_empty() {
            Verdict::Nothing
        } else if checked.held || !before.held.is_empty() {
            Verdict::Allowed
        } else {
            Verdict::Passed
        };
        let (removed, of) = (checked.removed.len(), before.desired.mappings.len());
        Self { verdict, removed, of, held: intent.held.clone() }
    }
}

/// How many of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) create: usize,
    pub(super) update: usize,
    pub(super) delete: usize,
    /// Changes that undo what somebody else did.
    pub(super) drift: usize,
    pub(super) pending: usize,
    pub(super) problems: usize,
    pub(super) operations: usize,
}

impl Summary {
    pub(super) fn of(plan: &Plan) -> Self {
        let count = |f: fn(&&Change) -> bool| plan.changes.iter().filter(f).count();
        Self {
            create: count(|c| c.action == ChangeAction::Create),
            update: count(|c| c.action == ChangeAction::Update),
            delete: count(|c| c.action == ChangeAction::Delete),
            drift: count(|c| c.reason == Reason::Drift),
            pending: plan.pending.len(),
            problems: plan.problems.len(),
            operations: plan.operations.len(),
        }
    }
}

impl std::fmt::Display for Summary {
    /// "2 to create, 1 to update (1 drift), 0 to delete, 1 pending; 7 operations".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to create, {} to update, {} to delete", self.create, self.update, self.delete)?;
        for (count, what) in [(self.drift, "by drift"), (self.pending, "pending"), (self.problems, "with problems")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        match self.operations {
            0 => Ok(()),
            1 => f.write_str("; 1 operation"),
            n => write!(f, "; {n} operations"),
        }
    }
}

/// What would be too large for its tunnel, as far as it is live.
pub(super) fn warnings(shown: &Shown<'_>) -> Vec<TooLarge> {
    shown.observed.map(|observed| too_large(shown.desired, observed)).unwrap_or_default()
}

/// Whether nothing changes.
pub(super) fn nothing(plan: &Plan) -> bool {
    plan.operations.is_empty() && plan.changes.is_empty()
}

/// What flows through what a plan changes or takes away, by address of the change.
pub(super) fn flows(plan: &Plan, by_slot: &BTreeMap<u32, Throughput>) -> BTreeMap<String, Throughput> {
    use crate::plan::Step;
    let touched = |c: &&Change| c.object == Object::Mapping && c.action != ChangeAction::Create;
    let touched: BTreeSet<&str> = plan.changes.iter().filter(touched).map(|c| c.address.as_str()).collect();
    // Of a slot that gets a new owner, the counters are the old one's.
    let fresh = |step: &Step| if let Step::ResetCounters { slot } = step { Some(*slot) } else { None };
    let fresh: BTreeSet<u32> = plan.operations.iter().filter_map(|o| fresh(&o.step)).collect();
    let mut slots: BTreeMap<&str, BTreeSet<u32>> = touched.iter().map(|address| (*address, BTreeSet::new())).collect();
    for operation in &plan.operations {
        if let Some(slot) = operation.slot.filter(|slot| !fresh.contains(slot))
            && let Some(slots) = slots.get_mut(operation.change.as_str())
        {
            slots.insert(slot);
        }
    }
    let sum = |slots: BTreeSet<u32>| {
        slots.iter().filter_map(|slot| by_slot.get(slot)).fold(Throughput::default(), |sum, flow| sum.plus(*flow))
    };
    slots.into_iter().map(|(address, slots)| (address.to_owned(), sum(slots))).collect()
}

/// The group that something belongs to: its place among the groups, and its heading.
fn group(object: Object, address: &str) -> (u8, String) {
    match (object, address.split_once('/')) {
        (Object::DataPlane, _) => (0, "data plane".to_owned()),
        (Object::Tunnel, _) => (1, "tunnels".to_owned()),
        (Object::Bridge, _) => (2, "bridges".to_owned()),
        (Object::Underlay, _) => (3, "underlay".to_owned()),
        (Object::Mapping, Some((tenant, _))) => (4, format!("tenant {tenant}")),
        (Object::Mapping, None) => (5, "mappings".to_owned()),
    }
}

/// What the address of a problem is about.
fn object_of(desired: &Desired, address: &str) -> Object {
    if desired.tunnels.contains_key(address) {
        Object::Tunnel
    } else if desired.bridges.contains_key(address) {
        Object::Bridge
    } else {
        Object::Mapping
    }
}

/// The name that something has within its group.
fn name(object: Object, address: &str) -> &str {
    match object {
        Object::Mapping => address.split_once('/').map_or(address, |(_, interface)| interface),
        Object::DataPlane => "maps and programs",
        _ => address,
    }
}

/// Why, in words.
fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Added => "added",
        Reason::Changed => "changed",
        Reason::Removed => "removed",
        Reason::Drift => "drift",
        Reason::InterfaceRecreated => "interface recreated",
        Reason::InterfaceAppeared => "interface appeared",
        Reason::InterfaceGone => "interface gone",
        Reason::Upgrade => "upgrade",
    }
}

/// Which lanes the mappings take, in words: a summary and the reasons. `None` where no live state is known.
fn lanes(shown: &Shown<'_>) -> Option<(String, Vec<String>)> {
    let told = super::lanes::told(shown.desired, shown.observed?);
    if told.is_empty() {
        return None;
    }
    Some(super::lanes::lines(told.iter().map(|m| (m.address.as_str(), &m.lanes))))
}

/// Where the generated port of a change leads to.
fn leads_to<'a>(shown: &'a Shown<'_>, change: &Change) -> Option<&'a str> {
    let interface = change.after.as_ref().or(change.before.as_ref()).map(|v| Name::from(v.interface.as_str()))?;
    let port = |desired: &'a Desired| desired.mappings.get(&interface)?.generated.as_ref();
    port(shown.desired).or_else(|| shown.before.and_then(port)).map(|p| p.node.as_str())
}

/// What flows, in words.
fn flow(flow: &Throughput) -> String {
    let total = || format!("{} packets in, {} out so far", grouped(flow.rx_packets), grouped(flow.tx_packets));
    if flow.packets() == 0 {
        return "no traffic so far".to_owned();
    }
    if flow.packets_per_second() == 0 {
        return format!("no traffic now; {}", total());
    }
    format!(
        "carries {} packets/s in, {} out ({}) now; {}",
        grouped(flow.rx_packets_per_second),
        grouped(flow.tx_packets_per_second),
        bits(flow.bytes_per_second),
        total()
    )
}

/// 1234567 as "1,234,567".
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A rate as bits per second.
fn bits(bytes_per_second: u64) -> String {
    let bits = bytes_per_second as f64 * 8.0;
    for (unit, size) in [("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)] {
        if bits >= size {
            return format!("{:.1} {unit}", bits / size);
        }
    }
    format!("{bits:.0} bit/s")
}

/// The first few names.
pub(super) fn list(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 10;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// What the guard says, in words; `None` where the files remove nothing.
fn guard_line(guard: &Guard) -> Option<String> {
    let Guard { verdict, removed, of, held } = guard;
    let removed = format!("the files remove {removed} of {of} mappings");
    match verdict {
        Verdict::Nothing => None,
        Verdict::Passed => Some(format!("{removed}: passed")),
        Verdict::Allowed => Some(format!("{removed} at once: allowed")),
        Verdict::Held => Some(format!(
            "{removed} at once: {} held ({}); they stay in force until `tunnel-mesh apply --allow-deletes`",
            held.len(),
            list(held)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            ["0", "999", "1,000", "12,345,678"],
            [0, 999, 1000, 12_345_678].map(grouped).each_ref().map(|s| s.as_str())
        );
        assert_eq!(bits(3), "24 bit/s");
        assert_eq!(bits(1_250_000), "10.0 Mbit/s");
    }
}
