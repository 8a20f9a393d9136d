//! Every reason for the device lane, one after the other.

#![allow(clippy::unwrap_used)]

use super::lanes::{Lane, Lanes, MappingLanes};
use super::*;
use std::net::IpAddr;

/// A host with one link and one tunnel of its own over both families, and mappings to two remotes of each.
struct World {
    desired: Desired,
    observed: Observed,
}

const REMOTES: [&str; 4] = ["10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"];

impl World {
    fn new() -> Self {
        let tunnel = Tunnel {
            name: "vxlan0".to_owned(),
            kind: TunnelKind::Vxlan,
            port: None,
            create: true,
            local: Local { v4: Some("10.0.0.1".parse().unwrap()), v6: Some("fd00::1".parse().unwrap()) },
            mtu: None,
            ttl: OuterField::Fixed(64),
            tos: OuterField::Inherit,
            df: true,
            checksum: None,
            mark: 1,
            fast: Fast::Auto,
            origin: Origin::default(),
        };
        let mapping = |(number, remote): (usize, &&str)| {
            let remote: IpAddr = remote.parse().unwrap();
            let interface: Name = format!("port{number}").as_str().into();
            let mapping = Mapping {
                tenant: "red".into(),
                interface: interface.clone(),
                key: TunnelKey { tunnel: "vxlan0".into(), id: 7, remote },
                local: tunnel.local.for_remote(remote).unwrap(),
                attach: Attach::Endpoint,
                node: Some("far".into()),
                generated: None,
                origin: Origin::default(),
            };
            (interface, mapping)
        };
        let mappings = REMOTES.iter().enumerate().map(mapping).collect();
        let tunnels = [("vxlan0".to_owned(), tunnel.clone())].into();
        let link = Link { ifindex: 2, name: "eth0".to_owned(), mac: Some([2, 0, 0, 0, 0, 1]), ..Link::default() };
        let address = |address: &str| Address { ifindex: 2, address: address.parse().unwrap() };
        Self {
            desired: Desired { tunnels, mappings, ..Desired::default() },
            observed: Observed {
                links: vec![link],
                addresses: vec![address("10.0.0.1"), address("fd00::1")],
                ..Observed::default()
            },
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut world = Self::new();
        change(&mut world);
        world
    }

    fn tunnel(&mut self) -> &mut Tunnel {
        self.desired.tunnels.get_mut("vxlan0").unwrap()
    }

    fn eth0(&mut self) -> &mut Link {
        &mut self.observed.links[0]
    }

    fn underlay(&mut self) -> &mut Underlay {
        &mut self.observed.underlay
    }

    fn lanes(&self, remote: &str) -> MappingLanes {
        let remote: IpAddr = remote.parse().unwrap();
        let mapping = self.desired.mappings.values().find(|m| m.key.remote == remote).unwrap();
        Lanes::of(&self.desired, &self.observed).of_mapping(mapping)
    }

    /// Codes of the reasons, out and in; `fast` where there is none.
    fn codes(&self, remote: &str) -> (String, String) {
        let MappingLanes { sent_by_device, received_by_device } = self.lanes(remote);
        let code = |why: Option<lanes::Why>| why.map_or_else(|| "fast".to_owned(), |w| w.code.into_owned());
        (code(sent_by_device), code(received_by_device))
    }

    #[track_caller]
    fn expect(&self, remote: &str, out: &str, into: &str) {
        assert_eq!(self.codes(remote), (out.to_owned(), into.to_owned()), "{remote}");
    }
}

#[test]
fn nothing_in_the_way_means_fast() {
    let world = World::new();
    REMOTES.iter().for_each(|remote| world.expect(remote, "fast", "fast"));
    assert_eq!(world.lanes(REMOTES[0]).word(), "fast");
    assert!(world.lanes(REMOTES[0]).reasons().is_empty());
}

#[test]
fn what_the_files_say_comes_first() {
    World::with(|w| w.tunnel().fast = Fast::Off).expect(REMOTES[0], "fast-off", "fast-off");
    World::with(|w| w.tunnel().kind = TunnelKind::Gretap).expect(REMOTES[0], "kind", "kind");
    World::with(|w| w.tunnel().checksum = Some(true)).expect(REMOTES[0], "checksum", "fast");
    let nowhere = World::with(|w| w.observed.addresses.clear());
    nowhere.expect(REMOTES[0], "no-source-address", "no-source-address");
    let sourceless = World::with(|w| w.tunnel().local.v6 = None);
    sourceless.expect(REMOTES[2], "no-source-address", "no-source-address");
    sourceless.expect(REMOTES[0], "fast", "fast");
}

#[test]
fn over_ipv6_the_far_side_must_take_packets_without_checksum() {
    let by_others = World::with(|w| w.tunnel().create = false);
    by_others.expect(REMOTES[2], "checksum", "checksum");
    by_others.expect(REMOTES[0], "forwarding", "fast");
    let low_level = World::with(|w| w.desired.mappings.values_mut().for_each(|m| m.node = None));
    low_level.expect(REMOTES[2], "checksum", "fast");
    low_level.expect(REMOTES[0], "fast", "fast");
    let said = World::with(|w| {
        w.desired.mappings.values_mut().for_each(|m| m.node = None);
        w.tunnel().checksum = Some(false);
    });
    said.expect(REMOTES[2], "fast", "fast");
}

#[test]
fn another_routing_domain() {
    let vrf = |w: &mut World| {
        let link = Link { ifindex: 3, name: "blue".to_owned(), kind: "vrf".into(), ..w.eth0().clone() };
        w.observed.links.push(link);
    };
    let enslaved = World::with(|w| {
        vrf(w);
        w.eth0().master = Some(3);
    });
    enslaved.expect(REMOTES[0], "routing-domain", "routing-domain");
    let itself = World::with(|w| {
        vrf(w);
        w.observed.addresses.iter_mut().for_each(|a| a.ifindex = 3);
    });
    itself.expect(REMOTES[0], "routing-domain", "routing-domain");
    let tunnel = World::with(|w| {
        vrf(w);
        let link = Link { ifindex: 4, name: "vxlan0".to_owned(), master: Some(3), ..w.eth0().clone() };
        w.observed.links.push(link);
    });
    tunnel.expect(REMOTES[0], "routing-domain", "routing-domain");
    // Whatever one asks for: routes of another domain are wrong.
    let mut asked = enslaved;
    asked.tunnel().fast = Fast::On;
    asked.expect(REMOTES[0], "routing-domain", "routing-domain");
}

#[test]
fn an_underlay_device_that_does_not_fit() {
    let is = |change: fn(&mut World)| World::with(change).codes(REMOTES[0]);
    let unfit = ("underlay-device".to_owned(), "underlay-device".to_owned());
    assert_eq!(is(|w| w.eth0().mac = None), unfit, "wireguard, ipip, tun");
    assert_eq!(is(|w| w.eth0().mac = Some([0; 6])), unfit, "loopback");
    assert_eq!(is(|w| w.eth0().kind = "ipvlan".into()), unfit);
    assert_eq!(is(|w| w.eth0().alias = Some("tunnel-mesh bridge br-red".to_owned())), unfit);
    let port = |w: &mut World| {
        let bridge = Link { ifindex: 3, name: "br0".to_owned(), kind: "bridge".into(), ..Link::default() };
        w.observed.links.push(bridge);
        w.eth0().master = Some(3);
    };
    assert_eq!(is(port), unfit);
    for kind in ["veth", "bond", "vlan", "bridge"] {
        World::with(|w| w.eth0().kind = kind.into()).expect(REMOTES[0], "fast", "fast");
    }
    let asked = World::with(|w| {
        w.eth0().kind = "ipvlan".into();
        w.tunnel().fast = Fast::On;
    });
    asked.expect(REMOTES[0], "fast", "fast");
}

fn rule_to(remote: &str) -> RoutingRule {
    let to = Prefix { address: remote.parse().unwrap(), length: if remote.contains(':') { 128 } else { 32 } };
    RoutingRule { ipv6: remote.contains(':'), priority: 100, to: Some(to), ..RoutingRule::default() }
}

#[test]
fn a_policy_routed_remote() {
    let world = World::with(|w| w.underlay().rules.push(rule_to(REMOTES[0])));
    world.expect(REMOTES[0], "routing-rule", "fast");
    world.expect(REMOTES[1], "fast", "fast");
    world.expect(REMOTES[2], "fast", "fast");
    assert_eq!(world.lanes(REMOTES[0]).word(), "fast in");
    let (way, why) = world.lanes(REMOTES[0]).reasons().first().map(|(way, why)| (*way, why.what.to_string())).unwrap();
    assert_eq!(way, "sent");
    assert!(why.contains("100: from all to 10.0.0.2/32"), "{why}");
}

#[test]
fn ipsec_between_two_hosts() {
    let policy = |direction, source: &str, destination: &str| {
        let exact = |address: &str| Prefix { address: address.parse().unwrap(), length: 32 };
        let (source, destination) = (exact(source), exact(destination));
        IpsecPolicy { direction, source, destination, protocol: 0, port: (0, 0) }
    };
    let out = World::with(|w| w.underlay().ipsec.push(policy(PolicyDirection::Out, "10.0.0.1", REMOTES[0])));
    out.expect(REMOTES[0], "ipsec", "fast");
    out.expect(REMOTES[1], "fast", "fast");
    // What comes in is known by its tunnel: nobody may get past a policy by being another remote of it.
    let into = World::with(|w| w.underlay().ipsec.push(policy(PolicyDirection::In, REMOTES[0], "10.0.0.1")));
    into.expect(REMOTES[0], "fast", "ipsec");
    into.expect(REMOTES[1], "fast", "ipsec");
    into.expect(REMOTES[2], "fast", "fast");
    let blocked = World::with(|w| w.underlay().ipsec_blocks = true);
    blocked.expect(REMOTES[3], "ipsec", "ipsec");
}

#[test]
fn netfilter_by_family_and_way() {
    let chain = |family: &str, hook: &str| NetfilterChain {
        family: family.to_owned(),
        table: "filter".to_owned(),
        chain: Some("c".to_owned()),
        hook: Some(hook.to_owned()),
        devices: Vec::new(),
    };
    let input = World::with(|w| w.underlay().netfilter.push(chain("ip", "input")));
    input.expect(REMOTES[0], "fast", "netfilter");
    input.expect(REMOTES[2], "fast", "fast");
    assert_eq!(input.lanes(REMOTES[0]).word(), "fast out");
    let both = World::with(|w| w.underlay().netfilter = vec![chain("inet", "input"), chain("inet", "output")]);
    both.expect(REMOTES[0], "netfilter", "netfilter");
    both.expect(REMOTES[3], "netfilter", "netfilter");
    assert_eq!(both.lanes(REMOTES[0]).word(), "device");
    let insisted = World::with(|w| {
        w.underlay().netfilter.push(chain("inet", "output"));
        w.tunnel().fast = Fast::On;
    });
    insisted.expect(REMOTES[0], "fast", "fast");
}

#[test]
fn programs_of_others_on_the_underlay() {
    let program = IngressProgram { ifindex: 2, what: "the TCX program 7".to_owned() };
    World::with(|w| w.underlay().programs.push(program.clone())).expect(REMOTES[0], "fast", "tc-program");
    let elsewhere = IngressProgram { ifindex: 9, ..program };
    World::with(|w| w.underlay().programs.push(elsewhere)).expect(REMOTES[0], "fast", "fast");
}

#[test]
fn what_cannot_be_read_counts() {
    let unread = Unread { what: "IPsec policies".to_owned(), why: "Operation not permitted".to_owned() };
    World::with(|w| w.underlay().unread.push(unread)).expect(REMOTES[0], "unread", "unread");
}

#[test]
fn forwarding_must_not_cost_a_route() {
    let learned = World::with(|w| w.underlay().learned_defaults.push(2));
    learned.expect(REMOTES[2], "learned-route", "fast");
    learned.expect(REMOTES[0], "fast", "fast");
    // Where it forwards already, there is nothing to lose.
    let forwards = World::with(|w| {
        w.underlay().learned_defaults.push(2);
        let forwards = Forwarding { v4: true, v6: true };
        let alias = Some(w.observed.instance.tunnel_alias("vxlan0"));
        let tunnel = TunnelDevice {
            kind: TunnelKind::Vxlan,
            ip6: false,
            external: true,
            port: Some(4789),
            learning: false,
            local: Local::default(),
            udp6_zero_checksum_rx: true,
        };
        let name = "vxlan0".to_owned();
        let link = Link { ifindex: 4, name, alias, forwards, tunnel: Some(tunnel.into()), ..Link::default() };
        w.observed.links.push(link);
    });
    forwards.expect(REMOTES[2], "fast", "fast");
    World::with(|w| w.observed.features.forwarding6 = false).expect(REMOTES[2], "forwarding", "fast");
}

#[test]
fn where_nobody_takes_the_fast_lane_the_device_need_not_forward() {
    let all = World::with(|w| REMOTES.iter().for_each(|remote| w.underlay().rules.push(rule_to(remote))));
    let lanes = Lanes::of(&all.desired, &all.observed);
    assert!(!lanes.needs_forwarding("vxlan0", false) && !lanes.needs_forwarding("vxlan0", true));
    // Each with its own reason.
    assert!(all.lanes(REMOTES[1]).sent_by_device.unwrap().what.contains(REMOTES[1]));
    let one = World::with(|w| w.underlay().rules.push(rule_to(REMOTES[0])));
    let lanes = Lanes::of(&one.desired, &one.observed);
    assert!(lanes.needs_forwarding("vxlan0", false));
    let mapping = one.desired.mappings.values().next().unwrap();
    assert!(matches!(lanes.lane(mapping), Lane::Device(_)));
}

#[test]
fn the_document_lists_every_reason_and_no_other() {
    let document = include_str!("../../docs/lanes.md");
    let table = document.lines().skip_while(|l| !l.starts_with("| code |")).skip(2).take_while(|l| l.starts_with('|'));
    let listed: Vec<&str> = table.map(|row| row.split('`').nth(1).unwrap_or(row)).collect();
    let mut all: Vec<&str> = LaneReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(listed.len(), all.len(), "{listed:?}");
    all.retain(|name| !listed.contains(name));
    assert!(all.is_empty(), "docs/lanes.md doesn't list {all:?}");
}
