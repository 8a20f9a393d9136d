//! The live state as a topology would say it: what to compare new files with where nothing was accepted yet, or the record
//! of it is lost. Then the deletion guard counts what is in force, instead of finding nothing to lose.

use crate::model::*;
use std::collections::BTreeMap;

/// Name of the tenant of adopted mappings whose interface doesn't tell it.
const UNTOLD: &str = "";

/// Reads mappings, tunnels and bridges off the live maps and devices. What the kernel doesn't know (names of tenants,
/// whether a device was to be made) is taken from the aliases of our own devices.
pub fn adopt(observed: &Observed) -> Desired {
    let mut desired = Desired { revision: "live".to_owned(), ..Desired::default() };
    let Some(maps) = &observed.maps else { return desired };
    let by_index: BTreeMap<u32, &Link> = observed.links.iter().map(|l| (l.ifindex, l)).collect();
    let made = |link: &Link| observed.instance.made(link.alias.as_deref()).map(str::to_owned);
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
        let tunnel = desired.tunnels.entry(conf.name.clone()).or_insert_with(|| {
            let device = by_index.get(&conf.ifindex);
            let ours = device.is_some_and(|link| made(link).is_some());
            tunnel(conf, entry, device.and_then(|link| link.tunnel.as_deref()), ours)
        });
        match entry.local {
            std::net::IpAddr::V4(local) => tunnel.local.v4 = tunnel.local.v4.or(Some(local)),
            std::net::IpAddr::V6(local) => tunnel.local.v6 = tunnel.local.v6.or(Some(local)),
        }
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

fn tunnel(conf: &Conf, entry: &IfEntry, device: Option<&TunnelDevice>, ours: bool) -> Tunnel {
    Tunnel {
        name: conf.name.clone(),
        kind: device.map_or(TunnelKind::Vxlan, |d| d.kind),
        port: device.and_then(|d| d.port),
        create: ours,
        local: Local::default(),
        mtu: None,
        ttl: entry.ttl,
        tos: entry.tos,
        df: entry.df,
        checksum: Some(entry.checksum),
        mark: conf.mark,
        fast: Fast::default(),
        origin: Origin::default(),
    }
}
