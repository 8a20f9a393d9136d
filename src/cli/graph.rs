//! `graph`: the mesh as a picture, with the state of this host's mappings where it can be had.

use super::offline::Declared;
use super::status::read;
use super::{Exit, Global, print, tell};
use crate::graph::{Live, Mark, Mesh, Part, dot, mermaid, svg};
use crate::model::{Desired, GeneratedPort, Mapping, TunnelKey};
use crate::reconcile::status::{State, Status};
use crate::reconcile::tell::Memory;
use crate::topology::NodeChoice;
use anyhow::Result;
use std::collections::BTreeMap;

#[derive(Debug, clap::Args)]
pub(super) struct GraphArgs {
    /// Form of the picture
    #[arg(long, value_name = "FORMAT", default_value = "mermaid")]
    format: GraphFormat,
    /// Only this tenant; repeatable
    #[arg(long, value_name = "NAME")]
    tenant: Vec<String>,
    /// From the files alone, without the state of this host's mappings
    #[arg(long)]
    declared: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum GraphFormat {
    Mermaid,
    Dot,
    Svg,
}

impl GraphArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let declared = global.accept(Declared::of(&global.topology))?;
        let nodes = declared.nodes();
        let status = if self.declared { None } else { look(global).await };
        let here = declared.here(&global.node_choice());
        let mut states: Vec<(Option<String>, Desired)> = Vec::new();
        for node in &nodes {
            let choice = NodeChoice::Named(node.clone());
            states.push((Some(node.clone()), global.accept(declared.compile(&choice))?));
        }
        if here.is_none() {
            // One host's own list, of a host that isn't named.
            states.retain(|_| declared.needs_node());
            if !declared.needs_node() {
                states.push((None, global.accept(declared.compile(&NodeChoice::Unknown))?));
            }
        }
        if let Some(status) = &status {
            states.iter_mut().filter(|(node, _)| *node == here).for_each(|(_, desired)| add_held(desired, status));
        }
        let parts: Vec<Part<'_>> = states
            .iter()
            .map(|(node, desired)| {
                let own = *node == here;
                let live = status.as_ref().filter(|_| own).map(live);
                Part { node: node.clone(), desired, own, live }
            })
            .collect();
        let mesh = Mesh::of(&declared.addresses(), &declared.own_interfaces(), &parts, &self.tenant);
        print(&match self.format {
            GraphFormat::Mermaid => mermaid::render(&mesh),
            GraphFormat::Dot => dot::render(&mesh),
            GraphFormat::Svg => svg::render(&mesh),
        })?;
        Ok(Exit::Done)
    }
}

/// The status of this host, if it has one and may be read.
async fn look(global: &Global) -> Option<Status> {
    match read(global, &mut Memory::open(&global.paths().state)).await {
        // Nothing was ever applied here: this is no host of the mesh, or not yet.
        Ok(status) => status.revision.is_some().then_some(status),
        Err(error) => {
            tell(&format!("note: without the state of mappings: {error:#}"));
            None
        }
    }
}

/// What the files don't have any more and the deletion guard holds in force.
fn add_held(desired: &mut Desired, status: &Status) {
    for held in status.mappings.iter().filter(|m| m.state == State::Held) {
        let bridge = desired.bridges.values().find(|b| b.tenant == held.tenant).map(|b| b.name.clone());
        let generated =
            held.node.as_ref().map(|node| GeneratedPort { bridge: bridge.unwrap_or_default(), node: node.clone() });
        let mapping = Mapping {
            tenant: held.tenant.as_str().into(),
            interface: held.interface.as_str().into(),
            key: TunnelKey { tunnel: held.tunnel.as_str().into(), id: held.id, remote: held.remote },
            local: held.local,
            attach: held.attach,
            node: None,
            generated: generated.map(Box::new),
            origin: held.origin.clone(),
        };
        desired.mappings.entry(mapping.interface.clone()).or_insert(mapping);
    }
}

fn live(status: &Status) -> BTreeMap<String, Live> {
    let of = |state| match state {
        State::Active => Mark::Active,
        State::Pending => Mark::Pending,
        State::Held => Mark::Held,
        State::Drifted => Mark::Broken,
    };
    let broken = |tunnel: &str| status.tunnels.iter().find(|t| t.name == tunnel && t.state != State::Active);
    let entries = status.mappings.iter().map(|m| {
        let live = match broken(&m.tunnel) {
            Some(tunnel) => {
                let why = tunnel.why.clone().unwrap_or_else(|| "has no usable device".to_owned());
                Live { mark: Mark::Broken, why: Some(format!("tunnel {}: {why}", tunnel.name)) }
            }
            None => Live { mark: of(m.state), why: m.why.clone() },
        };
        (m.interface.clone(), live)
    });
    entries.collect()
}
