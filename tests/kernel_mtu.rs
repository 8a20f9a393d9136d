//! What happens to packets that don't fit into the tunnel: who is told, what is told, and that TCP gets along.
//!
//! Most tests are written once and run over {port, endpoint} x {IPv4, IPv6 underlay}; the test's name says which.

#![allow(clippy::unwrap_used, missing_docs)]

mod mtu;
mod safety;
mod world;

use mtu::{Packet, Pair, Tagged, checksum, next_tagged, send_in_parts, show_tags, v4, v6};
use safety::{BROADCAST, Tap};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use world::frames::{Capture, Frame};
use world::harness::Netns;
use world::setup::{Attach, Over};
use world::stream::{receive, transfer};
use world::*;

/// The MTU that a namespace has learned for an address, if any.
fn learned(netns: &Netns, address: IpAddr) -> Option<u32> {
    let text = netns.cmd(&format!("ip route get {address}"));
    let mut words = text.split_whitespace();
    words.find(|w| *w == "mtu")?;
    words.next()?.parse().ok()
}

/// The checksum of an ICMP or ICMPv6 message with its own checksum: 0 where that is right.
fn message_sum(packet: &[u8]) -> u16 {
    match packet[0] >> 4 {
        4 => checksum(&[&packet[20..]]),
        _ => checksum(&[&packet[8..40], &[0, 0], &packet[4..6], &[0, 0, 0, 58], &packet[40..]]),
    }
}

/// The frame that a namespace gets next, but for what its own kernel says there.
fn next_frame(tap: &Tap, what: &str, want: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut found = None;
    eventually(what, || {
        found =
            found.take().or_else(|| tap.drain().into_iter().find(|s| !s.outgoing && want(&s.bytes)).map(|s| s.bytes));
        found.is_some()
    });
    found.unwrap()
}

fn is_answer(frame: &[u8]) -> bool {
    match (&frame[12..14], frame.len()) {
        ([0x08, 0x00], 34..) => frame[23] == 1 && frame[34] == 3,
        ([0x86, 0xdd], 54..) => frame[20] == 58 && frame[54] == 2,
        _ => false,
    }
}

// --- The test bodies that run over the matrix.

/// TCP finds out what fits, and sends that from then on; nothing is cut to pieces on the underlay.
fn tcp_learns_what_fits(attach: Attach, over: Over, fast: &str) {
    tcp_learns(&Pair::new(attach, over, fast), over.mtu());
}

fn tcp_learns(pair: &Pair, mtu: u32) {
    let [a, b] = &pair.workloads;
    let (wire, view) = (Capture::on(&pair.underlay.netns, "p0"), pair.tap(0));
    show_tags(&view);
    let (mut before, bytes) = (pair.too_big(), scaled(8 << 20));
    for address in [IpAddr::from(v4(1)), v6(1).into()] {
        assert_eq!(learned(a, address), None);
        transfer(a, b, &address.to_string(), bytes);
        assert_eq!(learned(a, address), Some(mtu), "{address}");
        let now = pair.too_big();
        assert!(now > before, "nothing was too big for {address}");
        before = now;
        // Sent in large pieces whose checksums were left to the hardware; the answers aren't.
        let answers = || std::iter::from_fn(|| next_tagged(&view)).filter(|f| is_answer(&f.bytes));
        let sums: Vec<_> = answers().map(|f| (f.complete, message_sum(&f.bytes[14..]))).collect();
        assert!(!sums.is_empty() && sums.iter().all(|sum| *sum == (true, 0)), "{sums:x?}");
    }
    let fragments = wire.seen().iter().filter(|f| f.outer().is_some_and(|o| o.fragment)).count();
    assert_eq!(fragments, 0, "fragments on the underlay");
}

/// UDP that the sender's kernel leaves in one piece until the last moment (UDP_SEGMENT): each part is measured.
fn udp_in_parts_is_answered(attach: Attach, over: Over, fast: &str) {
    parts_are_answered(&Pair::new(attach, over, fast));
}

fn parts_are_answered(pair: &Pair) {
    let [a, b] = &pair.workloads;
    let fits = pair.over.mtu();
    let tap = pair.tap(0);
    for (from, to) in [(IpAddr::from(v4(0)), IpAddr::from(v4(1))), (v6(0).into(), v6(1).into())] {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let there = b.enter(|| UdpSocket::bind((to, 0))).unwrap();
        there.set_read_timeout(Some(PATIENCE)).unwrap();
        let here = a.enter(|| UdpSocket::bind((from, 0))).unwrap();
        here.connect(there.local_addr().unwrap()).unwrap();
        let (before, part) = (pair.too_big(), usize::try_from(fits + 1 - headers).unwrap());
        assert_eq!(learned(a, to), None);
        send_in_parts(&here, part, 4);
        eventually("the sender has learned what fits", || learned(a, to) == Some(fits));
        assert_eq!(pair.too_big() - before, 4, "{to}");
        // One answer: it came as one.
        assert_eq!(tap.drain().iter().filter(|s| !s.outgoing && is_answer(&s.bytes)).count(), 1, "{to}");
        // The first try may give the error that the answer left.
        drop(here.take_error());
        send_in_parts(&here, part - 1, 4);
        let mut buffer = [0; 2048];
        for _ in 0..4 {
            assert_eq!(receive(&there, &mut buffer).0, part - 1);
        }
        assert_eq!(pair.too_big() - before, 4, "{to}");
    }
}

/// The answer, byte for byte: without a VLAN tag, with one, with two.
fn answers_are_the_kernels(attach: Attach, over: Over, fast: &str) {
    let pair = Pair::new(attach, over, fast);
    let [near, far] = pair.macs();
    let (here, there) = (pair.tap(0), pair.tap(1));
    show_tags(&here);
    // Groups are told things all the time.
    let next = || std::iter::from_fn(|| next_tagged(&here)).find(|f| f.bytes[0] & 1 == 0);
    let mut count = 0;
    for tags in [vec![], vec![(0x8100, 7)], vec![(0x88a8, 0x2009), (0x8100, 11)]] {
        let tagged = |packet: Packet| Packet { tags: tags.clone(), ..packet };
        let fits = usize::try_from(over.mtu()).unwrap() - 4 * tags.len();
        let (told, most) = (u32::try_from(fits).unwrap(), 1500 - 4 * tags.len());
        for packet in [Packet::v4(fits + 1, true), Packet::v4(most, true), Packet::v6(fits + 1), Packet::v6(most)] {
            let packet = tagged(packet);
            here.send(&packet.frame(far, near));
            let mut found = None;
            eventually(&format!("an answer to {} bytes with tags {tags:x?}", packet.bytes.len()), || {
                found = found.take().or_else(next);
                found.is_some()
            });
            // The kernel takes the outermost tag off.
            let expected = packet.clone().answer(told).frame(near, far);
            let expected = match tags.first() {
                Some(_) => [&expected[..12], &expected[16..]].concat(),
                None => expected,
            };
            assert_eq!(found, Some(Tagged { tag: tags.first().copied(), bytes: expected, complete: true }));
            count += 1;
        }
        // One byte less passes.
        for packet in [Packet::v4(fits, true), Packet::v6(fits)] {
            let packet = tagged(packet);
            here.send(&packet.frame(far, near));
            next_frame(&there, &format!("{fits} bytes with tags {tags:x?}"), |f| f.ends_with(&packet.bytes));
        }
        assert_eq!((pair.too_big(), next()), (count, None));
    }
    // By the lane that was asked for; where an older kernel has it is for the lanes' own tests to say.
    let sent = pair.hosts[0].status()["mappings"][0]["traffic"]["tx_fast"].as_u64().unwrap();
    assert!(if fast == "on" { sent > 0 || clsact() } else { sent == 0 }, "{sent} by the fast lane");
}

/// What must not be answered, or whose header can't be believed.
fn unanswerable() -> Vec<(&'static str, [u8; 6], Packet)> {
    let (to4, to6) = ((v4(0), v4(1)), (v6(0), v6(1)));
    let any4 = Ipv4Addr::UNSPECIFIED;
    let group4 = Ipv4Addr::new(224, 0, 0, 251);
    let group6: Ipv6Addr = "ff02::fb".parse().unwrap();
    let far = [0; 6];
    let udp = [0x9c, 0x40, 0x13, 0x88];
    let v4_udp = |addresses| Packet::v4_of(1500, true, 17, &udp, addresses);
    let v6_udp = |addresses| Packet::v6_of(1500, 17, &udp, addresses);
    let icmp = |kind: u8| Packet::v4_of(1500, true, 1, &[kind, 0, 0, 0], to4);
    let icmp6 = |kind: u8| Packet::v6_of(1500, 58, &[kind, 0, 0, 0], to6);
    vec![
        ("IPv4 that may be fragmented", far, Packet::v4(1500, false)),
        ("not IP", far, Packet::other(1500)),
        ("a later fragment", far, Packet::v4(1500, true).with(6, 0x40 | 1)),
        ("a broadcast frame", BROADCAST, Packet::v4(1500, true)),
        ("a multicast frame", [0x33, 0x33, 0, 0, 0, 0xfb], Packet::v6(1500)),
        ("to an IPv4 group", far, v4_udp((v4(0), group4))),
        ("to the IPv4 broadcast address", far, v4_udp((v4(0), Ipv4Addr::BROADCAST))),
        ("from no IPv4 address", far, v4_udp((any4, v4(1)))),
        ("from IPv4's loopback", far, v4_udp((Ipv4Addr::LOCALHOST, v4(1)))),
        ("from an IPv4 group", far, v4_udp((group4, v4(1)))),
        ("to an IPv6 group", far, v6_udp((v6(0), group6))),
        ("from no IPv6 address", far, v6_udp((Ipv6Addr::UNSPECIFIED, v6(1)))),
        ("from IPv6's loopback", far, v6_udp((Ipv6Addr::LOCALHOST, v6(1)))),
        ("from an IPv6 group", far, v6_udp((group6, v6(1)))),
        ("destination unreachable", far, icmp(3)),
        ("source quench", far, icmp(4)),
        ("redirect", far, icmp(5)),
        ("time exceeded", far, icmp(11)),
        ("parameter problem", far, icmp(12)),
        ("ICMPv6 destination unreachable", far, icmp6(1)),
        ("ICMPv6 packet too big", far, icmp6(2)),
        ("ICMPv6 parameter problem", far, icmp6(4)),
        ("ICMPv6 redirect", far, icmp6(137)),
        ("ICMPv6 error behind options", far, Packet::v6_of(1500, 60, &[58, 0, 1, 4, 0, 0, 0, 0, 3, 0, 0, 0], to6)),
        ("a later IPv6 fragment", far, Packet::v6_of(1500, 44, &[17, 0, 0, 9, 0, 0, 0, 1], to6)),
        ("options without end", far, Packet::v6_of(1500, 60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(12), to6)),
        ("options beyond the end", far, Packet::v6_of(1500, 60, &[60, 255, 1, 4, 0, 0, 0, 0], to6)),
        ("IPv4 of version 5", far, Packet::v4(1500, true).with(0, 0x55)),
        ("IPv4 with a header of 16 bytes", far, Packet::v4(1500, true).with(0, 0x44)),
        ("IPv6 of version 4", far, Packet::v6(1500).with(0, 0x45)),
    ]
}

/// Nobody is told of these; the tunnel device carries them in fragments, and they arrive as they were sent.
fn the_unanswerable_arrives_whole(attach: Attach) {
    let pair = Pair::new(attach, Over::Ipv4, "off");
    let [near, far] = pair.macs();
    let (here, there, wire) = (pair.tap(0), pair.tap(1), Capture::on(&pair.underlay.netns, "p0"));
    for (what, to, packet) in unanswerable() {
        let to = if to == [0; 6] { far } else { to };
        let frame = packet.frame(to, near);
        here.send(&frame);
        assert_eq!(next_frame(&there, what, |f| f == frame), frame);
    }
    let piece = |f: &&Frame| f.bytes[12..14] == [0x08, 0x00] && (f.bytes[20] & 0x3f, f.bytes[21]) != (0, 0);
    let pieces = wire.seen().iter().filter(piece).count();
    assert_eq!(pieces, 2 * unanswerable().len());
    // What is answered comes after them all.
    here.send(&Packet::v4(1500, true).frame(far, near));
    let answers = |tap: &Tap| tap.drain().iter().filter(|s| !s.outgoing && is_answer(&s.bytes)).count();
    let mut count = 0;
    eventually("an answer", || {
        count += answers(&here);
        count > 0
    });
    assert_eq!((count, pair.too_big()), (1, 1));
}

/// With `df: true`, and over IPv6, nothing is cut to pieces: what can't be answered is dropped and counted, and a sender that would
/// have let others fragment its packets is told as well.
fn without_fragments(attach: Attach, over: Over, fast: &str) {
    let df = if over == Over::Ipv4 { ", df: true" } else { "" };
    let pair = Pair::with(attach, over, 1500, &format!("kind: vxlan, create: true, fast: {fast}{df}"));
    let [near, far] = pair.macs();
    let (here, there, wire) = (pair.tap(0), pair.tap(1), Capture::on(&pair.underlay.netns, "p0"));
    let dropped: Vec<_> = unanswerable().into_iter().skip(1).collect();
    for (_, to, packet) in &dropped {
        here.send(&packet.frame(if *to == [0; 6] { far } else { *to }, near));
    }
    let packet = Packet::v4(1500, false);
    here.send(&packet.frame(far, near));
    let answer = next_frame(&here, "an answer", is_answer);
    assert_eq!(answer, packet.answer(over.mtu()).frame(near, far));
    assert_eq!(pair.too_big(), dropped.len() as u64 + 1);
    // What fits still passes, and is all that did.
    let last = Packet::v4(1400, false);
    here.send(&last.frame(far, near));
    next_frame(&there, "what fits", |f| {
        assert!(f.len() < 1500, "{f:x?}");
        f.ends_with(&last.bytes)
    });
    assert!(!wire.seen().iter().any(|f| f.outer().is_some_and(|o| o.fragment)), "fragments on the underlay");
}

macro_rules! matrix {
    ($($body:ident),* $(,)?) => {
        $(
            mod $body {
                use super::{Attach, Over};

                #[test]
                fn port_over_ipv4() {
                    super::$body(Attach::Port, Over::Ipv4, "off");
                }

                #[test]
                fn port_over_ipv6() {
                    super::$body(Attach::Port, Over::Ipv6, "off");
                }

                #[test]
                fn endpoint_over_ipv4() {
                    super::$body(Attach::Endpoint, Over::Ipv4, "off");
                }

                #[test]
                fn endpoint_over_ipv6() {
                    super::$body(Attach::Endpoint, Over::Ipv6, "off");
                }

                #[test]
                fn port_over_ipv4_by_the_fast_lane() {
                    super::$body(Attach::Port, Over::Ipv4, "on");
                }

                #[test]
                fn endpoint_over_ipv6_by_the_fast_lane() {
                    super::$body(Attach::Endpoint, Over::Ipv6, "on");
                }
            }
        )*
    };
}

matrix!(tcp_learns_what_fits, udp_in_parts_is_answered, answers_are_the_kernels, without_fragments);

mod the_unanswerable_arrives_whole {
    use super::Attach;

    #[test]
    fn from_a_port() {
        super::the_unanswerable_arrives_whole(Attach::Port);
    }

    #[test]
    fn from_an_endpoint() {
        super::the_unanswerable_arrives_whole(Attach::Endpoint);
    }
}

/// A tunnel device may be larger than what is under it: what fits is known by the underlay device's MTU, and by the route
/// where the tunnel device forwards.
fn the_less_of_device_and_way_counts(attach: Attach, over: Over) {
    let pair = Pair::with_foreign_devices(attach, over);
    let host = &pair.hosts[0];
    tcp_learns(&pair, over.mtu());
    for workload in &pair.workloads {
        workload.cmd("ip route flush cache");
        workload.cmd("ip -6 route flush cache");
    }
    parts_are_answered(&pair);
    let [near, far] = pair.macs();
    let (here, there) = (pair.tap(0), pair.tap(1));
    let told = |most: u32, why: &str| {
        let size = usize::try_from(most).unwrap() + 1;
        for packet in [Packet::v4(size, true), Packet::v6(size)] {
            here.send(&packet.frame(far, near));
            assert_eq!(next_frame(&here, why, is_answer), packet.answer(most).frame(near, far), "{why}");
        }
    };
    let fits = |most: u32, why: &str| {
        told(most, why);
        let size = usize::try_from(most).unwrap();
        for packet in [Packet::v4(size, true), Packet::v6(size)] {
            here.send(&packet.frame(far, near));
            next_frame(&there, why, |f| f.ends_with(&packet.bytes));
        }
    };
    fits(over.mtu(), "the underlay's MTU");

    host.netns.cmd("ip link set eth0 mtu 1400");
    let plan = host.expect(0, &["plan"]);
    let room = 1400 - over.overhead();
    assert!(plan.contains(&format!("{room} over")), "{plan}");
    host.apply();
    fits(room, "a smaller one of the underlay");
    host.netns.cmd(&format!("ip link set vxlan0 mtu {}", room - 20));
    fits(room - 20, "the device's own MTU");
    host.netns.cmd("ip link set vxlan0 mtu 65535");

    let (family, length) = if over == Over::Ipv4 { ("ipv4", 32) } else { ("ipv6", 128) };
    host.netns.cmd(&format!("ip route add {}/{length} dev eth0 mtu lock 1380", over.host(1)));
    told(room, "a route that nobody may look up");
    host.netns.cmd(&format!("sysctl -qw net.{family}.conf.vxlan0.forwarding=1"));
    fits(1380 - over.overhead(), "the route's MTU");
    host.netns.cmd(&format!("ip route del {}/{length} dev eth0 mtu lock 1380", over.host(1)));
    fits(room, "the MTU of the route's device");
}

mod the_less_of_device_and_way_counts {
    use super::{Attach, Over};

    #[test]
    fn port_over_ipv4() {
        super::the_less_of_device_and_way_counts(Attach::Port, Over::Ipv4);
    }

    #[test]
    fn port_over_ipv6() {
        super::the_less_of_device_and_way_counts(Attach::Port, Over::Ipv6);
    }

    #[test]
    fn endpoint_over_ipv4() {
        super::the_less_of_device_and_way_counts(Attach::Endpoint, Over::Ipv4);
    }

    #[test]
    fn endpoint_over_ipv6() {
        super::the_less_of_device_and_way_counts(Attach::Endpoint, Over::Ipv6);
    }
}

// --- Beside the matrix.

/// That what we answer is what the kernel's own bridge and vxlan device answer.
#[test]
fn a_bridge_and_a_vxlan_device_of_the_kernel_answer_the_same() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    let host = &host.netns;
    let workload = Netns::new();
    host.cmd(&format!("ip link add veth-w type veth peer name eth0 netns {}", workload.name));
    host.cmd("ip link add vxlan9 type vxlan id 9 dstport 4790 remote 172.16.1.101 local 172.16.1.100");
    host.cmd("ip link add br0 type bridge");
    for link in ["veth-w", "vxlan9"] {
        host.cmd(&format!("ip link set {link} addrgenmode none mtu 1500 master br0 up"));
    }
    host.cmd("ip link set br0 addrgenmode none up");
    workload.cmd("ip link set eth0 addrgenmode none up");
    let tap = Tap::on(&workload, "eth0");
    let (near, far) = (safety::mac(&workload, "eth0"), [2, 0, 0, 0, 0, 1]);
    for packet in [Packet::v4(1451, true), Packet::v4(1500, true), Packet::v6(1451), Packet::v6(1500)] {
        tap.send(&packet.frame(far, near));
        let answer = next_frame(&tap, "the kernel's answer", is_answer);
        assert_eq!(answer, packet.answer(1450).frame(near, far));
    }
}

/// The answers are paced; what isn't answered is counted all the same.
#[test]
fn answers_are_paced() {
    let pair = Pair::new(Attach::Endpoint, Over::Ipv4, "off");
    let [near, far] = pair.macs();
    let tap = pair.tap(0);
    let frame = Packet::v4(1500, true).frame(far, near);
    let started = std::time::Instant::now();
    let sent = scaled(2000);
    for _ in 0..sent {
        tap.send(&frame);
    }
    // On each CPU 50 at once and one a millisecond.
    let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap() + 1;
    let most = (50 + elapsed) * std::thread::available_parallelism().unwrap().get() as u64;
    assert_eq!(pair.too_big(), sent);
    let answers = || tap.drain().iter().filter(|s| !s.outgoing && is_answer(&s.bytes)).count() as u64;
    let first = answers();
    assert!(first >= 50.min(sent) && first <= most, "{first} of {sent} answered within {elapsed} ms");

    // The pace is kept in the counters. Far ahead, nothing is answered; and then again.
    let dump = pair.hosts[0].dump("counters");
    let drops = |slot: &Value| {
        let cpus = slot["formatted"]["values"].as_array().unwrap().iter();
        cpus.flat_map(|cpu| cpu["value"]["drops"].as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum::<u64>()
    };
    let slot = dump.as_array().unwrap().iter().max_by_key(|slot| drops(slot)).unwrap();
    let key = slot["formatted"]["key"].as_u64().unwrap();
    let size = slot["values"][0]["value"].as_array().unwrap().len();
    let set = |next: u64| {
        let value = [vec![0; size - 8], next.to_ne_bytes().to_vec()].concat();
        safety::map_write(
            &pair.hosts[0],
            "counters",
            "update",
            &u32::try_from(key).unwrap().to_ne_bytes(),
            Some(&value),
        );
    };
    for (next, expected) in [(u64::MAX / 2, 0), (0, 1)] {
        set(next);
        for _ in 0..3 - 2 * expected {
            tap.send(&frame);
        }
        eventually("counted", || pair.too_big() == 3 - 2 * expected);
        assert_eq!(answers(), expected);
    }
}

/// A host that takes part itself, through a port that stands for itself, is told by its own kernel.
#[test]
fn a_port_with_an_address_is_answered_too() {
    let underlay = Underlay::new();
    let hosts = [underlay.host(0), underlay.host(1)];
    for (n, host) in hosts.iter().enumerate() {
        host.netns.cmd("ip link add port0 type veth peer name port0-idle");
        host.netns.cmd("ip link set port0-idle up");
        host.netns.cmd("ip link set port0 up");
        host.netns.cmd(&format!("ip addr add {}/24 dev port0", v4(n)));
        host.netns.cmd(&format!("ip addr add {}/64 dev port0 nodad", v6(n)));
        let (own, far) = (Over::Ipv4.host(n), Over::Ipv4.host(1 - n));
        host.write(
            "a.yaml",
            &format!(
                "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: {own}}}\nmappings:\n  \
                 - {{tenant: red, interface: port0, id: 123, remote: {far}}}\n"
            ),
        );
        host.apply();
    }
    let [a, b] = [&hosts[0].netns, &hosts[1].netns];
    let bytes = scaled(4 << 20);
    for address in [IpAddr::from(v4(1)), v6(1).into()] {
        assert_pings(a, &address.to_string());
        transfer(a, b, &address.to_string(), bytes);
        assert_eq!(learned(a, address), Some(1450), "{address}");
    }
}

/// `plan` and `doctor` name whoever sends more than fits, with what does, until it is set right.
fn what_is_too_large_is_told(attach: Attach, over: Over) {
    let pair = Pair::new(attach, over, "off");
    let host = &pair.hosts[0];
    let room = over.mtu();
    let warnings = || {
        let plan: Value = serde_json::from_str(&host.expect(0, &["plan", "--format", "json"])).unwrap();
        let output = host.run(&["doctor", "--format", "json"]);
        let doctor: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found: Vec<Value> =
            doctor["findings"].as_array().unwrap().iter().filter(|f| f["code"] == "mtu-too-large").cloned().collect();
        let told = plan["warnings"].as_array().unwrap().clone();
        assert_eq!(found.len(), told.len(), "{plan:#} {doctor:#}");
        for (found, told) in found.iter().zip(&told) {
            let (what, remedy) = (found["what"].as_str().unwrap(), found["remedy"].as_str().unwrap());
            assert!(what.contains(told["why"].as_str().unwrap()) && remedy.contains(told["remedy"].as_str().unwrap()));
        }
        told
    };
    let told = warnings();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!((&told[0]["links"], &told[0]["room"]), (&json!([["veth-w", 1500]]), &json!(room)));
    assert!(told[0]["remedy"].as_str().unwrap().contains(&format!("mtu {room}")), "{told:#?}");
    for format in ["text", "markdown"] {
        let text = host.expect(0, &["plan", "--format", format]);
        assert!(text.contains("veth-w") && text.contains(&format!("room for an MTU of {room}")), "{text}");
    }

    host.netns.cmd(&format!("ip link set veth-w mtu {room}"));
    assert_eq!(warnings(), [] as [Value; 0]);
    // A tunnel that is made larger than the underlay allows.
    pair.apply(&format!("kind: vxlan, create: true, mtu: {}", room + 1));
    let told = warnings();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!((&told[0]["links"], &told[0]["address"]), (&json!([["vxlan0", room + 1]]), &json!("vxlan0")));
    // One that is made smaller limits what fits.
    pair.apply("kind: vxlan, create: true, mtu: 1400");
    assert_eq!(warnings()[0]["room"], 1400);
    host.netns.cmd("ip link set veth-w mtu 1400");
    assert_eq!(warnings(), [] as [Value; 0]);
}

mod what_is_too_large_is_told {
    use super::{Attach, Over};

    #[test]
    fn of_a_bridges_port_over_ipv4() {
        super::what_is_too_large_is_told(Attach::Port, Over::Ipv4);
    }

    #[test]
    fn of_an_endpoint_over_ipv6() {
        super::what_is_too_large_is_told(Attach::Endpoint, Over::Ipv6);
    }
}
