//! `status`: what is in force, from the daemon or, without one, from pins and accepted state.

use super::{Exit, Format, Global, paint::Paint, print, print_json};
use crate::files::accepted::Accepted;
use crate::reconcile::Reconciler;
use crate::reconcile::control::{Request, ask};
use crate::reconcile::live::LiveKernel;
use crate::reconcile::status::{State, Status, Traffic};
use crate::reconcile::tell::read_status;
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Wait until the accepted topology is in force
    #[arg(long)]
    wait: bool,
    /// With --wait: until the topology with this revision is in force
    #[arg(long, value_name = "HASH", requires = "wait")]
    revision: Option<String>,
    /// With --wait: seconds to wait at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    timeout: u64,
}

/// Pause between two looks of `--wait`.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl StatusArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let give_up = Instant::now() + Duration::from_secs(self.timeout);
        loop {
            let status = match read(global).await {
                Ok(status) => status,
                // Between two starts of a daemon its socket may be gone for a moment.
                Err(error) if self.wait && Instant::now() < give_up => {
                    tracing::debug!("{error:#}");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let there = !self.wait
                || (status.in_force && self.revision.as_ref().is_none_or(|r| Some(r) == status.revision.as_ref()));
            let late = Instant::now() >= give_up;
            if there || late {
                match self.format {
                    Format::Json => print_json(&status)?,
                    Format::Text => print(&text(&status, Paint(global.colored(std::io::stdout().is_terminal()))))?,
                }
                return Ok(if there { Exit::Done } else { Exit::TimedOut });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn read(global: &Global) -> Result<Status> {
    let paths = global.paths();
    if let Some(answer) = ask(&paths.socket(), &Request::Status).await? {
        return match (answer.status, answer.error) {
            (Some(status), _) => Ok(*status),
            (None, Some(error)) => bail!("the daemon failed: {error}"),
            (None, None) => Err(anyhow!("the daemon sent no status")),
        };
    }
    let intent = Accepted::load(&paths.state)?;
    let kernel = LiveKernel::open(&paths.pins, global.hook()).await?;
    read_status(&mut Reconciler::new(kernel), intent.as_ref()).await
}

fn text(status: &Status, paint: Paint) -> String {
    let mut out = String::new();
    let daemon = match (status.daemon.running, status.daemon.pid) {
        (true, Some(pid)) => format!("running (pid {pid}, {} passes)", status.daemon.passes),
        _ => "not running; the data plane works without it".to_owned(),
    };
    let mut field = |name: &str, value: &str| out.push_str(&format!("{} {value}\n", paint.bold(&format!("{name:<9}"))));
    field("daemon", &daemon);
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
    if let Some(error) = &status.daemon.watch_error {
        out.push_str(&format!("{} {error}: looking every second instead\n", paint.yellow("problem  ")));
    }
    for error in &status.errors {
        out.push_str(&format!("{} {error}\n", paint.red("error    ")));
    }
    for problem in &status.problems {
        out.push_str(&format!("{} {problem}\n", paint.yellow("problem  ")));
    }
    push_tunnels(&mut out, status, paint);
    push_mappings(&mut out, status, paint);
    push_attachments(&mut out, status, paint);
    if !status.unknown.is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("unknown keys (packets that nobody mapped, dropped)")));
        for key in &status.unknown {
            out.push_str(&format!(
                "  {{{}, {}, {}}}  {} packets, last {} s ago\n",
                key.tunnel, key.id, key.remote, key.packets, key.last_seen_seconds
            ));
        }
    }
    if !status.drops.is_empty() {
        out.push_str(&format!("\n{} {}\n", paint.bold("other drops:"), drops(&status.drops)));
    }
    out
}

fn push_tunnels(out: &mut String, status: &Status, paint: Paint) {
    if status.tunnels.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", paint.bold("tunnels")));
    let rows = status.tunnels.iter().map(|t| {
        vec![
            t.name.clone(),
            t.kind.to_string(),
            t.index.map_or_else(|| "-".to_owned(), |i| format!("index {i}")),
            t.ifindex.map_or_else(|| "no device".to_owned(), |i| format!("ifindex {i}")),
            t.mtu.map_or_else(String::new, |m| format!("mtu {m}")),
            state(t.state, t.why.as_deref()),
            drops(&t.drops),
        ]
    });
    table(out, rows.collect());
}

fn push_mappings(out: &mut String, status: &Status, paint: Paint) {
    if status.mappings.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", paint.bold("mappings")));
    let rows = status.mappings.iter().map(|m| {
        vec![
            m.address.clone(),
            m.node.as_ref().map_or_else(String::new, |n| format!("to {n}")),
            format!("{{{}, {}, {}}}", m.tunnel, m.id, m.remote),
            m.attach.to_string(),
            traffic(&m.traffic),
            state(m.state, m.why.as_deref()),
            [drops(&m.traffic.drops), device(m.device_dropped)]
                .iter()
                .filter(|s| !s.is_empty())
                .cloned()
                .collect::<Vec<_>>()
                .join("; "),
        ]
    });
    table(out, rows.collect());
}

fn push_attachments(out: &mut String, status: &Status, paint: Paint) {
    if status.attachments.is_empty() {
        return;
    }
    out.push_str(&format!("\n{}\n", paint.bold("attachments")));
    let rows = status.attachments.iter().map(|a| {
        vec![
            a.interface.clone().unwrap_or_else(|| format!("ifindex {} (gone)", a.ifindex)),
            a.direction.to_string(),
            match a.kind {
                crate::model::HookKind::Tcx => "tcx".to_owned(),
                crate::model::HookKind::Clsact => "clsact".to_owned(),
            },
            a.program.map_or_else(|| "defunct".to_owned(), |p| format!("program {p}")),
            if a.position == 0 { "first".to_owned() } else { format!("behind {} foreign programs", a.position) },
        ]
    });
    table(out, rows.collect());
}

fn traffic(traffic: &Traffic) -> String {
    format!(
        "rx {} pkts {} B, tx {} pkts {} B",
        traffic.rx_packets, traffic.rx_bytes, traffic.tx_packets, traffic.tx_bytes
    )
}

fn state(state: State, why: Option<&str>) -> String {
    why.map_or_else(|| state.to_string(), |why| format!("{state}: {why}"))
}

fn drops(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        return String::new();
    }
    let list: Vec<String> = drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("dropped: {}", list.join(", "))
}

fn device(dropped: Option<(u64, u64)>) -> String {
    match dropped {
        Some((rx, tx)) if rx + tx > 0 => format!("device dropped: rx {rx}, tx {tx}"),
        _ => String::new(),
    }
}

/// Pushes rows with aligned columns.
fn table(out: &mut String, rows: Vec<Vec<String>>) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths).filter(|(_, w)| **w > 0) {
            line.push_str(&format!(" {cell:<width$} "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
