//! `snapshot`: the live state written down, to be planned against elsewhere, or as a topology to adopt this host.

use super::offline::Found;
use super::plan::{Against, Planned};
use super::show::{self, Summary};
use super::{Exit, Global, print, print_json, tell};
use crate::files::accepted::Accepted;
use crate::model::{Desired, Intent, SNAPSHOT_VERSION, Snapshot};
use crate::plan::tunnel_mtu;
use crate::reconcile::flow::flows;
use crate::reconcile::kernel::Kernel;
use crate::topology::{NodeChoice, SourceFile, adopt, merge, parse, write};
use anyhow::{Context, Result};

#[derive(Debug, clap::Args)]
pub(super) struct SnapshotArgs {
    /// JSON, for `plan --live`; YAML, a topology that says what is live
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: SnapshotFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SnapshotFormat {
    Json,
    Yaml,
}

impl SnapshotArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let snapshot = take(global).await?;
        match self.format {
            SnapshotFormat::Json => print_json(&snapshot)?,
            SnapshotFormat::Yaml => {
                let (text, notes) = adopted(&snapshot);
                for note in notes {
                    tell(&format!("note: {note}"));
                }
                print(&text)?;
            }
        }
        Ok(Exit::Done)
    }
}

async fn take(global: &Global) -> Result<Snapshot> {
    let paths = global.paths();
    let mut kernel = global.live().await?;
    let accepted = match Accepted::load(&paths.state) {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!("{error:#}; the snapshot is without it");
            None
        }
    };
    let observed = kernel.observe(true).await.context("read the live state")?;
    let traffic = flows(&kernel, &observed).await?;
    let node = global.node.clone().or_else(|| accepted.as_ref().and_then(|a| a.desired.node.clone()));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(Snapshot { format_version: SNAPSHOT_VERSION, host, node, accepted, traffic, observed })
}

/// The topology that says what is live, and what it doesn't say.
fn adopted(snapshot: &Snapshot) -> (String, Vec<String>) {
    let observed = &snapshot.observed;
    let mut desired = adopt::adopt(observed);
    if let Some(accepted) = &snapshot.accepted {
        name_tenants(&mut desired, accepted);
    }
    for tunnel in desired.tunnels.values_mut().filter(|t| t.create) {
        let live = observed.link(&tunnel.name).map(|l| l.mtu);
        tunnel.mtu = live.filter(|mtu| *mtu != tunnel_mtu(observed, tunnel));
    }
    let node = snapshot.node.as_deref().unwrap_or(&snapshot.host);
    let header = format!(
        "# What was live on {}, by `tunnel-mesh snapshot --format yaml`.\n",
        snapshot.host.replace(char::is_control, " ")
    );
    let written = |desired: &Desired| {
        let (text, notes) = write::topology(desired, node);
        let text = format!("{header}{text}");
        let left = left_over(snapshot, node, &text);
        (text, notes, left)
    };
    let (mut text, mut more, mut left) = written(&desired);
    if left.is_some() {
        // Where the daemon would choose another lane than the live one, the lane is said.
        adopt::say_lanes(&mut desired, observed);
        let said = written(&desired);
        if said.2.is_none() {
            (text, more, left) = said;
        }
    }
    let mut notes = adopt::untold(observed);
    notes.extend(more);
    notes.extend(left);
    (text, notes)
}

/// What the kernel doesn't know: tenants of plain mappings, and which lane a tunnel takes.
fn name_tenants(desired: &mut Desired, accepted: &Intent) {
    for mapping in desired.mappings.values_mut().filter(|m| m.tenant.is_empty()) {
        let known = accepted.desired.mappings.get(&mapping.interface).filter(|known| known.key == mapping.key);
        if let Some(known) = known {
            mapping.tenant = known.tenant.clone();
        }
    }
    for tunnel in desired.tunnels.values_mut() {
        if let Some(known) = accepted.desired.tunnels.get(&tunnel.name) {
            tunnel.fast = known.fast;
        }
    }
}

/// What would change all the same where the text is taken as the topology.
fn left_over(snapshot: &Snapshot, node: &str, text: &str) -> Option<String> {
    let parsed = parse(&SourceFile { name: "snapshot".to_owned(), text: text.as_bytes().to_vec() });
    let compiled = merge([&parsed]).and_then(|t| t.compile(&NodeChoice::Named(node.to_owned())));
    let desired = match compiled {
        Ok(desired) => desired,
        Err(errors) => {
            let first = errors.first().map(|e| e.message.as_str()).unwrap_or_default();
            return Some(format!("what is live isn't a valid topology: {first}"));
        }
    };
    let snapshot = Snapshot { accepted: None, ..snapshot.clone() };
    let found = Found { path: "snapshot".into(), snapshot };
    let planned = Planned::offline(desired, Against::Snapshot(&found), true).ok()?;
    (!show::nothing(&planned.plan)).then(|| {
        let first: Vec<String> =
            planned.plan.changes.iter().take(3).map(|c| format!("{} ({})", c.address, c.describe())).collect();
        format!(
            "planned against this host it still changes something: {}: {}",
            Summary::of(&planned.plan),
            first.join("; ")
        )
    })
}
