//! The live state as a topology would say it: what to compare new files with where nothing was accepted yet, or the record
//! of it is lost. Then the deletion guard counts what is in force, instead of finding nothing to lose. And how a host that
//! was set up otherwise is taken over: `snapshot --format yaml` writes this state down.

use crate::model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Name of the tenant of adopted mappings whose interface doesn't tell it.
const UNTOLD: &str = "";

/// Reads mappings, tunnels and bridges off the live maps and devices. What the kernel doesn't know (names of tenants,
/// whether a device was to be made) is taken from the aliases of our own devices.
pub fn adopt(observed: &Observed) -> Desired {
    let mut desired = Desired { revision: "live".to_owned(), ..Desired::default() };
    let Some(maps) = &observed.maps else { return desired };
    let by_index: BTreeMap<u32, &Link> = observed.links.iter().map(|l| (l.ifindex, l)).collect();
    let made = |link: &Link| observed.instance.made(link.alias.as_deref()).map(str::to_owned);
    let tunnels = maps.conf.iter().filter(|(_, conf)| matches!(conf.role, Role::Tunnel(_)));
    for (index, conf) in tunnels {
        let device = by_index.get(&conf.ifindex).copied();
        let ours = device.is_some_and(|link| made(link).is_some());
        let entries = maps.if2tunkey.iter().map(|(_, entry)| entry).filter(|e| e.valid && e.key.tunnel == *index);
        let tunnel = tunnel(conf, entries, device, ours);
        desired.tunnels.entry(conf.name.clone()).or_insert(tunnel);
    }
    for (ifindex, entry) in maps.if2tunkey.iter().filter(|(_, entry)| entry.valid) {
        let (Some(link), Some(conf)) = (by_index.get(ifindex), maps.conf.get(&entry.key.tunnel)) else { continue };
        let port = made(link).and_then(|what| {
            let (tenant, node) = what.strip_prefix("port ")?.split_once('/')?;
            let bridge = by_index.get(&link.master?)?;
            let ours = made(bridge).is_some();
            desired.bridges.entry(bridge.name.clone()).or_insert_with(|| Bridge {
                name: bridge.name.clone(),
                tenant: tenant.to_owned(),
                mtu: ours.then_some(bridge.mtu),
                origin: Origin::default(),
            });
            Some((tenant.to_owned(), GeneratedPort { bridge: bridge.name.clone(), node: node.to_owned() }))
        });
        let (tenant, generated) = port.map_or((UNTOLD.to_owned(), None), |(tenant, port)| (tenant, Some(port)));
        desired.mappings.insert(
            link.name.clone().into(),
            Mapping {
                tenant: tenant.into(),
                interface: link.name.clone().into(),
                key: TunnelKey { tunnel: conf.name.clone().into(), id: entry.key.id, remote: entry.key.remote },
                local: entry.local,
                attach: if entry.endpoint { Attach::Endpoint } else { Attach::Port },
                node: generated.as_ref().map(|port| port.node.as_str().into()),
                generated: generated.map(Box::new),
                origin: Origin::default(),
            },
        );
    }
    desired
}

/// What of a live state no topology says, in words: adopting it would change that.
pub fn untold(observed: &Observed) -> Vec<String> {
    let mut out = Vec::new();
    let Some(maps) = &observed.maps else { return out };
    let adopted = adopt(observed);
    let links: BTreeMap<u32, &Link> = observed.links.iter().map(|l| (l.ifindex, l)).collect();
    let received: BTreeSet<TunKey> = maps.tunkey2if.iter().map(|(key, _)| *key).collect();
    for (ifindex, entry) in &maps.if2tunkey {
        let name = links.get(ifindex).map(|l| l.name.as_str());
        let mapping = name.and_then(|name| adopted.mappings.get(name));
        let tunnel = mapping.and_then(|m| adopted.tunnels.get(m.key.tunnel.as_str()));
        let (Some(name), Some(tunnel)) = (name, tunnel) else {
            out.push(match name {
                None => format!("if2tunkey has ifindex {ifindex}, which no link has"),
                Some(name) if !entry.valid => format!("the if2tunkey entry of {name} is broken"),
                Some(name) => {
                    format!("the mapping of {name} is of tunnel index {}, which conf lacks", entry.key.tunnel)
                }
            });
            continue;
        };
        let outer = (entry.ttl, entry.tos, entry.df, entry.checksum);
        let checksum = tunnel.checksum_for(entry.key.remote);
        if outer != (tunnel.ttl, tunnel.tos, tunnel.df, checksum) {
            out.push(format!(
                "{name} has a ttl, tos, df or checksum of its own; the tunnel's is that of its other mappings"
            ));
        }
        if tunnel.local.for_remote(entry.key.remote) != Some(entry.local) {
            out.push(format!("{name} sends from {}, the other mappings of {} don't", entry.local, tunnel.name));
        }
        if !received.contains(&entry.key) {
            out.push(format!("{name} only sends: tunkey2if lacks its key"));
        }
    }
    let sent: BTreeSet<TunKey> = maps.if2tunkey.iter().map(|(_, entry)| entry.key).collect();
    for key in received.difference(&sent) {
        let tunnel = maps.conf.get(&key.tunnel).map_or("?", |c| c.name.as_str());
        out.push(format!("tunkey2if has {{{tunnel}, {}, {}}}, which no interface sends with", key.id, key.remote));
    }
    out
}

/// Says of each tunnel which lane its packets take, where all of them take the same, instead of leaving that to the daemon.
pub fn say_lanes(desired: &mut Desired, observed: &Observed) {
    let Some(maps) = &observed.maps else { return };
    for (index, conf) in &maps.conf {
        let mut fast = maps.if2tunkey.iter().filter(|(_, e)| e.key.tunnel == *index).map(|(_, e)| e.fast.is_some());
        let Some(tunnel) = desired.tunnels.get_mut(&conf.name) else { continue };
        if let Some(first) = fast.next().filter(|first| fast.all(|f| f == *first)) {
            tunnel.fast = if first { Fast::On } else { Fast::Off };
        }
    }
}

/// A tunnel, with what most of its entries have.
fn tunnel<'a>(
    conf: &Conf,
    entries: impl Iterator<Item = &'a IfEntry> + Clone,
    link: Option<&Link>,
    ours: bool,
) -> Tunnel {
    let device = link.and_then(|link| link.tunnel.as_deref());
    let kind = device.map_or(TunnelKind::Vxlan, |d| d.kind);
    let mut local = device.map(|d| d.local).unwrap_or_default();
    // What packets are sent from counts, not what the device was made with.
    if let Some(IpAddr::V4(v4)) = most(entries.clone().map(|e| e.local).filter(IpAddr::is_ipv4)) {
        local.v4 = Some(v4);
    }
    if let Some(IpAddr::V6(v6)) = most(entries.clone().map(|e| e.local).filter(IpAddr::is_ipv6)) {
        local.v6 = Some(v6);
    }
    let mut tunnel = Tunnel {
        name: conf.name.clone(),
        kind,
        port: device.map_or(kind.default_port(), |d| d.port),
        create: ours,
        local,
        mtu: None,
        ttl: most(entries.clone().map(|e| e.ttl)).unwrap_or(OuterField::Fixed(64)),
        tos: most(entries.clone().map(|e| e.tos)).unwrap_or(OuterField::Fixed(0)),
        df: most(entries.clone().map(|e| e.df)).unwrap_or(false),
        checksum: None,
        mark: conf.mark,
        fast: Fast::default(),
        origin: Origin::default(),
    };
    if entries.clone().any(|e| e.checksum != tunnel.checksum_for(e.key.remote)) {
        tunnel.checksum = most(entries.map(|e| e.checksum));
    }
    tunnel
}

/// What occurs most often; of several the first.
fn most<T: PartialEq + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counted.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counted.push((value, 1)),
        }
    }
    let first = counted.iter().map(|(_, count)| *count).max()?;
    counted.into_iter().find(|(_, count)| *count == first).map(|(value, _)| value)
}
