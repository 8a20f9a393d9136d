//! Fingerprint of a live state: whether it is still the one that a plan was made from.

use crate::model::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Fingerprint of what a live state means for a desired one: the first 16 hex digits of a SHA-256.
///
/// That is every map, program and attachment of ours, and of the links and addresses those that are ours, that the
/// desired state names or that an entry refers to. What else lives on the host comes and goes without changing it, and
/// so do counters.
pub fn fingerprint(desired: &Desired, observed: &Observed) -> String {
    let relevant = relevant(desired, observed);
    let digest = Sha256::digest(serde_json::to_vec(&relevant).unwrap_or_default());
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The live state without what a plan for that desired state doesn't look at.
fn relevant(desired: &Desired, observed: &Observed) -> Observed {
    let ours = |link: &Link| observed.instance.made(link.alias.as_deref()).is_some();
    let named = |link: &Link| {
        let name = link.name.as_str();
        desired.mappings.contains_key(name)
            || desired.tunnels.contains_key(name)
            || desired.bridges.contains_key(name)
            || observed.maps.iter().any(|maps| maps.conf.values().any(|conf| conf.name == name))
    };
    let mut referred: BTreeSet<u32> = observed.attachments.iter().map(|a| a.ifindex).collect();
    if let Some(maps) = &observed.maps {
        referred.extend(maps.if2tunkey.iter().map(|(ifindex, _)| *ifindex));
        referred.extend(maps.devs.iter().map(|(_, ifindex)| *ifindex));
        referred.extend(maps.conf.values().map(|conf| conf.ifindex));
    }
    let sources = |address: &Address| desired.tunnels.values().any(|t| t.local.contains(address.address));
    let addresses: Vec<Address> = observed.addresses.iter().filter(|a| sources(a)).cloned().collect();
    referred.extend(addresses.iter().map(|a| a.ifindex));
    let kept: BTreeSet<u32> = observed
        .links
        .iter()
        .filter(|l| ours(l) || named(l) || referred.contains(&l.ifindex))
        .map(|l| l.ifindex)
        .collect();
    let bridges: BTreeSet<u32> =
        observed.links.iter().filter(|l| kept.contains(&l.ifindex) && l.kind == "bridge").map(|l| l.ifindex).collect();
    let links = observed
        .links
        .iter()
        // A port that somebody put into a bridge of ours decides whether the bridge may go.
        .filter(|l| kept.contains(&l.ifindex) || l.master.is_some_and(|master| bridges.contains(&master)))
        .map(|l| Link { dropped: (0, 0), up: l.up && ours(l), ..l.clone() })
        .collect();
    let mut features = observed.features;
    // Nobody asks what ports can be made of where none are.
    if desired.mappings.values().all(|m| m.generated.is_none()) {
        features.port_kind = PortKind::Dummy;
    }
    // Firewalls change all the time; where that changes a lane, it changes operations.
    let underlay = Underlay::default();
    Observed { features, links, addresses, underlay, ..observed.clone() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link { ifindex, name: name.to_owned(), mtu: 1500, ..Link::default() }
    }

    #[test]
    fn what_a_plan_does_not_look_at_leaves_it_alone() {
        let mut desired = Desired::default();
        desired.bridges.insert(
            "br0".to_owned(),
            Bridge { name: "br0".to_owned(), tenant: "red".to_owned(), mtu: None, origin: Origin::default() },
        );
        let mut observed = Observed { maps: Some(MapState::default()), ..Observed::default() };
        observed.links.push(Link { kind: "bridge".into(), ..link(3, "br0") });
        observed.addresses.push(Address { ifindex: 9, address: "10.0.0.1".parse().unwrap() });
        let before = fingerprint(&desired, &observed);
        assert_eq!(before.len(), 16);

        let mut busy = observed.clone();
        busy.links.push(link(8, "docker0"));
        busy.addresses.push(Address { ifindex: 8, address: "172.17.0.1".parse().unwrap() });
        busy.links[0].dropped = (7, 7);
        assert_eq!(fingerprint(&desired, &busy), before);

        for change in [
            |o: &mut Observed| o.links[0].mtu = 1400,
            |o: &mut Observed| o.links.push(Link { master: Some(3), ..link(8, "foreign") }),
            |o: &mut Observed| o.maps.as_mut().unwrap().devs.push((64, 3)),
            |o: &mut Observed| o.netns_cookie += 1,
        ] {
            let mut changed = observed.clone();
            change(&mut changed);
            assert_ne!(fingerprint(&desired, &changed), before);
        }
    }
}
