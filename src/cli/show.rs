//! A plan as text: grouped, one line a change, never by colour alone.

use super::paint::Paint;
use crate::plan::{Change, ChangeAction, MappingView, Object, Plan, Reason};

/// The changes, what waits and what is wrong. Ends with "No changes." when there are none.
pub(super) fn plan_text(plan: &Plan, paint: Paint) -> String {
    let mut out = String::new();
    let mut group = String::new();
    for change in &plan.changes {
        let heading = heading(change);
        if heading != group {
            out.push_str(&format!("{}\n", paint.bold(&heading)));
            group = heading;
        }
        push_change(&mut out, change, paint);
    }
    if !plan.pending.is_empty() {
        out.push_str(&format!("{}\n", paint.bold("pending")));
        for pending in &plan.pending {
            out.push_str(&format!("  {} {}: {}\n", paint.yellow("!"), pending.address, pending.why));
        }
    }
    if !plan.problems.is_empty() {
        out.push_str(&format!("{}\n", paint.bold("problems")));
        for problem in &plan.problems {
            out.push_str(&format!("  {} {}: {}\n", paint.red("!"), problem.address, problem.what));
        }
    }
    if plan.is_empty() {
        out.push_str("No changes.\n");
    }
    out
}

fn heading(change: &Change) -> String {
    match change.object {
        Object::DataPlane => "data plane".to_owned(),
        Object::Tunnel => "tunnels".to_owned(),
        Object::Bridge => "bridges".to_owned(),
        Object::Underlay => "underlay".to_owned(),
        Object::Mapping => match change.address.split_once('/') {
            Some((tenant, _)) => format!("tenant {tenant}"),
            None => "mappings".to_owned(),
        },
    }
}

fn push_change(out: &mut String, change: &Change, paint: Paint) {
    let sign = match change.action {
        ChangeAction::Create => paint.green("+"),
        ChangeAction::Update => paint.yellow("~"),
        ChangeAction::Delete => paint.red("-"),
    };
    let name = match change.object {
        Object::Mapping => change.address.split_once('/').map_or(change.address.as_str(), |(_, i)| i),
        Object::DataPlane => "maps and programs",
        _ => &change.address,
    };
    let mut line = format!("  {sign} {name}");
    let view = |v: &MappingView| format!("{{{}, {}, {}}} {}", v.tunnel, v.id, v.remote, v.attach);
    match (&change.before, &change.after) {
        (None, Some(after)) => line.push_str(&format!("  {}", view(after))),
        (Some(before), None) => line.push_str(&format!("  {}", view(before))),
        (Some(before), Some(after)) if view(before) != view(after) => {
            line.push_str(&format!("  {} -> {}", view(before), view(after)));
        }
        (Some(_), Some(after)) => line.push_str(&format!("  {}", view(after))),
        (None, None) => {}
    }
    let reason = match change.reason {
        Reason::Added => "added",
        Reason::Changed => "changed",
        Reason::Removed => "removed",
        Reason::Drift => "drift",
        Reason::InterfaceRecreated => "interface recreated",
        Reason::InterfaceAppeared => "interface appeared",
        Reason::InterfaceGone => "interface gone",
        Reason::Upgrade => "upgrade",
    };
    line.push_str(&format!("  ({reason})"));
    if let Some(origin) = &change.origin {
        line.push_str(&paint.dim(&format!("  {origin}")));
    }
    out.push_str(&line);
    out.push('\n');
    for detail in &change.details {
        out.push_str(&format!("      {detail}\n"));
    }
}

/// "2 to create, 1 to update, 0 to delete; 7 operations".
pub(super) fn summary(plan: &Plan) -> String {
    let count = |action| plan.changes.iter().filter(|c| c.action == action).count();
    format!(
        "{} to create, {} to update, {} to delete; {} operations",
        count(ChangeAction::Create),
        count(ChangeAction::Update),
        count(ChangeAction::Delete),
        plan.operations.len()
    )
}
