//! Devices: tunnels, bridges and generated ports, made, repaired and removed.
//!
//! *Ours* is a device whose alias says that we made it. The rule: only what is ours is altered or deleted; anything
//! else that the files name is used as it is, or reported as a problem.

use super::builder::{Builder, Phase, PlannedMapping, PlannedTunnel};
use super::room::way_of;
use super::*;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// MTU of a port that we make, in bytes: as much as there is. A bridge drops without a word what is longer than its port's
/// MTU; so it reaches the data plane, which knows what fits into the tunnel and tells the sender.
const PORT_MTU: u32 = 65535;

/// MTU assumed where the underlay's can't be found, in bytes.
const USUAL_MTU: u32 = 1500;

fn is_ours(b: &Builder<'_>, link: &Link) -> bool {
    b.input.observed.instance.made(link.alias.as_deref()).is_some()
}

/// The smallest MTU of the links that carry the tunnel's source addresses, less what the encapsulation takes.
pub fn tunnel_mtu(observed: &Observed, tunnel: &Tunnel) -> u32 {
    if let Some(mtu) = tunnel.mtu {
        return mtu;
    }
    let families = [tunnel.local.v4.map(IpAddr::V4), tunnel.local.v6.map(IpAddr::V6)];
    families
        .into_iter()
        .flatten()
        .map(|local| {
            let holder = observed.addresses.iter().find(|a| a.address == local);
            let underlay = holder.and_then(|a| observed.link_by_index(a.ifindex)).map_or(USUAL_MTU, |l| l.mtu);
            // A loopback address says nothing of the way out.
            let underlay = if underlay == 65536 { USUAL_MTU } else { underlay };
            underlay.saturating_sub(tunnel.kind.overhead(local.is_ipv6()))
        })
        .min()
        .unwrap_or(USUAL_MTU - tunnel.kind.overhead(true))
        .max(68)
}

/// What keeps a device from being this tunnel's, if anything.
fn mismatch(tunnel: &Tunnel, link: &Link) -> Option<String> {
    let Some(device) = &link.tunnel else {
        let kind = if link.kind.is_empty() { "physical" } else { &link.kind };
        return Some(format!("it is a {kind} device, not {}", tunnel.kind));
    };
    if device.kind != tunnel.kind {
        return Some(format!("it is a {} device, not {}", device.kind, tunnel.kind));
    }
    if !device.external {
        return Some("it isn't in collect-metadata (\"external\") mode".to_owned());
    }
    if tunnel.kind == TunnelKind::Gretap && device.ip6 != tunnel.local.v4.is_none() {
        let (is, should) = if device.ip6 { ("IPv6", "IPv4") } else { ("IPv4", "IPv6") };
        return Some(format!("it carries GRE over {is}, the topology wants {should}"));
    }
    if tunnel.port.is_some() && device.port != tunnel.port {
        let is = device.port.map_or_else(|| "none".to_owned(), |p| p.to_string());
        return Some(format!("its UDP port is {is}, not {}", tunnel.port.unwrap_or_default()));
    }
    None
}

/// Whether a device of ours would drop what far hosts send without a checksum: it can't be changed on one that exists.
fn deaf(tunnel: &Tunnel, link: &Link) -> Option<String> {
    let needed = tunnel.checksum == Some(false) && tunnel.local.v6.is_some() && tunnel.kind != TunnelKind::Gretap;
    let has = link.tunnel.as_ref().is_some_and(|device| device.udp6_zero_checksum_rx);
    (tunnel.create && needed && !has).then(|| "it drops IPv6 packets without a UDP checksum".to_owned())
}

pub(super) fn tunnels(b: &mut Builder<'_>) {
    let desired = b.input.desired;
    let observed = b.input.observed;

    // An index stays with its tunnel; a new one is taken only if no live entry refers to it.
    let mut index_of: BTreeMap<&str, u32> = BTreeMap::new();
    for name in desired.tunnels.keys() {
        let device = b.links.named(name).map(|l| l.ifindex);
        if let Some(index) = observed.maps.as_ref().and_then(|m| m.tunnel_index(name, device)) {
            index_of.insert(name, index);
        }
    }
    let mut used: BTreeSet<u32> = b.live.conf.keys().copied().collect();
    used.extend(b.live.keys.keys().map(|k| k.tunnel));
    used.extend(b.live.ifs.values().map(|e| e.key.tunnel));
    used.extend(b.live.devs.keys().filter(|s| *s < TUNNEL_INDEXES));

    for (name, tunnel) in &desired.tunnels {
        let index = index_of.get(name.as_str()).copied().or_else(|| (1..TUNNEL_INDEXES).find(|i| !used.contains(i)));
        let Some(index) = index else {
            b.problem(name, "no tunnel index is free: the next pass retries once the old ones are released".to_owned());
            continue;
        };
        used.insert(index);
        let mtu = tunnel_mtu(observed, tunnel);
        let known = b.input.accepted.is_some_and(|a| a.tunnels.contains_key(name));
        let link = match (b.links.named(name), tunnel.create) {
            (Some(link), _) => match mismatch(tunnel, link).or_else(|| deaf(tunnel, link).filter(|_| is_ours(b, link)))
            {
                None => {
                    repair_tunnel(b, tunnel, link, mtu);
                    Some(LinkRef::of(link))
                }
                Some(why) if tunnel.create && is_ours(b, link) => {
                    let detail = format!("make the device anew: {why}");
                    let reason = if b.tunnel_unchanged(name) { Reason::Drift } else { Reason::Changed };
                    b.device_change(Object::Tunnel, name, ChangeAction::Update, reason, detail);
                    b.operation(Phase::MakeLinks, name, Step::DeleteLink { link: LinkRef::of(link) });
                    b.deleted_links.insert(link.ifindex, name.clone());
                    make_tunnel(b, tunnel, mtu);
                    Some(LinkRef::to_be_made(name))
                }
                Some(why) => {
                    let remedy = if tunnel.create {
                        "it wasn't made by tunnel-mesh, so it stays; delete it or give the tunnel another name"
                    } else {
                        "make it so, or let tunnel-mesh make it with `create: true`"
                    };
                    b.problem(name, format!("device {name} can't be used: {why}; {remedy}"));
                    None
                }
            },
            (None, true) => {
                let reason = b.device_reason(known);
                // One that was renamed still holds the port.
                let alias = observed.instance.tunnel_alias(name);
                if let Some(renamed) = observed.links.iter().find(|l| l.alias.as_deref() == Some(alias.as_str())) {
                    let detail = format!("delete {}, which it was renamed to", renamed.name);
                    b.device_change(Object::Tunnel, name, ChangeAction::Create, reason, detail);
                    b.operation(Phase::MakeLinks, name, Step::DeleteLink { link: LinkRef::of(renamed) });
                    b.deleted_links.insert(renamed.ifindex, name.clone());
                }
                let detail = format!("make the {} device, MTU {mtu}", tunnel.kind);
                b.device_change(Object::Tunnel, name, ChangeAction::Create, reason, detail);
                make_tunnel(b, tunnel, mtu);
                Some(LinkRef::to_be_made(name))
            }
            (None, false) => {
                let what = format!("device {name} doesn't exist; make it in external mode, or say `create: true`");
                b.problem(name, what);
                None
            }
        };
        b.tunnels.insert(name, PlannedTunnel { index, link, mtu, way: way_of(observed, tunnel), decap: None });
    }
    b.used_indexes = used;
}

fn make_tunnel(b: &mut Builder<'_>, tunnel: &Tunnel, mtu: u32) {
    let link = NewLink::Tunnel {
        name: tunnel.name.clone(),
        kind: tunnel.kind,
        port: tunnel.port,
        ip6: tunnel.kind == TunnelKind::Gretap && tunnel.local.v4.is_none(),
        local: tunnel.local,
        mtu,
        alias: b.input.observed.instance.tunnel_alias(&tunnel.name),
        udp6_zero_checksum_rx: tunnel.local.v6.is_some() && tunnel.kind != TunnelKind::Gretap,
    };
    b.operation(Phase::MakeLinks, &tunnel.name, Step::CreateLink { link });
    let families = [false, true].map(|ipv6| (ipv6, b.lanes.needs_forwarding(&tunnel.name, ipv6)));
    for (ipv6, _) in families.into_iter().filter(|(_, needed)| *needed) {
        edit(b, Phase::Join, &tunnel.name, &LinkRef::to_be_made(&tunnel.name), LinkEdit::Forward { ipv6 });
    }
    // Up only when its program is attached: until then the host's own stack would see what it receives.
    edit(b, Phase::Join, &tunnel.name, &LinkRef::to_be_made(&tunnel.name), LinkEdit::Up(true));
}

fn repair_tunnel(b: &mut Builder<'_>, tunnel: &Tunnel, link: &Link, mtu: u32) {
    if !tunnel.create || !is_ours(b, link) {
        return;
    }
    let reference = LinkRef::of(link);
    let reason = if b.tunnel_unchanged(&tunnel.name) { Reason::Drift } else { Reason::Changed };
    let repair = |b: &mut Builder<'_>, detail: String, change| {
        b.device_change(Object::Tunnel, &tunnel.name, ChangeAction::Update, reason, detail);
        edit(b, Phase::Join, &tunnel.name, &reference, change);
    };
    if link.mtu != mtu {
        repair(b, format!("MTU {} -> {mtu}", link.mtu), LinkEdit::Mtu(mtu));
    }
    if link.tunnel.as_ref().is_some_and(|device| device.learning) {
        repair(b, "learning off".to_owned(), LinkEdit::Learning(false));
    }
    for (ipv6, forwards, family) in [(false, link.forwards.v4, "IPv4"), (true, link.forwards.v6, "IPv6")] {
        if !forwards && b.lanes.needs_forwarding(&tunnel.name, ipv6) {
            repair(b, format!("forwards {family}: off -> on"), LinkEdit::Forward { ipv6 });
        }
    }
    // Of a device in external mode the address informs people, and the kernel changes it within its family only.
    let local = device_local(tunnel.kind, tunnel.local);
    let live = link.tunnel.as_ref().map(|device| device.local).unwrap_or_default();
    let moved = match (live, local) {
        (Local { v4: Some(old), .. }, Local { v4: Some(new), .. }) if old != new => Some((old.into(), new.into())),
        (Local { v6: Some(old), .. }, Local { v6: Some(new), .. }) if old != new => Some((old.into(), new.into())),
        _ => None,
    };
    if let (TunnelKind::Vxlan, Some((old, new))) = (tunnel.kind, moved) {
        let old: IpAddr = old;
        repair(b, format!("local address {old} -> {new}"), LinkEdit::VxlanLocal(new));
    }
    if !link.up {
        repair(b, "down -> up".to_owned(), LinkEdit::Up(true));
    }
}

fn edit(b: &mut Builder<'_>, phase: Phase, change: &str, link: &LinkRef, edit: LinkEdit) {
    b.operation(phase, change, Step::ChangeLink { link: link.clone(), edit });
}

/// Resolves every mapping to its interface; makes and repairs what the tenants' bridges need.
pub(super) fn bridges_and_ports(b: &mut Builder<'_>) {
    let desired = b.input.desired;
    let bridges: BTreeMap<&str, LinkRef> = desired
        .bridges
        .values()
        .filter_map(|bridge| Some((bridge.name.as_str(), planned_bridge(b, bridge)?)))
        .collect();
    for mapping in desired.mappings.values() {
        if !b.tunnels.contains_key(mapping.key.tunnel.as_str()) {
            let why = format!("its tunnel {} can't be used", mapping.key.tunnel);
            pending(b, mapping, why);
            continue;
        }
        let link = match &mapping.generated {
            Some(port) => bridges.get(port.bridge.as_str()).and_then(|bridge| planned_port(b, mapping, port, bridge)),
            None => existing_interface(b, mapping),
        };
        if let Some(link) = link {
            b.mappings.push(PlannedMapping { mapping, ifindex: link.ifindex, slot: 0, fresh: false, fast: None });
        }
    }
}

fn pending(b: &mut Builder<'_>, mapping: &Mapping, why: String) {
    b.pending.push(Pending {
        address: mapping.address(),
        interface: mapping.interface.to_string(),
        why,
        origin: Some(mapping.origin.clone()),
    });
}

fn existing_interface(b: &mut Builder<'_>, mapping: &Mapping) -> Option<LinkRef> {
    let Some(link) = b.links.named(&mapping.interface) else {
        pending(b, mapping, format!("interface {} doesn't exist", mapping.interface));
        return None;
    };
    let why = if link.tunnel.as_ref().is_some_and(|t| t.external) {
        Some(format!("{} is itself a tunnel device in external mode", link.name))
    } else if mapping.attach == Attach::Endpoint && !(link.kind == "veth" && link.peer_in_other_netns) {
        let kind = if link.kind.is_empty() { "physical" } else { link.kind.as_str() };
        Some(if link.kind == "veth" {
            format!(
                "endpoint {} is a veth whose peer is in this namespace too; move the peer into the workload's",
                link.name
            )
        } else {
            format!("endpoint {} is a {kind} device, not a veth; use `attach: port`", link.name)
        })
    } else {
        None
    };
    if let Some(why) = why {
        b.problem(&mapping.address(), why.clone());
        pending(b, mapping, why);
        return None;
    }
    Some(LinkRef::of(link))
}

/// MTU that suits every tunnel whose ports join that bridge.
fn bridge_mtu(b: &Builder<'_>, bridge: &Bridge) -> u32 {
    let members =
        b.input.desired.mappings.values().filter(|m| m.generated.as_ref().is_some_and(|g| g.bridge == bridge.name));
    let smallest = members.filter_map(|m| b.tunnels.get(m.key.tunnel.as_str())).map(|t| t.mtu).min();
    bridge.mtu.or(smallest).unwrap_or(USUAL_MTU - TunnelKind::Vxlan.overhead(true))
}

fn planned_bridge(b: &mut Builder<'_>, bridge: &Bridge) -> Option<LinkRef> {
    let name = &bridge.name;
    let mtu = bridge_mtu(b, bridge);
    let known = b.input.accepted.is_some_and(|a| a.bridges.contains_key(name));
    match b.links.named(name) {
        None => {
            let reason = b.device_reason(known);
            b.device_change(Object::Bridge, name, ChangeAction::Create, reason, format!("make the bridge, MTU {mtu}"));
            let link = NewLink::Bridge { name: name.clone(), mtu, alias: b.input.observed.instance.bridge_alias(name) };
            b.operation(Phase::MakeLinks, name, Step::CreateLink { link });
            let link = LinkRef::to_be_made(name);
            edit(b, Phase::Join, name, &link, LinkEdit::Up(true));
            Some(link)
        }
        Some(link) if link.kind != "bridge" => {
            let what = format!("{name} is a {} device, not a bridge; rename it or the tenant's bridge", link.kind);
            b.problem(name, what.clone());
            let waiting: Vec<&Mapping> = b
                .input
                .desired
                .mappings
                .values()
                .filter(|m| m.generated.as_ref().is_some_and(|g| g.bridge == *name))
                .collect();
            for mapping in waiting {
                pending(b, mapping, what.clone());
            }
            None
        }
        Some(link) => {
            let reference = LinkRef::of(link);
            if is_ours(b, link) {
                let reason = if known { Reason::Drift } else { Reason::Changed };
                if link.mtu != mtu {
                    let detail = format!("MTU {} -> {mtu}", link.mtu);
                    b.device_change(Object::Bridge, name, ChangeAction::Update, reason, detail);
                    edit(b, Phase::Join, name, &reference, LinkEdit::Mtu(mtu));
                }
                if !link.up {
                    b.device_change(Object::Bridge, name, ChangeAction::Update, reason, "down -> up".to_owned());
                    edit(b, Phase::Join, name, &reference, LinkEdit::Up(true));
                }
            }
            Some(reference)
        }
    }
}

fn planned_port(b: &mut Builder<'_>, mapping: &Mapping, port: &GeneratedPort, bridge: &LinkRef) -> Option<LinkRef> {
    let address = mapping.address();
    let alias = b.input.observed.instance.port_alias(&mapping.tenant, &port.node);
    let altname = format!("{}/{}", mapping.tenant, port.node);
    let mtu = PORT_MTU;
    let Some(link) = b.links.named(&mapping.interface) else {
        let kind = b.input.observed.features.port_kind;
        let name = mapping.interface.clone();
        let link = NewLink::Port { name: name.to_string(), kind, altname, alias, mtu };
        b.operation(Phase::MakeLinks, &address, Step::CreateLink { link });
        let link = LinkRef::to_be_made(&name);
        // Joins and goes up last, with its program attached, so that nothing passes it unfiltered.
        edit(b, Phase::Join, &address, &link, LinkEdit::Master(bridge.clone()));
        edit(b, Phase::Join, &address, &link, LinkEdit::Isolated(true));
        edit(b, Phase::Join, &address, &link, LinkEdit::Up(true));
        return Some(link);
    };
    if link.alias.as_deref() != Some(alias.as_str()) {
        let why = format!(
            "{} exists and isn't a port that tunnel-mesh made (its alias isn't \"{alias}\"); rename or delete it",
            link.name
        );
        b.problem(&address, why.clone());
        pending(b, mapping, why);
        return None;
    }
    let reference = LinkRef::of(link);
    let repair = |b: &mut Builder<'_>, detail: String, phase, change: LinkEdit| {
        let origin = mapping.origin.clone();
        let reason = match b.input.accepted.and_then(|a| a.mappings.get(&mapping.interface)) {
            Some(known) if known.generated == mapping.generated && known.key == mapping.key => Reason::Drift,
            _ => Reason::Changed,
        };
        let change_of_mapping = b.change(Object::Mapping, &address, || Change {
            object: Object::Mapping,
            address: address.clone(),
            action: ChangeAction::Update,
            reason,
            before: None,
            after: None,
            details: Vec::new(),
            origin: Some(origin),
        });
        change_of_mapping.details.push(detail);
        edit(b, phase, &address, &reference, change);
    };
    let joined = bridge.ifindex.is_some() && link.master == bridge.ifindex;
    if !joined {
        let now = match link.master.and_then(|m| b.input.observed.link_by_index(m)) {
            Some(other) => format!("it is in {}", other.name),
            None => "it is in none".to_owned(),
        };
        // Outside of its bridge it would hand its tenant's packets to the host's own stack: down before anything leads there.
        if link.up {
            repair(b, "set down".to_owned(), Phase::MakeLinks, LinkEdit::Up(false));
        }
        let detail = format!("join bridge {} ({now})", bridge.name);
        repair(b, detail, Phase::Join, LinkEdit::Master(bridge.clone()));
    }
    if !joined || link.isolated != Some(true) {
        repair(b, "isolated off -> on".to_owned(), Phase::Join, LinkEdit::Isolated(true));
    }
    if link.mtu != mtu {
        repair(b, format!("MTU {} -> {mtu}", link.mtu), Phase::Join, LinkEdit::Mtu(mtu));
    }
    // An alternative name is for people: one that another link has is left to it.
    let taken = || b.input.observed.links.iter().any(|l| l.name == altname || l.altnames.contains(&altname));
    if !link.altnames.contains(&altname) && !taken() {
        repair(b, format!("alternative name {altname}"), Phase::Join, LinkEdit::Altname(altname.clone()));
    }
    if !joined || !link.up {
        repair(b, "down -> up".to_owned(), Phase::Join, LinkEdit::Up(true));
    }
    Some(reference)
}

/// Devices of ours that the files no longer ask for.
pub(super) fn leftovers(b: &mut Builder<'_>) {
    let desired = b.input.desired;
    let observed = b.input.observed;
    let mut doomed: Vec<(&Link, Object, String)> = Vec::new();
    for link in &observed.links {
        let Some(made) = observed.instance.made(link.alias.as_deref()) else { continue };
        let ports = b.input.accepted.and_then(|a| a.mappings.get(link.name.as_str())).map(Mapping::address);
        if made.strip_prefix("tunnel ") == Some(link.name.as_str()) {
            if !desired.tunnels.contains_key(&link.name) {
                doomed.push((link, Object::Tunnel, link.name.clone()));
            }
        } else if let Some(of) = made.strip_prefix("port ")
            && desired.mappings.get(link.name.as_str()).is_none_or(|m| m.generated.is_none())
        {
            let tenant = of.split('/').next().unwrap_or(of);
            doomed.push((link, Object::Mapping, ports.unwrap_or_else(|| format!("{tenant}/{}", link.name))));
        }
    }
    let going: BTreeSet<u32> = doomed.iter().map(|(l, ..)| l.ifindex).collect();
    for link in &observed.links {
        let made = observed.instance.made(link.alias.as_deref()).and_then(|made| made.strip_prefix("bridge "));
        let ours = made == Some(link.name.as_str());
        if ours && !desired.bridges.contains_key(&link.name) {
            let foreign = observed.links.iter().any(|l| l.master == Some(link.ifindex) && !going.contains(&l.ifindex));
            if !foreign {
                doomed.push((link, Object::Bridge, link.name.clone()));
            }
        }
    }
    for (link, object, address) in doomed {
        b.deleted_links.insert(link.ifindex, address.clone());
        b.operation(Phase::DeleteLinks, &address, Step::DeleteLink { link: LinkRef::of(link) });
        let known = b.input.accepted.is_none_or(|a| {
            a.tunnels.contains_key(&address)
                || a.bridges.contains_key(&address)
                || a.mappings.contains_key(link.name.as_str())
        });
        let reason = if known { Reason::Removed } else { Reason::Drift };
        b.device_change(object, &address, ChangeAction::Delete, reason, format!("delete device {}", link.name));
    }
}
