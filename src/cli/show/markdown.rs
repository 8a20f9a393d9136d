//! A plan as Markdown, for a comment on a pull request.

use super::text::view;
use super::{Shown, Summary, flow, group, guard_line, lanes, leads_to, name, nothing, object_of, reason, warnings};
use crate::plan::{Change, ChangeAction, Object};
use std::collections::BTreeMap;

/// Longest diff that is put into a comment, in bytes: GitHub takes 65,536 characters.
const DIFF_MAX: usize = 30_000;

/// The plan under a heading of that depth.
pub(in crate::cli) fn plan(shown: &Shown<'_>, depth: usize) -> String {
    let marks = "#".repeat(depth);
    let node = shown.node.map(|node| format!(" for `{}`", code(node))).unwrap_or_default();
    let summary = if nothing(shown.plan) { "no changes".to_owned() } else { Summary::of(shown.plan).to_string() };
    let mut out = format!("{marks} tunnel-mesh plan{node}: {summary}\n\n");
    if let Some(line) = guard_line(shown.guard) {
        let kind = if shown.guard.held.is_empty() { "NOTE" } else { "WARNING" };
        out.push_str(&format!("> [!{kind}]\n> Deletion guard: {}.\n\n", text(&line)));
    }
    for warning in warnings(shown) {
        let (what, remedy) = (text(&warning.to_string()), text(&warning.remedy));
        out.push_str(&format!("> [!WARNING]\n> {what}. {remedy}.\n\n"));
    }
    let mut groups: BTreeMap<(u8, String), Vec<[String; 5]>> = BTreeMap::new();
    for change in &shown.plan.changes {
        groups.entry(group(change.object, &change.address)).or_default().push(row(shown, change));
    }
    for pending in &shown.plan.pending {
        let origin = pending.origin.as_ref().map(|o| format!("`{}`", code(&o.to_string()))).unwrap_or_default();
        let name = format!("`{}`", code(name(Object::Mapping, &pending.address)));
        let rows = groups.entry(group(Object::Mapping, &pending.address)).or_default();
        rows.push(["`!`".to_owned(), name, format!("pending: {}", text(&pending.why)), String::new(), origin]);
    }
    let waits = |address: &str| shown.plan.pending.iter().any(|p| p.address == address);
    for problem in shown.plan.problems.iter().filter(|p| !waits(&p.address)) {
        let object = object_of(shown.desired, &problem.address);
        let origin = problem.origin.as_ref().map(|o| format!("`{}`", code(&o.to_string()))).unwrap_or_default();
        let name = format!("`{}`", code(name(object, &problem.address)));
        let rows = groups.entry(group(object, &problem.address)).or_default();
        rows.push(["`!`".to_owned(), name, format!("problem: {}", text(&problem.what)), String::new(), origin]);
    }
    for ((_, heading), rows) in &groups {
        out.push_str(&format!("{marks}# {}\n\n| | | change | why | where |\n|---|---|---|---|---|\n", text(heading)));
        for row in rows {
            out.push_str(&format!("| {} |\n", row.join(" | ")));
        }
        out.push('\n');
    }
    if let Some((summary, reasons)) = lanes(shown) {
        out.push_str(&format!("Lanes: {summary}.\n\n"));
        reasons.iter().for_each(|line| out.push_str(&format!("- {}\n", text(line))));
        out.push_str(if reasons.is_empty() { "" } else { "\n" });
    }
    let diff = super::diff::plan(shown);
    if !diff.is_empty() && diff.len() <= DIFF_MAX {
        // A fence longer than any in the text.
        let fence = "`".repeat(3.max(longest_run(&diff) + 1));
        out.push_str(&format!("<details><summary>diff</summary>\n\n{fence}diff\n{diff}{fence}\n\n</details>\n"));
    }
    out
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

fn row(shown: &Shown<'_>, change: &Change) -> [String; 5] {
    let sign = match change.action {
        ChangeAction::Create => "`+`",
        ChangeAction::Update => "`~`",
        ChangeAction::Delete => "`-`",
    };
    let mut what: Vec<String> = Vec::new();
    match (&change.before, &change.after) {
        (Some(before), Some(after)) if view(before) != view(after) => {
            what.push(format!("`{}` → `{}`", code(&view(before)), code(&view(after))));
        }
        (_, Some(one)) | (Some(one), None) => what.push(format!("`{}`", code(&view(one)))),
        (None, None) => {}
    }
    if let Some(node) = leads_to(shown, change) {
        what.push(format!("to {}", text(node)));
    }
    what.extend(change.details.iter().map(|detail| text(detail)));
    if let Some(through) = shown.flows.get(&change.address).filter(|_| change.object == Object::Mapping) {
        what.push(format!("**{}**", text(&flow(through))));
    }
    let origin = change.origin.as_ref().map(|o| format!("`{}`", code(&o.to_string()))).unwrap_or_default();
    let name = format!("`{}`", code(name(change.object, &change.address)));
    [sign.to_owned(), name, what.join("<br>"), reason(change.reason).to_owned(), origin]
}

/// Text that Markdown and HTML take as it is, in a cell of a table.
pub(in crate::cli) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '|' | '~' | '@' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The same between backquotes.
pub(in crate::cli) fn code(raw: &str) -> String {
    raw.replace('`', "'").replace('|', "\\|").replace(['\n', '\r'], " ")
}
