//! Which lane the packets of each mapping take, and why.
//!
//! The *device lane* goes through the tunnel device, and always works. The *fast lane* does the device's work in the
//! programs; out and in are chosen by themselves, since either understands the other's packets. The rule: the fast lane
//! is taken only where it has the same result, and what keeps it from being taken has words.

use super::builder::{Builder, PlannedTunnel, PlannedUnderlay};
use super::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How packets of a mapping leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane<'a> {
    /// Through the programs alone, where a packet allows it.
    Fast(FastHeader),
    /// Through the tunnel device: why.
    Device(&'a Why),
}

/// Why packets take the device lane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Why {
    /// Stable name of the kind of reason; `docs/lanes.md` lists them.
    pub code: Cow<'static, str>,
    /// In words, with what to do about it where it isn't plain.
    pub what: Cow<'static, str>,
}

impl Why {
    fn new(reason: LaneReason, what: impl Into<Cow<'static, str>>) -> Self {
        Self { code: reason.name().into(), what: what.into() }
    }

    /// The kind of reason; `None` where another version has told of one that this one doesn't know.
    pub fn reason(&self) -> Option<LaneReason> {
        LaneReason::ALL.iter().copied().find(|reason| reason.name() == self.code)
    }
}

/// The lanes of one mapping, for people and scripts.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MappingLanes {
    /// Why what is sent goes through the tunnel device; absent where it takes the fast lane.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sent_by_device: Option<Why>,
    /// Why what is received comes through the tunnel device; absent where it takes the fast lane.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub received_by_device: Option<Why>,
}

impl MappingLanes {
    /// One word: `fast`, `device`, or which of the two ways is fast.
    pub fn word(&self) -> &'static str {
        match (&self.sent_by_device, &self.received_by_device) {
            (None, None) => "fast",
            (Some(_), Some(_)) => "device",
            (None, Some(_)) => "fast out",
            (Some(_), None) => "fast in",
        }
    }

    /// Why the device lane is taken, once where both ways have one reason. Empty where both are fast.
    pub fn reasons(&self) -> Vec<(&'static str, &Why)> {
        match (&self.sent_by_device, &self.received_by_device) {
            (Some(out), Some(into)) if out == into => vec![("sent and received", out)],
            (out, into) => {
                let out = out.iter().map(|why| ("sent", why));
                out.chain(into.iter().map(|why| ("received", why))).collect()
            }
        }
    }
}

/// Both directions of one tunnel over one address family.
#[derive(Debug, Clone)]
struct Ways {
    /// Out, or why not.
    out: Result<FastHeader, Why>,
    /// Over IPv6 to a remote of which nobody knows whether it takes packets without a UDP checksum.
    out_unsure: Option<Why>,
    /// Remotes to which something on this host is in the way.
    barred: BTreeMap<IpAddr, Why>,
    /// The underlay device on which packets are decapsulated, or why there is none.
    underlay: Result<u32, Why>,
}

/// The lanes of every tunnel, by name.
#[derive(Debug, Clone, Default)]
pub struct Lanes<'a> {
    tunnels: BTreeMap<&'a str, [Ways; 2]>,
}

impl<'a> Lanes<'a> {
    /// Decides for every tunnel of a state.
    pub fn of(desired: &'a Desired, observed: &Observed) -> Self {
        let mut tunnels: BTreeMap<&str, [Ways; 2]> = BTreeMap::new();
        let remotes = Remotes::of(desired, observed);
        // The kernel's programs know that many tunnels by an underlay device.
        let mut ports: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
        for (name, tunnel) in &desired.tunnels {
            let mut ways = [false, true].map(|ipv6| ways(tunnel, ipv6, desired, observed));
            if tunnel.fast == Fast::Auto {
                let families = [false, true].into_iter().zip(&mut ways);
                for (way, remotes) in families.filter_map(|(ipv6, way)| Some((way, remotes.over(name, ipv6)?))) {
                    look_around(way, tunnel, observed, remotes);
                }
            }
            for way in &mut ways {
                let Ok(ifindex) = way.underlay else { continue };
                let here = ports.entry(ifindex).or_default();
                if !here.contains(name.as_str()) && here.len() == UNDERLAY_PORTS_MAX {
                    let what =
                        format!("its underlay device carries {UNDERLAY_PORTS_MAX} tunnels in the fast lane already");
                    way.underlay = Err(Why::new(LaneReason::TooManyTunnels, what));
                } else {
                    here.insert(name);
                }
            }
            tunnels.insert(name, ways);
        }
        Self { tunnels }
    }

    /// How packets of a mapping leave.
    pub fn lane(&self, mapping: &Mapping) -> Lane<'_> {
        let Some(ways) = self.ways(&mapping.key.tunnel, mapping.key.remote.is_ipv6()) else {
            return Lane::Device(&NO_TUNNEL);
        };
        match (&ways.out, &ways.out_unsure, ways.barred.get(&mapping.key.remote)) {
            (_, _, Some(why)) | (Err(why), _, None) => Lane::Device(why),
            (Ok(_), Some(why), None) if mapping.node.is_none() => Lane::Device(why),
            (Ok(header), _, None) => Lane::Fast(*header),
        }
    }

    /// Why packets of a tunnel that come over that family are decapsulated by its device, if they are.
    pub fn in_by_device(&self, tunnel: &str, ipv6: bool) -> Option<&Why> {
        self.ways(tunnel, ipv6)?.underlay.as_ref().err()
    }

    /// The lanes of a mapping, both ways.
    pub fn of_mapping(&self, mapping: &Mapping) -> MappingLanes {
        let sent = match self.lane(mapping) {
            Lane::Fast(_) => None,
            Lane::Device(why) => Some(why),
        };
        let (tunnel, ipv6) = (&mapping.key.tunnel, mapping.key.remote.is_ipv6());
        let received = self.ways(tunnel, ipv6).map_or(Some(&NO_TUNNEL), |_| self.in_by_device(tunnel, ipv6));
        MappingLanes { sent_by_device: sent.cloned(), received_by_device: received.cloned() }
    }

    fn ways(&self, tunnel: &str, ipv6: bool) -> Option<&Ways> {
        self.tunnels.get(tunnel).map(|ways| &ways[usize::from(ipv6)])
    }

    /// Whether routes of that family are looked up for the tunnel device, so that it has to forward.
    pub(super) fn needs_forwarding(&self, tunnel: &str, ipv6: bool) -> bool {
        self.ways(tunnel, ipv6).is_some_and(|ways| ways.out.is_ok())
    }
}

/// Of a mapping whose tunnel isn't there.
static NO_TUNNEL: Why =
    Why { code: Cow::Borrowed(LaneReason::NoSourceAddress.name()), what: Cow::Borrowed("its tunnel isn't declared") };

/// The far hosts of each tunnel, by family; not gathered where nothing could be in the way.
#[derive(Debug, Default)]
struct Remotes<'a>(BTreeMap<(&'a str, bool), BTreeSet<IpAddr>>);

impl<'a> Remotes<'a> {
    fn of(desired: &'a Desired, observed: &Observed) -> Self {
        let mut remotes = Self::default();
        if observed.underlay != Underlay::default() {
            for mapping in desired.mappings.values() {
                let TunnelKey { tunnel, remote, .. } = &mapping.key;
                remotes.0.entry((tunnel.as_str(), remote.is_ipv6())).or_default().insert(*remote);
            }
        }
        remotes
    }

    fn over(&self, tunnel: &'a str, ipv6: bool) -> Option<&BTreeSet<IpAddr>> {
        self.0.get(&(tunnel, ipv6))
    }
}

/// The device of addresses that belong to the host rather than to one of its links.
const LOOPBACK: &str = "lo";

fn ways(tunnel: &Tunnel, ipv6: bool, desired: &Desired, observed: &Observed) -> Ways {
    let both = |reason, what: String| {
        let why = Why::new(reason, what);
        Ways { out: Err(why.clone()), out_unsure: None, barred: BTreeMap::new(), underlay: Err(why) }
    };
    if tunnel.fast == Fast::Off {
        return both(LaneReason::FastOff, "the topology says `fast: off`".to_owned());
    }
    let (geneve, port) = match (tunnel.kind, tunnel.port.or(tunnel.kind.default_port())) {
        (TunnelKind::Vxlan, Some(port)) => (false, port),
        (TunnelKind::Geneve, Some(port)) => (true, port),
        _ => return both(LaneReason::Kind, format!("there is no fast lane for {}", tunnel.kind)),
    };
    let Some(local) = source(tunnel, ipv6) else {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        return both(LaneReason::NoSourceAddress, format!("the tunnel has no {family} source address"));
    };
    let Some(holder) = holder(local, observed) else {
        return both(LaneReason::NoSourceAddress, format!("{local} isn't an address of this host"));
    };
    // An address of the loopback device says nothing of the way out, which may well be asked for.
    let asked_for = tunnel.fast == Fast::On && holder.name == LOOPBACK;
    let fits = underlay_fits(tunnel, holder, desired, observed);
    if let Err(why) = &fits
        && !asked_for
    {
        return Ways { out: Err(why.clone()), out_unsure: None, barred: BTreeMap::new(), underlay: Err(why.clone()) };
    }
    let out = outer_checksum(tunnel, ipv6)
        .and_then(|()| forwarding(tunnel, ipv6, observed))
        .map(|()| FastHeader { geneve, port });
    let unsure = ipv6 && tunnel.checksum.is_none() && tunnel.fast == Fast::Auto;
    let out_unsure = unsure.then(|| {
        let what = "over IPv6 the fast lane sends no UDP checksum, and nothing says that the remote takes that; say \
                    `checksum: false` if it does";
        Why::new(LaneReason::Checksum, what)
    });
    let underlay = if ipv6 && !takes_zero_checksum6(tunnel, observed) {
        Err(Why::new(LaneReason::Checksum, "its device takes no IPv6 packets without a UDP checksum"))
    } else {
        fits.map(|()| holder.ifindex)
    };
    Ways { out, out_unsure, barred: BTreeMap::new(), underlay }
}

/// The tunnel's address on this host, of that family.
fn source(tunnel: &Tunnel, ipv6: bool) -> Option<IpAddr> {
    if ipv6 { tunnel.local.v6.map(IpAddr::V6) } else { tunnel.local.v4.map(IpAddr::V4) }
}

/// The link that has an address.
fn holder(address: IpAddr, observed: &Observed) -> Option<&Link> {
    let found = observed.addresses.iter().find(|a| a.address == address)?;
    observed.link_by_index(found.ifindex)
}

/// Takes the fast lane back where something on this host would not see its packets, or not decide about them: out by
/// remote; in for all remotes if for one, since what is received is known by its tunnel only.
fn look_around(way: &mut Ways, tunnel: &Tunnel, observed: &Observed, remotes: &BTreeSet<IpAddr>) {
    let Some(port) = tunnel.port.or(tunnel.kind.default_port()) else { return };
    let mut open = false;
    for &remote in remotes {
        let Some(local) = tunnel.local.for_remote(remote) else { return };
        let Some(device) = holder(local, observed) else { return };
        let (name, ifindex) = (device.name.as_str(), device.ifindex);
        let flow = Flow { local, remote, port, tunnel: &tunnel.name, device: name, ifindex };
        match observed.underlay.obstacle_out(&flow) {
            Some(obstacle) => drop(way.barred.insert(remote, Why::new(obstacle.reason(), obstacle.to_string()))),
            None => open = true,
        }
        if way.underlay.is_ok()
            && let Some(obstacle) = observed.underlay.obstacle_in(&flow)
        {
            way.underlay = Err(Why::new(obstacle.reason(), obstacle.to_string()));
        }
    }
    // Nobody would take it: then the tunnel device needn't forward either.
    if way.out.is_ok()
        && !open
        && let Some(why) = way.barred.values().next()
    {
        way.out = Err(why.clone());
    }
}

/// The fast lane sends UDP without a checksum.
fn outer_checksum(tunnel: &Tunnel, ipv6: bool) -> Result<(), Why> {
    match tunnel.checksum {
        Some(true) => {
            Err(Why::new(LaneReason::Checksum, "the topology says `checksum: true`, which the tunnel device fills in"))
        }
        None if ipv6 && !tunnel.create && tunnel.fast == Fast::Auto => Err(Why::new(
            LaneReason::Checksum,
            "over IPv6 the fast lane sends no UDP checksum, and tunnel devices that others make drop that; say \
             `checksum: false` if they don't",
        )),
        _ => Ok(()),
    }
}

/// Routes are looked up as if the tunnel device forwarded the packet, since the kernel does so for devices that forward.
fn forwarding(tunnel: &Tunnel, ipv6: bool, observed: &Observed) -> Result<(), Why> {
    let link = observed.link(&tunnel.name);
    if link.is_some_and(|l| if ipv6 { l.forwards.v6 } else { l.forwards.v4 }) {
        return Ok(());
    }
    let family = if ipv6 { "ipv6" } else { "ipv4" };
    let setting = format!("net.{family}.conf.{}.forwarding", tunnel.name);
    let ours = tunnel.create && link.is_none_or(|l| observed.instance.made(l.alias.as_deref()).is_some());
    if !ours {
        let what = format!("{setting} is 0: set it to 1, or let tunnel-mesh make the device with `create: true`");
        return Err(Why::new(LaneReason::Forwarding, what));
    }
    // The kernel forgets such routes when any link begins to forward.
    if ipv6 && let Some(&ifindex) = observed.underlay.learned_defaults.first() {
        let name = observed.link_by_index(ifindex).map_or("another link", |l| l.name.as_str());
        let what = format!(
            "{setting} is 0, and with 1 the kernel would forget the default route that it learned from a router on {name}: \
             set net.ipv6.conf.{name}.accept_ra to 2"
        );
        return Err(Why::new(LaneReason::LearnedRoute, what));
    }
    if ipv6 && !observed.features.forwarding6 {
        let what = format!("{setting} is 0 and can't be set from here (/proc/sys is read-only): set it to 1");
        return Err(Why::new(LaneReason::Forwarding, what));
    }
    Ok(())
}

/// Kinds of links that carry Ethernet frames to another host as they are. A physical device has no kind.
const CARRIERS: [&str; 11] = ["", "veth", "bond", "team", "bridge", "vlan", "macvlan", "dummy", "tun", "macsec", "dsa"];

/// Whether the link with the tunnel's source address is one that the fast lane can use.
fn underlay_fits(tunnel: &Tunnel, link: &Link, desired: &Desired, observed: &Observed) -> Result<(), Why> {
    let name = &link.name;
    let master = |link: &Link| link.master.and_then(|master| observed.link_by_index(master));
    let vrf = |link: &Link| master(link).filter(|master| master.kind == "vrf").map(|master| &master.name);
    if link.kind == "vrf" {
        return Err(Why::new(LaneReason::RoutingDomain, format!("its source address is in the VRF {name}")));
    }
    if let Some(vrf) = vrf(link) {
        return Err(Why::new(LaneReason::RoutingDomain, format!("{name} is in the VRF {vrf}")));
    }
    if let Some(vrf) = observed.link(&tunnel.name).and_then(vrf) {
        return Err(Why::new(LaneReason::RoutingDomain, format!("the tunnel device is in the VRF {vrf}")));
    }
    let ours = observed.instance.made(link.alias.as_deref()).is_some();
    if ours || link.tunnel.is_some() || desired.mappings.contains_key(name.as_str()) {
        return Err(Why::new(LaneReason::UnderlayDevice, format!("{name} belongs to a tunnel or tenant itself")));
    }
    if link.mac.is_none_or(|mac| mac == [0; 6]) {
        return Err(Why::new(LaneReason::UnderlayDevice, format!("{name} isn't an Ethernet device")));
    }
    if tunnel.fast == Fast::Auto && !CARRIERS.contains(&link.kind.as_str()) {
        let what = format!("{name} is a {} device, on which the fast lane isn't tried unasked", link.kind);
        return Err(Why::new(LaneReason::UnderlayDevice, what));
    }
    if let Some(master) = master(link) {
        let what = format!("{name} is a port of {}, which takes its packets first", master.name);
        return Err(Why::new(LaneReason::UnderlayDevice, what));
    }
    Ok(())
}

/// Whether IPv6 packets without a UDP checksum are for the tunnel: what its device says, or will when it is made.
fn takes_zero_checksum6(tunnel: &Tunnel, observed: &Observed) -> bool {
    match observed.link(&tunnel.name).and_then(|l| l.tunnel.as_ref()) {
        Some(device) => device.udp6_zero_checksum_rx,
        None => tunnel.create,
    }
}

/// Resolves the lanes against what was planned before: headers of mappings, how tunnels are told, underlay devices.
pub(super) fn resolve(b: &mut Builder<'_>) {
    let observed = b.input.observed;
    let live = b.live.conf.clone();
    let mut used = std::mem::take(&mut b.used_indexes);
    let mut ports: BTreeMap<u32, BTreeSet<TunnelPort>> = BTreeMap::new();
    for (name, tunnel) in &b.input.desired.tunnels {
        let Some(PlannedTunnel { index, link: Some(_), .. }) = b.tunnels.get(name.as_str()).cloned() else { continue };
        let Some([v4, v6]) = b.lanes.tunnels.get(name.as_str()) else { continue };
        let Some(port) = tunnel.port.or(tunnel.kind.default_port()) else { continue };
        let local = Local {
            v4: tunnel.local.v4.filter(|_| v4.underlay.is_ok()),
            v6: tunnel.local.v6.filter(|_| v6.underlay.is_ok()),
        };
        if local == Local::default() {
            continue;
        }
        for ifindex in [&v4.underlay, &v6.underlay].into_iter().flatten() {
            ports.entry(*ifindex).or_default().insert(TunnelPort { tunnel: index, port });
        }
        let geneve = tunnel.kind == TunnelKind::Geneve;
        if let Some(planned) = b.tunnels.get_mut(name.as_str()) {
            planned.decap = Some(Decap { geneve, local, zero_checksum6: local.v6.is_some() });
        }
    }
    for (ifindex, ports) in ports {
        let Some(link) = observed.link_by_index(ifindex) else { continue };
        let known = live.iter().find(|(_, c)| c.name == link.name && matches!(c.role, Role::Underlay(_)));
        let index = known.map(|(index, _)| *index).or_else(|| (1..TUNNEL_INDEXES).find(|i| !used.contains(i)));
        let Some(index) = index else {
            // The device lane takes them: nothing is wrong.
            continue;
        };
        used.insert(index);
        b.underlays.insert(&link.name, PlannedUnderlay { index, link, ports: ports.into_iter().collect() });
    }
    let mut mappings = std::mem::take(&mut b.mappings);
    for planned in &mut mappings {
        planned.fast = match b.lanes.lane(planned.mapping) {
            Lane::Fast(header) => Some(header),
            Lane::Device(_) => None,
        };
    }
    b.mappings = mappings;
}
