//! Interfaces come, go, get other names and other namespaces, one by one and by the thousand: entries and programs
//! follow, and no packet reaches an interface that isn't the one named.
//!
//! What a stopped daemon leaves behind is in `kernel_safety.rs`, the recreation of single interfaces in
//! `kernel_lifecycle.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "links/flap.rs"]
mod flap;
mod safety;
mod world;

use harness::{Netns, renaming};
use safety::{BROADCAST, EXPERIMENT, Tap, ethernet, mac, quiet};
use std::collections::BTreeSet;
use world::live::*;
use world::*;

/// Our host with two ports, `ea` (id 1) and `eb` (id 2), and a far host with an ordinary vxlan device for each.
struct Site {
    host: Host,
    far: Host,
    daemon: Option<Daemon>,
    /// What is behind `ea` and `eb`.
    peers: [Netns; 2],
    _underlay: Underlay,
}

const TOPOLOGY: &str = "version: 1
tunnels: {vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}}
mappings:
  - {tenant: a, interface: ea, id: 1, remote: 172.16.1.101}
  - {tenant: b, interface: eb, id: 2, remote: 172.16.1.101}
";

impl Site {
    fn new() -> Self {
        let underlay = Underlay::new();
        let (mut host, far) = (underlay.host(0), underlay.host(1));
        [&underlay.netns, &host.netns, &far.netns].into_iter().for_each(quiet);
        for id in [1, 2] {
            let device = format!("vx{id} type vxlan id {id} local 172.16.1.101 remote 172.16.1.100 dstport 4789");
            far.netns.cmd(&format!("ip link add {device}"));
            far.netns.cmd(&format!("ip link set vx{id} up"));
        }
        let peers = ["ea", "eb"].map(|name| host.workload(name, "192.168.99.1/24"));
        peers.iter().for_each(quiet);
        host.extra_env.push(("TUNNEL_MESH_INTERVAL".into(), "86400".into()));
        host.write("a.yaml", TOPOLOGY);
        let daemon = Some(host.daemon());
        Self { host, far, daemon, peers, _underlay: underlay }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Sends frames with that marker from the far tenant `id`.
    fn send_from_far(&self, id: u32, marker: &str) {
        let interface = format!("vx{id}");
        let sender = Tap::on(&self.far.netns, &interface);
        let frame = ethernet(BROADCAST, mac(&self.far.netns, &interface), EXPERIMENT, marker.as_bytes());
        (0..FRAMES).for_each(|_| sender.send(&frame));
    }

    /// Both ways through that interface, as the tenant of that id, and nothing elsewhere.
    fn assert_carries(&self, interface: &str, id: u32, what: &str) {
        let marker = format!("<{what} {id}>");
        let tap = Tap::on(&self.host.netns, interface);
        let others: Vec<Tap> = ["ea", "eb", "ec"]
            .iter()
            .filter(|o| **o != interface && exists(&self.host.netns, o))
            .map(|o| Tap::on(&self.host.netns, o))
            .collect();
        self.send_from_far(id, &marker);
        tap.expect(what, marker.as_bytes(), FRAMES);
        assert!(others.iter().all(|o| o.received(marker.as_bytes()) == 0), "{what}");

        let (right, wrong) =
            (Tap::on(&self.far.netns, &format!("vx{id}")), Tap::on(&self.far.netns, &format!("vx{}", 3 - id)));
        let marker = format!("<{what} out {id}>");
        let frame = ethernet(BROADCAST, mac(&self.host.netns, interface), EXPERIMENT, marker.as_bytes());
        (0..FRAMES).for_each(|_| tap.send(&frame));
        right.expect(what, marker.as_bytes(), FRAMES);
        assert_eq!(wrong.received(marker.as_bytes()), 0, "{what}");
    }

    /// `if2tunkey`, `devs` and the programs speak of exactly these interfaces.
    fn assert_only(&self, interfaces: &[&str], what: &str) {
        self.host.wait_in_force();
        let expected: BTreeSet<u32> = interfaces.iter().map(|i| self.host.ifindex(i)).collect();
        let all: BTreeSet<u32> = mapped(&self.host).into_iter().collect();
        assert_eq!(all, expected, "{what}: if2tunkey");
        let devs: BTreeSet<u32> =
            devices(&self.host).into_iter().filter(|(slot, _)| *slot >= 64).map(|(_, i)| i).collect();
        assert_eq!(devs, expected, "{what}: devs");
        let hooks = attachments(&self.host);
        let on: BTreeSet<&str> = hooks.keys().filter(|(_, d)| d == "egress").map(|(i, _)| i.as_str()).collect();
        assert_eq!(on, interfaces.iter().copied().collect(), "{what}: programs");
        assert!(hooks.values().all(|(program, _)| program.is_number()), "{what}: {hooks:?}");
    }

    /// Waits for that state of the mapping, and for the pass to end.
    fn await_state(&self, address: &str, state: &str) {
        eventually(&format!("{address} is {state}"), || state_of(&self.host, address) == state);
    }
}

/// Frames for each check.
const FRAMES: usize = 10;

#[test]
fn a_name_decides_whatever_is_renamed() {
    let site = Site::new();
    let ip = |line: &str| drop(site.host.netns.cmd(&format!("ip link {line}")));
    site.assert_only(&["ea", "eb"], "at first");
    let (ea, eb) = (site.host.ifindex("ea"), site.host.ifindex("eb"));

    // Away: its entries and program go, and it gets nothing.
    ip_batch(&site.host.netns, &renaming("ea", "other"));
    site.await_state("a/ea", "pending");
    site.assert_only(&["eb"], "renamed away");
    let (tap, peer) = (Tap::on(&site.host.netns, "other"), Tap::on(&site.peers[0], "eth0"));
    let before = safety::dropped(&site.host, "unknown_key");
    site.send_from_far(1, "renamed");
    eventually("they are dropped", || safety::dropped(&site.host, "unknown_key") >= before + FRAMES as u64);
    assert_eq!((tap.received(b"renamed"), peer.received(b"renamed")), (0, 0));
    site.assert_carries("eb", 2, "the other one");
    // And back.
    ip_batch(&site.host.netns, &renaming("other", "ea"));
    site.await_state("a/ea", "active");
    site.assert_only(&["ea", "eb"], "renamed back");
    assert_eq!(site.host.ifindex("ea"), ea);
    site.assert_carries("ea", 1, "renamed back");

    // Swapped, in steps and at once: each tenant has the interface of that name.
    for round in 0..4 {
        ip_batch(&site.host.netns, &(renaming("ea", "x") + &renaming("eb", "ea") + &renaming("x", "eb")));
        let swapped = round % 2 == 0;
        assert_eq!((site.host.ifindex("ea"), site.host.ifindex("eb")), if swapped { (eb, ea) } else { (ea, eb) });
        let right = || {
            let live = entries(&site.host, "if2tunkey");
            let id = |name: &str| live.get(site.host.ifindex(name).to_ne_bytes().as_slice()).map(|v| u32_at(v, 12));
            (id("ea"), id("eb")) == (Some(1), Some(2))
        };
        eventually("the entries are swapped", right);
        site.assert_only(&["ea", "eb"], "swapped");
        site.assert_carries("ea", 1, "swapped");
        site.assert_carries("eb", 2, "swapped");
    }
    // Another one takes the name over.
    ip_batch(&site.host.netns, &renaming("ea", "away"));
    ip("add ec type veth peer name ecx");
    ip("set ecx up");
    ip_batch(&site.host.netns, &renaming("ec", "ea"));
    ip("set ea up");
    eventually("the new one is mapped", || mapped(&site.host).contains(&site.host.ifindex("ea")));
    site.assert_only(&["ea", "eb"], "taken over");
    site.assert_carries("ea", 1, "taken over");
}

#[test]
fn moved_to_another_namespace_and_back() {
    let site = Site::new();
    let host = &site.host;
    let other = Netns::new();
    quiet(&other);
    for round in 0..3 {
        let index = host.ifindex("ea");
        // In the last round while the daemon is held still: the kernel alone keeps them apart.
        let held = round == 2;
        if held {
            site.daemon().signal(rustix::process::Signal::STOP);
        }
        let peer = Tap::on(&site.peers[0], "eth0");
        host.netns.cmd(&format!("ip link set ea netns {}", other.name));
        other.cmd("ip link set ea up");
        let there = Tap::on(&other, "ea");
        let stranger = (round > 0).then(|| {
            // A stranger takes its index, and in the end its name.
            host.netns.cmd(&format!("ip link add stranger index {index} type veth peer name strangerx"));
            host.netns.cmd("ip link set stranger up");
            host.netns.cmd("ip link set strangerx up");
            [Tap::on(&host.netns, "stranger"), Tap::on(&host.netns, "strangerx")]
        });
        if !held {
            site.await_state("a/ea", "pending");
            site.assert_only(&["eb"], "moved away");
        }
        let before: u64 = ["unknown_key", "target_gone"].iter().map(|r| safety::dropped(host, r)).sum();
        let marker = format!("<moved {round}>");
        site.send_from_far(1, &marker);
        eventually("they are dropped", || {
            ["unknown_key", "target_gone"].iter().map(|r| safety::dropped(host, r)).sum::<u64>()
                >= before + FRAMES as u64
        });
        assert_eq!((there.received(marker.as_bytes()), peer.received(marker.as_bytes())), (0, 0));
        for tap in stranger.iter().flatten() {
            assert_eq!(tap.received(marker.as_bytes()), 0, "the stranger got a tenant's packets");
        }
        // What the stranger sends goes its own way.
        if let Some([stranger, beyond]) = &stranger {
            let (wire, frame) =
                (Tap::on(&site.far.netns, "vx1"), ethernet(BROADCAST, [2; 6], EXPERIMENT, marker.as_bytes()));
            (0..FRAMES).for_each(|_| stranger.send(&frame));
            beyond.expect("the stranger's frames", marker.as_bytes(), FRAMES);
            assert_eq!(wire.received(marker.as_bytes()), 0);
        }
        if held {
            site.daemon().signal(rustix::process::Signal::CONT);
            site.await_state("a/ea", "pending");
        }
        if stranger.is_some() {
            host.netns.cmd("ip link del stranger");
        }
        other.cmd(&format!("ip link set ea netns {}", host.netns.name));
        host.netns.cmd("ip link set ea up");
        site.await_state("a/ea", "active");
        site.assert_only(&["ea", "eb"], "moved back");
        site.assert_carries("ea", 1, "moved back");
        site.assert_carries("eb", 2, "beside");
    }
    // Away and back so fast that nothing was missing in between.
    for _ in 0..5 {
        host.netns.cmd(&format!("ip link set ea netns {}", other.name));
        other.cmd(&format!("ip link set ea netns {}", host.netns.name));
        host.netns.cmd("ip link set ea up");
    }
    site.await_state("a/ea", "active");
    site.assert_only(&["ea", "eb"], "to and fro");
    site.assert_carries("ea", 1, "to and fro");
}

#[test]
fn recreated_while_the_daemon_is_stopped_nothing_reaches_the_new_one_unless_it_is_the_one_named() {
    let mut site = Site::new();
    for (round, again) in ["same index", "another index"].iter().enumerate() {
        let index = site.host.ifindex("ea");
        assert_eq!(site.daemon.take().unwrap().stop(), Some(0));
        site.host.netns.cmd("ip link del ea");
        let chosen = if round == 0 { format!("index {index}") } else { String::new() };
        site.host.netns.cmd(&format!("ip link add ea {chosen} type veth peer name eax"));
        site.host.netns.cmd("ip link set eax up");
        site.host.netns.cmd("ip link set ea up");
        assert_eq!(site.host.ifindex("ea") == index, round == 0);
        // Nobody told the kernel that this is the one: it gets nothing, and sends nothing as the tenant.
        let (tap, beyond) = (Tap::on(&site.host.netns, "ea"), Tap::on(&site.host.netns, "eax"));
        let far = Tap::on(&site.far.netns, "vx1");
        let before = safety::dropped(&site.host, "target_gone");
        site.send_from_far(1, again);
        eventually("they are dropped", || safety::dropped(&site.host, "target_gone") >= before + FRAMES as u64);
        let frame = ethernet(BROADCAST, [2; 6], EXPERIMENT, again.as_bytes());
        assert_eq!((tap.received(again.as_bytes()), beyond.received(again.as_bytes())), (0, 0));
        (0..FRAMES).for_each(|_| tap.send(&frame));
        beyond.expect("an ordinary interface", again.as_bytes(), FRAMES);
        assert_eq!(far.received(again.as_bytes()), 0);
        // The daemon comes back and knows it by its name.
        site.daemon = Some(site.host.daemon());
        site.assert_only(&["ea", "eb"], again);
        site.assert_carries("ea", 1, again);
        site.assert_carries("eb", 2, again);
    }
}

#[test]
fn a_thousand_interfaces_flap_at_once_and_netlink_overruns_in_the_middle() {
    flap::run();
}
