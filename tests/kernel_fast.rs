//! The fast lane without a daemon: routes and neighbours that change are followed at once, frames are addressed as the
//! neighbour would, outer packets have the ids that they need, and what isn't plain takes the tunnel device. And with one:
//! the underlay device is recreated, or is put into a VRF and taken out again.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use world::frames::Capture;
use world::harness::{Netns, veth};
use world::{Host, Underlay, assert_pings, eventually, pings};

/// Addresses of the tunnel's ends that belong to no underlay device, and the next hops to them by either device.
struct Family {
    flag: &'static str,
    ends: [&'static str; 2],
    bits: u8,
    hops: [[&'static str; 2]; 2],
}

const V4: Family = Family {
    flag: "-4",
    ends: ["10.255.0.1", "10.255.0.2"],
    bits: 32,
    hops: [["172.16.1.100", "172.16.1.101"], ["172.16.2.100", "172.16.2.101"]],
};
const V6: Family = Family {
    flag: "-6",
    ends: ["fd01::1", "fd01::2"],
    bits: 128,
    hops: [["fd00::100", "fd00::101"], ["fd02::100", "fd02::101"]],
};

/// Two hosts with two underlay devices each and an endpoint between them; applied once, no daemon runs.
struct Site {
    hosts: Vec<Host>,
    workloads: Vec<Netns>,
    _underlay: Underlay,
}

const FAR: &str = "192.168.9.2";
const PORT: u16 = 9999;

impl Site {
    fn new(family: &Family) -> Self {
        let underlay = Underlay::new();
        let hosts: Vec<Host> = (0..2).map(|n| underlay.host(n)).collect();
        veth((&hosts[0].netns, "eth1"), (&hosts[1].netns, "eth1"));
        let mut workloads = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            let run = |line: &str| host.netns.cmd(line);
            run(&format!("ip addr add 172.16.2.{}/24 dev eth1", 100 + n));
            run(&format!("ip addr add fd02::{}/64 dev eth1 nodad", 100 + n));
            run(&format!("ip addr add {}/{} dev lo", family.ends[n], family.bits));
            // What comes by the other way than it would be answered by is right here.
            for name in ["all", "eth0", "eth1"] {
                run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=0"));
            }
            workloads.push(host.workload("wire0", &format!("192.168.9.{}/24", n + 1)));
            host.write(
                "a.yaml",
                &format!(
                    "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: \"{}\", fast: on}}\nmappings:\n  \
                     - {{tenant: red, interface: wire0, id: 9, remote: \"{}\", attach: endpoint}}\n",
                    family.ends[n],
                    family.ends[1 - n]
                ),
            );
        }
        let site = Self { hosts, workloads, _underlay: underlay };
        site.route(family, 0);
        site.hosts.iter().for_each(|host| drop(host.apply()));
        site
    }

    /// Leads both ways over one of the underlay devices.
    fn route(&self, family: &Family, device: usize) {
        for (n, host) in self.hosts.iter().enumerate() {
            let (end, bits, hop) = (family.ends[1 - n], family.bits, family.hops[device][1 - n]);
            let source = family.ends[n];
            let flag = family.flag;
            host.netns.cmd(&format!("ip {flag} route replace {end}/{bits} via {hop} dev eth{device} src {source}"));
        }
    }

    fn fast(&self) -> u64 {
        self.hosts[0].mapping("red/wire0")["traffic"]["tx_fast"].as_u64().unwrap()
    }

    /// Packets that the first host sent by a device.
    fn sent(&self, device: &str) -> u64 {
        let path = format!("cat /sys/class/net/{device}/statistics/tx_packets");
        // sysfs shows the namespace that it was mounted in.
        let shown =
            self.hosts[0].netns.command(&["unshare", "-m", "sh", "-c", &format!("mount -t sysfs s /sys && {path}")]);
        shown.trim().parse().unwrap()
    }
}

fn routes_are_followed(family: &Family) {
    let site = Site::new(family);
    assert_pings(&site.workloads[0], FAR);
    for device in [1, 0, 1] {
        let name = format!("eth{device}");
        site.route(family, device);
        let (fast, sent) = (site.fast(), site.sent(&name));
        assert!(pings(&site.workloads[0], FAR, 20), "by {name}");
        assert!(site.fast() >= fast + 20, "the device lane was taken");
        assert!(site.sent(&name) >= sent + 20, "{name} wasn't");
    }
    // Without a route the tunnel device has no other answer either: nothing arrives, and nothing goes elsewhere.
    let (flag, end, bits) = (family.flag, family.ends[1], family.bits);
    site.hosts[0].netns.cmd(&format!("ip {flag} route replace unreachable {end}/{bits}"));
    let fast = site.fast();
    assert!(world::silent(&site.workloads[0], FAR));
    assert_eq!(site.fast(), fast);
    site.route(family, 0);
    assert_pings(&site.workloads[0], FAR);
}

#[test]
fn routes_are_followed_over_ipv4() {
    routes_are_followed(&V4);
}

#[test]
fn routes_are_followed_over_ipv6() {
    routes_are_followed(&V6);
}

/// Makes a host ask its neighbours soon whether they are still there: after about so many milliseconds.
fn ask_often(host: &Host, family: &Family, reachable: u32) {
    let kind = if family.flag == "-4" { "ipv4" } else { "ipv6" };
    let settings = [
        ("base_reachable_time_ms", reachable),
        ("retrans_time_ms", 100),
        ("ucast_solicit", 1),
        ("delay_first_probe_time", 1),
    ];
    for (name, value) in settings {
        host.netns.cmd(&format!("sysctl -qw net.{kind}.neigh.eth0.{name}={value}"));
    }
}

/// A next hop whose hardware address changes without a word is asked for again, as for any packet of the host's own.
fn neighbours_are_followed(family: &Family) {
    let site = Site::new(family);
    site.hosts.iter().for_each(|host| ask_often(host, family, 200));
    assert_pings(&site.workloads[0], FAR);
    site.hosts[1].netns.cmd("ip link set eth0 address 02:00:00:00:77:01");
    eventually("the neighbour is found again", || pings(&site.workloads[0], FAR, 1));
    let fast = site.fast();
    assert!(pings(&site.workloads[0], FAR, 10));
    assert!(site.fast() >= fast + 10);
}

#[test]
fn neighbours_are_followed_over_ipv4() {
    neighbours_are_followed(&V4);
}

#[test]
fn neighbours_are_followed_over_ipv6() {
    neighbours_are_followed(&V6);
}

/// Packets of one flow to the far workload, many of them in every jiffy, until it is told to stop.
fn stream(from: &Netns, stop: &AtomicBool) {
    let socket = from.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..50 {
            socket.send_to(&[0; 64], (FAR, PORT)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same where so much is sent that the fast lane writes most frames itself, without the neighbour.
fn a_busy_neighbour_is_followed(family: &Family) {
    let underlay = Underlay::new();
    let (hosts, workloads) = wired_by(&underlay, &family.hops[0]);
    for host in &hosts {
        host.apply();
        ask_often(host, family, 2400);
    }
    assert_pings(&workloads[0], FAR);
    // What the workloads ask each other would go by the tunnel device, which asks for its neighbours itself.
    for (workload, other) in workloads.iter().zip([FAR, "192.168.9.1"]) {
        workload.cmd("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        workload.cmd(&format!("ip neigh change {other} dev eth0 nud permanent"));
    }
    let receiver = workloads[1].enter(|| UdpSocket::bind((FAR, PORT)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let arrive = |count: usize| (0..count).all(|_| receiver.recv(&mut [0; 128]).is_ok());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| stream(&workloads[0], &stop));
        let followed = std::panic::catch_unwind(AssertUnwindSafe(|| {
            eventually("packets arrive", || arrive(1000));
            // Half as long again as a neighbour counts as there, at most: then nobody asks for one that isn't sent by.
            std::thread::sleep(Duration::from_secs(4));
            hosts[1].netns.cmd("ip link set eth0 address 02:00:00:00:77:01");
            // What was there before.
            receiver.set_nonblocking(true).unwrap();
            while receiver.recv(&mut [0; 128]).is_ok() {}
            receiver.set_nonblocking(false).unwrap();
            eventually("the neighbour is found again", || arrive(1000));
        }));
        stop.store(true, Ordering::Relaxed);
        followed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(hosts[0].mapping("red/wire0")["traffic"]["tx_fast"].as_u64().unwrap() > 2000);
}

#[test]
fn a_busy_neighbour_is_followed_over_ipv4() {
    a_busy_neighbour_is_followed(&V4);
}

#[test]
fn a_busy_neighbour_is_followed_over_ipv6() {
    a_busy_neighbour_is_followed(&V6);
}

/// What becomes of a tenant's frame in the host's program, before it is sent: of several, one right after the other.
fn encapsulated<const TIMES: usize>(host: &Host) -> [Vec<u8>; TIMES] {
    const REDIRECT: u32 = 7;
    let program = SchedClassifier::from_pin(host.pin("programs/handle_egress")).unwrap();
    let ifindex = host.ifindex("wire0").to_ne_bytes();
    // ingress_ifindex and ifindex of struct __sk_buff.
    let context = [&[0; 36][..], &ifindex, &ifindex].concat();
    let frame = plain_frame();
    let mut frames = [(); TIMES].map(|()| vec![0; 512]);
    host.netns.enter(|| {
        for out in &mut frames {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&frame);
            options.ctx_in = Some(&context);
            options.data_out = Some(out);
            let result = program.test_run(options).unwrap();
            assert_eq!(result.return_value, REDIRECT);
            out.truncate(result.data_size_out as usize);
        }
    });
    frames
}

/// An IPv4 and UDP frame of the near workload's.
fn plain_frame() -> Vec<u8> {
    let mut frame =
        [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0][..], &[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]].concat();
    frame.extend([192, 168, 9, 1, 192, 168, 9, 2, 0x9c, 0x40, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// A frame is the same whichever way it is sent: with the addresses that the neighbour would give it, or without, for the
/// neighbour to give.
fn frames_are_addressed(family: &Family) {
    let underlay = Underlay::new();
    let (hosts, workloads) = wired_by(&underlay, &family.hops[0]);
    hosts.iter().for_each(|host| drop(host.apply()));
    assert_pings(&workloads[0], FAR);
    let mac = |host: &Host| {
        let link: Value = serde_json::from_str(&host.netns.cmd("ip -j link show dev eth0")).unwrap();
        let text = link[0]["address"].as_str().unwrap().to_owned();
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>()
    };
    let addresses = [mac(&hosts[1]), mac(&hosts[0])].concat();
    let (mut addressed, mut left) = (None, None);
    eventually("frames of both kinds", || {
        for mut frame in encapsulated::<20>(&hosts[0]) {
            let rest = frame.split_off(12);
            if frame == [0; 12] {
                left = Some(rest);
            } else {
                assert_eq!(frame, addresses);
                addressed = Some(rest);
            }
        }
        addressed.is_some() && left.is_some()
    });
    // But for the id and the checksum of an IPv4 header, which differ from packet to packet.
    let without = |mut frame: Vec<u8>| {
        if family.flag == "-4" {
            [4, 5, 10, 11].iter().for_each(|at| frame[2 + at] = 0);
        }
        frame
    };
    assert_eq!(addressed.map(without), left.map(without));

    // A packet later, in another jiffy: the first one goes by the neighbour.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(30));
        let [frame] = encapsulated(&hosts[0]);
        assert_eq!(frame[..12], [0; 12]);
    }
}

#[test]
fn frames_are_addressed_over_ipv4() {
    frames_are_addressed(&V4);
}

#[test]
fn frames_are_addressed_over_ipv6() {
    frames_are_addressed(&V6);
}

/// Where the source address says nothing of the device, every frame is left to the neighbour.
#[test]
fn frames_are_left_to_the_neighbour_where_the_device_is_not_known() {
    for family in [&V4, &V6] {
        let site = Site::new(family);
        assert_pings(&site.workloads[0], FAR);
        assert!(encapsulated::<200>(&site.hosts[0]).iter().all(|frame| frame[..12] == [0; 12]));
    }
}

/// Of packets that may be fragmented, those of a flow have ids that tell them apart; others have none.
#[test]
fn outer_packets_have_ids_where_they_may_be_fragmented() {
    const PACKETS: usize = 500;
    let underlay = Underlay::new();
    let (hosts, workloads) = wired(&underlay);
    hosts[1].apply();
    let mesh = std::fs::read_to_string(hosts[0].topology().join("a.yaml")).unwrap();
    for dont_fragment in [false, true] {
        hosts[0].write("a.yaml", &mesh.replace("fast: on", &format!("fast: on, df: {dont_fragment}")));
        hosts[0].apply();
        assert_pings(&workloads[0], FAR);
        let capture = Capture::on(&underlay.netns, "p0");
        let socket = workloads[0].enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        let mut ids = BTreeSet::new();
        for n in 0..PACKETS {
            socket.send_to(&(n as u64).to_be_bytes(), (FAR, PORT)).unwrap();
            capture.wait("the packet, by the fast lane", |frame| {
                let outer = frame.outer()?;
                let ours = outer.inner.ends_with(&(n as u64).to_be_bytes());
                ours.then(|| {
                    assert_eq!(outer.dont_fragment, dont_fragment);
                    ids.insert(u16::from_be_bytes([frame.bytes[18], frame.bytes[19]]));
                })
            });
        }
        if dont_fragment {
            assert_eq!(ids, BTreeSet::from([0]));
        } else {
            assert_eq!(ids.len(), PACKETS, "{ids:?}");
        }
        let traffic = hosts[0].mapping("red/wire0")["traffic"].clone();
        assert!(traffic["tx_fast"].as_u64().unwrap() >= PACKETS as u64, "{traffic}");
    }
}

/// Two hosts with an endpoint each, and what has to be in force on them.
fn wired(underlay: &Underlay) -> (Vec<Host>, Vec<Netns>) {
    wired_by(underlay, &V4.hops[0])
}

/// The same, their tunnel between these addresses.
fn wired_by(underlay: &Underlay, ends: &[&str; 2]) -> (Vec<Host>, Vec<Netns>) {
    let hosts: Vec<Host> = (0..2).map(|n| underlay.host(n)).collect();
    let mut workloads = Vec::new();
    for (n, host) in hosts.iter().enumerate() {
        workloads.push(host.workload("wire0", &format!("192.168.9.{}/24", n + 1)));
        host.write(
            "a.yaml",
            &format!(
                "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: \"{}\", fast: on}}\nmappings:\n  \
                 - {{tenant: red, interface: wire0, id: 9, remote: \"{}\", attach: endpoint}}\n",
                ends[n],
                ends[1 - n]
            ),
        );
    }
    (hosts, workloads)
}

/// The device that carries the tunnel is deleted and made again: the daemon attaches its program there again, by itself.
#[test]
fn an_underlay_device_that_is_recreated_decapsulates_again() {
    let underlay = Underlay::new();
    let (hosts, workloads) = wired(&underlay);
    hosts[1].apply();
    let daemon = hosts[0].daemon();
    let received = || hosts[0].mapping("red/wire0")["traffic"]["rx_fast"].as_u64().unwrap();
    assert!(pings(&workloads[0], FAR, 10));
    assert!(received() >= 10);

    hosts[0].netns.cmd("ip link del eth0");
    underlay.netns.cmd(&format!("ip link add p0 type veth peer name eth0 netns {}", hosts[0].netns.name));
    underlay.netns.cmd("ip link set p0 master br0 up");
    hosts[0].netns.cmd("ip link set eth0 up");
    hosts[0].netns.cmd("ip addr add 172.16.1.100/24 dev eth0");
    eventually("the fast lane is back", || {
        let before = received();
        pings(&workloads[0], FAR, 2) && received() >= before + 2
    });
    daemon.stop();
    assert!(pings(&workloads[0], FAR, 5));
}

/// A VRF has its own routes, which nobody looks up for the tunnel device: while the underlay device is in one, the tunnel
/// device carries everything.
#[test]
fn an_underlay_device_in_a_vrf_is_left_to_the_tunnel_device() {
    let underlay = Underlay::new();
    let (hosts, workloads) = wired(&underlay);
    let host = &hosts[0];
    hosts[1].apply();
    let daemon = host.daemon();
    let lanes = || {
        let lanes = host.mapping("red/wire0")["lanes"].clone();
        ["sent_by_device", "received_by_device"].map(|way| lanes[way]["code"].as_str().unwrap_or("fast").to_owned())
    };
    let traffic = || {
        let traffic = host.mapping("red/wire0")["traffic"].clone();
        ["tx_packets", "tx_fast", "rx_packets", "rx_fast"].map(|what| traffic[what].as_u64().unwrap())
    };
    // Packets of ten round trips: sent and received, and of those the ones by the fast lane.
    let carried = || {
        assert_pings(&workloads[0], FAR);
        let before = traffic();
        assert!(pings(&workloads[0], FAR, 10));
        let after = traffic();
        [0, 1, 2, 3].map(|n| after[n] - before[n])
    };
    assert_eq!(lanes(), ["fast", "fast"]);
    assert!(carried().iter().all(|packets| *packets >= 10));

    let made = host.netns.try_cmd("ip link add vrf0 type vrf table 100");
    if !made.status.success() {
        // EOPNOTSUPP: a kernel without VRFs, on which none can be in the way.
        let errors = String::from_utf8_lossy(&made.stderr);
        assert!(errors.contains("Unknown device type"), "{errors}");
        return;
    }
    // The tunnel's socket is outside of the VRF, and so is the route that the tunnel device looks up.
    host.netns.cmd("sysctl -qw net.ipv4.udp_l3mdev_accept=1");
    host.netns.cmd("ip link set vrf0 up");
    host.netns.cmd("ip link set eth0 master vrf0");
    host.netns.cmd("ip route add 172.16.1.0/24 dev eth0");
    eventually("the VRF is seen", || lanes() == ["routing-domain", "routing-domain"]);
    host.wait_in_force();
    let plan: Value = serde_json::from_str(&host.expect(0, &["plan", "--format", "json"])).unwrap();
    let told = plan["lanes"].as_array().unwrap().iter().find(|m| m["address"] == "red/wire0").unwrap();
    assert_eq!(
        (&told["sent_by_device"]["code"], &told["received_by_device"]["code"]),
        (&json!("routing-domain"), &json!("routing-domain"))
    );
    assert!(host.expect(0, &["plan"]).contains("eth0 is in the VRF vrf0"));
    assert!(host.expect(0, &["status"]).contains("eth0 is in the VRF vrf0"));
    let [sent, sent_fast, received, received_fast] = carried();
    assert!(sent >= 10 && received >= 10, "{sent} {received}");
    assert_eq!((sent_fast, received_fast), (0, 0));

    host.netns.cmd("ip link set eth0 nomaster");
    eventually("the fast lane is back", || lanes() == ["fast", "fast"]);
    host.wait_in_force();
    assert!(carried().iter().all(|packets| *packets >= 10));
    daemon.stop();
}
