//! Random topologies, and what each of them means for every packet.

use super::MemoryKernel;
use super::wire::{Fate, IDS, Packet, Wire, number, packets, remote};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::model::*;

/// Interfaces that mappings may name.
pub const INTERFACES: [&str; 8] = ["eth0", "eth1", "eth2", "eth3", "eth4", "eth5", "eth6", "eth7"];
/// Tunnels: two that somebody else makes, one that we make.
pub const TUNNELS: [&str; 3] = ["vxlan0", "vxlan1", "vxlan2"];
/// The device that carries the tunnels, and its address.
pub const UNDERLAY: &str = "under0";
pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The bridge of the generated ports, and their names by far node.
pub const BRIDGE: &str = "br0";
pub const PORTS: [&str; 2] = ["tmport0", "tmport1"];

/// What the topology says of one interface, each number taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub tunnel: u8,
    pub id: u8,
    pub far: u8,
    pub endpoint: bool,
}

/// UDP port of a tunnel.
pub fn port_of(name: &str) -> u16 {
    4789 + TUNNELS.iter().position(|t| *t == name).unwrap_or_default() as u16
}

fn tunnel(name: &str, ttl: u8) -> Tunnel {
    Tunnel {
        name: name.to_owned(),
        kind: TunnelKind::Vxlan,
        port: Some(port_of(name)),
        create: name == TUNNELS[2],
        local: Local { v4: Some(Ipv4Addr::new(10, 0, 0, 1)), v6: None },
        mtu: None,
        ttl: OuterField::Fixed(ttl),
        tos: OuterField::Fixed(0),
        df: false,
        checksum: None,
        mark: 1,
        fast: Fast::Auto,
        origin: Origin::default(),
    }
}

/// A topology: for each interface maybe a mapping, and a tenant's bridge with so many generated ports. Keys claimed twice
/// are dropped.
pub fn desired(wanted: &[Option<Choice>], ttl: u8, ports: u8) -> Desired {
    let mut out = Desired { revision: format!("{wanted:?} {ttl} {ports}"), ..Desired::default() };
    let mut keys = BTreeSet::new();
    let mut map = |interface: &str, key: TunnelKey, attach: Attach, generated: Option<Box<GeneratedPort>>| {
        if !keys.insert(key.clone()) {
            return;
        }
        out.tunnels.entry(key.tunnel.to_string()).or_insert_with(|| tunnel(&key.tunnel, ttl));
        let tenant = generated.as_ref().map_or_else(|| format!("t{interface}"), |_| "mesh".to_owned());
        let local = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let interface = Name::from(interface);
        let mapping = Mapping {
            tenant: tenant.into(),
            interface: interface.clone(),
            key,
            local,
            attach,
            node: generated.as_ref().map(|port| port.node.as_str().into()),
            generated,
            origin: Origin::default(),
        };
        out.mappings.insert(interface, mapping);
    };
    for (interface, choice) in INTERFACES.iter().zip(wanted) {
        let Some(Choice { tunnel, id, far, endpoint }) = *choice else { continue };
        let tunnel = TUNNELS[usize::from(tunnel) % TUNNELS.len()].to_owned();
        let key = TunnelKey { tunnel: tunnel.into(), id: u32::from(id) % IDS, remote: remote(far) };
        map(interface, key, if endpoint { Attach::Endpoint } else { Attach::Port }, None);
    }
    for (n, interface) in PORTS.iter().enumerate().take(usize::from(ports)) {
        let key = TunnelKey { tunnel: TUNNELS[0].into(), id: IDS - 1, remote: remote(n as u8) };
        let generated = GeneratedPort { bridge: BRIDGE.to_owned(), node: format!("n{n}") };
        map(interface, key, Attach::Port, Some(Box::new(generated)));
    }
    if out.mappings.values().any(|m| m.generated.is_some()) {
        let (name, tenant) = (BRIDGE.to_owned(), "mesh".to_owned());
        out.bridges.insert(name.clone(), Bridge { name, tenant, mtu: None, origin: Origin::default() });
    }
    out
}

/// Links for all of these topologies, but for what we make ourselves.
pub fn fresh_kernel() -> MemoryKernel {
    let mut kernel = MemoryKernel::with_links(&INTERFACES);
    kernel.add_vxlan(TUNNELS[0], port_of(TUNNELS[0]));
    kernel.add_vxlan(TUNNELS[1], port_of(TUNNELS[1]));
    kernel
}

/// Gives the tunnels a device to come in on: with it, they take the fast lane.
pub fn add_underlay(kernel: &mut MemoryKernel) {
    let ifindex = kernel.add_link(UNDERLAY);
    kernel.state.addresses.push(Address { ifindex, address: LOCAL });
}

/// The device of a tunnel, where it can be used.
pub fn device<'a>(observed: &'a Observed, tunnel: &Tunnel) -> Option<&'a Link> {
    let fits = |d: &TunnelDevice| d.kind == tunnel.kind && d.external && d.port == tunnel.port;
    observed.link(&tunnel.name).filter(|link| link.tunnel.as_deref().is_some_and(fits))
}

/// The hook that a mapping's program stands on.
pub fn hook(attach: Attach) -> Direction {
    if attach == Attach::Port { Direction::Egress } else { Direction::Ingress }
}

/// What a topology means on these links, once it is in force: worked out from the topology, and from where programs of
/// ours were before. On a device that the files name and that can't be used they stay, so that nothing falls through.
pub fn meaning(desired: &Desired, observed: &Observed, before: &Observed) -> Wire {
    let tunnels: BTreeMap<&str, u32> =
        desired.tunnels.values().filter_map(|t| Some((t.name.as_str(), device(observed, t)?.ifindex))).collect();
    let held_fast = |ifindex: u32, direction: Direction| {
        let mut hooks = before.attachments.iter();
        hooks.any(|a| a.ifindex == ifindex && a.direction == direction && a.program.is_some())
    };
    let idle = |packet: Packet| match packet {
        Packet::Received(ifindex, ..) => {
            let named = observed.link_by_index(ifindex).is_some_and(|l| desired.tunnels.contains_key(&l.name));
            let stays = named && held_fast(ifindex, Direction::Ingress);
            let ours = stays || tunnels.values().any(|device| *device == ifindex);
            let down = observed.link_by_index(ifindex).is_some_and(|l| !l.up);
            if ours || down { Fate::Dropped } else { Fate::Host }
        }
        Packet::Sent(ifindex, direction) => {
            let link = observed.link_by_index(ifindex);
            let mapping = link.and_then(|l| Some((desired.mappings.get(l.name.as_str())?, l)));
            let unusable = mapping.is_some_and(|(m, l)| !can_hold(m, l, observed));
            if unusable && held_fast(ifindex, direction) { Fate::Dropped } else { Fate::Host }
        }
    };
    let mut wire = Wire(packets(&observed.links).into_iter().map(|packet| (packet, idle(packet))).collect());
    for mapping in desired.mappings.values() {
        let Some(link) = observed.link(&mapping.interface).filter(|l| can_hold(mapping, l, observed)) else { continue };
        let device = tunnels.get(mapping.key.tunnel.as_str()).copied();
        let (id, far) = (mapping.key.id, mapping.key.remote);
        let way = device.map_or(Fate::Dropped, |device| Fate::Into(device, id, far));
        wire.set(Packet::Sent(link.ifindex, hook(mapping.attach)), way);
        if let Some(device) = device {
            wire.set(Packet::Received(device, id, number(far)), Fate::To(link.ifindex));
        }
    }
    wire
}

/// Whether a link can be that mapping's interface.
pub fn can_hold(mapping: &Mapping, link: &Link, observed: &Observed) -> bool {
    match &mapping.generated {
        Some(port) => {
            let bridge = observed.link(&port.bridge).is_none_or(|l| l.kind == "bridge");
            bridge && link.alias == Some(observed.instance.port_alias(&mapping.tenant, &port.node))
        }
        None if mapping.attach == Attach::Endpoint => link.kind == "veth" && link.peer_in_other_netns,
        None => link.tunnel.is_none(),
    }
}

/// Mappings that can be in force on these links.
pub fn possible<'a>(desired: &'a Desired, observed: &Observed) -> Vec<(&'a Mapping, u32)> {
    let with = |m: &'a Mapping| {
        let link = observed.link(&m.interface).filter(|l| can_hold(m, l, observed))?;
        Some((m, link.ifindex))
    };
    desired.mappings.values().filter_map(with).collect()
}

/// Compares everything in the maps with what a topology asks for, worked out from the topology alone: nothing is missing
/// and nothing is there besides.
///
/// # Errors
/// What is wrong, in words.
pub fn in_force(desired: &Desired, observed: &Observed) -> Result<(), String> {
    let nothing = MapState::default();
    let maps = observed.maps.as_ref().unwrap_or(&nothing);
    let mut index_of: BTreeMap<&str, u32> = BTreeMap::new();
    // What the fast lane needs: our address, and for what comes in a device that carries nothing but tunnels.
    let holder = observed.addresses.iter().find(|a| a.address == LOCAL);
    let holder = holder.and_then(|a| observed.link_by_index(a.ifindex));
    let plain = |l: &&Link| l.tunnel.is_none() && !desired.mappings.contains_key(l.name.as_str());
    let underlay = holder.filter(plain).filter(|l| observed.instance.made(l.alias.as_deref()).is_none());
    let mut carried = BTreeSet::new();
    let mut underlays = Vec::new();
    for (index, conf) in &maps.conf {
        if let Role::Underlay(ports) = &conf.role {
            underlays.push((*index, conf, ports));
            continue;
        }
        let tunnel = desired.tunnels.get(&conf.name).ok_or_else(|| format!("conf[{index}] is {conf:?}"))?;
        let device = device(observed, tunnel).map_or(0, |l| l.ifindex);
        let local = Local { v4: Some(Ipv4Addr::new(10, 0, 0, 1)), v6: None };
        let decap = underlay.filter(|_| device != 0).map(|_| Decap { geneve: false, local, zero_checksum6: false });
        if decap.is_some() {
            carried.insert(TunnelPort { tunnel: *index, port: port_of(&tunnel.name) });
        }
        let carrier = holder.filter(|l| l.name != "lo");
        let mtu = carrier.map(|l| u16::try_from(l.mtu).unwrap());
        let way = Way {
            v4: mtu.map(|mtu| mtu.saturating_sub(50).max(1)),
            ethernet4: carrier.filter(|l| l.ethernet).map(|l| l.ifindex),
            ..Way::default()
        };
        let fits =
            conf.ifindex == device && conf.mark == tunnel.mark && conf.role == Role::Tunnel(decap) && conf.way == way;
        let held = maps.devs.iter().find(|(s, _)| s == index).map_or(0, |(_, i)| *i) == device;
        if !fits || !held || index_of.insert(&tunnel.name, *index).is_some() {
            return Err(format!("conf[{index}] is {conf:?}, its device {device}"));
        }
    }
    let mut carriers = Vec::new();
    for (index, conf, ports) in underlays {
        let right = underlay.is_some_and(|l| l.ifindex == conf.ifindex && l.name == conf.name)
            && maps.devs.contains(&(index, conf.ifindex))
            && ports.iter().eq(&carried);
        if !right {
            return Err(format!("conf[{index}] is {conf:?}, which should carry {carried:?}"));
        }
        carriers.push(index);
    }
    if carriers.len() != usize::from(!carried.is_empty()) {
        return Err(format!("{carriers:?} carry {carried:?}"));
    }
    if index_of.len() != desired.tunnels.len() {
        return Err(format!("conf has {index_of:?}"));
    }
    let possible = possible(desired, observed);
    let (mut keys, mut ifs, mut slots) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (mapping, ifindex) in &possible {
        let tunnel = &desired.tunnels[mapping.key.tunnel.as_str()];
        let index = index_of[tunnel.name.as_str()];
        let key = TunKey { tunnel: index, id: mapping.key.id, remote: mapping.key.remote };
        let entry = maps.if2tunkey.iter().find(|(i, _)| i == ifindex).map(|(_, e)| *e);
        let value = maps.tunkey2if.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let (Some(entry), Some(value)) = (entry, value) else {
            return Err(format!("{mapping:?} has {entry:?} and {value:?}"));
        };
        let endpoint = mapping.attach == Attach::Endpoint;
        let slot = entry.slot;
        // Routes are looked up for devices that forward; those that we make do.
        let way = observed.link(&tunnel.name);
        let made = |l: &Link| observed.instance.made(l.alias.as_deref()).is_some();
        let forwards = way.is_some_and(|l| l.forwards.v4) || (tunnel.create && way.is_none_or(made));
        let wanted = IfEntry {
            slot,
            endpoint,
            key,
            local: mapping.local,
            ttl: tunnel.ttl,
            tos: tunnel.tos,
            df: tunnel.df,
            checksum: false,
            fast: holder.filter(|_| forwards).map(|_| FastHeader { geneve: false, port: port_of(&tunnel.name) }),
            valid: true,
        };
        let right = entry == wanted && value == SlotRef { slot, endpoint, valid: true };
        let own = slot >= FIRST_MAPPING_SLOT && maps.devs.contains(&(slot, *ifindex)) && slots.insert(slot);
        if !right || !own {
            return Err(format!("{mapping:?} has {entry:?} and {value:?}, devs {:?}", maps.devs));
        }
        keys.insert(key);
        ifs.insert(*ifindex);
    }
    let stray_key = maps.tunkey2if.iter().find(|(k, _)| !keys.contains(k));
    let stray_if = maps.if2tunkey.iter().find(|(i, _)| !ifs.contains(i));
    let used = |slot: u32| slots.contains(&slot) || index_of.values().any(|i| *i == slot) || carriers.contains(&slot);
    let stray_dev = maps.devs.iter().find(|(slot, _)| !used(*slot));
    if stray_key.is_some() || stray_if.is_some() || stray_dev.is_some() {
        return Err(format!("besides there are {stray_key:?}, {stray_if:?}, {stray_dev:?}"));
    }
    Ok(())
}
