//! The status as text.

use super::amount::{ago, bits, bytes, count, rate};
use crate::cli::lanes;
use crate::cli::page::{Page, shown};
use crate::cli::paint::Paint;
use crate::model::{HookKind, Moment};
use crate::plan::Reason;
use crate::reconcile::history::LastChange;
use crate::reconcile::status::{AttachmentStatus, ForeignStatus, MappingStatus, State, Status};
use std::collections::BTreeMap;

/// Unknown keys that are listed; `--format json` has them all.
const UNKNOWN_SHOWN: usize = 20;

pub(super) fn text(status: &Status, now: Moment, page: Page) -> String {
    let mut out = String::new();
    push_health(&mut out, status, now, page);
    push_tunnels(&mut out, status, page);
    push_mappings(&mut out, status, now, page);
    push_attachments(&mut out, status, page);
    push_unknown(&mut out, status, page.paint);
    push_drops(&mut out, status, page);
    page.fold(&out)
}

/// Column in which the values of the first lines begin.
const VALUES: usize = 10;

fn push_health(out: &mut String, status: &Status, now: Moment, page: Page) {
    let paint = page.paint;
    let mut field = |name: &str, value: &str| {
        let line = format!("{} {value}", paint.bold(&format!("{name:<9}")));
        out.push_str(&(page.hang(&line, VALUES) + "\n"));
    };
    let daemon = &status.daemon;
    match (daemon.running, daemon.pid) {
        (true, Some(pid)) => {
            let since = daemon.started.map(|at| format!(", up since {at}")).unwrap_or_default();
            field("daemon", &format!("running (pid {pid}, {} passes){since}", daemon.passes));
        }
        _ => field("daemon", "not running; the data plane works without it"),
    }
    if let Some(pass) = &daemon.last_pass {
        let good = if pass.good { "good" } else { "not everything was done" };
        let when = ago(pass.at.seconds_until(now));
        field("pass", &format!("{when}, {good}: {} operations in {} ms", pass.operations, pass.milliseconds));
    }
    let troubles: Vec<String> = [
        (daemon.failed_passes, "failed passes"),
        (daemon.drift_repaired, "drifts repaired"),
        (daemon.netlink_overruns, "netlink overruns"),
        (daemon.watch_overflows, "watch overflows"),
    ]
    .iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, what)| format!("{number} {what}"))
    .collect();
    if !troubles.is_empty() {
        field("since", &troubles.join(", "));
    }
    if let Some(node) = &status.node {
        field("node", node);
    }
    match &status.revision {
        Some(revision) if status.in_force => field("revision", &format!("{revision}, in force")),
        Some(revision) => field("revision", &format!("{revision}, {}", paint.yellow("not fully in force"))),
        None => field("revision", "none accepted yet"),
    }
    if let Some(error) = &status.config_error {
        field("topology", &paint.red("not accepted; the last accepted one stays in force:"));
        out.push_str(&indent(error));
    }
    if let Some(error) = &daemon.watch_error {
        let line = format!("{} {error}: looking every second instead", paint.yellow("problem  "));
        out.push_str(&(page.hang(&line, VALUES) + "\n"));
    }
    for error in &status.errors {
        out.push_str(&(page.hang(&format!("{} {error}", paint.red("error    ")), VALUES) + "\n"));
    }
    for problem in &status.problems {
        out.push_str(&(page.hang(&format!("{} {problem}", paint.yellow("problem  ")), VALUES) + "\n"));
    }
}

fn push_tunnels(out: &mut String, status: &Status, page: Page) {
    let paint = page.paint;
    if status.tunnels.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", paint.bold("tunnels")));
    let rows = status.tunnels.iter().map(|t| {
        Row::from(vec![
            t.name.clone(),
            t.kind.to_string(),
            t.index.map_or_else(|| "-".to_owned(), |i| format!("index {i}")),
            t.ifindex.map_or_else(|| "no device".to_owned(), |i| format!("ifindex {i}")),
            t.mtu.map_or_else(String::new, |m| format!("mtu {m}")),
            painted(t.state, paint),
            dropped(&t.drops),
        ])
        .with(t.why.clone())
    });
    table(out, rows.collect(), &[0, 2, 5, 4, 3, 1, 6], page);
}

fn push_mappings(out: &mut String, status: &Status, now: Moment, page: Page) {
    let paint = page.paint;
    if status.mappings.is_empty() {
        return;
    }
    let count_of = |state| status.mappings.iter().filter(|m| m.state == state).count();
    let states = [State::Active, State::Pending, State::Held, State::Drifted];
    let counts: Vec<String> =
        states.iter().map(|s| (count_of(*s), s)).filter(|(n, _)| *n > 0).map(|(n, s)| format!("{n} {s}")).collect();
    out.push_str(&format!("\n{} ({})\n", paint.bold("mappings"), counts.join(", ")));
    let rows = status.mappings.iter().map(|m| {
        Row::from(vec![
            m.address.clone(),
            m.node.as_ref().map_or_else(String::new, |n| format!("to {n}")),
            format!("{{{}, {}, {}}}", m.tunnel, m.id, m.remote),
            m.attach.to_string(),
            painted(m.state, paint),
            m.lanes.word().to_owned(),
            way("rx", m.traffic.rx_packets, m.traffic.rx_bytes, m.rates.map(|r| (r.rx_packets, r.rx_bytes))),
            way("tx", m.traffic.tx_packets, m.traffic.tx_bytes, m.rates.map(|r| (r.tx_packets, r.tx_bytes))),
            paint.dim(&m.origin.to_string()),
            m.last_change.as_ref().map_or_else(String::new, |change| changed(change, now)),
        ])
        .with(m.why.clone())
        .with(lost(m))
    });
    table(out, rows.collect(), &[0, 4, 2, 7, 1, 3, 5, 6, 8, 9], page);
    let (summary, reasons) = lanes::lines(status.mappings.iter().map(|m| (m.address.as_str(), &m.lanes)));
    out.push_str(&format!("\n{} {summary}\n", paint.bold("lanes:")));
    reasons.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
}

/// What got lost of a mapping's packets, and where.
pub(super) fn lost(mapping: &MappingStatus) -> Option<String> {
    let device = match mapping.device_dropped {
        Some((rx, tx)) if rx + tx > 0 => format!("dropped by the device itself: rx {rx}, tx {tx}"),
        _ => String::new(),
    };
    let parts: Vec<String> = [dropped(&mapping.traffic.drops), device].into_iter().filter(|s| !s.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// `added 3 min ago`.
pub(super) fn changed(change: &LastChange, now: Moment) -> String {
    let what = match change.reason {
        Reason::Added => "added",
        Reason::Changed => "changed",
        Reason::Removed => "removed",
        Reason::Drift => "drift repaired",
        Reason::InterfaceRecreated => "interface recreated",
        Reason::InterfaceAppeared => "interface appeared",
        Reason::InterfaceGone => "interface gone",
        Reason::Upgrade => "upgraded",
    };
    format!("{what} {}", ago(change.at.seconds_until(now)))
}

fn way(name: &str, packets: u64, amount: u64, rates: Option<(f64, f64)>) -> String {
    let total = format!("{name} {} pkts {}", count(packets), bytes(amount));
    match rates {
        Some((per_second, bytes_per_second)) => format!("{total}, {} {}", rate(per_second), bits(bytes_per_second)),
        None => total,
    }
}

fn push_attachments(out: &mut String, status: &Status, page: Page) {
    let paint = page.paint;
    if status.attachments.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", paint.bold("attachments")));
    let rows = status.attachments.iter().map(|a| {
        Row::from(vec![
            a.interface.clone().unwrap_or_else(|| format!("ifindex {} (gone)", a.ifindex)),
            a.direction.to_string(),
            kind(a.kind).to_owned(),
            a.program.map_or_else(|| "defunct".to_owned(), |p| format!("program {p}")),
            place(a),
        ])
    });
    table(out, rows.collect(), &[0, 1, 3, 4, 2], page);
}

/// The place in the chain: `alone`, or `2 of 3: before it …, behind it …`.
fn place(attachment: &AttachmentStatus) -> String {
    if attachment.foreign.is_empty() {
        return if attachment.program.is_some() { "alone".to_owned() } else { String::new() };
    }
    let (before, behind): (Vec<&ForeignStatus>, Vec<&ForeignStatus>) =
        attachment.foreign.iter().partition(|f| f.before);
    let list = |what: &str, all: &[&ForeignStatus]| {
        let names: Vec<String> = all.iter().map(|f| foreign(f)).collect();
        (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
    };
    let parts: Vec<String> = [list("behind", &before), list("before", &behind)].into_iter().flatten().collect();
    format!("{} of {}: {}", before.len() + 1, attachment.foreign.len() + 1, parts.join(", "))
}

fn foreign(program: &ForeignStatus) -> String {
    let id = program.program.map(|id| format!("program {id}"));
    match (&program.name, id) {
        (Some(name), Some(id)) => format!("foreign {name} ({}, {id})", kind(program.kind)),
        (Some(name), None) => format!("foreign {name} ({})", kind(program.kind)),
        (None, id) => format!("foreign {} ({})", id.unwrap_or_default(), kind(program.kind)),
    }
}

fn kind(kind: HookKind) -> &'static str {
    match kind {
        HookKind::Tcx => "tcx",
        HookKind::Clsact => "clsact",
    }
}

fn push_unknown(out: &mut String, status: &Status, paint: Paint) {
    if status.unknown.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", paint.bold("unknown keys (packets that nobody mapped, dropped)")));
    for key in status.unknown.iter().take(UNKNOWN_SHOWN) {
        let why = key.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        out.push_str(&format!("  id {} from {} on {}{why}\n", key.id, key.remote, key.tunnel));
        out.push_str(&format!("      {} packets, the last {}\n", count(key.packets), ago(key.last_seen_seconds)));
    }
    let more = status.unknown.len().saturating_sub(UNKNOWN_SHOWN);
    if more > 0 {
        out.push_str(&format!("  and {more} more\n"));
    }
}

fn push_drops(out: &mut String, status: &Status, page: Page) {
    if status.dropped.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", page.paint.bold("drops by reason, all together")));
    let rows = status.dropped.iter().map(|(reason, number)| {
        let meaning = crate::model::DropReason::named(reason).map_or("", crate::model::DropReason::meaning);
        Row::from(vec![reason.clone(), count(*number), meaning.to_owned()])
    });
    table(out, rows.collect(), &[0, 1, 2], page);
}

fn painted(state: State, paint: Paint) -> String {
    let text = state.to_string();
    match state {
        State::Active => text,
        State::Pending | State::Held => paint.yellow(&text),
        State::Drifted => paint.red(&text),
    }
}

/// `dropped: no_entry 3, unknown_key 1`.
pub(super) fn dropped(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        return String::new();
    }
    let list: Vec<String> = drops.iter().map(|(reason, number)| format!("{reason} {number}")).collect();
    format!("dropped: {}", list.join(", "))
}

/// A row of a table, and lines that belong to it.
struct Row {
    cells: Vec<String>,
    details: Vec<String>,
}

impl From<Vec<String>> for Row {
    fn from(cells: Vec<String>) -> Self {
        Self { cells, details: Vec::new() }
    }
}

impl Row {
    fn with(mut self, detail: Option<String>) -> Self {
        self.details.extend(detail);
        self
    }
}

/// Pushes rows with aligned columns. Where they are wider than the terminal, those of the highest ranks go below their row.
fn table(out: &mut String, rows: Vec<Row>, ranks: &[u8], page: Page) {
    let columns = rows.iter().map(|r| r.cells.len()).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.cells.get(column)).map(|c| shown(c)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let fitting = fitting(&widths, ranks, page.width);
    for row in &rows {
        let mut line = String::from(" ");
        let mut below = Vec::new();
        for ((cell, width), fits) in row.cells.iter().zip(&widths).zip(&fitting).filter(|((_, w), _)| **w > 0) {
            if *fits {
                line.push_str(&format!(" {cell}{} ", " ".repeat(width - shown(cell))));
            } else if !cell.is_empty() {
                below.push(cell.as_str());
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
        if !below.is_empty() {
            out.push_str(&(page.hang(&format!("      {}", below.join("  ")), 6) + "\n"));
        }
        row.details.iter().for_each(|detail| out.push_str(&format!("      {detail}\n")));
    }
}

/// Which columns of these widths fit beside each other, the lowest ranks first.
fn fitting(widths: &[usize], ranks: &[u8], room: Option<usize>) -> Vec<bool> {
    let mut by_rank: Vec<usize> = (0..widths.len()).filter(|n| widths[*n] > 0).collect();
    by_rank.sort_by_key(|n| ranks.get(*n));
    let mut fitting = vec![room.is_none(); widths.len()];
    let mut used = 0;
    for n in by_rank {
        // Two spaces before each.
        if room.is_none_or(|room| used == 0 || used + 2 + widths[n] <= room) {
            fitting[n] = true;
            used += 2 + widths[n];
        }
    }
    fitting
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
