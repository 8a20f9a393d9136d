//! `plan --all-nodes`: what a topology means for every host, how far a change reaches, and whether both ends of every link
//! agree. What a pull request is judged by.

use super::offline::{self, Declared};
use super::plan::{Against, PlanArgs, PlanFormat, Planned};
use super::show::{self, Summary, diff, json, markdown, text};
use super::{Exit, Global, paint::Paint, print, print_json, tell};
use crate::model::{Desired, Throughput};
use crate::plan::FORMAT_VERSION;
use crate::plan::mesh::{self, Finding, Host, Severity};
use crate::topology::NodeChoice;
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Understands `NAME=DIR`.
pub(super) fn own_topology(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, directory)) if !name.is_empty() && !directory.is_empty() => Ok((name.to_owned(), directory.into())),
        _ => Err("say NAME=DIR".to_owned()),
    }
}

/// One node's plan.
struct Node {
    name: String,
    /// What it was planned against, in words.
    against: String,
    planned: Planned,
}

impl Node {
    /// What flows through all that is changed or taken away.
    fn touched(&self) -> Throughput {
        self.planned.flows.values().fold(Throughput::default(), |sum, flow| sum.plus(*flow))
    }

    fn changes(&self) -> bool {
        !show::nothing(&self.planned.plan)
    }
}

/// All of them.
struct Fleet {
    revision: String,
    nodes: Vec<Node>,
    mesh: Vec<Finding>,
    notes: Vec<String>,
}

pub(super) fn run(args: &PlanArgs, global: &Global, allow_deletes: bool, detailed: bool) -> Result<Exit> {
    let fleet = Fleet::plan(args, global, allow_deletes)?;
    match args.format {
        PlanFormat::Text => {
            let page = global.page();
            print(&page.fold(&fleet.text(page.paint)))?;
        }
        PlanFormat::Json => print_json(&fleet.document())?,
        PlanFormat::Markdown => print(&fleet.markdown())?,
        PlanFormat::Diff => {
            let diffs = fleet.nodes.iter().map(|n| diff::plan(&n.planned.shown(Some(&n.name))));
            print(&diffs.collect::<String>())?;
        }
    }
    if !matches!(args.format, PlanFormat::Text) {
        fleet.notes.iter().for_each(|note| tell(&format!("note: {note}")));
    }
    let errors = fleet.mesh.iter().filter(|f| f.severity == Severity::Error).count();
    if errors > 0 {
        if args.format == PlanFormat::Diff {
            fleet.mesh.iter().for_each(|f| tell(&line(f, Paint(false))));
        }
        return Ok(Exit::Invalid);
    }
    let changes = fleet.nodes.iter().any(Node::changes);
    let held = fleet.nodes.iter().any(|n| !n.planned.intent.held.is_empty());
    Ok(match (detailed && changes, held) {
        (true, _) => Exit::Changes,
        (false, true) => Exit::Held,
        (false, false) => Exit::Done,
    })
}

impl Fleet {
    fn plan(args: &PlanArgs, global: &Global, allow_deletes: bool) -> Result<Self> {
        let snapshots = offline::snapshots(&args.live)?;
        let mut notes = Vec::new();
        let (revision, states) = states(args, global)?;
        let base = match args.base.as_slice() {
            [] => None,
            paths => Some(global.accept(Declared::of(paths))?),
        };
        let declared: BTreeSet<&str> = states.iter().map(|(name, _)| name.as_str()).collect();
        let mut gone: BTreeSet<String> = base.iter().flat_map(Declared::nodes).collect();
        gone.retain(|node| !declared.contains(node.as_str()));
        for node in gone {
            notes.push(format!(
                "node {node} isn't declared any more: it stays with what it has until `tunnel-mesh down` there"
            ));
        }
        for found in snapshots.iter().filter(|f| !declared.contains(f.node())) {
            notes.push(format!("{} is of node {}, which isn't declared", found.path.display(), found.node()));
        }
        let mut nodes = Vec::with_capacity(states.len());
        for (name, new) in states {
            let mut own = snapshots.iter().filter(|f| f.node() == name);
            let found = own.next();
            if let Some(second) = own.next() {
                bail!("{} is a second snapshot of node {name}", second.path.display());
            }
            let (against, what) = match (found, &base) {
                (Some(found), _) => (Against::Snapshot(found), format!("against {}", found.path.display())),
                (None, Some(base)) if !base.knows(&name) => (Against::Nothing, "new".to_owned()),
                (None, Some(base)) => {
                    let before = global.accept(base.compile(&NodeChoice::Named(name.clone())))?;
                    (Against::Base(before), format!("against revision {}", base.revision()))
                }
                (None, None) => (Against::Nothing, "as declared".to_owned()),
            };
            let planned = Planned::offline(new, against, allow_deletes)?;
            nodes.push(Node { name, against: what, planned });
        }
        let hosts: Vec<Host<'_>> = nodes
            .iter()
            .map(|n| Host {
                node: &n.name,
                desired: &n.planned.intent.desired,
                observed: n.planned.observed.as_ref(),
                pending: &n.planned.plan.pending,
            })
            .collect();
        let mesh = mesh::check(&hosts);
        Ok(Self { revision, nodes, mesh, notes })
    }

    fn summary(&self) -> FleetSummary {
        let mut sum = FleetSummary { nodes: self.nodes.len(), ..FleetSummary::default() };
        for node in &self.nodes {
            let one = Summary::of(&node.planned.plan);
            sum.changed += usize::from(node.changes());
            sum.create += one.create;
            sum.update += one.update;
            sum.delete += one.delete;
            sum.pending += one.pending;
            sum.held += node.planned.intent.held.len();
        }
        sum.mesh_errors = self.mesh.iter().filter(|f| f.severity == Severity::Error).count();
        sum.mesh_warnings = self.mesh.len() - sum.mesh_errors;
        sum
    }

    fn text(&self, paint: Paint) -> String {
        let mut out = String::new();
        for node in self.nodes.iter().filter(|n| n.changes() || !n.planned.plan.pending.is_empty()) {
            out.push_str(&format!("{} ({})\n", paint.bold(&format!("node {}", node.name)), node.against));
            let plan = text::plan(&node.planned.shown(Some(&node.name)), paint);
            plan.lines().for_each(|line| out.push_str(&format!("  {line}\n")));
        }
        out.push_str(&format!("{}\n", paint.bold("blast radius")));
        let widest = self.nodes.iter().map(|n| n.name.chars().count()).max().unwrap_or(0);
        for node in &self.nodes {
            out.push_str(&format!("  {:<widest$}  {}\n", node.name, radius(node)));
        }
        if !self.mesh.is_empty() {
            out.push_str(&format!("{}\n", paint.bold("mesh check")));
            self.mesh.iter().for_each(|f| out.push_str(&format!("  {}\n", line(f, paint))));
        }
        for note in &self.notes {
            out.push_str(&format!("{} {note}.\n", paint.yellow("Note:")));
        }
        out.push_str(&format!("{} {}.\n", paint.bold("Plan:"), self.summary()));
        out
    }

    fn markdown(&self) -> String {
        let mut out = format!("### tunnel-mesh plan: {}\n\n", self.summary());
        out.push_str("| node | blast radius | |\n|---|---|---|\n");
        for node in &self.nodes {
            let (name, radius) = (markdown::code(&node.name), markdown::text(&radius(node)));
            out.push_str(&format!("| `{name}` | {radius} | {} |\n", markdown::text(&node.against)));
        }
        if !self.mesh.is_empty() {
            out.push_str("\n#### mesh check\n\n");
            for finding in &self.mesh {
                let severity = if finding.severity == Severity::Error { "**error**" } else { "warning" };
                let origin = finding
                    .origin
                    .as_ref()
                    .map(|o| format!(" (`{}`)", markdown::code(&o.to_string())))
                    .unwrap_or_default();
                let what = markdown::text(&said(finding));
                out.push_str(&format!("- {severity}: {what}{origin}\n"));
            }
        }
        for note in &self.notes {
            out.push_str(&format!("\n> {}\n", markdown::text(note)));
        }
        for node in self.nodes.iter().filter(|n| n.changes()) {
            let plan = markdown::plan(&node.planned.shown(Some(&node.name)), 4);
            let name = markdown::text(&node.name);
            out.push_str(&format!("\n<details><summary>{name}</summary>\n\n{plan}\n</details>\n"));
        }
        out
    }

    fn document(&self) -> impl Serialize + '_ {
        #[derive(Serialize)]
        struct Document<'a> {
            format_version: u32,
            revision: &'a str,
            nodes: Vec<serde_json::Value>,
            mesh: &'a [Finding],
            notes: &'a [String],
            summary: FleetSummary,
        }
        let node = |n: &Node| {
            let shown = n.planned.shown(Some(&n.name));
            let mut value = serde_json::to_value(json::document(&shown)).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                fields.insert("against".to_owned(), n.against.clone().into());
            }
            value
        };
        Document {
            format_version: FORMAT_VERSION,
            revision: &self.revision,
            nodes: self.nodes.iter().map(node).collect(),
            mesh: &self.mesh,
            notes: &self.notes,
            summary: self.summary(),
        }
    }
}

/// The desired state of every node, and the revision of them all.
fn states(args: &PlanArgs, global: &Global) -> Result<(String, Vec<(String, Desired)>)> {
    let mut states = Vec::new();
    if !args.host.is_empty() {
        let mut revisions = Vec::new();
        for (name, directory) in &args.host {
            let read = global.accept(Declared::of(std::slice::from_ref(directory)))?;
            states.push((name.clone(), global.accept(read.compile(&NodeChoice::Named(name.clone())))?));
            revisions.push(read.revision().to_owned());
        }
        states.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(twice) = states.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            bail!("--host names {} twice", twice[0].0);
        }
        return Ok((revisions.join("+"), states));
    }
    let read = global.accept(Declared::of(&global.topology))?;
    for node in read.nodes() {
        let desired = global.accept(read.compile(&NodeChoice::Named(node.clone())))?;
        states.push((node, desired));
    }
    if states.is_empty() {
        bail!(
            "the topology declares no nodes; where each host has a directory of its own, say --host NAME=DIR for each"
        );
    }
    Ok((read.revision().to_owned(), states))
}

/// How far a change reaches on one host, in a line.
fn radius(node: &Node) -> String {
    let mut out = if node.changes() { Summary::of(&node.planned.plan).to_string() } else { "no changes".to_owned() };
    if !node.planned.intent.held.is_empty() {
        out.push_str(&format!("; {} held", node.planned.intent.held.len()));
    }
    let carrying = node.planned.flows.values().filter(|flow| flow.packets_per_second() > 0).count();
    if carrying > 0 {
        let noun = if carrying == 1 { "mapping" } else { "mappings" };
        let rate = show::grouped(node.touched().packets_per_second());
        out.push_str(&format!("; touches {carrying} {noun} in use, {rate} packets/s"));
    }
    out
}

fn said(finding: &Finding) -> String {
    let other = finding.other.as_ref().map(|other| format!(" -> {other}")).unwrap_or_default();
    format!("{} on {}{other}: [{}] {}", finding.address, finding.node, finding.amiss.name(), finding.what)
}

fn line(finding: &Finding, paint: Paint) -> String {
    let sign = match finding.severity {
        Severity::Error => format!("{} error", paint.red("!")),
        Severity::Warning => format!("{} warning", paint.yellow("!")),
    };
    let origin = finding.origin.as_ref().map(|o| paint.dim(&format!("  {o}"))).unwrap_or_default();
    format!("{sign}  {}{origin}", said(finding))
}

/// How many of what, on all nodes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct FleetSummary {
    nodes: usize,
    changed: usize,
    create: usize,
    update: usize,
    delete: usize,
    pending: usize,
    held: usize,
    mesh_errors: usize,
    mesh_warnings: usize,
}

impl std::fmt::Display for FleetSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} nodes change: {} to create, {} to update, {} to delete",
            self.changed, self.nodes, self.create, self.update, self.delete
        )?;
        for (count, what) in [(self.pending, "pending"), (self.held, "held")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        match (self.mesh_errors, self.mesh_warnings) {
            (0, 0) => f.write_str("; both ends of every link agree"),
            (errors, warnings) => {
                let many = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
                write!(f, "; mesh check: {}, {}", many(errors, "error"), many(warnings, "warning"))
            }
        }
    }
}
