//! Whether what tenants send fits into the underlay's packets.

use super::{Facts, Findings, few};
use crate::model::{Attach, Link, Mapping, Observed, TunnelKind};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Underlay link, its MTU, encapsulation, and whether it is over IPv6.
type Cause<'a> = (&'a str, u32, TunnelKind, bool);

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    // One finding for all that have the same cause: there may be thousands.
    let mut too_large: BTreeMap<Cause<'_>, Vec<(&Mapping, &Link)>> = BTreeMap::new();
    let links: HashMap<&str, &Link> = live.observed.links.iter().map(|l| (l.name.as_str(), l)).collect();
    let mut underlays: HashMap<IpAddr, Option<(&str, u32)>> = HashMap::new();
    for mapping in desired.mappings.values() {
        let Some(tunnel) = desired.tunnels.get(mapping.key.tunnel.as_str()) else { continue };
        let Some(&link) = links.get(mapping.interface.as_str()) else { continue };
        let known = underlays.entry(mapping.local).or_insert_with(|| underlay(&live.observed, mapping.local));
        let Some((underlay, underlay_mtu)) = *known else { continue };
        let ip6 = mapping.local.is_ipv6();
        if link.mtu > underlay_mtu.saturating_sub(tunnel.kind.overhead(ip6)) {
            too_large.entry((underlay, underlay_mtu, tunnel.kind, ip6)).or_default().push((mapping, link));
        }
    }
    for ((underlay, underlay_mtu, kind, ip6), mappings) in too_large {
        let overhead = kind.overhead(ip6);
        let room = underlay_mtu.saturating_sub(overhead);
        let list = few(mappings.iter().map(|(m, l)| format!("{} (MTU {})", m.interface, l.mtu)).collect());
        let family = if ip6 { "IPv6" } else { "IPv4" };
        let what = format!(
            "{list}: {underlay} leaves room for an MTU of {room} ({underlay_mtu} less {overhead} for {kind} over {family}); \
             larger packets are fragmented or dropped"
        );
        let endpoint = mappings.iter().any(|(m, _)| m.attach == Attach::Endpoint);
        let also = if endpoint { ", and the same on the workloads' ends" } else { "" };
        let remedy = format!("ip link set dev INTERFACE mtu {room}{also}; or raise the MTU of {underlay}");
        let address = mappings.first().filter(|_| mappings.len() == 1).map(|(m, _)| m.address());
        out.warning("mtu-too-large", address.as_deref(), what, remedy);
    }
    for tunnel in desired.tunnels.values() {
        let sources = [tunnel.local.v4.map(IpAddr::V4), tunnel.local.v6.map(IpAddr::V6)];
        for source in sources.into_iter().flatten() {
            let Some((underlay, mtu)) = underlay(&live.observed, source) else { continue };
            let room = mtu.saturating_sub(tunnel.kind.overhead(source.is_ipv6()));
            if tunnel.mtu.is_some_and(|wanted| wanted > room) {
                let what = format!(
                    "the topology gives tunnel {} an MTU larger than {room}, all that {underlay} has room for",
                    tunnel.name
                );
                out.warning(
                    "mtu-too-large",
                    Some(&tunnel.name),
                    what,
                    format!("lower `mtu` ({}), or leave it out", tunnel.origin),
                );
            }
        }
    }
}

/// Name and MTU of the link that has an address; `None` where none has it, or it is loopback, which limits nothing.
fn underlay(observed: &Observed, address: IpAddr) -> Option<(&str, u32)> {
    const LOOPBACK: u32 = 1;
    let holder = observed.addresses.iter().find(|a| a.address == address)?;
    let link = observed.link_by_index(holder.ifindex)?;
    (link.ifindex != LOOPBACK).then_some((link.name.as_str(), link.mtu))
}
