//! The data plane in the kernel: packets through real vxlan devices between namespaces, and what must not get through.
#![allow(clippy::unwrap_used)]

mod bpf_lab;

use bpf_lab::{Host, INGRESS, Lab, MARK, TUNNEL, in_netns, ping_in, run, uses_tcx};
use std::fs;
use std::net::IpAddr;
use tunnel_mesh::bpf::grace_period;
use tunnel_mesh::model::{Attach, Direction, DropReason, IfEntry, OuterField, Program, TunKey};

const SLOT: u32 = 64;
const ID: u32 = 456;

/// Two hosts with one port each, mapped to each other over an underlay of that family.
fn wired(lab: &mut Lab, ipv6: bool) -> (Host, Host) {
    let (a, b) = lab.two_hosts();
    for (host, remote, address) in [(&a, &b, "192.168.5.1/24"), (&b, &a, "192.168.5.2/24")] {
        host.add_port("p0", Some(address));
        host.map("p0", SLOT, ID, if ipv6 { remote.v6 } else { remote.v4 }, Attach::Port);
    }
    (a, b)
}

/// Tells the ARP answer beforehand, so that what follows on the wire is only what the test sends.
fn know_neighbour(host: &Host, peer: &Host) {
    let text = run(&format!("ip -n {} -o link show dev p0", peer.ns));
    let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let address = if host.v4 < peer.v4 { "192.168.5.2" } else { "192.168.5.1" };
    run(&format!("ip -n {} neigh replace {address} lladdr {mac} dev p0 nud permanent", host.ns));
}

#[test]
fn ports_carry_packets_both_ways_and_count_them() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, false);
    know_neighbour(&a, &b);
    know_neighbour(&b, &a);
    assert_eq!(a.ping("192.168.5.2", 5), 5);
    for host in [&a, &b] {
        let counters = host.counters(SLOT);
        assert_eq!((counters.rx_packets, counters.tx_packets), (5, 5), "{counters:?}");
        // An echo request of ping: 14 Ethernet + 20 IP + 8 ICMP + 56.
        assert_eq!((counters.rx_bytes, counters.tx_bytes), (490, 490));
        assert_eq!(counters.dropped_total(), 0);
    }
}

#[test]
fn an_ipv6_underlay_carries_packets() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, true);
    assert_eq!(a.ping("192.168.5.2", 3), 3);
    assert_eq!(b.ping("192.168.5.1", 3), 3);
}

#[test]
fn the_wire_shows_id_addresses_and_outer_fields() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, false);
    let ifindex = a.ifindex("p0");
    let pin = lab.foreign_program();
    b.attach_clsact(&pin.join("foreign"), "u0", Direction::Ingress);
    assert_eq!(a.ping("192.168.5.2", 1), 1, "neighbours are known now");
    let sent = |ttl: OuterField, tos: OuterField, df: bool, checksum: bool| {
        let entry = a.entry(SLOT, ID, b.v4, Attach::Port);
        a.within(|dp| {
            dp.write_if2tunkey(&[(ifindex, IfEntry { ttl, tos, df, checksum, ..entry })]).unwrap();
        });
        in_netns(&a.ns, || run("ping -n -q -c 1 -W 1 -Q 0x20 -t 33 192.168.5.2"));
        let text = run(&format!("bpftool -j map lookup pinned {} key 0 0 0 0", pin.join("last").display()));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let bytes = json["value"].as_array().unwrap().iter();
        bytes.map(|b| u8::from_str_radix(&b.as_str().unwrap()[2..], 16).unwrap()).collect::<Vec<_>>()
    };
    let outer = |packet: &[u8]| {
        let (ip, udp) = (&packet[14..34], &packet[34..42]);
        assert_eq!((&ip[12..16], &ip[16..20]), (&[10, 9, 0, 1][..], &[10, 9, 0, 2][..]));
        // The I flag, and the id in 24 bits.
        assert_eq!(packet[42..50], [8, 0, 0, 0, 0, 1, 200, 0]);
        (ip[8], ip[1], ip[6] & 0x40 != 0, udp[6..8] != [0, 0])
    };

    let packet = sent(OuterField::Fixed(9), OuterField::Fixed(0x40), true, false);
    assert_eq!(outer(&packet), (9, 0x40, true, false));
    let packet = sent(OuterField::Inherit, OuterField::Inherit, false, true);
    assert_eq!(outer(&packet), (33, 0x20, false, true));
    let packet = sent(OuterField::Fixed(0), OuterField::Fixed(0), false, false);
    assert_eq!(outer(&packet), (64, 0, false, false), "the route's default TTL");
}

#[test]
fn endpoints_deliver_into_the_workload() {
    let mut lab = Lab::new();
    let (a, b) = lab.two_hosts();
    let mut workloads = Vec::new();
    for (host, remote, address) in [(&a, &b, "192.168.6.1/24"), (&b, &a, "192.168.6.2/24")] {
        let workload = lab.namespace(&format!("w{}", workloads.len()));
        run(&format!("ip -n {} link add e0 type veth peer name eth0 netns {workload}", host.ns));
        in_netns(&host.ns, || fs::write("/proc/sys/net/ipv6/conf/e0/disable_ipv6", "1").unwrap());
        in_netns(&workload, || fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").unwrap());
        run(&format!("ip -n {} link set e0 up", host.ns));
        run(&format!("ip -n {workload} addr add {address} dev eth0"));
        run(&format!("ip -n {workload} link set eth0 up"));
        host.map("e0", SLOT, ID, remote.v4, Attach::Endpoint);
        workloads.push(workload);
    }
    assert_eq!(ping_in(&workloads[0], "192.168.6.2", 4), 4);
    let counters = b.counters(SLOT);
    assert!(counters.rx_packets >= 4 && counters.tx_packets >= 4, "{counters:?}");

    // The same entry on the wrong hook, as while a mapping changes its way of attaching: dropped.
    a.attach(Program::HandleEgress, "e0", Direction::Egress);
    run(&format!("ip -n {} addr add 192.168.6.9/24 dev e0", a.ns));
    assert_eq!(a.ping("192.168.6.1", 1), 0);
    assert!(a.counters(SLOT).dropped(DropReason::WrongHook) > 0);
}

#[test]
fn an_unknown_key_is_dropped_and_remembered() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, false);
    know_neighbour(&a, &b);
    a.map("p0", SLOT, 99, b.v4, Attach::Port);
    assert_eq!(a.ping("192.168.5.2", 2), 0);
    let unknown = b.dp.unknown().unwrap();
    let key = TunKey { tunnel: TUNNEL, id: 99, remote: a.v4 };
    assert_eq!(unknown.iter().map(|u| u.key).collect::<Vec<_>>(), [key]);
    assert!(unknown[0].packets == 2 && unknown[0].age_ms < 60_000, "{unknown:?}");
    assert_eq!(b.counters(TUNNEL).dropped(DropReason::UnknownKey), 2);
    b.dp.forget_unknown(&[key]).unwrap();
    assert_eq!(b.dp.unknown().unwrap(), []);
}

#[test]
fn missing_conf_or_entry_fails_closed() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, false);
    assert_eq!(a.ping("192.168.5.2", 1), 1);

    b.within(|dp| dp.clear_conf(&[TUNNEL]).unwrap());
    assert_eq!(a.ping("192.168.5.2", 2), 0);
    assert!(b.counters(TUNNEL).dropped(DropReason::NoConf) >= 2, "{:?}", b.counters(TUNNEL));
    b.tunnel_up();
    assert_eq!(a.ping("192.168.5.2", 1), 1);

    a.within(|dp| dp.clear_conf(&[TUNNEL]).unwrap());
    assert_eq!(a.ping("192.168.5.2", 2), 0);
    assert!(a.counters(SLOT).dropped(DropReason::NoConf) >= 2);
    a.tunnel_up();

    let ifindex = a.ifindex("p0");
    a.within(|dp| dp.delete_if2tunkey(&[ifindex]).unwrap());
    assert_eq!(a.ping("192.168.5.2", 2), 0);
    assert!(a.counters(0).dropped(DropReason::NoEntry) >= 2);

    // An entry whose check doesn't fit, as when the kernel recycles it under the reader.
    let entry = a.entry(SLOT, ID, b.v4, Attach::Port);
    a.within(|dp| dp.write_if2tunkey(&[(ifindex, entry)]).unwrap());
    assert_eq!(a.ping("192.168.5.2", 1), 1);
    let map = a.dp.pin_dir().join("if2tunkey");
    let key: Vec<_> = ifindex.to_ne_bytes().iter().map(|b| b.to_string()).collect();
    let zeros = vec!["0"; 56].join(" ");
    run(&format!("bpftool map update pinned {} key {} value {zeros}", map.display(), key.join(" ")));
    assert_eq!(a.ping("192.168.5.2", 2), 0);
    assert!(a.counters(0).dropped(DropReason::Inconsistent) >= 2);
    assert!(!a.dp.observe().unwrap().unwrap().if2tunkey[0].1.valid);
}

#[test]
fn a_stranger_that_inherits_an_ifindex_gets_nothing() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, false);
    know_neighbour(&a, &b);
    let ifindex = b.ifindex("p0");
    run(&format!("ip -n {} link del p0", b.ns));
    run(&format!("ip -n {} link add p0 index {ifindex} type veth peer name p0p", b.ns));
    for device in ["p0", "p0p"] {
        b.within(|_| fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap());
    }
    run(&format!("ip -n {0} link set p0 up", b.ns));
    run(&format!("ip -n {0} link set p0p up", b.ns));
    run(&format!("ip -n {0} addr add 192.168.5.2/24 dev p0", b.ns));
    assert_eq!(a.ping("192.168.5.2", 3), 0);
    assert_eq!(b.counters(SLOT).dropped(DropReason::TargetGone), 3);
    let received = b.within(|_| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = received.lines().find(|l| l.trim_start().starts_with("p0:")).unwrap();
    assert_eq!(line.split_whitespace().nth(2), Some("0"), "{line}");
    assert!(b.dp.observe().unwrap().unwrap().devs.iter().all(|(slot, _)| *slot != SLOT));
}

#[test]
fn a_port_moved_to_another_namespace_sends_nothing_there() {
    let mut lab = Lab::new();
    let (a, _b) = wired(&mut lab, false);
    let elsewhere = lab.namespace("elsewhere");
    let tunnel = a.ifindex("vxlan0");
    // A device with the tunnel's ifindex, over there. A veth's peer takes the next index that was never used.
    for _ in 0..tunnel {
        run(&format!("ip -n {elsewhere} link add filler type bridge"));
        run(&format!("ip -n {elsewhere} link del filler"));
    }
    run(&format!("ip -n {elsewhere} link add trap index {tunnel} type veth peer name trapp"));
    in_netns(&elsewhere, || fs::write("/proc/sys/net/ipv6/conf/trap/disable_ipv6", "1").unwrap());
    run(&format!("ip -n {elsewhere} link set trap up"));
    run(&format!("ip -n {elsewhere} link set trapp up"));
    run(&format!("ip -n {} link set p0 netns {elsewhere}", a.ns));
    run(&format!("ip -n {elsewhere} link set p0 up"));
    run(&format!("ip -n {elsewhere} addr add 192.168.5.1/24 dev p0"));
    let sent = || {
        let text = in_netns(&elsewhere, || fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = text.lines().find(|l| l.trim_start().starts_with("trap:")).unwrap();
        line.split_whitespace().nth(10).unwrap().parse::<u64>().unwrap()
    };
    let before = sent();
    assert_eq!(ping_in(&elsewhere, "192.168.5.2", 2), 0);
    assert_eq!(sent(), before);
    if uses_tcx() {
        let dropped = a.counters(SLOT).dropped(DropReason::WrongDevice) + a.counters(0).dropped(DropReason::NoEntry);
        assert!(dropped > 0, "{:?} {:?}", a.counters(SLOT), a.counters(0));
    }
}

#[test]
fn a_stranger_with_the_tunnels_ifindex_gets_nothing() {
    let mut lab = Lab::new();
    let (a, _b) = wired(&mut lab, false);
    let tunnel = a.ifindex("vxlan0");
    run(&format!("ip -n {} link del vxlan0", a.ns));
    run(&format!("ip -n {} link add trap index {tunnel} type veth peer name trapp", a.ns));
    a.within(|_| fs::write("/proc/sys/net/ipv6/conf/trap/disable_ipv6", "1").unwrap());
    run(&format!("ip -n {} link set trap up", a.ns));
    assert_eq!(a.ping("192.168.5.2", 2), 0);
    assert!(a.counters(SLOT).dropped(DropReason::TargetGone) > 0);
    let text = a.within(|_| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text.lines().find(|l| l.trim_start().starts_with("trap:")).unwrap();
    assert_eq!(line.split_whitespace().nth(10), Some("0"), "{line}");
}

#[test]
fn what_came_from_a_tunnel_never_leaves_through_another() {
    let mut lab = Lab::new();
    let (a, b) = lab.two_hosts();
    // In b, two ports of one bridge, not isolated: a flooded frame from the first would leave through the second.
    a.add_port("p0", Some("192.168.5.1/24"));
    a.map("p0", SLOT, ID, b.v4, Attach::Port);
    run(&format!("ip -n {} link add br0 type bridge", b.ns));
    b.within(|_| fs::write("/proc/sys/net/ipv6/conf/br0/disable_ipv6", "1").unwrap());
    run(&format!("ip -n {} link set br0 up", b.ns));
    for (port, slot, remote) in [("p0", SLOT, a.v4), ("p1", SLOT + 1, IpAddr::from([10, 9, 0, 77]))] {
        b.add_port(port, None);
        run(&format!("ip -n {} link set {port} master br0", b.ns));
        b.map(port, slot, ID, remote, Attach::Port);
    }
    // The bridge's own traffic still goes out of both.
    run(&format!("ip -n {} addr add 192.168.5.2/24 dev br0", b.ns));
    assert_eq!(a.ping("192.168.5.2", 2), 2);
    assert_eq!(a.ping("192.168.5.200", 2), 0, "an ARP broadcast, flooded by the bridge");
    let second = b.counters(SLOT + 1);
    assert!(second.dropped(DropReason::SplitHorizon) > 0, "{second:?}");
}

#[test]
fn the_mark_reaches_tc_index() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab, false);
    let pin = lab.foreign_program();
    b.attach_clsact(&pin.join("foreign"), "p0", Direction::Ingress);
    know_neighbour(&a, &b);
    know_neighbour(&b, &a);
    assert_eq!(a.ping("192.168.5.2", 3), 3);
    let text = run(&format!("bpftool map lookup pinned {} key {MARK} 0 0 0", pin.join("seen").display()));
    assert!(text.contains("\"value\": 3") || text.contains("value: 03 00"), "{text}");
}

#[test]
fn clsact_carries_the_same_packets() {
    let mut lab = Lab::new();
    let (a, b) = lab.two_hosts();
    for (host, remote, address) in [(&a, &b, "192.168.5.1/24"), (&b, &a, "192.168.5.2/24")] {
        host.add_port("p0", Some(address));
        host.map("p0", SLOT, ID, remote.v4, Attach::Port);
        if uses_tcx() {
            let (port, tunnel) = (host.ifindex("p0"), host.ifindex("vxlan0"));
            let mut dp = tunnel_mesh::bpf::Dataplane::open(host.dp.pin_dir()).unwrap();
            in_netns(&host.ns, || {
                dp.tcx_detach(port, Direction::Egress).unwrap();
                dp.tcx_detach(tunnel, Direction::Ingress).unwrap();
            });
            assert_eq!(dp.tcx_attachments().unwrap(), []);
        }
        let programs = host.dp.pin_dir().join("programs");
        host.attach_clsact(&programs.join("handle_egress"), "p0", Direction::Egress);
        host.attach_clsact(&programs.join("handle_ingress_1"), "vxlan0", Direction::Ingress);
    }
    assert_eq!(a.ping("192.168.5.2", 3), 3);
}

#[test]
fn only_two_capabilities_are_needed() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let mut lab = Lab::new();
    let dir = lab.pin_dir("caps");
    let ns = lab.namespace("caps");
    in_netns(&ns, || {
        let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        let sets = CapabilitySets { effective: two, permitted: two, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).unwrap();
        let mut dp = tunnel_mesh::bpf::Dataplane::open_writer(&dir).unwrap();
        dp.create_maps(128).unwrap();
        dp.load(Program::HandleEgress).unwrap();
        dp.load(INGRESS).unwrap();
        dp.load(Program::HandleUnderlay { index: 2 }).unwrap();
        assert!(dp.programs().unwrap().iter().all(|p| p.current));
        dp.write_devs(&[(64, 1)]).unwrap();
        dp.grow_maps(256).unwrap();
        if uses_tcx() {
            dp.tcx_attach(Program::HandleEgress, 1, Direction::Egress).unwrap();
            dp.tcx_attach(INGRESS, 1, Direction::Ingress).unwrap();
            assert_eq!(dp.tcx_attachments().unwrap().len(), 2);
        }
        dp.remove_all().unwrap();
        assert!(!dir.exists());

        let none = CapabilitySets { effective: CapabilitySet::empty(), ..sets };
        set_capabilities(None, none).unwrap();
        let mut dp = tunnel_mesh::bpf::Dataplane::open(&dir).unwrap();
        let error = dp.create_maps(128).unwrap_err();
        assert!(tunnel_mesh::bpf::is_privilege_missing(&error), "{error:#}");
    });
}

#[test]
fn a_grace_period_is_short() {
    let before = std::time::Instant::now();
    grace_period();
    assert!(before.elapsed() < std::time::Duration::from_secs(5));
}
