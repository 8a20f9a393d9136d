//! Whether what tenants send fits into their tunnels: the MTU of everything that sends, against the underlay's.
//!
//! A tunnel has *room* for what the underlay's MTU leaves behind the outer headers, or for its device's MTU where that is
//! less. Looked at is whatever a tenant sends through that isn't ours to set: endpoints, ports that stand for themselves,
//! and the other ports of a bridge.

use super::devices::tunnel_mtu;
use super::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// What becomes of what is larger.
const BETWEEN: &str =
    "larger packets are dropped and their senders told; what can't be answered is fragmented or dropped";

/// Links whose MTU is more than their tunnel has room for, all for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLarge {
    /// The mapping or tunnel it is about, where it is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// The links and their MTUs.
    pub links: Vec<(String, u32)>,
    /// The largest MTU that fits.
    pub room: u32,
    /// Where the limit comes from, and what becomes of what is larger.
    pub why: String,
    /// What to do.
    pub remedy: String,
    /// Where the files say so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
}

/// What limits a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Limit<'a> {
    /// Underlay link, its MTU, encapsulation, and whether it is over IPv6.
    Underlay(&'a str, u32, TunnelKind, bool),
    /// Tunnel device and its MTU.
    Device(&'a str, u32),
}

impl Limit<'_> {
    fn room(&self) -> u32 {
        match *self {
            Self::Underlay(_, mtu, kind, ip6) => mtu.saturating_sub(kind.overhead(ip6)),
            Self::Device(_, mtu) => mtu,
        }
    }
}

impl std::fmt::Display for TooLarge {
    /// "veth-a (MTU 1500), veth-b (MTU 1500) and 3 more: eth0 leaves room for …"
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 5;
        let links: Vec<String> =
            self.links.iter().take(SHOWN).map(|(name, mtu)| format!("{name} (MTU {mtu})")).collect();
        f.write_str(&links.join(", "))?;
        match self.links.len().saturating_sub(SHOWN) {
            0 => write!(f, ": {}", self.why),
            more => write!(f, " and {more} more: {}", self.why),
        }
    }
}

impl std::fmt::Display for Limit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let room = self.room();
        match *self {
            Self::Underlay(link, mtu, kind, ip6) => {
                let family = if ip6 { "IPv6" } else { "IPv4" };
                let overhead = kind.overhead(ip6);
                write!(f, "{link} leaves room for an MTU of {room} ({mtu} less {overhead} for {kind} over {family})")
            }
            Self::Device(device, _) => write!(f, "{device} has an MTU of {room}"),
        }
    }
}

/// Everything that sends more than its tunnel has room for.
pub fn too_large(desired: &Desired, observed: &Observed) -> Vec<TooLarge> {
    let known = Known::of(desired, observed);
    let mut found: BTreeMap<Limit<'_>, (BTreeMap<&str, u32>, Vec<&Mapping>)> = BTreeMap::new();
    let mut done: HashSet<(u32, Limit<'_>)> = HashSet::new();
    for mapping in desired.mappings.values() {
        let Some(limit) = known.limit(mapping) else { continue };
        let link = known.links.get(mapping.interface.as_str()).copied();
        let bridge = match &mapping.generated {
            Some(port) => known.links.get(port.bridge.as_str()).map(|bridge| bridge.ifindex),
            None => link.filter(|_| mapping.attach == Attach::Port).and_then(|link| link.master),
        };
        let senders: Vec<&Link> = match (bridge, link) {
            // Once for all the ports that we have in it.
            (Some(bridge), _) if done.insert((bridge, limit)) => known.senders(bridge).collect(),
            (None, Some(link)) if mapping.generated.is_none() => vec![link],
            _ => continue,
        };
        let mut too_large = senders.into_iter().filter(|link| link.mtu > limit.room()).peekable();
        if too_large.peek().is_some() {
            let (links, mappings) = found.entry(limit).or_default();
            links.extend(too_large.map(|link| (link.name.as_str(), link.mtu)));
            mappings.push(mapping);
        }
    }
    let mut out: Vec<TooLarge> = found.into_iter().map(|(limit, (links, of))| told(limit, &links, &of)).collect();
    out.extend(desired.tunnels.values().filter_map(|tunnel| known.tunnel_too_large(tunnel)));
    out
}

fn told(limit: Limit<'_>, links: &BTreeMap<&str, u32>, mappings: &[&Mapping]) -> TooLarge {
    let room = limit.room();
    let endpoint = mappings.iter().any(|m| m.attach == Attach::Endpoint);
    let also = if endpoint { ", and the same on the workloads' ends" } else { "" };
    let or = match limit {
        Limit::Underlay(link, ..) => format!("raise the MTU of {link}"),
        Limit::Device(device, _) => format!("raise that of {device} if the underlay has room"),
    };
    let one = mappings.first().filter(|_| mappings.len() == 1);
    TooLarge {
        address: one.map(|m| m.address()),
        links: links.iter().map(|(name, mtu)| ((*name).to_owned(), *mtu)).collect(),
        room,
        why: format!("{limit}; {BETWEEN}"),
        remedy: format!("ip link set dev INTERFACE mtu {room}{also}; or {or}"),
        origin: one.map(|m| m.origin.clone()),
    }
}

/// What is looked up again and again.
struct Known<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    links: HashMap<&'a str, &'a Link>,
    by_master: HashMap<u32, Vec<&'a Link>>,
    /// The link that has an address.
    underlays: HashMap<IpAddr, Option<&'a Link>>,
    /// MTU that a tunnel's device has or will have.
    devices: HashMap<&'a str, u32>,
}

impl<'a> Known<'a> {
    fn of(desired: &'a Desired, observed: &'a Observed) -> Self {
        let mut known = Self {
            desired,
            observed,
            links: observed.links.iter().map(|link| (link.name.as_str(), link)).collect(),
            by_master: HashMap::new(),
            underlays: HashMap::new(),
            devices: HashMap::new(),
        };
        for link in &observed.links {
            if let Some(master) = link.master {
                known.by_master.entry(master).or_default().push(link);
            }
        }
        for tunnel in desired.tunnels.values() {
            for source in sources(tunnel) {
                known.underlays.insert(source, underlay(observed, source));
            }
            let live = known.links.get(tunnel.name.as_str()).map(|link| link.mtu);
            if let Some(mtu) = if tunnel.create { Some(tunnel_mtu(observed, tunnel)) } else { live } {
                known.devices.insert(&tunnel.name, mtu);
            }
        }
        known
    }

    fn limit(&self, mapping: &Mapping) -> Option<Limit<'a>> {
        let tunnel = self.desired.tunnels.get(mapping.key.tunnel.as_str())?;
        let underlay = self.underlays.get(&mapping.local).copied().flatten();
        let underlay = underlay.map(|l| Limit::Underlay(&l.name, l.mtu, tunnel.kind, mapping.local.is_ipv6()));
        let device = self.devices.get(tunnel.name.as_str()).map(|mtu| Limit::Device(&tunnel.name, *mtu));
        [underlay, device].into_iter().flatten().min_by_key(Limit::room)
    }

    /// What sends into a bridge: its ports that aren't ours, and the host itself where the bridge has an address.
    fn senders(&self, bridge: u32) -> impl Iterator<Item = &'a Link> {
        let ports = self.by_master.get(&bridge).into_iter().flatten().copied();
        let ports = ports.filter(|l| !self.desired.mappings.contains_key(l.name.as_str()));
        let itself = self.observed.link_by_index(bridge);
        let itself = itself.filter(|_| self.observed.addresses.iter().any(|a| a.ifindex == bridge));
        ports.chain(itself).filter(|l| self.observed.instance.made(l.alias.as_deref()).is_none())
    }

    /// A tunnel device that takes more than the underlay has room for. The data plane goes by the less of both; but what only
    /// the kernel can measure, it measures by the device.
    fn tunnel_too_large(&self, tunnel: &Tunnel) -> Option<TooLarge> {
        let device = *self.devices.get(tunnel.name.as_str())?;
        let limits = sources(tunnel).filter_map(|source| {
            let link = self.underlays.get(&source).copied().flatten()?;
            Some(Limit::Underlay(&link.name, link.mtu, tunnel.kind, source.is_ipv6()))
        });
        let limit = limits.min_by_key(Limit::room)?;
        let room = limit.room();
        let remedy = if tunnel.mtu.is_some() {
            format!("lower `mtu` of tunnel {} to {room}, or leave it out", tunnel.name)
        } else {
            format!("ip link set dev {} mtu {room}", tunnel.name)
        };
        (device > room).then(|| TooLarge {
            address: Some(tunnel.name.clone()),
            links: vec![(tunnel.name.clone(), device)],
            room,
            why: format!("{limit}; {BETWEEN}"),
            remedy,
            origin: Some(tunnel.origin.clone()),
        })
    }
}

/// What is known of the way to a tunnel's remotes, whatever its device believes.
pub(super) fn way_of(observed: &Observed, tunnel: &Tunnel) -> Way {
    let room = |link: &Link, ip6| {
        let room = link.mtu.saturating_sub(tunnel.kind.overhead(ip6)).max(1);
        u16::try_from(room).unwrap_or(u16::MAX)
    };
    let ethernet = |link: &Link| link.ethernet.then_some(link.ifindex);
    let v4 = tunnel.local.v4.and_then(|source| underlay(observed, source.into()));
    let v6 = tunnel.local.v6.and_then(|source| underlay(observed, source.into()));
    Way {
        gre: tunnel.kind == TunnelKind::Gretap,
        v4: v4.map(|link| room(link, false)),
        v6: v6.map(|link| room(link, true)),
        ethernet4: v4.and_then(ethernet),
        ethernet6: v6.and_then(ethernet),
    }
}

fn sources(tunnel: &Tunnel) -> impl Iterator<Item = IpAddr> {
    [tunnel.local.v4.map(IpAddr::V4), tunnel.local.v6.map(IpAddr::V6)].into_iter().flatten()
}

/// The link that has an address; not loopback, which limits nothing.
fn underlay(observed: &Observed, address: IpAddr) -> Option<&Link> {
    const LOOPBACK: u32 = 1;
    let holder = observed.addresses.iter().find(|a| a.address == address)?;
    let link = observed.link_by_index(holder.ifindex)?;
    (link.ifindex != LOOPBACK).then_some(link)
}
