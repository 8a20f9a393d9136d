//! Which lane the packets of each mapping take, and why.
//!
//! The *device lane* goes through the tunnel device, and always works. The *fast lane* does the device's work in the
//! programs; out and in are chosen by themselves, since either understands the other's packets. The rule: the fast lane
//! is taken only where it has the same result, and what keeps it from being taken has words.

use super::builder::{Builder, PlannedTunnel, PlannedUnderlay};
use super::*;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How packets of a mapping leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane<'a> {
    /// Through the programs alone, where a packet allows it.
    Fast(FastHeader),
    /// Through the tunnel device: why.
    Device(&'a str),
}

/// Both directions of one tunnel over one address family.
#[derive(Debug, Clone)]
struct Ways {
    /// Out, or why not.
    out: Result<FastHeader, String>,
    /// Over IPv6 to a remote of which nobody knows whether it takes packets without a UDP checksum.
    out_unsure: Option<String>,
    /// The underlay device on which packets are decapsulated, or why there is none.
    underlay: Result<u32, String>,
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
        // The kernel's programs know that many tunnels by an underlay device.
        let mut ports: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
        for (name, tunnel) in &desired.tunnels {
            let mut ways = [false, true].map(|ipv6| ways(tunnel, ipv6, desired, observed));
            for way in &mut ways {
                let Ok(ifindex) = way.underlay else { continue };
                let here = ports.entry(ifindex).or_default();
                if !here.contains(name.as_str()) && here.len() == UNDERLAY_PORTS_MAX {
                    way.underlay = Err(format!(
                        "its underlay device carries {UNDERLAY_PORTS_MAX} tunnels in the fast lane already"
                    ));
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
            return Lane::Device("its tunnel isn't declared");
        };
        match (&ways.out, &ways.out_unsure) {
            (Err(why), _) => Lane::Device(why),
            (Ok(_), Some(why)) if mapping.node.is_none() => Lane::Device(why),
            (Ok(header), _) => Lane::Fast(*header),
        }
    }

    /// Why packets of a tunnel that come over that family are decapsulated by its device, if they are.
    pub fn in_by_device(&self, tunnel: &str, ipv6: bool) -> Option<&str> {
        self.ways(tunnel, ipv6)?.underlay.as_ref().err().map(String::as_str)
    }

    fn ways(&self, tunnel: &str, ipv6: bool) -> Option<&Ways> {
        self.tunnels.get(tunnel).map(|ways| &ways[usize::from(ipv6)])
    }

    /// Whether routes of that family are looked up for the tunnel device, so that it has to forward.
    pub(super) fn needs_forwarding(&self, tunnel: &str, ipv6: bool) -> bool {
        self.ways(tunnel, ipv6).is_some_and(|ways| ways.out.is_ok())
    }
}

fn ways(tunnel: &Tunnel, ipv6: bool, desired: &Desired, observed: &Observed) -> Ways {
    let local = if ipv6 { tunnel.local.v6.map(IpAddr::V6) } else { tunnel.local.v4.map(IpAddr::V4) };
    let both = |why: String| Ways { out: Err(why.clone()), out_unsure: None, underlay: Err(why) };
    if tunnel.fast == Fast::Off {
        return both("the topology says `fast: off`".to_owned());
    }
    let (geneve, port) = match (tunnel.kind, tunnel.port.or(tunnel.kind.default_port())) {
        (TunnelKind::Vxlan, Some(port)) => (false, port),
        (TunnelKind::Geneve, Some(port)) => (true, port),
        _ => return both(format!("there is no fast lane for {}", tunnel.kind)),
    };
    let Some(local) = local else {
        return both(format!("the tunnel has no {} source address", if ipv6 { "IPv6" } else { "IPv4" }));
    };
    let holder = observed.addresses.iter().find(|a| a.address == local);
    let Some(holder) = holder.and_then(|a| observed.link_by_index(a.ifindex)) else {
        return both(format!("{local} isn't an address of this host"));
    };
    let out = outer_checksum(tunnel, ipv6)
        .and_then(|()| forwarding(tunnel, ipv6, observed))
        .map(|()| FastHeader { geneve, port });
    let unsure = ipv6 && tunnel.checksum.is_none() && tunnel.fast == Fast::Auto;
    let out_unsure = unsure.then(|| {
        "over IPv6 the fast lane sends no UDP checksum, and nothing says that the remote takes that; say `checksum: \
         false` if it does"
            .to_owned()
    });
    Ways { out, out_unsure, underlay: underlay(tunnel, ipv6, desired, observed, holder) }
}

/// The fast lane sends UDP without a checksum.
fn outer_checksum(tunnel: &Tunnel, ipv6: bool) -> Result<(), String> {
    match tunnel.checksum {
        Some(true) => Err("the topology says `checksum: true`, which the tunnel device fills in".to_owned()),
        None if ipv6 && !tunnel.create && tunnel.fast == Fast::Auto => {
            Err("over IPv6 the fast lane sends no UDP checksum, and tunnel devices that others make drop that; say \
             `checksum: false` if they don't"
                .to_owned())
        }
        _ => Ok(()),
    }
}

/// Routes are looked up as if the tunnel device forwarded the packet, since the kernel does so for devices that forward.
fn forwarding(tunnel: &Tunnel, ipv6: bool, observed: &Observed) -> Result<(), String> {
    let link = observed.link(&tunnel.name);
    if link.is_some_and(|l| if ipv6 { l.forwards.v6 } else { l.forwards.v4 }) {
        return Ok(());
    }
    let family = if ipv6 { "ipv6" } else { "ipv4" };
    let setting = format!("net.{family}.conf.{}.forwarding", tunnel.name);
    let ours = tunnel.create && link.is_none_or(|l| observed.instance.made(l.alias.as_deref()).is_some());
    if !ours {
        return Err(format!("{setting} is 0: set it to 1, or let tunnel-mesh make the device with `create: true`"));
    }
    if ipv6 && !observed.features.forwarding6 {
        return Err(format!("{setting} is 0 and can't be set from here (/proc/sys is read-only): set it to 1"));
    }
    Ok(())
}

/// The device that the tunnel's packets of that family come in on.
fn underlay(tunnel: &Tunnel, ipv6: bool, desired: &Desired, observed: &Observed, link: &Link) -> Result<u32, String> {
    let name = &link.name;
    if ipv6 && !takes_zero_checksum6(tunnel, observed) {
        return Err("its device takes no IPv6 packets without a UDP checksum".to_owned());
    }
    if link.mac.is_none_or(|mac| mac == [0; 6]) {
        return Err(format!("{name} isn't an Ethernet device"));
    }
    let ours = observed.instance.made(link.alias.as_deref()).is_some();
    if ours || link.tunnel.is_some() || desired.mappings.contains_key(name.as_str()) {
        return Err(format!("{name} belongs to a tunnel or tenant itself"));
    }
    Ok(link.ifindex)
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
