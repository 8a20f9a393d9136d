//! Whether both ends of every link agree: one-way links, and ids, kinds, ports, families and MTUs that don't match.
//!
//! A *link* between two hosts is a mapping on each whose keys mirror each other. The rule: what a device really is counts
//! before what the files ask of it, where the live state of a host is known.

use super::Pending;
use super::devices::tunnel_mtu;
use crate::model::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// One host of the mesh.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// What is to be in force there.
    pub desired: &'a Desired,
    /// What is live there, where that is known.
    pub observed: Option<&'a Observed>,
    /// What waits there.
    pub pending: &'a [Pending],
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets don't get through.
    Error,
    /// Some don't, or not yet, or nobody can tell.
    Warning,
}

/// What is amiss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amiss {
    /// The far end has nothing for it.
    OneWay,
    /// The ids differ.
    Id,
    /// The kinds of the tunnels differ.
    Kind,
    /// The UDP ports of the tunnels differ.
    Port,
    /// One end speaks IPv4, the other one IPv6.
    Family,
    /// An end sends from, or to, another address than the other one thinks.
    Address,
    /// The MTUs differ.
    Mtu,
    /// The far end waits for its interface.
    Pending,
    /// No host is known to have the remote.
    UnknownRemote,
}

impl Amiss {
    /// Stable name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneWay => "one-way",
            Self::Id => "id",
            Self::Kind => "kind",
            Self::Port => "port",
            Self::Family => "family",
            Self::Address => "address",
            Self::Mtu => "mtu",
            Self::Pending => "pending",
            Self::UnknownRemote => "unknown-remote",
        }
    }
}

/// One thing that is amiss between two hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What.
    pub amiss: Amiss,
    /// The host that it was seen from.
    pub node: String,
    /// Its mapping.
    pub address: String,
    /// The host at the other end; absent where none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// In words.
    pub what: String,
    /// Where the files say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// One end of a link.
#[derive(Debug, Clone, Copy)]
struct End<'a> {
    mapping: &'a Mapping,
    kind: TunnelKind,
    port: Option<u16>,
}

/// A host, indexed.
struct Known<'a> {
    host: &'a Host<'a>,
    ends: Vec<End<'a>>,
    /// Ends by what they send to.
    to: HashMap<IpAddr, Vec<usize>>,
    pending: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn of(host: &'a Host<'a>) -> Self {
        let mut known = Self {
            host,
            ends: Vec::new(),
            to: HashMap::new(),
            pending: host.pending.iter().map(|p| p.interface.as_str()).collect(),
        };
        for mapping in host.desired.mappings.values() {
            let Some(tunnel) = host.desired.tunnels.get(mapping.key.tunnel.as_str()) else { continue };
            let device = host.observed.and_then(|o| o.link(&tunnel.name)).and_then(|l| l.tunnel.as_deref());
            let kind = device.map_or(tunnel.kind, |d| d.kind);
            let port = device.map_or(tunnel.port, |d| d.port);
            known.to.entry(mapping.key.remote).or_default().push(known.ends.len());
            known.ends.push(End { mapping, kind, port });
        }
        known
    }

    fn to(&self, remote: IpAddr) -> impl Iterator<Item = &End<'a>> {
        self.to.get(&remote).into_iter().flatten().filter_map(|place| self.ends.get(*place))
    }

    /// MTU of a tunnel, where it is said or live.
    fn tunnel_mtu(&self, name: &str) -> Option<u32> {
        let tunnel = self.host.desired.tunnels.get(name)?;
        let live = self.host.observed.and_then(|o| o.link(name)).filter(|_| !tunnel.create).map(|l| l.mtu);
        live.or(tunnel.mtu).or_else(|| self.host.observed.map(|o| tunnel_mtu(o, tunnel)))
    }

    /// MTU of a mapping's interface, where it is live and not ours to set.
    fn interface_mtu(&self, mapping: &Mapping) -> Option<u32> {
        let live = self.host.observed?.link(&mapping.interface)?;
        mapping.generated.is_none().then_some(live.mtu)
    }
}

/// Compares every mapping of every host with its other end.
pub fn check(hosts: &[Host<'_>]) -> Vec<Finding> {
    let known: Vec<Known<'_>> = hosts.iter().map(Known::of).collect();
    let mut owners: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (place, host) in hosts.iter().enumerate() {
        let sources = host.desired.mappings.values().map(|m| m.local);
        let locals = host
            .desired
            .tunnels
            .values()
            .flat_map(|t| [t.local.v4.map(IpAddr::V4), t.local.v6.map(IpAddr::V6)].into_iter().flatten());
        for address in sources.chain(locals) {
            owners.entry(address).or_insert(place);
        }
    }
    let mut out = Vec::new();
    let mut mtus: BTreeSet<(usize, usize, &str)> = BTreeSet::new();
    for (place, here) in known.iter().enumerate() {
        for end in &here.ends {
            let far = owners.get(&end.mapping.key.remote).copied();
            let Some(far) = far.filter(|far| *far != place) else {
                let what = format!("no host of the mesh sends from {}", end.mapping.key.remote);
                out.push(finding(here, end, None, Severity::Warning, Amiss::UnknownRemote, what));
                continue;
            };
            let there = &known[far];
            match mirror(here, end, there, |address| owners.get(&address) == Some(&place)) {
                Err((amiss, what)) => {
                    // Of what both ends see, one tells.
                    if amiss == Amiss::OneWay || place < far || !tells(there, end, place, &owners) {
                        out.push(finding(here, end, Some(there), Severity::Error, amiss, what));
                    }
                }
                Ok(other) => {
                    if there.pending.contains(other.mapping.interface.as_str())
                        && !here.pending.contains(end.mapping.interface.as_str())
                    {
                        let what = format!(
                            "{} waits for {} on {}: nothing gets through until it is there",
                            other.mapping.address(),
                            other.mapping.interface,
                            there.host.node
                        );
                        out.push(finding(here, end, Some(there), Severity::Warning, Amiss::Pending, what));
                    }
                    if place < far {
                        out.extend(mtu(here, end, there, other, &mut mtus, (place, far)));
                    }
                }
            }
        }
    }
    out.sort();
    out.dedup();
    out
}

/// Whether the far end speaks to this host about the same thing, so that it tells of the same mismatch.
fn tells(there: &Known<'_>, end: &End<'_>, here: usize, owners: &BTreeMap<IpAddr, usize>) -> bool {
    there.ends.iter().any(|e| owners.get(&e.mapping.key.remote) == Some(&here) && alike(e, end))
}

/// Whether two ends are meant to be one link although they don't match.
fn alike(a: &End<'_>, b: &End<'_>) -> bool {
    a.mapping.key.id == b.mapping.key.id || (!a.mapping.tenant.is_empty() && a.mapping.tenant == b.mapping.tenant)
}

/// The other end of a link, or what is amiss with it.
fn mirror<'b, 'a>(
    here: &Known<'a>,
    end: &End<'a>,
    there: &'b Known<'a>,
    is_here: impl Fn(IpAddr) -> bool,
) -> Result<&'b End<'a>, (Amiss, String)> {
    let (mapping, node, other) = (end.mapping, here.host.node, there.host.node);
    let id = mapping.key.id;
    let matching = |e: &&&End<'_>| e.mapping.key.id == id && e.kind == end.kind && e.port == end.port;
    let back: Vec<&End<'_>> = there.to(mapping.local).collect();
    if let Some(found) = back.iter().find(matching) {
        if found.mapping.local == mapping.key.remote {
            return Ok(found);
        }
        let what =
            format!("{other} sends it from {}, while {node} expects {}", found.mapping.local, mapping.key.remote);
        return Err((Amiss::Address, what));
    }
    if let Some(found) = back.iter().find(|e| e.mapping.key.id == id && e.kind == end.kind) {
        let port = |port: Option<u16>| port.map_or_else(|| "none".to_owned(), |p| p.to_string());
        let what = format!("UDP port {} on {node}, {} on {other}", port(end.port), port(found.port));
        return Err((Amiss::Port, what));
    }
    if let Some(found) = back.iter().find(|e| e.mapping.key.id == id) {
        return Err((Amiss::Kind, format!("{} on {node}, {} on {other}", end.kind, found.kind)));
    }
    if let Some(found) = back.iter().find(|e| alike(e, end)) {
        return Err((Amiss::Id, format!("id {id} on {node}, {} on {other}", found.mapping.key.id)));
    }
    let aside = there.ends.iter().filter(|e| is_here(e.mapping.key.remote) && e.mapping.key.remote != mapping.local);
    if let Some(found) =
        aside.clone().find(|e| e.mapping.key.id == id).or_else(|| aside.clone().find(|e| alike(e, end)))
    {
        let to = found.mapping.key.remote;
        let what = format!("{node} sends from {}, while {other} sends to {to}", mapping.local);
        let families = to.is_ipv6() != mapping.local.is_ipv6();
        return Err((if families { Amiss::Family } else { Amiss::Address }, what));
    }
    Err((Amiss::OneWay, format!("{other} has no mapping for it: what {node} sends is dropped there as unknown")))
}

fn mtu<'a>(
    here: &Known<'a>,
    end: &End<'a>,
    there: &Known<'a>,
    other: &End<'a>,
    told: &mut BTreeSet<(usize, usize, &'a str)>,
    pair: (usize, usize),
) -> Option<Finding> {
    let (name, far) = (end.mapping.key.tunnel.as_str(), other.mapping.key.tunnel.as_str());
    let tunnels = here.tunnel_mtu(name).zip(there.tunnel_mtu(far)).filter(|(a, b)| a != b);
    let (what, (a, b)) = match tunnels {
        Some(both) if told.insert((pair.0, pair.1, name)) => (format!("tunnel {name}"), both),
        Some(_) => return None,
        None => {
            let both = here.interface_mtu(end.mapping).zip(there.interface_mtu(other.mapping));
            (format!("interface {}", end.mapping.interface), both.filter(|(a, b)| a != b)?)
        }
    };
    let what = format!(
        "MTU of {what} is {a} on {}, {b} on {}: frames over {} get through in one direction only",
        here.host.node,
        there.host.node,
        a.min(b)
    );
    Some(finding(here, end, Some(there), Severity::Warning, Amiss::Mtu, what))
}

fn finding(
    here: &Known<'_>,
    end: &End<'_>,
    there: Option<&Known<'_>>,
    severity: Severity,
    amiss: Amiss,
    what: String,
) -> Finding {
    Finding {
        severity,
        amiss,
        node: here.host.node.to_owned(),
        address: end.mapping.address(),
        other: there.map(|t| t.host.node.to_owned()),
        what,
        origin: Some(end.mapping.origin.clone()),
    }
}
