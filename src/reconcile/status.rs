//! What `status` tells: every mapping with its state and counters, attachments, unknown keys, drops, health. Pure.

use super::chains::Chains;
use super::history::{History, LastChange};
use super::rates::Rates;
use super::unknown::Explainer;
use crate::model::*;
use crate::plan::lanes::{Lanes, MappingLanes};
use crate::plan::{Object, Plan};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Version of the status JSON.
pub const FORMAT_VERSION: u32 = 1;

/// Packets and bytes of a slot, both ways, and drops by reason. Packets count segments of GSO packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets that arrived through the tunnel.
    pub rx_packets: u64,
    /// Bytes of them, inner Ethernet frames.
    pub rx_bytes: u64,
    /// Packets sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of them, inner Ethernet frames.
    pub tx_bytes: u64,
    /// Of the packets that arrived, those that took the fast lane.
    #[serde(default)]
    pub rx_fast: u64,
    /// Of the packets sent, those that took the fast lane.
    #[serde(default)]
    pub tx_fast: u64,
    /// Drops by reason; reasons that never occurred are left out.
    pub drops: BTreeMap<String, u64>,
}

/// Packets from a tunnel key that nobody mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownKey {
    /// Tunnel name.
    pub tunnel: String,
    /// Tunnel id.
    pub id: u32,
    /// Sender's underlay address.
    pub remote: IpAddr,
    /// Packets.
    pub packets: u64,
    /// Seconds since the last one.
    pub last_seen_seconds: u64,
    /// Address of the mapping that is nearest to it, if any is near.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nearest: Option<String>,
    /// Why it isn't that one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// State of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In force.
    Active,
    /// Waits for its interface or tunnel.
    Pending,
    /// Removed by the files; the deletion guard holds it in force.
    Held,
    /// The live state differs from the accepted one.
    Drifted,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Drifted => "drifted",
        })
    }
}

/// One mapping in `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MappingStatus {
    /// `tenant/interface`.
    pub address: String,
    /// State.
    pub state: State,
    /// Why it isn't active.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Tenant.
    pub tenant: String,
    /// Interface name.
    pub interface: String,
    /// Its index, where the interface exists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ifindex: Option<u32>,
    /// Remote node of a generated port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Tunnel name.
    pub tunnel: String,
    /// Tunnel id.
    pub id: u32,
    /// Far underlay address.
    pub remote: IpAddr,
    /// Underlay source.
    pub local: IpAddr,
    /// Port or endpoint.
    pub attach: Attach,
    /// Why packets go through the tunnel device, if they do.
    #[serde(default)]
    pub lanes: MappingLanes,
    /// Slot in `devs` and the counters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub slot: Option<u32>,
    /// Counters since the mapping got its slot.
    pub traffic: Traffic,
    /// What passes in a second, where two looks are known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rates: Option<Rates>,
    /// The interface's own drop counters, received and sent: what was lost after the redirect.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_dropped: Option<(u64, u64)>,
    /// When and why it was changed last, where that is on record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_change: Option<LastChange>,
    /// Where it was declared.
    pub origin: Origin,
}

/// One tunnel in `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Name.
    pub name: String,
    /// Encapsulation.
    pub kind: TunnelKind,
    /// Index in `conf`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<u32>,
    /// Index of its device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ifindex: Option<u32>,
    /// Whether device, `conf` and program are as they should be.
    pub state: State,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// MTU of the device in bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    /// Packets of the tunnel that belonged to no mapping, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// One attachment in `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentStatus {
    /// Interface name; absent where it is gone from this namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interface: Option<String>,
    /// Its index.
    pub ifindex: u32,
    /// Hook.
    pub direction: Direction,
    /// TCX or clsact.
    pub kind: HookKind,
    /// Program id; absent where the attachment is defunct.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub program: Option<u32>,
    /// Place in the chain of its kind, from 0.
    pub position: u32,
    /// What others have on that hook, in the order in which all of them run.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub foreign: Vec<ForeignStatus>,
}

/// Somebody else's program on a hook of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignStatus {
    /// Place among all on that hook, from 0: TCX first, then clsact.
    pub position: u32,
    /// Whether it runs before ours.
    pub before: bool,
    /// TCX or clsact.
    pub kind: HookKind,
    /// Program id, where it is a program.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub program: Option<u32>,
    /// Its name, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
}

/// The daemon's health.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Whether a daemon answered.
    pub running: bool,
    /// Its process id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started: Option<Moment>,
    /// Its last pass.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_pass: Option<LastPass>,
    /// Passes since it started.
    pub passes: u64,
    /// Passes that ended with an error.
    pub failed_passes: u64,
    /// Operations carried out since it started.
    pub operations: u64,
    /// Changes that put right what others had altered.
    #[serde(default)]
    pub drift_repaired: u64,
    /// Netlink overruns.
    pub netlink_overruns: u64,
    /// Watch overflows.
    pub watch_overflows: u64,
    /// Why changes of the files are seen by the rescan every second only, if they are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub watch_error: Option<String>,
}

/// The last pass of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPass {
    /// When it ended.
    pub at: Moment,
    /// How long it took.
    pub milliseconds: u64,
    /// Operations carried out.
    pub operations: u64,
    /// Whether it reached the desired state.
    pub good: bool,
}

/// Everything `status` tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this format.
    pub format_version: u32,
    /// The daemon.
    pub daemon: Daemon,
    /// Node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Revision of the accepted topology; absent where none was ever accepted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revision: Option<String>,
    /// Whether all of the accepted topology is in force: nothing held, about to be removed, drifted or waiting to be applied.
    pub in_force: bool,
    /// Why the topology directory was not accepted, if it wasn't.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub config_error: Option<String>,
    /// What failed in the last pass.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<String>,
    /// Devices that the files name and that can't be used as they are.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub problems: Vec<String>,
    /// Tunnels.
    pub tunnels: Vec<TunnelStatus>,
    /// Mappings.
    pub mappings: Vec<MappingStatus>,
    /// Attachments of ours.
    pub attachments: Vec<AttachmentStatus>,
    /// Keys that nobody mapped.
    pub unknown: Vec<UnknownKey>,
    /// Drops that belong to no tunnel or mapping, by reason.
    pub drops: BTreeMap<String, u64>,
    /// All drops, of mappings and tunnels too, by reason.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
}

/// What a status is made from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The accepted state.
    pub accepted: Option<&'a Desired>,
    /// Interfaces whose removal is held.
    pub held: &'a BTreeSet<String>,
    /// Interfaces whose removal waits for one more look.
    pub delayed: &'a BTreeSet<String>,
    /// The live state.
    pub observed: &'a Observed,
    /// What a pass would do now.
    pub plan: Option<&'a Plan>,
    /// Counters by slot.
    pub traffic: &'a BTreeMap<u32, Traffic>,
    /// What passes in a second, by slot, where two looks are known.
    pub rates: &'a BTreeMap<u32, Rates>,
    /// Keys that nobody mapped.
    pub unknown: Vec<UnknownKey>,
    /// What is at our hooks.
    pub chains: &'a Chains,
    /// When mappings were changed.
    pub history: &'a History,
}

impl Status {
    /// Puts the sources together.
    pub fn of(sources: Sources<'_>) -> Self {
        let Sources { accepted, held, delayed, observed, plan, traffic, rates, mut unknown, chains, history } = sources;
        let empty = Desired::default();
        let desired = accepted.unwrap_or(&empty);
        let pending: BTreeMap<&str, &str> =
            plan.iter().flat_map(|p| &p.pending).map(|p| (p.interface.as_str(), p.why.as_str())).collect();
        let problem_of = |tunnel: &str| plan.iter().flat_map(|p| &p.problems).find(|p| p.address == tunnel);
        let changes: HashMap<(Object, &str), &crate::plan::Change> =
            plan.iter().flat_map(|p| p.changes.iter().rev()).map(|c| ((c.object, c.address.as_str()), c)).collect();
        let changing = |object: Object, address: &str| changes.get(&(object, address)).copied();
        let links: HashMap<&str, &Link> = observed.links.iter().rev().map(|l| (l.name.as_str(), l)).collect();
        let indexed: HashMap<u32, &Link> = observed.links.iter().map(|l| (l.ifindex, l)).collect();
        let link_named = |name: &str| links.get(name).copied();
        let slots: BTreeMap<u32, u32> =
            observed.maps.iter().flat_map(|m| &m.if2tunkey).map(|(ifindex, e)| (*ifindex, e.slot)).collect();
        let keys: BTreeMap<TunKey, u32> =
            observed.maps.iter().flat_map(|m| &m.tunkey2if).map(|(key, value)| (*key, value.slot)).collect();
        let index_of = |tunnel: &str| {
            let device = link_named(tunnel).map(|l| l.ifindex);
            observed.maps.as_ref().and_then(|m| m.tunnel_index(tunnel, device))
        };
        let lanes = Lanes::of(desired, observed);
        let mappings: Vec<MappingStatus> = desired
            .mappings
            .values()
            .map(|m| {
                let link = link_named(&m.interface);
                // By its key where the interface is gone or lost its entry: its drops are what one wants to know then.
                let slot = link.and_then(|l| slots.get(&l.ifindex)).copied().or_else(|| {
                    let key = TunKey { tunnel: index_of(&m.key.tunnel)?, id: m.key.id, remote: m.key.remote };
                    keys.get(&key).copied()
                });
                let (state, why) = if let Some(why) = pending.get(m.interface.as_str()) {
                    (State::Pending, Some((*why).to_owned()))
                } else if let Some(change) = changing(Object::Mapping, &m.address()) {
                    (State::Drifted, Some(drift(change)))
                } else if problem_of(&m.key.tunnel).is_some() || link_named(&m.key.tunnel).is_none() {
                    (State::Pending, Some(format!("tunnel {} has no usable device", m.key.tunnel)))
                } else if let Some(change) = changing(Object::Tunnel, &m.key.tunnel) {
                    (State::Drifted, Some(format!("its tunnel {}: {}", m.key.tunnel, drift(change))))
                } else if held.contains(m.interface.as_str()) {
                    (State::Held, Some("removed by the files; `apply --allow-deletes` releases it".to_owned()))
                } else {
                    (State::Active, None)
                };
                MappingStatus {
                    address: m.address(),
                    state,
                    why,
                    tenant: m.tenant.to_string(),
                    interface: m.interface.to_string(),
                    ifindex: link.map(|l| l.ifindex),
                    node: m.generated.as_ref().map(|g| g.node.clone()),
                    tunnel: m.key.tunnel.to_string(),
                    id: m.key.id,
                    remote: m.key.remote,
                    local: m.local,
                    attach: m.attach,
                    lanes: lanes.of_mapping(m),
                    slot,
                    traffic: slot.and_then(|s| traffic.get(&s)).cloned().unwrap_or_default(),
                    rates: slot.and_then(|s| rates.get(&s)).copied(),
                    device_dropped: link.map(|l| l.dropped),
                    last_change: history.of(&m.address()).cloned(),
                    origin: m.origin.clone(),
                }
            })
            .collect();
        let tunnels = desired
            .tunnels
            .values()
            .map(|t| {
                let link = link_named(&t.name);
                let index = index_of(&t.name);
                let problem = problem_of(&t.name);
                let (state, why) = match (problem, changing(Object::Tunnel, &t.name)) {
                    (Some(p), _) => (State::Pending, Some(p.what.clone())),
                    (None, Some(change)) => (State::Drifted, Some(drift(change))),
                    (None, None) => (State::Active, None),
                };
                TunnelStatus {
                    name: t.name.clone(),
                    kind: t.kind,
                    index,
                    ifindex: link.map(|l| l.ifindex),
                    state,
                    why,
                    mtu: link.map(|l| l.mtu),
                    drops: index.and_then(|i| traffic.get(&i)).map(|t| t.drops.clone()).unwrap_or_default(),
                }
            })
            .collect();
        let attachments = observed
            .attachments
            .iter()
            .map(|a| AttachmentStatus {
                interface: indexed.get(&a.ifindex).map(|l| l.name.clone()),
                ifindex: a.ifindex,
                direction: a.direction,
                kind: a.kind,
                program: a.program,
                position: a.position,
                foreign: chains.of(a.ifindex, a.direction).map(foreign).unwrap_or_default(),
            })
            .collect();
        let explainer = Explainer::new(desired, &mappings);
        unknown.iter_mut().for_each(|key| explainer.explain(key));
        let mut dropped = BTreeMap::new();
        for (reason, count) in traffic.values().flat_map(|t| &t.drops) {
            *dropped.entry(reason.clone()).or_insert(0) += count;
        }
        Self {
            format_version: FORMAT_VERSION,
            daemon: Daemon::default(),
            node: desired.node.clone(),
            revision: accepted.map(|a| a.revision.clone()),
            in_force: accepted.is_some()
                && held.is_empty()
                && delayed.is_empty()
                && plan.is_some_and(|p| p.is_empty() && p.problems.is_empty()),
            config_error: None,
            errors: Vec::new(),
            problems: plan.iter().flat_map(|p| &p.problems).map(|p| format!("{}: {}", p.address, p.what)).collect(),
            tunnels,
            mappings,
            attachments,
            unknown,
            drops: traffic.get(&0).map(|t| t.drops.clone()).unwrap_or_default(),
            dropped,
        }
    }
}

fn foreign(chain: &Chain) -> Vec<ForeignStatus> {
    let ours = chain.ours().unwrap_or(chain.members.len());
    let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let status = |(n, m): (usize, &ChainMember)| ForeignStatus {
        position: place(n),
        before: n < ours,
        kind: m.kind,
        program: m.program,
        name: m.name.clone(),
    };
    chain.foreign().map(status).collect()
}

fn drift(change: &crate::plan::Change) -> String {
    let what = change.describe();
    if what.is_empty() { "the live entries differ; the next pass repairs them".to_owned() } else { what }
}
