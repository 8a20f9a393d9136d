//! A tenant's packet reaches its tenant or nobody: both worked examples of the seed, unknown keys, missing entries,
//! inherited interface indexes, wrong namespaces, loops and tenants with equal addresses.

#![allow(clippy::unwrap_used, missing_docs)]

mod safety;
mod world;

use harness::Netns;
use safety::*;
use serde_json::Value;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;
use world::*;

/// Frames for each check.
const FRAMES: usize = 20;

/// An address of the host itself, which no tenant may reach.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 60, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 60, 2);
const OWN_PORT: u16 = 7777;

/// Our host, 10.0.0.1 on the underlay, and one far host with ordinary vxlan devices: 123 from 10.0.0.2, 456 from
/// 10.0.0.3. `eth1` and `eth2` are veths of our host. Nobody speaks unless the test does.
struct Site {
    underlay: Underlay,
    host: Host,
    far: Host,
    eth1_peer: Netns,
    eth2_peer: Netns,
}

fn site() -> Site {
    let underlay = Underlay::new();
    quiet(&underlay.netns);
    let (host, far) = (underlay.host(0), underlay.host(1));
    for h in [&host, &far] {
        quiet(&h.netns);
        knob(&h.netns, "ipv4/conf/all/rp_filter", "0");
        knob(&h.netns, "ipv4/conf/default/rp_filter", "0");
    }
    host.netns.cmd("ip addr add 10.0.0.1/24 dev eth0");
    far.netns.cmd("ip addr add 10.0.0.2/24 dev eth0");
    far.netns.cmd("ip addr add 10.0.0.3/24 dev eth0");
    far_vxlan(&far, 123, "10.0.0.2");
    far_vxlan(&far, 456, "10.0.0.3");
    host.netns.cmd(&format!("ip addr add {OWN}/32 dev lo"));
    let eth1_peer = host.workload("eth1", "192.168.99.1/24");
    let eth2_peer = host.workload("eth2", "192.168.99.2/24");
    quiet(&eth1_peer);
    quiet(&eth2_peer);
    host.write("host.yaml", &topology(""));
    Site { underlay, host, far, eth1_peer, eth2_peer }
}

fn far_vxlan(far: &Host, id: u32, local: &str) {
    far.netns.cmd(&format!("ip link add vx{id} type vxlan id {id} local {local} remote 10.0.0.1 dstport 4789"));
    far.netns.cmd(&format!("ip link set vx{id} up"));
}

fn topology(more: &str) -> String {
    format!(
        "version: 1
tunnels:
  vxlan0: {{kind: vxlan, create: true, local: 10.0.0.1{more}}}
mappings:
  - {{tenant: red, interface: eth1, id: 123, remote: 10.0.0.2}}
  - {{tenant: blue, interface: eth2, id: 456, remote: 10.0.0.3}}
"
    )
}

fn only_eth1() -> &'static str {
    "version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: 10.0.0.1}
mappings:
  - {tenant: red, interface: eth1, id: 123, remote: 10.0.0.2}
"
}

/// Where the host's own stack would show what it got: a UDP socket and the counter of ICMP echo requests.
struct Stack<'a> {
    netns: &'a Netns,
    socket: UdpSocket,
    echoes: u64,
}

impl<'a> Stack<'a> {
    fn of(netns: &'a Netns) -> Self {
        let socket = netns.enter(|| UdpSocket::bind((OWN, OWN_PORT)).unwrap());
        socket.set_nonblocking(true).unwrap();
        Self { netns, socket, echoes: snmp(netns, "Icmp", "InEchos") }
    }

    /// Datagrams and echo requests since the last call.
    fn got(&mut self) -> (usize, u64) {
        let mut buffer = [0; 2048];
        let datagrams = std::iter::from_fn(|| self.socket.recv(&mut buffer).ok()).count();
        let echoes = snmp(self.netns, "Icmp", "InEchos");
        let new = echoes - self.echoes;
        self.echoes = echoes;
        (datagrams, new)
    }
}

/// A datagram and an echo request for the host's own address, as the host's stack takes them when they come in through
/// `vxlan0` unfiltered.
fn for_the_host(site: &Site, from: &str, marker: &[u8]) -> [Vec<u8>; 2] {
    let (to, from) = (mac(&site.host.netns, "vxlan0"), mac(&site.far.netns, from));
    [udp(to, from, (STRANGER, OWN), OWN_PORT, marker), echo(to, from, (STRANGER, OWN), marker)]
}

/// Takes our program off the tunnel device and expects that the frames now reach the stack: else it proves nothing that
/// they didn't before.
fn unfiltered(host: &Host, stack: &mut Stack<'_>, sender: &Tap, frames: &[Vec<u8>]) {
    detach_ingress(host, "vxlan0");
    let mut got = (0, 0);
    eventually("an unfiltered tunnel device reaches the stack", || {
        // Again and again: the kernel detaches a link some time after its pin is gone.
        frames.iter().for_each(|f| sender.send(f));
        let (datagrams, echoes) = stack.got();
        got = (got.0 + datagrams, got.1 + echoes);
        got.0 > 0 && got.1 > 0
    });
}

fn reasons(drops: &Value, reason: &str) -> u64 {
    drops[reason].as_u64().unwrap_or(0)
}

/// Drops of that reason anywhere in `status`.
fn told(status: &Value, reason: &str) -> u64 {
    let tunnels = status["tunnels"].as_array().unwrap().iter().map(|t| &t["drops"]);
    let mappings = status["mappings"].as_array().unwrap().iter().map(|m| &m["traffic"]["drops"]);
    tunnels.chain(mappings).chain([&status["drops"]]).map(|d| reasons(d, reason)).sum()
}

#[test]
fn seed_ingress_arrives_on_eth1_with_the_mark() {
    let site = site();
    let (host, far) = (&site.host, &site.far);
    host.apply();
    let probe = Probe::load(&host.netns);
    probe.attach(&host.netns, "eth1", "see_tc_index");
    let (sender, eth1) = (Tap::on(&far.netns, "vx123"), Tap::on(&host.netns, "eth1"));
    let (eth2, peer) = (Tap::on(&host.netns, "eth2"), Tap::on(&site.eth1_peer, "eth0"));
    let mut rx = 0;
    for (more, mark) in [("", 1), (", mark: 7", 7), (", mark: 0", 0)] {
        host.write("host.yaml", &topology(more));
        host.apply();
        let before = probe.seen();
        let frames: Vec<Vec<u8>> = (0..FRAMES)
            .map(|n| {
                let payload = format!("ingress {mark} {n}");
                ethernet(BROADCAST, mac(&far.netns, "vx123"), EXPERIMENT, payload.as_bytes())
            })
            .collect();
        for frame in &frames {
            sender.send(frame);
        }
        let mut seen = Vec::new();
        eventually("all frames on eth1", || {
            seen.extend(eth1.drain());
            seen.len() >= FRAMES
        });
        assert!(seen.iter().all(|s| !s.outgoing), "{seen:?}");
        assert_eq!(seen.into_iter().map(|s| s.bytes).collect::<Vec<_>>(), frames, "mark {mark}");
        let after = probe.seen();
        let new: Vec<u64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
        let expected: Vec<u64> = (0..16).map(|index| if index == mark { FRAMES as u64 } else { 0 }).collect();
        assert_eq!(new, expected, "packets by tc_index with mark {mark}");
        rx += FRAMES as u64;
        let traffic = &host.mapping("red/eth1")["traffic"];
        assert_eq!((&traffic["rx_packets"], &traffic["rx_bytes"]), (&rx.into(), &(rx * 60).into()), "{traffic}");
        assert_eq!(traffic["tx_packets"], 0);
    }
    assert_eq!((eth2.drain(), peer.drain()), (Vec::new(), Vec::new()), "nobody else sees it");
    assert_eq!(host.mapping("blue/eth2")["traffic"]["rx_packets"], 0);
    // As received there, up to the stack: what has an address on eth1 answers, and the answer goes back.
    host.netns.cmd("ip addr add 192.168.50.1/24 dev eth1");
    far.netns.cmd("ip addr add 192.168.50.2/24 dev vx123");
    assert_pings(&far.netns, "192.168.50.1");
}

#[test]
fn seed_egress_leaves_through_the_tunnel() {
    let site = site();
    let (host, far) = (&site.host, &site.far);
    host.apply();
    let (eth2, wire) = (Tap::on(&host.netns, "eth2"), Tap::on(&site.underlay.netns, "p0"));
    let (peer, eth1) = (Tap::on(&site.eth2_peer, "eth0"), Tap::on(&host.netns, "eth1"));
    let sizes = [60, 61, 64, 127, 128, 1000, 1463, 1464];
    let frames: Vec<Vec<u8>> = sizes
        .iter()
        .map(|size| {
            let payload: Vec<u8> = b"egress"
                .iter()
                .copied()
                .chain((0..).map(|n: u32| (n * 7 + size) as u8))
                .take(*size as usize - 14)
                .collect();
            ethernet([2, 0, 0, 0, 0, 9], mac(&host.netns, "eth2"), EXPERIMENT, &payload)
        })
        .collect();
    for frame in &frames {
        eth2.send(frame);
    }
    let mut seen = Vec::new();
    eventually("all frames on the wire", || {
        seen.extend(wire.drain().into_iter().filter(|s| contains(&s.bytes, b"egress")));
        seen.len() >= frames.len()
    });
    let expected: Vec<Option<Vxlan>> = frames
        .iter()
        .map(|frame| {
            let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3));
            Some(Vxlan { from, to, port: 4789, id: 456, inner: frame.clone() })
        })
        .collect();
    assert!(seen.iter().all(|s| !s.outgoing), "the host sent it");
    assert_eq!(seen.iter().map(|s| Vxlan::parse(&s.bytes)).collect::<Vec<_>>(), expected);
    assert_eq!((peer.drain(), eth1.received(b"egress")), (Vec::new(), 0), "nobody else sees it");
    let traffic = &host.mapping("blue/eth2")["traffic"];
    let bytes: u32 = sizes.iter().sum();
    assert_eq!((&traffic["tx_packets"], &traffic["tx_bytes"]), (&sizes.len().into(), &bytes.into()), "{traffic}");
    assert_eq!(traffic["rx_packets"], 0);
    // The far end's ordinary vxlan device takes it for what it is.
    host.netns.cmd("ip addr add 192.168.51.1/24 dev eth2");
    far.netns.cmd("ip addr add 192.168.51.2/24 dev vx456");
    assert_pings(&host.netns, "192.168.51.2");
}

#[test]
fn an_unknown_key_is_dropped_and_told() {
    let site = site();
    let host = &site.host;
    host.apply();
    far_vxlan(&site.far, 999, "10.0.0.2");
    // The right id from a host that it isn't mapped for is just as unknown.
    let third = site.underlay.host(2);
    quiet(&third.netns);
    third.netns.cmd("ip addr add 10.0.0.4/24 dev eth0");
    far_vxlan(&third, 123, "10.0.0.4");
    let mut stack = Stack::of(&host.netns);
    let (eth1, eth2) = (Tap::on(&host.netns, "eth1"), Tap::on(&host.netns, "eth2"));
    let senders =
        [(999, "10.0.0.2", Tap::on(&site.far.netns, "vx999")), (123, "10.0.0.4", Tap::on(&third.netns, "vx123"))];
    let frames = for_the_host(&site, "vx999", b"unknown");
    for (id, remote, sender) in &senders {
        for _ in 0..FRAMES {
            frames.iter().for_each(|f| sender.send(f));
        }
        let sent = 2 * FRAMES as u64;
        let entry = || {
            let status = host.status();
            let unknown = status["unknown"].as_array().unwrap().clone();
            unknown.into_iter().find(|u| u["id"] == *id && u["remote"] == *remote)
        };
        eventually(&format!("{id} from {remote} in unknown[]"), || {
            entry().is_some_and(|u| u["packets"].as_u64().unwrap() >= sent)
        });
        let entry = entry().unwrap();
        assert_eq!((&entry["packets"], &entry["tunnel"]), (&sent.into(), &"vxlan0".into()), "{entry}");
        assert!(entry["last_seen_seconds"].as_u64().unwrap() < PATIENCE.as_secs(), "{entry}");
    }
    let all = 4 * FRAMES as u64;
    let status = host.status();
    assert_eq!(status["unknown"].as_array().unwrap().len(), 2, "{status:#}");
    assert_eq!(reasons(&status["tunnels"][0]["drops"], "unknown_key"), all, "{status:#}");
    assert_eq!(dropped(host, "unknown_key"), all);
    assert_eq!(stack.got(), (0, 0), "the host's stack got a tenant's packets");
    assert_eq!((eth1.drain(), eth2.drain()), (Vec::new(), Vec::new()));
    // That the stack would have shown them: without our program it does.
    unfiltered(host, &mut stack, &senders[0].2, &frames);
}

/// What is expected of one direction.
#[derive(Clone, Copy)]
enum Way {
    Open,
    Dropped(&'static str),
}

/// Sends in both directions through eth1 and expects so much of each. Never may the host's stack or the underlay see a
/// tenant's frame.
fn check(site: &Site, stack: &mut Stack<'_>, what: &str, ingress: Way, egress: Way) {
    let host = &site.host;
    let marker = format!("<{what}>");
    let (sender, eth1) = (Tap::on(&site.far.netns, "vx123"), Tap::on(&host.netns, "eth1"));
    let (wire, peer) = (Tap::on(&site.underlay.netns, "p0"), Tap::on(&site.eth1_peer, "eth0"));
    let sent = 2 * FRAMES;
    let count = |way: Way| if let Way::Dropped(reason) = way { dropped(host, reason) } else { 0 };

    let before = count(ingress);
    let frames = for_the_host(site, "vx123", marker.as_bytes());
    for _ in 0..FRAMES {
        frames.iter().for_each(|f| sender.send(f));
    }
    match ingress {
        Way::Open => eth1.expect(&format!("{what}: ingress"), marker.as_bytes(), sent),
        Way::Dropped(reason) => {
            eventually(&format!("{what}: ingress drops {reason}"), || count(ingress) >= before + sent as u64);
            assert_eq!(count(ingress), before + sent as u64, "{what}: {reason}");
            assert_eq!(eth1.received(marker.as_bytes()), 0, "{what}");
        }
    }
    assert_eq!(stack.got(), (0, 0), "{what}: the host's stack got a tenant's packets");
    // What came in from the tunnel is on no other way by now.
    assert_eq!(wire.received(marker.as_bytes()), 0, "{what}");

    let before = count(egress);
    let frame = udp([2, 0, 0, 0, 0, 9], mac(&host.netns, "eth1"), (OWN, STRANGER), OWN_PORT, marker.as_bytes());
    for _ in 0..sent {
        eth1.send(&frame);
    }
    let mut seen = Vec::new();
    match egress {
        Way::Open => eventually(&format!("{what}: egress"), || {
            seen.extend(wire.drain().into_iter().filter(|s| !s.outgoing && contains(&s.bytes, marker.as_bytes())));
            seen.len() >= sent
        }),
        Way::Dropped(reason) => {
            eventually(&format!("{what}: egress drops {reason}"), || count(egress) >= before + sent as u64);
            assert_eq!(count(egress), before + sent as u64, "{what}: {reason}");
            assert_eq!(wire.received(marker.as_bytes()), 0, "{what}: something left");
        }
    }
    for frame in &seen {
        let packet = Vxlan::parse(&frame.bytes).unwrap_or_else(|| panic!("{what}: raw on the underlay: {frame:x?}"));
        assert_eq!((packet.id, packet.to), (123, Ipv4Addr::new(10, 0, 0, 2)), "{what}");
    }
    assert_eq!(peer.received(marker.as_bytes()), 0, "{what}: left raw through eth1");
    assert_eq!(stack.got(), (0, 0), "{what}");
}

/// A daemon put all in force and was stopped; somebody breaks one map; all is dropped; `apply` repairs it.
fn fails_closed(map: &str, breaks: impl FnOnce(&Host), ingress: Way, egress: Way) {
    let site = site();
    let host = &site.host;
    host.write("host.yaml", only_eth1());
    assert_eq!(host.daemon().stop(), Some(0));
    let mut stack = Stack::of(&host.netns);
    check(&site, &mut stack, "before", Way::Open, Way::Open);
    breaks(host);
    check(&site, &mut stack, "broken", ingress, egress);
    let status = host.status();
    assert_eq!((&status["in_force"], &status["daemon"]["running"]), (&false.into(), &false.into()), "{status:#}");
    for way in [ingress, egress] {
        let Way::Dropped(reason) = way else { continue };
        assert!(told(&status, reason) >= 2 * FRAMES as u64, "{reason}: {status:#}");
    }
    let report: Value = serde_json::from_str(&host.expect(0, &["apply", "--format", "json"])).unwrap();
    assert_eq!(report["changed"], true, "{report:#}");
    let changes = report["plan"]["changes"].as_array().unwrap();
    assert!(!changes.is_empty() && changes.iter().all(|c| c["reason"] == "drift"), "{report:#}");
    // One entry was broken, one entry is written.
    let operations = report["plan"]["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 1, "{map}: {report:#}");
    assert_eq!(host.status()["in_force"], true);
    check(&site, &mut stack, "repaired", Way::Open, Way::Open);
    host.expect(0, &["plan", "--detailed-exitcode"]);
    // That the stack would have shown it.
    let sender = Tap::on(&site.far.netns, "vx123");
    unfiltered(host, &mut stack, &sender, &for_the_host(&site, "vx123", b"unfiltered"));
}

#[test]
fn without_conf_everything_is_dropped() {
    let zeros = |host: &Host| map_write(host, "conf", "update", &1_u32.to_ne_bytes(), Some(&[0; 64]));
    fails_closed("conf", zeros, Way::Dropped("no_conf"), Way::Dropped("no_conf"));
}

#[test]
fn without_its_if2tunkey_entry_an_interface_sends_nothing() {
    let delete = |host: &Host| {
        assert_eq!(only_key(host, "if2tunkey"), host.ifindex("eth1").to_ne_bytes());
        map_write(host, "if2tunkey", "delete", &host.ifindex("eth1").to_ne_bytes(), None);
    };
    fails_closed("if2tunkey", delete, Way::Open, Way::Dropped("no_entry"));
}

#[test]
fn without_its_tunkey2if_entry_a_key_reaches_nobody() {
    let delete = |host: &Host| map_write(host, "tunkey2if", "delete", &only_key(host, "tunkey2if"), None);
    fails_closed("tunkey2if", delete, Way::Dropped("unknown_key"), Way::Open);
}

/// All in force, the daemon stopped.
fn left_alone() -> Site {
    let site = site();
    site.host.write("host.yaml", only_eth1());
    assert_eq!(site.host.daemon().stop(), Some(0));
    let mut stack = Stack::of(&site.host.netns);
    check(&site, &mut stack, "before", Way::Open, Way::Open);
    site
}

/// Frames from the far end, as a tenant's workload sends them.
fn send_from_far(site: &Site, marker: &[u8]) {
    let sender = Tap::on(&site.far.netns, "vx123");
    let frame = ethernet(BROADCAST, mac(&site.far.netns, "vx123"), EXPERIMENT, marker);
    for _ in 0..FRAMES {
        sender.send(&frame);
    }
}

/// Makes a veth pair whose first end has that index; both ends up.
fn stranger(netns: &Netns, name: &str, index: u32) -> (Tap, Tap) {
    netns.cmd(&format!("ip link add {name} index {index} type veth peer name {name}-peer"));
    netns.cmd(&format!("ip link set {name} up"));
    netns.cmd(&format!("ip link set {name}-peer up"));
    assert_eq!(ifindex(netns, name), index);
    (Tap::on(netns, name), Tap::on(netns, &format!("{name}-peer")))
}

fn drops_by(host: &Host, reason: &str, before: u64) {
    eventually(&format!("{FRAMES} drops {reason}"), || dropped(host, reason) >= before + FRAMES as u64);
    assert_eq!(dropped(host, reason), before + FRAMES as u64, "{reason}");
}

#[test]
fn a_stranger_that_inherits_a_tenants_ifindex_gets_nothing() {
    let site = left_alone();
    let host = &site.host;
    let index = host.ifindex("eth1");
    host.netns.cmd("ip link del eth1");
    let (inherited, peer) = stranger(&host.netns, "stranger", index);
    send_from_far(&site, b"inherit");
    drops_by(host, "target_gone", 0);
    assert_eq!((inherited.drain(), peer.drain()), (Vec::new(), Vec::new()));
    let status = host.status();
    assert_eq!(told(&status, "target_gone"), FRAMES as u64, "{status:#}");
    // A program of ours that runs there anyway sends nothing under the tenant's name.
    attach_pinned(&host.netns, "stranger", "egress", FOREIGN_PRIORITY, &program_pin(host, "handle_egress"));
    let wire = Tap::on(&site.underlay.netns, "p0");
    let frame = ethernet(BROADCAST, mac(&host.netns, "stranger"), EXPERIMENT, b"inherit");
    (0..FRAMES).for_each(|_| inherited.send(&frame));
    drops_by(host, "wrong_device", 0);
    assert_eq!((wire.received(b"inherit"), peer.received(b"inherit")), (0, 0));
    // The next pass cleans up: nothing refers to that index any more.
    host.apply();
    assert_eq!(host.dump("if2tunkey").as_array().unwrap().len(), 0);
    let mapping = host.mapping("red/eth1");
    assert_eq!(mapping["state"], "pending", "{mapping:#}");
}

#[test]
fn a_port_in_another_namespace_sends_nothing_there_and_gets_nothing() {
    let site = left_alone();
    let host = &site.host;
    let (port, tunnel) = (host.ifindex("eth1"), host.ifindex("vxlan0"));
    let other = Netns::new();
    quiet(&other);
    let (victim, victim_peer) = stranger(&other, "victim", tunnel);
    host.netns.cmd(&format!("ip link set eth1 netns {}", other.name));
    other.cmd("ip link set eth1 up");
    assert_eq!(ifindex(&other, "eth1"), port, "it keeps its index, or this test is about something else");
    // And at home a stranger takes the index.
    let (inherited, inherited_peer) = stranger(&host.netns, "stranger", port);

    let (moved, peer) = (Tap::on(&other, "eth1"), Tap::on(&site.eth1_peer, "eth0"));
    let wire = Tap::on(&site.underlay.netns, "p0");
    let frame = ethernet(BROADCAST, mac(&other, "eth1"), EXPERIMENT, b"moved");
    (0..FRAMES).for_each(|_| moved.send(&frame));
    if clsact() {
        // The kernel takes filters off a device that moves: it is an ordinary veth there.
        peer.expect("the moved port's peer", b"moved", FRAMES);
    } else {
        drops_by(host, "wrong_device", 0);
        assert_eq!(peer.received(b"moved"), 0);
    }
    assert_eq!((victim.drain(), victim_peer.drain()), (Vec::new(), Vec::new()), "raw through a foreign ifindex");
    assert_eq!(wire.received(b"moved"), 0);

    moved.drain();
    send_from_far(&site, b"to the moved");
    drops_by(host, "target_gone", 0);
    let all = [moved, peer, inherited, inherited_peer, victim, victim_peer];
    let got: Vec<usize> = all.iter().map(|tap| tap.received(b"to the moved")).collect();
    assert_eq!(got, [0; 6]);
}

#[test]
fn an_inherited_tunnel_ifindex_gets_nothing() {
    let site = left_alone();
    let host = &site.host;
    let index = host.ifindex("vxlan0");
    host.netns.cmd("ip link del vxlan0");
    let (inherited, peer) = stranger(&host.netns, "stranger", index);
    let (eth1, eth1_peer) = (Tap::on(&host.netns, "eth1"), Tap::on(&site.eth1_peer, "eth0"));
    let wire = Tap::on(&site.underlay.netns, "p0");
    let frame = ethernet(BROADCAST, mac(&host.netns, "eth1"), EXPERIMENT, b"out");
    (0..FRAMES).for_each(|_| eth1.send(&frame));
    drops_by(host, "target_gone", 0);
    let got: Vec<usize> = [&inherited, &peer, &wire, &eth1_peer].iter().map(|tap| tap.received(b"out")).collect();
    assert_eq!(got, [0; 4]);

    // The other direction: a foreign tunnel device with that index, even with our program on it, feeds no tenant.
    drop((inherited, peer));
    host.netns.cmd("ip link del stranger");
    host.netns.cmd(&format!("ip link add foreign index {index} type vxlan external dstport 4789 local 10.0.0.1"));
    host.netns.cmd("ip link set foreign up");
    assert_eq!(host.ifindex("foreign"), index);
    attach_pinned(&host.netns, "foreign", "ingress", FOREIGN_PRIORITY, &program_pin(host, "handle_ingress"));
    eth1.drain();
    send_from_far(&site, b"in");
    drops_by(host, "wrong_device", 0);
    assert_eq!((eth1.received(b"in"), eth1_peer.received(b"in")), (0, 0));
}

#[test]
fn a_tunnel_device_in_another_namespace_feeds_nobody_there() {
    let site = left_alone();
    let host = &site.host;
    let (port, tunnel) = (host.ifindex("eth1"), host.ifindex("vxlan0"));
    let other = Netns::new();
    quiet(&other);
    let (victim, victim_peer) = stranger(&other, "victim", port);
    host.netns.cmd(&format!("ip link set vxlan0 netns {}", other.name));
    other.cmd("ip link set vxlan0 up");
    assert_eq!(ifindex(&other, "vxlan0"), tunnel, "it keeps its index, or this test is about something else");
    let (moved, eth1) = (Tap::on(&other, "vxlan0"), Tap::on(&host.netns, "eth1"));
    // It still serves the socket of the namespace where it was made.
    send_from_far(&site, b"moved");
    moved.expect("the moved tunnel device", b"moved", FRAMES);
    if !clsact() {
        drops_by(host, "wrong_device", 0);
    }
    let got: Vec<usize> = [&victim, &victim_peer, &eth1].iter().map(|tap| tap.received(b"moved")).collect();
    assert_eq!(got, [0; 3]);
    // Nor does what is sent at home.
    let frame = ethernet(BROADCAST, mac(&host.netns, "eth1"), EXPERIMENT, b"home");
    (0..FRAMES).for_each(|_| eth1.send(&frame));
    drops_by(host, "target_gone", 0);
    assert_eq!(moved.received(b"home"), 0);
}

/// Everything that a run could alter: maps, pins, devices, hooks, accepted state.
fn live_state(host: &Host) -> String {
    let mut text = String::new();
    for map in ["conf", "tunkey2if", "if2tunkey", "devs", "meta"] {
        text.push_str(&format!("{map}: {}\n", host.dump(map)));
    }
    text.push_str(&harness::run("find", &[host.pins.to_str().unwrap()]));
    text.push_str(&harness::run(
        "find",
        &[host.files.path().to_str().unwrap(), "-exec", "stat", "-c", "%n %s %y", "{}", "+"],
    ));
    text.push_str(&host.netns.cmd("ip -d link"));
    for interface in ["eth1", "eth2", "vxlan0"] {
        text.push_str(&host.netns.cmd(&format!("tc filter show dev {interface} ingress")));
        text.push_str(&host.netns.cmd(&format!("tc filter show dev {interface} egress")));
    }
    text
}

#[test]
fn a_run_from_the_wrong_namespace_is_refused() {
    let site = site();
    let host = &site.host;
    host.apply();
    let other = site.underlay.host(5);
    let devices = other.netns.cmd("ip -o link");
    // The last entry of meta holds the cookie (TM_META_NAMESPACE).
    let cookie = host.dump("meta")[64]["formatted"]["value"]["build"].as_u64().unwrap();
    assert_ne!(cookie, 0);
    host.status();
    let before = live_state(host);
    // Everything as the rightful one says, but from another namespace.
    for arguments in [&["plan"][..], &["apply"], &["apply", "--allow-deletes"], &["run"], &["status"], &["down"]] {
        let command = host.command(arguments);
        let inside: Vec<_> = command.get_args().skip(1).map(ToOwned::to_owned).collect();
        let mut wrong = std::process::Command::new("nsenter");
        wrong.arg(format!("--net={}", other.netns.path())).args(inside);
        for (name, value) in command.get_envs() {
            wrong.env(name, value.unwrap());
        }
        let pipe = std::process::Stdio::piped;
        let mut child = wrong.stdin(std::process::Stdio::null()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
        let mut ended = None;
        let end = std::time::Instant::now() + PATIENCE;
        while ended.is_none() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            ended = child.try_wait().unwrap();
        }
        if ended.is_none() {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(ended.and_then(|s| s.code()), Some(1), "{arguments:?}: {message}");
        assert!(message.contains("belong to another network namespace"), "{arguments:?}: {message}");
        assert!(message.contains(&cookie.to_string()), "{arguments:?} names the namespace: {message}");
        assert!(message.contains(host.pins.to_str().unwrap()), "{arguments:?} names the pins: {message}");
        assert_eq!(live_state(host), before, "{arguments:?}");
        assert_eq!(other.netns.cmd("ip -o link"), devices, "{arguments:?}");
    }
    // The rightful one goes on.
    host.expect(0, &["plan", "--detailed-exitcode"]);
    assert_eq!(host.status()["in_force"], true);
    let mut stack = Stack::of(&host.netns);
    check(&site, &mut stack, "afterwards", Way::Open, Way::Open);
}

const MESH: &str = r"
version: 1
nodes:
  host0: 172.16.1.100
  host1: 172.16.1.101
  host2: 172.16.1.102
tunnels:
  vxlan0: {kind: vxlan, create: true}
tenants:
  red: {id: 10000, bridge: br-red}
  blue: {id: 10001, bridge: br-blue}
";

/// Three hosts on one topology, daemons stopped, with workloads `names` of a tenant on the bridge of that tenant.
struct Mesh {
    hosts: Vec<Host>,
    underlay: Underlay,
    _directory: tempfile::TempDir,
}

impl Mesh {
    fn new() -> Self {
        let underlay = Underlay::new();
        quiet(&underlay.netns);
        let directory = tempfile::tempdir().unwrap();
        write_atomically(&directory.path().join("mesh.yaml"), MESH);
        let mut hosts: Vec<Host> = (0..3).map(|n| underlay.host(n)).collect();
        for host in &mut hosts {
            quiet(&host.netns);
            host.use_topology(directory.path());
            assert_eq!(host.daemon().stop(), Some(0));
        }
        Self { hosts, underlay, _directory: directory }
    }

    /// One workload a host on that tenant's bridge, 192.168.50.(1+n) with the offset given.
    fn workloads(&self, tenant: &str, name: &str, offset: usize) -> Vec<Netns> {
        let one = |(n, host): (usize, &Host)| {
            let workload = host.workload(name, &format!("192.168.50.{}/24", n + 1 + offset));
            quiet(&workload);
            host.netns.cmd(&format!("ip link set {name} master br-{tenant}"));
            workload
        };
        self.hosts.iter().enumerate().map(one).collect()
    }
}

/// The generated ports of a tenant.
fn ports(host: &Host, tenant: &str) -> Vec<String> {
    let status = host.status();
    let mappings = status["mappings"].as_array().unwrap().iter().filter(|m| m["tenant"] == tenant);
    mappings.map(|m| m["interface"].as_str().unwrap().to_owned()).collect()
}

/// One broadcast frame from each workload in turn arrives exactly once at each other one, and a second later still.
fn one_copy_each(mesh: &Mesh, what: &str, workloads: &[&Netns]) {
    let taps: Vec<Tap> = workloads.iter().map(|w| Tap::on(w, "eth0")).collect();
    let wires: Vec<Tap> = (0..3).map(|n| Tap::on(&mesh.underlay.netns, &format!("p{n}"))).collect();
    for (from, tap) in taps.iter().enumerate() {
        let marker = format!("<{what} from {from}>");
        tap.send(&ethernet(BROADCAST, mac(workloads[from], "eth0"), EXPERIMENT, marker.as_bytes()));
        let mut seen = vec![0; taps.len()];
        let look = |seen: &mut Vec<usize>| {
            for (count, tap) in seen.iter_mut().zip(&taps) {
                *count += tap.received(marker.as_bytes());
            }
        };
        let others = |seen: &[usize]| seen.iter().enumerate().filter(|(n, _)| *n != from).all(|(_, c)| *c > 0);
        eventually(&format!("{marker} everywhere"), || {
            look(&mut seen);
            others(&seen)
        });
        std::thread::sleep(Duration::from_secs(1));
        look(&mut seen);
        let expected: Vec<usize> = (0..taps.len()).map(|n| usize::from(n != from)).collect();
        assert_eq!(seen, expected, "copies of {marker}");
        let sent: Vec<usize> = wires.iter().map(|w| w.received(marker.as_bytes())).collect();
        let expected: Vec<usize> = (0..3).map(|n| if n == from % 3 { 2 } else { 0 }).collect();
        assert_eq!(sent, expected, "packets of {marker} that each host put on the underlay");
    }
}

#[test]
fn a_hostile_program_makes_no_loop_and_a_router_workload_may_route() {
    let mesh = Mesh::new();
    let (first, second) = (mesh.workloads("red", "w-red", 0), mesh.workloads("red", "x-red", 100));
    let workloads: Vec<&Netns> = first.iter().chain(&second).collect();
    let marks = Probe::load(&first[1]);
    marks.attach(&first[1], "eth0", "see_tc_index");
    one_copy_each(&mesh, "plain", &workloads);
    let plain = marks.seen();
    assert!(plain[1] > 0, "tc_index of what comes from the tunnel: {plain:?}");

    let new = router_workload_routes(&mesh, &first);
    assert!(new[1] >= 3, "marked as if from the tunnel, and passed all the same: {new:?}");

    let probes: Vec<Probe> = mesh.hosts.iter().map(|h| Probe::load(&h.netns)).collect();
    for (host, probe) in mesh.hosts.iter().zip(&probes) {
        let ports = ports(host, "red");
        assert_eq!(ports.len(), 2);
        for port in ports.iter().map(String::as_str).chain(["w-red", "x-red"]) {
            probe.attach(&host.netns, port, "hostile");
        }
    }
    let before = marks.seen();
    one_copy_each(&mesh, "hostile", &workloads);
    let after = marks.seen();
    assert_eq!(after[1], before[1], "the hostile program took every mark away");
    assert!(after[0] > before[0]);
    // Isolation in the bridge is one guard, our program the other.
    let split = |mesh: &Mesh| mesh.hosts.iter().map(|h| dropped(h, "split_horizon")).sum::<u64>();
    assert_eq!(split(&mesh), 0);
    for host in &mesh.hosts {
        for port in ports(host, "red") {
            host.netns.cmd(&format!("bridge link set dev {port} isolated off"));
        }
    }
    one_copy_each(&mesh, "hostile and not isolated", &workloads);
    assert_eq!(split(&mesh), 12, "each of 6 frames, at both hosts that got it from the tunnel");
    router_workload_routes(&mesh, &first);
}

/// Workload 1 sends to workload 2 by way of workload 0. Answers with the packets that came back from there, by tc_index.
fn router_workload_routes(mesh: &Mesh, workloads: &[Netns]) -> Vec<u64> {
    let [router, from, _] = workloads else { panic!("three workloads") };
    let host = &mesh.hosts[0].netns;
    for which in ["all", "eth0"] {
        knob(router, &format!("ipv4/conf/{which}/send_redirects"), "0");
        knob(from, &format!("ipv4/conf/{which}/accept_redirects"), "0");
    }
    assert_pings(from, "192.168.50.3");
    from.cmd("ip route add 192.168.50.3/32 via 192.168.50.1");
    knob(router, "ipv4/ip_forward", "0");
    assert!(silent(from, "192.168.50.3"), "the way is through the router");
    knob(router, "ipv4/ip_forward", "1");
    let marks = Probe::load(host);
    marks.attach_first(host, "w-red", "see_tc_index");
    assert_pings(from, "192.168.50.3");
    from.cmd("ip route del 192.168.50.3/32");
    host.cmd(&format!("tc filter del dev w-red ingress prio {}", FOREIGN_PRIORITY - 1));
    let new = marks.seen().to_vec();
    assert!(new.iter().sum::<u64>() >= 3, "hairpin traffic by tc_index: {new:?}");
    new
}

#[test]
fn tenants_with_equal_addresses_get_their_own_frames_only() {
    let mesh = Mesh::new();
    let tenants = [("red", mesh.workloads("red", "w-red", 0)), ("blue", mesh.workloads("blue", "w-blue", 0))];
    let address = |n: usize| [2, 0, 0, 0, 1, u8::try_from(n).unwrap()];
    let mut taps: Vec<Vec<Tap>> = Vec::new();
    for (_, workloads) in &tenants {
        for (n, workload) in workloads.iter().enumerate() {
            workload.cmd(&format!("ip link set eth0 address 02:00:00:00:01:{n:02x}"));
        }
        taps.push(workloads.iter().map(|w| Tap::on(w, "eth0")).collect());
    }
    let ip = |n: usize| Ipv4Addr::new(192, 168, 50, u8::try_from(n + 1).unwrap());
    let rounds = scaled(200);
    for round in 0..rounds {
        for ((tenant, _), taps) in tenants.iter().zip(&taps) {
            for (from, tap) in taps.iter().enumerate() {
                let text = |to: &str| format!("<tenant={tenant}><from={from}><to={to}><round={round}>");
                tap.send(&ethernet(BROADCAST, address(from), EXPERIMENT, text("all").as_bytes()));
                for to in (0..3).filter(|to| *to != from) {
                    let text = text(&to.to_string());
                    tap.send(&udp(address(to), address(from), (ip(from), ip(to)), 9, text.as_bytes()));
                }
            }
        }
        // Every workload: a broadcast and a unicast from each of the two others.
        for ((tenant, _), taps) in tenants.iter().zip(&taps) {
            for (own, tap) in taps.iter().enumerate() {
                let mut mine = Vec::new();
                eventually(&format!("4 frames of round {round} at {tenant} {own}"), || {
                    for seen in tap.drain().into_iter().filter(|s| !s.outgoing && contains(&s.bytes, b"<tenant=")) {
                        let text = String::from_utf8_lossy(&seen.bytes).into_owned();
                        assert!(text.contains(&format!("<tenant={tenant}>")), "{tenant} {own} got {text:?}");
                        let for_me = text.contains("<to=all>") || text.contains(&format!("<to={own}>"));
                        // Anything else is a unicast that a bridge flooded before it had learned.
                        if for_me {
                            mine.push(text);
                        }
                    }
                    mine.len() >= 4
                });
                mine.sort();
                mine.dedup();
                assert_eq!(mine.len(), 4, "{mine:#?}");
            }
        }
    }
    for host in &mesh.hosts {
        let status = host.status();
        for mapping in status["mappings"].as_array().unwrap() {
            let traffic = &mapping["traffic"];
            assert!(traffic["rx_packets"].as_u64().unwrap() >= 2 * rounds, "{mapping:#}");
            assert!(traffic["tx_packets"].as_u64().unwrap() >= 2 * rounds, "{mapping:#}");
            assert_eq!(traffic["drops"], serde_json::json!({}), "{mapping:#}");
        }
        assert_eq!((&status["unknown"], &status["drops"]), (&serde_json::json!([]), &serde_json::json!({})));
    }
}
