//! A plan as text: grouped by tenant, one line a change.

use super::{Shown, Summary, flow, group, guard_line, lanes, leads_to, name, nothing, object_of, reason, warnings};
use crate::cli::paint::Paint;
use crate::plan::{Change, ChangeAction, MappingView, Object, Plan, Reason};
use std::collections::BTreeMap;

/// Lines by group, in the groups' order.
type Groups = BTreeMap<(u8, String), String>;

/// The plan with its guard and its summary.
pub(in crate::cli) fn plan(shown: &Shown<'_>, paint: Paint) -> String {
    let mut out = changes(shown, paint);
    if let Some((summary, reasons)) = lanes(shown) {
        out.push_str(&format!("{} {summary}.\n", paint.bold("Lanes:")));
        reasons.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
    }
    if let Some(line) = guard_line(shown.guard) {
        let label = if shown.guard.held.is_empty() { paint.bold("Guard:") } else { paint.yellow("Held:") };
        out.push_str(&format!("{label} {line}.\n"));
    }
    for warning in warnings(shown) {
        out.push_str(&format!("{} {warning}.\n  {}.\n", paint.yellow("Warning:"), warning.remedy));
    }
    if nothing(shown.plan) {
        out.push_str("No changes.\n");
    } else {
        out.push_str(&format!("{} {}.\n", paint.bold("Plan:"), Summary::of(shown.plan)));
    }
    out
}

/// The changes, what waits and what is wrong.
pub(in crate::cli) fn changes(shown: &Shown<'_>, paint: Paint) -> String {
    let mut groups = Groups::new();
    for change in &shown.plan.changes {
        let lines = groups.entry(group(change.object, &change.address)).or_default();
        push_change(lines, shown, change, paint);
    }
    push_waiting(&mut groups, shown, shown.plan, paint);
    let mut out = String::new();
    for ((_, heading), lines) in &groups {
        out.push_str(&format!("{}\n{lines}", paint.bold(heading)));
    }
    out
}

fn push_waiting(groups: &mut Groups, shown: &Shown<'_>, plan: &Plan, paint: Paint) {
    let place = |origin: Option<&crate::model::Origin>| {
        origin.map(|origin| paint.dim(&format!("  {origin}"))).unwrap_or_default()
    };
    for pending in &plan.pending {
        // What is wrong is said once.
        if plan.problems.iter().any(|p| p.address == pending.address) {
            continue;
        }
        let lines = groups.entry(group(Object::Mapping, &pending.address)).or_default();
        let (sign, name) = (paint.yellow("!"), name(Object::Mapping, &pending.address));
        lines.push_str(&format!("  {sign} {name}  pending: {}{}\n", pending.why, place(pending.origin.as_ref())));
    }
    for problem in &plan.problems {
        let object = object_of(shown.desired, &problem.address);
        let lines = groups.entry(group(object, &problem.address)).or_default();
        let (sign, name) = (paint.red("!"), name(object, &problem.address));
        lines.push_str(&format!("  {sign} {name}  problem: {}{}\n", problem.what, place(problem.origin.as_ref())));
    }
}

/// A mapping in short.
pub(super) fn view(v: &MappingView) -> String {
    format!("{{{}, {}, {}}} {}", v.tunnel, v.id, v.remote, v.attach)
}

fn push_change(out: &mut String, shown: &Shown<'_>, change: &Change, paint: Paint) {
    let sign = match change.action {
        ChangeAction::Create => paint.green("+"),
        ChangeAction::Update => paint.yellow("~"),
        ChangeAction::Delete => paint.red("-"),
    };
    let mut line = format!("  {sign} {}", name(change.object, &change.address));
    match (&change.before, &change.after) {
        (None, Some(after)) => line.push_str(&format!("  {}", view(after))),
        (Some(before), None) => line.push_str(&format!("  {}", view(before))),
        (Some(before), Some(after)) if view(before) != view(after) => {
            line.push_str(&format!("  {} -> {}", view(before), view(after)));
        }
        (Some(_), Some(after)) => line.push_str(&format!("  {}", view(after))),
        (None, None) => {}
    }
    if let Some(node) = leads_to(shown, change) {
        line.push_str(&format!(" to {node}"));
    }
    let why = format!("({})", reason(change.reason));
    line.push_str(&format!("  {}", if change.reason == Reason::Drift { paint.yellow(&why) } else { why }));
    if let Some(origin) = &change.origin {
        line.push_str(&paint.dim(&format!("  {origin}")));
    }
    out.push_str(&line);
    out.push('\n');
    for detail in &change.details {
        out.push_str(&format!("      {detail}\n"));
    }
    if let Some(through) = shown.flows.get(&change.address).filter(|_| change.object == Object::Mapping) {
        out.push_str(&format!("      {}\n", flow(through)));
    }
}
