//! What tenants send arrives, in every set-up: two hosts, real tunnels, real packets, the outer headers looked at.
//!
//! Most tests are written once and run over {port, endpoint} x {IPv4, IPv6 underlay}; the test's name says which.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use harness::Netns;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use world::frames::{Capture, Frame, Outer, Tunnel};
use world::setup::Over;
use world::stream::{receive, transfer};
use world::*;

/// How a workload meets its mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A tenant's bridge: the workload's veth joins it beside the generated port.
    Bridge,
    /// A mapping's port in somebody's own bridge, where the workload is: one end of a veth pair, the other end idle.
    PortMapping,
    /// The same, with the mapping derived from a tenant with two members.
    PortWire,
    /// The workload's own veth, named by a mapping.
    EndpointMapping,
    /// The same, with the mapping derived from a tenant with two members.
    EndpointWire,
}

impl Form {
    fn endpoint(self) -> bool {
        matches!(self, Self::EndpointMapping | Self::EndpointWire)
    }
}

/// Tunnel id of the tenant red.
const ID: u32 = 123;

fn v4(n: usize) -> String {
    format!("192.168.50.{}", n + 1)
}

fn v6(n: usize) -> String {
    format!("fd50::{}", n + 1)
}

/// Two hosts with a workload each, of one tenant.
struct Pair {
    hosts: [Host; 2],
    workloads: [Netns; 2],
    underlay: Underlay,
    form: Form,
    over: Over,
}

impl Pair {
    /// Topology in force, workloads connected and with the tenant's MTU, IPv4 and IPv6 addresses.
    fn new(form: Form, over: Over) -> Self {
        Self::with(form, over, "kind: vxlan, create: true")
    }

    fn with(form: Form, over: Over, tunnel: &str) -> Self {
        let pair = Self::unconnected(form, over);
        pair.apply(tunnel);
        pair.connect();
        for n in 0..2 {
            pair.workloads[n].cmd(&format!("ip addr add {}/24 dev eth0", v4(n)));
            pair.workloads[n].cmd(&format!("ip addr add {}/64 dev eth0 nodad", v6(n)));
        }
        pair
    }

    /// Hosts and workloads; no topology yet, and no addresses in the workloads.
    fn unconnected(form: Form, over: Over) -> Self {
        let underlay = Underlay::new();
        let hosts = [underlay.host(0), underlay.host(1)];
        let workloads = [0, 1].map(|n| {
            let workload = quiet_workload(&hosts[n], "veth-w");
            if matches!(form, Form::PortMapping | Form::PortWire) {
                let netns = &hosts[n].netns;
                netns.cmd("ip link add br-own type bridge mcast_snooping 0");
                netns.cmd("ip link add port0 type veth peer name port0-idle");
                for link in ["br-own", "port0", "port0-idle"] {
                    netns.cmd(&format!("ip link set {link} addrgenmode none up"));
                }
                netns.cmd("ip link set port0 master br-own");
                netns.cmd("ip link set veth-w master br-own");
            }
            workload
        });
        Self { hosts, workloads, underlay, form, over }
    }

    /// The topology of host `n`, with that text as the tunnel's.
    fn topology(&self, n: usize, tunnel: &str) -> String {
        let (over, own, far) = (self.over, self.over.host(n), self.over.host(1 - n));
        let head = format!(
            "version: 1\nnodes: {{host0: '{}', host1: '{}'}}\ntunnels:\n  vxlan0: {{{tunnel}}}\n",
            over.host(0),
            over.host(1)
        );
        let wire = |member: &str| {
            format!("{head}tenants:\n  red:\n    id: {ID}\n    members: {{host0: {{{member}}}, host1: {{{member}}}}}\n")
        };
        let mapping = |member: &str| {
            format!(
                "version: 1\ntunnels:\n  vxlan0: {{{tunnel}, local: '{own}'}}\nmappings:\n  - {{tenant: red, id: {ID}, remote: '{far}', {member}}}\n"
            )
        };
        match self.form {
            Form::Bridge => format!("{head}tenants:\n  red: {{id: {ID}, bridge: br-red}}\n"),
            Form::PortMapping => mapping("interface: port0"),
            Form::PortWire => wire("interface: port0"),
            Form::EndpointMapping => mapping("interface: veth-w, attach: endpoint"),
            Form::EndpointWire => wire("interface: veth-w, attach: endpoint"),
        }
    }

    /// Brings the topology with that tunnel into force on both hosts.
    fn apply(&self, tunnel: &str) {
        for n in 0..2 {
            self.hosts[n].write("a.yaml", &self.topology(n, tunnel));
            self.hosts[n].apply();
            let status = self.hosts[n].status();
            assert_eq!(status["in_force"], true, "{status:#}");
        }
    }

    /// Gives the workloads the tenant's MTU and joins them to the tenant's bridge, where there is one.
    fn connect(&self) {
        for n in 0..2 {
            let mtu = self.hosts[n].status()["tunnels"][0]["mtu"].as_u64().unwrap();
            self.workloads[n].cmd(&format!("ip link set eth0 mtu {mtu}"));
            self.hosts[n].netns.cmd(&format!("ip link set veth-w mtu {mtu}"));
            if self.form == Form::Bridge {
                self.hosts[n].netns.cmd("ip link set veth-w master br-red");
            }
        }
    }

    fn traffic(&self, n: usize) -> Traffic {
        Traffic::of(&self.hosts[n], "red")
    }

    /// Counters of both hosts while nothing is under way: neighbours probe each other when they like, and the hosts are
    /// asked one after the other.
    fn quiet_traffic(&self) -> [Traffic; 2] {
        let mut now = [self.traffic(0), self.traffic(1)];
        eventually("nobody speaks", || {
            std::thread::sleep(Duration::from_millis(100));
            let before = std::mem::replace(&mut now, [self.traffic(0), self.traffic(1)]);
            now == before
        });
        now
    }

    /// What leaves and reaches host `n` on the underlay.
    fn wire(&self, n: usize) -> Capture {
        Capture::on(&self.underlay.netns, &format!("p{n}"))
    }

    /// Nothing was dropped on either host, for whatever reason.
    fn assert_no_drops(&self) {
        for host in &self.hosts {
            let status = host.status();
            for part in status["mappings"].as_array().unwrap().iter().map(|m| &m["traffic"]).chain([&status]) {
                assert_eq!(part["drops"], serde_json::json!({}), "{status:#}");
            }
            for tunnel in status["tunnels"].as_array().unwrap() {
                assert_eq!(tunnel["drops"], serde_json::json!({}), "{status:#}");
            }
            assert_eq!(status["unknown"], serde_json::json!([]), "{status:#}");
        }
    }
}

/// A workload that says nothing by itself: no addresses, and no IPv6 before it gets one.
fn quiet_workload(host: &Host, name: &str) -> Netns {
    let workload = Netns::new();
    host.netns.cmd(&format!("ip link add {name} type veth peer name eth0 netns {}", workload.name));
    host.netns.cmd(&format!("ip link set {name} addrgenmode none up"));
    workload.cmd("ip link set eth0 addrgenmode none up");
    workload
}

/// Counters of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    rx: u64,
    rx_bytes: u64,
    tx: u64,
    tx_bytes: u64,
}

impl Traffic {
    fn of(host: &Host, tenant: &str) -> Self {
        let status = host.status();
        let mut of_tenant = status["mappings"].as_array().unwrap().iter().filter(|m| m["tenant"] == tenant);
        let traffic = &of_tenant.next().unwrap_or_else(|| panic!("no mapping of {tenant} in {status:#}"))["traffic"];
        assert_eq!(of_tenant.next(), None);
        let count = |key: &str| traffic[key].as_u64().unwrap();
        Self {
            rx: count("rx_packets"),
            rx_bytes: count("rx_bytes"),
            tx: count("tx_packets"),
            tx_bytes: count("tx_bytes"),
        }
    }

    /// How much was added since then.
    fn since(self, before: Self) -> Self {
        Self {
            rx: self.rx - before.rx,
            rx_bytes: self.rx_bytes - before.rx_bytes,
            tx: self.tx - before.tx,
            tx_bytes: self.tx_bytes - before.tx_bytes,
        }
    }
}

/// Hardware address of an interface.
fn mac(netns: &Netns, interface: &str) -> String {
    let json: Value = serde_json::from_str(&netns.cmd(&format!("ip -j link show dev {interface}"))).unwrap();
    json[0]["address"].as_str().unwrap().to_owned()
}

/// What `ip -j -d link show` says of an interface.
fn link(netns: &Netns, interface: &str) -> Value {
    let json: Value = serde_json::from_str(&netns.cmd(&format!("ip -j -d link show dev {interface}"))).unwrap();
    json[0].clone()
}

/// Sends datagrams of growing size to and fro and compares them.
fn exchange_datagrams(from: &Netns, to: &Netns, addresses: [&str; 2], there: usize, back: usize, largest: usize) {
    let bind = |netns: &Netns, address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let socket = netns.enter(|| UdpSocket::bind(SocketAddr::new(address, 0))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let near = bind(from, addresses[0]);
    let far = bind(to, addresses[1]);
    let one_way = |sender: &UdpSocket, receiver: &UdpSocket, count: usize, salt: u8| {
        for n in 0..count {
            let size = if n + 1 == count { largest } else { n * largest / count };
            let sent: Vec<u8> = (0..size).map(|i| salt ^ u8::try_from((i * 7 + n) % 251).unwrap()).collect();
            assert_eq!(sender.send_to(&sent, receiver.local_addr().unwrap()).unwrap(), size);
            let mut received = vec![0; 65536];
            let (length, source) = receive(receiver, &mut received);
            assert_eq!(source, sender.local_addr().unwrap());
            assert_eq!(received[..length], sent, "datagram {n} of {count}");
        }
    };
    one_way(&near, &far, there, 0x55);
    one_way(&far, &near, back, 0xaa);
}

/// Waits for the outer packet of an echo request from that underlay address.
fn wait_for_echo_request(capture: &Capture, source: IpAddr) -> Outer {
    capture.wait(&format!("an echo request in the tunnel from {source}"), |frame| {
        frame.outer().filter(|outer| outer.source == source && outer.is_echo_request())
    })
}

// --- The test bodies that run over the matrix.

/// ARP, neighbour discovery, ping, UDP and a short TCP connection, both families, both ways.
fn everything_gets_through(form: Form, over: Over) {
    let pair = Pair::new(form, over);
    let [a, b] = &pair.workloads;
    for (near, far, n) in [(a, b, 1), (b, a, 0)] {
        for address in [v4(n), v6(n)] {
            near.cmd("ip neigh flush all");
            assert_pings(near, &address);
            // It was the workload at the other end that answered.
            let json: Value = serde_json::from_str(&near.cmd(&format!("ip -j neigh show {address}"))).unwrap();
            assert_eq!(json[0]["lladdr"], mac(far, "eth0"), "{json:#}");
        }
    }
    let largest = usize::try_from(over.mtu()).unwrap();
    exchange_datagrams(a, b, [&v4(0), &v4(1)], 20, 20, largest - 28);
    exchange_datagrams(a, b, [&v6(0), &v6(1)], 20, 20, largest - 48);
    transfer(a, b, &v4(1), 100_000);
    transfer(b, a, &v6(0), 100_000);
    pair.assert_no_drops();
    for n in 0..2 {
        assert_eq!(pair.hosts[n].netns.cmd("ip -j neigh show dev vxlan0").trim(), "[]", "host {n}'s stack had a look");
    }
}

/// Every packet and byte is counted once, at both ends.
fn counters_count_exactly(form: Form, over: Over) {
    let pair = Pair::unconnected(form, over);
    pair.apply("kind: vxlan, create: true");
    pair.connect();
    let [a, b] = &pair.workloads;
    for n in 0..2 {
        let (near, far) = (&pair.workloads[n], &pair.workloads[1 - n]);
        // No packet but those that are counted here.
        near.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")).unwrap();
        near.cmd(&format!("ip addr add {}/24 dev eth0", v4(n)));
        near.cmd(&format!("ip neigh replace {} lladdr {} dev eth0 nud permanent", v4(1 - n), mac(far, "eth0")));
    }
    assert_pings(a, &v4(1));
    let before = pair.quiet_traffic();
    assert!(before.iter().all(|t| t.tx > 0 && t.rx > 0), "{before:?}");

    // 14 + 20 + 8 + 56 bytes each.
    assert!(pings(a, &v4(1), 10));
    let now = [0, 1].map(|n| pair.traffic(n).since(before[n]));
    let expected = Traffic { rx: 10, rx_bytes: 980, tx: 10, tx_bytes: 980 };
    assert_eq!(now, [expected, expected]);

    // 14 + 20 + 8 bytes and the payload; one way more than the other.
    exchange_datagrams(a, b, [&v4(0), &v4(1)], 10, 5, 1000);
    let now = [0, 1].map(|n| pair.traffic(n).since(before[n]));
    let payload = |count: u64| (0..count).map(|n| if n + 1 == count { 1000 } else { n * 1000 / count }).sum::<u64>();
    let (there, back) = (10 * 42 + payload(10), 5 * 42 + payload(5));
    let near = Traffic { rx: 15, rx_bytes: 980 + back, tx: 20, tx_bytes: 980 + there };
    let far = Traffic { rx: 20, rx_bytes: 980 + there, tx: 15, tx_bytes: 980 + back };
    assert_eq!(now, [near, far]);
    pair.assert_no_drops();
}

/// Bulk TCP: as GSO packets all the way, then cut up on the underlay and put together again behind the tunnel.
fn tcp_carries_content(form: Form, over: Over) {
    let pair = Pair::new(form, over);
    let [a, b] = &pair.workloads;
    let bytes = scaled(64 << 20);
    let full = usize::try_from(over.mtu()).unwrap() + 14;
    assert_pings(a, &v4(1));
    assert_pings(a, &v6(1));

    let before = pair.quiet_traffic();
    let wire = pair.wire(0);
    transfer(a, b, &v4(1), bytes);
    let whole = wire.seen();
    let large = |frames: &[Frame], most: usize| frames.iter().filter(|f| f.length > most).count();
    assert!(large(&whole, 1514) > 0, "no GSO packet among {} on the underlay", whole.len());
    drop(wire);
    let moved = |n: usize| pair.traffic(n).since(before[n]);
    eventually("both ends count the same packets", || moved(0).tx == moved(1).rx && moved(1).tx == moved(0).rx);
    // Segments, not GSO packets: a segment carries at most the MTU less 40 bytes.
    let (least, sent) = (bytes / (u64::from(over.mtu()) - 40), moved(0));
    assert!(sent.tx >= least && sent.tx < least * 2 && sent.tx_bytes > bytes, "{sent:?} for {least} segments");

    // In the device lane the tunnel device merges them.
    pair.apply("kind: vxlan, create: true, fast: off");
    for host in &pair.hosts {
        host.netns.cmd("ip link set eth0 gso_max_segs 1");
    }
    let wire = pair.wire(1);
    transfer(b, a, &v6(0), 1_000_000);
    let cut = wire.seen();
    assert!(large(&cut, 1000) > 0);
    assert_eq!(large(&cut, 1514), 0, "a GSO packet on the underlay after all");
    // A capture in front of the tunnel device would keep it from merging: it holds clones.
    drop(wire);
    let device = Capture::on(&pair.hosts[0].netns, "vxlan0");
    let before = pair.quiet_traffic();
    transfer(b, a, &v6(0), bytes);
    let merged = device.seen();
    assert!(large(&merged, full) > 0, "GRO merged nothing among {} packets of the device", merged.len());
    let moved = |n: usize| pair.traffic(n).since(before[n]);
    eventually("both ends count the same packets", || moved(0).tx == moved(1).rx && moved(1).tx == moved(0).rx);
    let (least, received) = (bytes / (u64::from(over.mtu()) - 60), moved(0));
    assert!(received.rx >= least && received.rx < least * 2 && received.rx_bytes > bytes, "{received:?}");
    pair.assert_no_drops();
}

/// A packet of exactly the tenant's MTU fills the underlay's and isn't fragmented; one byte more isn't sent.
fn packets_at_the_mtu(form: Form, over: Over) {
    let pair = Pair::new(form, over);
    let [a, _] = &pair.workloads;
    assert_eq!(u64::from(over.mtu()), pair.hosts[0].status()["tunnels"][0]["mtu"].as_u64().unwrap());
    for (address, headers) in [(v4(1), 28), (v6(1), 48)] {
        assert_pings(a, &address);
        let wire = pair.wire(0);
        let payload = over.mtu() - headers;
        a.cmd(&format!("ping -M do -c 3 -i 0.02 -W 5 -q -s {payload} {address}"));
        for n in 0..2 {
            let outer = wait_for_echo_request(&wire, over.host(0));
            assert_eq!(outer.length, 1514, "packet {n}: {outer:?}");
            assert!(!outer.fragment);
        }
        assert!(!wire.seen().iter().any(|f| f.outer().is_some_and(|o| o.fragment)), "fragments on the underlay");
        let more = a.try_cmd(&format!("ping -M do -c 1 -W 1 -q -s {} {address}", payload + 1));
        assert!(!more.status.success());
    }
    pair.assert_no_drops();
}

/// TTL, TOS, DF and checksum of the outer header are as the topology says.
fn outer_header(form: Form, over: Over) {
    let pair = Pair::new(form, over);
    let [a, _] = &pair.workloads;
    let wire = pair.wire(0);
    // One echo request with that TTL and TOS inside, as seen on the underlay.
    let sent = |address: &str| {
        assert_pings(a, address);
        wire.clear();
        a.cmd(&format!("ping -c 1 -W 5 -q -t 33 -Q 0xb8 {address}"));
        let outer = wait_for_echo_request(&wire, over.host(0));
        let inner_tos =
            if address.contains(':') { outer.inner[14] << 4 | outer.inner[15] >> 4 } else { outer.inner[15] };
        assert_eq!(inner_tos, 0xb8);
        assert_eq!((outer.source, outer.destination), (over.host(0), over.host(1)));
        let Tunnel::Udp { port, checksum, id } = outer.tunnel else { panic!("{outer:?}") };
        assert_eq!((port, id), (4789, ID));
        (outer.ttl, outer.tos, outer.dont_fragment, checksum != 0)
    };
    let ipv6 = over == Over::Ipv6;
    for address in [v4(1), v6(1)] {
        // What the kernel does by itself: over IPv6 a UDP checksum belongs there.
        pair.apply("kind: vxlan, create: true, fast: off");
        assert_eq!(sent(&address), (64, 0, false, ipv6), "as it comes, {address}");
        // The fast lane sends none, where the far side is known to take that.
        pair.apply("kind: vxlan, create: true");
        assert_eq!(sent(&address), (64, 0, false, false), "as it comes, fast, {address}");
        pair.apply("kind: vxlan, create: true, ttl: 17, tos: inherit, df: true, checksum: true");
        assert_eq!(sent(&address), (17, 0xb8, !ipv6, true), "ttl, inherited tos, df, checksum, {address}");
        pair.apply("kind: vxlan, create: true, ttl: inherit, tos: 0x20, df: false, checksum: false");
        assert_eq!(sent(&address), (33, 0x20, false, false), "inherited ttl, tos, {address}");
    }
    pair.assert_no_drops();
}

/// A client in a workload of one host gets its address from a server in a workload of the other.
fn dhcp_lease(form: Form, over: Over) {
    let pair = Pair::unconnected(form, over);
    pair.apply("kind: vxlan, create: true");
    pair.connect();
    let [server, client] = &pair.workloads;
    server.cmd("ip addr add 192.168.50.1/24 dev eth0");
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name).display().to_string();
    let log = std::fs::File::create(file("dnsmasq.log")).unwrap();
    let mut dnsmasq = server
        .spawnable(&[
            "dnsmasq",
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--no-resolv",
            "--no-hosts",
            "--no-ping",
            "--log-dhcp",
            "--interface=eth0",
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--dhcp-range=192.168.50.100,192.168.50.150,255.255.255.0,1h",
            &format!("--dhcp-leasefile={}", file("leases")),
            &format!("--pid-file={}", file("dnsmasq.pid")),
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let script = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nexec ip addr add \"$ip/$mask\" dev \"$interface\"\n";
    std::fs::write(file("script"), script).unwrap();
    harness::run("chmod", &["0755", &file("script")]);
    let (script, pid) = (file("script"), file("udhcpc.pid"));
    let words = ["udhcpc", "-f", "-n", "-q", "-t", "10", "-T", "2", "-i", "eth0", "-s", &script, "-p", &pid];
    let output = client.spawnable(&words).stdin(Stdio::null()).output().unwrap();
    dnsmasq.kill().unwrap();
    dnsmasq.wait().unwrap();
    let log = std::fs::read_to_string(file("dnsmasq.log")).unwrap();
    assert!(output.status.success(), "udhcpc: {}\ndnsmasq:\n{log}", String::from_utf8_lossy(&output.stderr));

    let leases = std::fs::read_to_string(file("leases")).unwrap();
    let lease: Vec<&str> = leases.split_whitespace().collect();
    assert_eq!(lease[1], mac(client, "eth0"), "{leases}");
    let json: Value = serde_json::from_str(&client.cmd("ip -j -4 addr show dev eth0")).unwrap();
    assert_eq!(json[0]["addr_info"][0]["local"], lease[2], "{json:#}");
    assert!(lease[2].starts_with("192.168.50.1"), "{leases}");
    assert_pings(client, "192.168.50.1");
    pair.assert_no_drops();
}

/// What the receiving workload sees in `tc_index`: the mark in port mode, nothing in endpoint mode.
fn tc_index(form: Form, over: Over) {
    let pair = Pair::new(form, over);
    let [a, b] = &pair.workloads;
    // Somebody else leaves a value in it, in the sending workload and on the way into the receiving host.
    let probe = Probe::load(b);
    probe.attach(a, "eth0", "egress", "leave_nine");
    probe.attach(&pair.hosts[1].netns, "eth0", "ingress", "leave_nine");
    probe.attach(b, "eth0", "ingress", "see_tc_index");
    let seen = || {
        let before = probe.seen();
        assert_pings(a, &v4(1));
        let now = probe.seen();
        (0..16).filter(|n| now[*n] > before[*n]).collect::<Vec<usize>>()
    };
    if form.endpoint() {
        assert_eq!(seen(), [0]);
    } else {
        assert_eq!(seen(), [1]);
        pair.apply("kind: vxlan, create: true, mark: 5");
        assert_eq!(seen(), [5]);
        // Turned off, it isn't written: the other's value comes through, which shows that it was there all along.
        pair.apply("kind: vxlan, create: true, mark: 0");
        assert_eq!(seen(), [9]);
    }
    pair.assert_no_drops();
}

macro_rules! matrix {
    ($($body:ident),* $(,)?) => {
        $(
            mod $body {
                use super::{Form, Over};

                #[test]
                fn port_over_ipv4() {
                    super::$body(Form::Bridge, Over::Ipv4);
                }

                #[test]
                fn port_over_ipv6() {
                    super::$body(Form::Bridge, Over::Ipv6);
                }

                #[test]
                fn endpoint_over_ipv4() {
                    super::$body(Form::EndpointWire, Over::Ipv4);
                }

                #[test]
                fn endpoint_over_ipv6() {
                    super::$body(Form::EndpointWire, Over::Ipv6);
                }
            }
        )*
    };
}

matrix!(
    everything_gets_through,
    counters_count_exactly,
    tcp_carries_content,
    packets_at_the_mtu,
    outer_header,
    dhcp_lease,
    tc_index,
);

macro_rules! other_forms {
    ($($name:ident: $form:ident, $over:ident;)*) => {
        mod everything_gets_through_too {
            use super::{Form, Over};
            $(
                #[test]
                fn $name() {
                    super::everything_gets_through(Form::$form, Over::$over);
                }
            )*
        }
    };
}

other_forms!(
    port_of_a_mapping_over_ipv4: PortMapping, Ipv4;
    port_of_a_mapping_over_ipv6: PortMapping, Ipv6;
    port_of_a_wire_over_ipv4: PortWire, Ipv4;
    port_of_a_wire_over_ipv6: PortWire, Ipv6;
    endpoint_of_a_mapping_over_ipv4: EndpointMapping, Ipv4;
    endpoint_of_a_mapping_over_ipv6: EndpointMapping, Ipv6;
);

// --- Programs beside ours.

/// The probe programs, loaded; unpinned on drop.
struct Probe {
    pins: PathBuf,
}

impl Probe {
    fn load(named_after: &Netns) -> Self {
        ensure_bpffs();
        let object = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(object.path(), include_bytes!(env!("TUNNEL_MESH_PROBE_OBJECT"))).unwrap();
        let pins = PathBuf::from(format!("/sys/fs/bpf/{}-probe", named_after.name));
        let (path, pinned) = (object.path().display().to_string(), pins.display().to_string());
        let probe = Self { pins };
        harness::run("bpftool", &["prog", "loadall", &path, &pinned, "pinmaps", &pinned]);
        probe
    }

    fn attach(&self, netns: &Netns, interface: &str, hook: &str, program: &str) {
        if !netns.cmd(&format!("tc qdisc show dev {interface}")).contains("clsact") {
            netns.cmd(&format!("tc qdisc add dev {interface} clsact"));
        }
        let pin = self.pins.join(program).display().to_string();
        netns.command(&["tc", "filter", "add", "dev", interface, hook, "bpf", "da", "pinned", &pin]);
    }

    /// Packets that `see_tc_index` saw, by the value.
    fn seen(&self) -> [u64; 16] {
        let map = self.pins.join("seen").display().to_string();
        let json: Value =
            serde_json::from_str(&harness::run("bpftool", &["-j", "map", "dump", "pinned", &map])).unwrap();
        let mut seen = [0; 16];
        for entry in json.as_array().unwrap() {
            let number = |key: &str| entry["formatted"][key].as_u64().unwrap();
            seen[usize::try_from(number("key")).unwrap()] = number("value");
        }
        seen
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.pins));
    }
}

// --- One tunnel, two families; two tunnels.

/// Two hosts, a workload of red and one of blue on each, with the same addresses.
struct Tenants {
    hosts: [Host; 2],
    red: [Netns; 2],
    blue: [Netns; 2],
    underlay: Underlay,
}

impl Tenants {
    /// `topology(host, attach)` gives the text; workloads are named veth-red and veth-blue, ports port-red and port-blue.
    fn new(endpoint: bool, topology: impl Fn(usize) -> String) -> Self {
        let underlay = Underlay::new();
        let hosts = [underlay.host(0), underlay.host(1)];
        let workloads = |tenant: &str| {
            [0, 1].map(|n| {
                let workload = quiet_workload(&hosts[n], &format!("veth-{tenant}"));
                let netns = &hosts[n].netns;
                if !endpoint {
                    netns.cmd(&format!("ip link add br-{tenant} type bridge mcast_snooping 0"));
                    netns.cmd(&format!("ip link add port-{tenant} type veth peer name idle-{tenant}"));
                    for link in [format!("br-{tenant}"), format!("port-{tenant}"), format!("idle-{tenant}")] {
                        netns.cmd(&format!("ip link set {link} addrgenmode none up"));
                    }
                    netns.cmd(&format!("ip link set port-{tenant} master br-{tenant}"));
                    netns.cmd(&format!("ip link set veth-{tenant} master br-{tenant}"));
                }
                workload.cmd("ip link set eth0 mtu 1430");
                workload.cmd(&format!("ip addr add {}/24 dev eth0", v4(n)));
                workload.cmd(&format!("ip addr add {}/64 dev eth0 nodad", v6(n)));
                workload
            })
        };
        let (red, blue) = (workloads("red"), workloads("blue"));
        for (n, host) in hosts.iter().enumerate() {
            host.write("a.yaml", &topology(n));
            host.apply();
            assert_eq!(host.status()["in_force"], true);
        }
        Self { hosts, red, blue, underlay }
    }

    /// The line of a mapping, without what is particular of it.
    fn mapping(endpoint: bool, tenant: &str) -> String {
        if endpoint {
            format!("tenant: {tenant}, interface: veth-{tenant}, attach: endpoint")
        } else {
            format!("tenant: {tenant}, interface: port-{tenant}")
        }
    }

    /// Both tenants reach their own and nobody else, each by the tunnel packets that the function accepts.
    fn check(&self, carries: impl Fn(&str, &Outer) -> bool) {
        for (tenant, workloads) in [("red", &self.red), ("blue", &self.blue)] {
            for address in [v4(1), v6(1)] {
                let wire = Capture::on(&self.underlay.netns, "p0");
                let before = [0, 1].map(|n| Traffic::of(&self.hosts[n], tenant));
                assert_pings(&workloads[0], &address);
                let now = [0, 1].map(|n| Traffic::of(&self.hosts[n], tenant).since(before[n]));
                assert!(now.iter().all(|t| t.rx >= 4 && t.tx >= 4), "{tenant}: {now:?}");
                let requests: Vec<Outer> =
                    wire.seen().iter().filter_map(Frame::outer).filter(Outer::is_echo_request).collect();
                assert!(requests.len() >= 4, "{tenant}: {requests:?}");
                assert!(requests.iter().all(|o| carries(tenant, o)), "{tenant}: {requests:?}");
            }
        }
        // An address that only red has doesn't exist for blue, and the other way round.
        self.red[1].cmd("ip addr add 192.168.50.77/24 dev eth0");
        self.blue[1].cmd("ip addr add 192.168.50.88/24 dev eth0");
        assert_pings(&self.red[0], "192.168.50.77");
        assert_pings(&self.blue[0], "192.168.50.88");
        assert!(silent(&self.blue[0], "192.168.50.77"));
        assert!(silent(&self.red[0], "192.168.50.88"));
    }
}

/// One tunnel, one id: red by the far host's IPv4 address, blue by its IPv6 address.
fn one_tunnel_of_both_families(endpoint: bool) {
    let tenants = Tenants::new(endpoint, |n| {
        let (red, blue) = (Tenants::mapping(endpoint, "red"), Tenants::mapping(endpoint, "blue"));
        format!(
            "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: [{}, '{}']}}\nmappings:\n  \
             - {{{red}, id: {ID}, remote: {}}}\n  - {{{blue}, id: {ID}, remote: '{}'}}\n",
            Over::Ipv4.host(n),
            Over::Ipv6.host(n),
            Over::Ipv4.host(1 - n),
            Over::Ipv6.host(1 - n)
        )
    });
    tenants.check(|tenant, outer| {
        let over = if tenant == "red" { Over::Ipv4 } else { Over::Ipv6 };
        outer.destination == over.host(1) && outer.source == over.host(0) && outer.tunnel.id() == ID
    });
}

#[test]
fn one_tunnel_carries_ipv4_and_ipv6_remotes_at_once_by_ports() {
    one_tunnel_of_both_families(false);
}

#[test]
fn one_tunnel_carries_ipv4_and_ipv6_remotes_at_once_by_endpoints() {
    one_tunnel_of_both_families(true);
}

/// Two tunnel devices, one id and one remote: red by port 4789, blue by port 4790.
fn two_tunnels(endpoint: bool) {
    let tenants = Tenants::new(endpoint, |n| {
        let (red, blue) = (Tenants::mapping(endpoint, "red"), Tenants::mapping(endpoint, "blue"));
        let (own, far) = (Over::Ipv4.host(n), Over::Ipv4.host(1 - n));
        format!(
            "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: {own}}}\n  \
             vxlan1: {{kind: vxlan, port: 4790, create: true, local: {own}}}\nmappings:\n  \
             - {{{red}, tunnel: vxlan0, id: {ID}, remote: {far}}}\n  - {{{blue}, tunnel: vxlan1, id: {ID}, remote: {far}}}\n"
        )
    });
    tenants.check(|tenant, outer| {
        let expected = if tenant == "red" { 4789 } else { 4790 };
        matches!(outer.tunnel, Tunnel::Udp { port, id: ID, .. } if port == expected)
    });
    let status = tenants.hosts[0].status();
    let tunnels: Vec<&str> =
        status["tunnels"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(tunnels, ["vxlan0", "vxlan1"]);
}

#[test]
fn two_tunnel_devices_work_side_by_side_with_ports() {
    two_tunnels(false);
}

#[test]
fn two_tunnel_devices_work_side_by_side_with_endpoints() {
    two_tunnels(true);
}

// --- Particular interfaces.

/// A host can take part itself: it sends out of the port, and what arrives is received on it.
#[test]
fn a_port_with_an_address_connects_the_host_itself() {
    let underlay = Underlay::new();
    let hosts = [underlay.host(0), underlay.host(1)];
    for (n, host) in hosts.iter().enumerate() {
        host.netns.cmd("ip link add port0 mtu 1450 type veth peer name port0-idle mtu 1450");
        host.netns.cmd("ip link set port0-idle up");
        host.netns.cmd("ip link set port0 up");
        host.netns.cmd(&format!("ip addr add {}/24 dev port0", v4(n)));
        host.netns.cmd(&format!("ip addr add {}/64 dev port0 nodad", v6(n)));
        let (own, far) = (Over::Ipv4.host(n), Over::Ipv4.host(1 - n));
        host.write(
            "a.yaml",
            &format!(
                "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: {own}}}\nmappings:\n  \
                 - {{tenant: red, interface: port0, id: {ID}, remote: {far}}}\n"
            ),
        );
        host.apply();
    }
    // The idle end speaks when it comes up (MLD): that isn't what is looked for.
    let own = mac(&hosts[0].netns, "port0-idle");
    let idle = Capture::on(&hosts[0].netns, "port0-idle");
    assert_pings(&hosts[0].netns, &v4(1));
    assert_pings(&hosts[1].netns, &v6(0));
    transfer(&hosts[0].netns, &hosts[1].netns, &v4(1), 1_000_000);
    assert!(Traffic::of(&hosts[1], "red").rx > 700);
    let source = |f: &Frame| f.bytes[6..12].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let strays = idle.seen().iter().filter(|f| source(f) != own).count();
    assert_eq!(strays, 0, "something reached the pair's other end");
}

#[test]
fn an_endpoint_must_be_a_veth_with_its_peer_elsewhere() {
    let pair = Pair::unconnected(Form::EndpointMapping, Over::Ipv4);
    let [host, far_host] = &pair.hosts;
    host.netns.cmd("ip link add near type veth peer name near-peer");
    host.netns.cmd("ip link set near up");
    host.netns.cmd("ip link add br-own type bridge");
    let topology = |n: usize| {
        let mapping = "  - {tenant: TENANT, interface: INTERFACE, id: ID, remote: REMOTE, attach: endpoint}\n";
        let more = |tenant: &str, interface: &str, id: &str| {
            mapping.replace("TENANT", tenant).replace("INTERFACE", interface).replace("ID", id)
        };
        let text = pair.topology(n, "kind: vxlan, create: true");
        let added = more("near", "near", "124") + &more("bridge", "br-own", "125");
        text + &added.replace("REMOTE", &pair.over.host(1 - n).to_string())
    };
    // On the other host the endpoint named near is a proper one.
    let far = quiet_workload(far_host, "near");
    far.cmd(&format!("ip addr add {}/24 dev eth0", v4(1)));
    for (n, host) in pair.hosts.iter().enumerate() {
        host.write("a.yaml", &topology(n));
        // The rest is applied, and what can't be used is told.
        host.expect(if n == 0 { 4 } else { 0 }, &["apply"]);
        pair.workloads[n].cmd(&format!("ip addr add {}/24 dev eth0", v4(n)));
    }
    // The mapping beside them works.
    assert_pings(&pair.workloads[0], &v4(1));

    let status = host.status();
    assert_eq!(status["in_force"], false, "{status:#}");
    let problem = |word: &str, why: &str| {
        let problems = status["problems"].as_array().unwrap();
        let of = |p: &&Value| p.as_str().unwrap().contains(word);
        let found = problems.iter().find(of).unwrap_or_else(|| panic!("nothing on {word} in {problems:?}"));
        assert!(found.as_str().unwrap().contains(why), "{found}");
    };
    for (address, word, why) in [
        ("near/near", "near/near", "a veth whose peer is in this namespace too"),
        ("bridge/br-own", "bridge/br-own", "a bridge device, not a veth"),
    ] {
        let mapping = host.mapping(address);
        assert_eq!(mapping["state"], "pending", "{mapping:#}");
        assert!(mapping["why"].as_str().unwrap().contains(why), "{mapping:#}");
        problem(word, why);
    }
    // Nothing of ours is on them.
    for interface in ["near", "br-own"] {
        let ifindex = host.ifindex(interface);
        let attachments = status["attachments"].as_array().unwrap();
        assert!(!attachments.iter().any(|a| a["ifindex"] == ifindex), "{status:#}");
        let entries = host.dump("if2tunkey");
        assert_eq!(entries.as_array().unwrap().len(), 1, "{entries:#}");
    }

    // The peer moves into a workload, and the mapping comes into force.
    let moved = Netns::new();
    host.netns.cmd(&format!("ip link set near-peer netns {}", moved.name));
    moved.cmd("ip link set near-peer up");
    moved.cmd(&format!("ip addr add {}/24 dev near-peer", v4(0)));
    host.expect(4, &["apply"]);
    assert_eq!(host.mapping("near/near")["state"], "active");
    assert_pings(&moved, &v4(1));
    assert!(Traffic::of(host, "near").rx >= 4);
}

// --- Other kinds of tunnel and of port.

/// Whether this kernel makes devices of that kind.
fn has_kind(kind: &str) -> bool {
    let netns = Netns::new();
    let external = if ["geneve", "gretap", "ip6gretap"].contains(&kind) { " external" } else { "" };
    let output = netns.try_cmd(&format!("ip link add probe0 type {kind}{external}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    // Any other reason isn't an answer.
    assert!(output.status.success() || errors.contains("Unknown device type"), "{kind}: {errors}");
    output.status.success()
}

/// The kernel's kind of device, the module that has it, and what the tunnel takes of the underlay's MTU.
fn kind_of(kind: &str, over: Over) -> (&'static str, &'static str, u32) {
    match (kind, over) {
        ("geneve", Over::Ipv4) => ("geneve", "geneve", 50),
        ("geneve", Over::Ipv6) => ("geneve", "geneve", 70),
        ("gretap", Over::Ipv4) => ("gretap", "ip_gre", 42),
        ("gretap", Over::Ipv6) => ("ip6gretap", "ip6_gre", 62),
        _ => panic!("{kind}"),
    }
}

/// Traffic through a tunnel of that kind where the kernel has it; a clear refusal where it doesn't.
fn other_kind(kind: &str, form: Form, over: Over) {
    let (device, module, overhead) = kind_of(kind, over);
    if !has_kind(device) {
        return refused_kind(kind, device, module, form, over);
    }
    let pair = Pair::with(form, over, &format!("kind: {kind}, create: true, ttl: 17, tos: inherit"));
    let [a, b] = &pair.workloads;
    let made = link(&pair.hosts[0].netns, "vxlan0");
    assert_eq!(made["linkinfo"]["info_kind"], device, "{made:#}");
    let mtu = 1500 - overhead;
    assert_eq!(made["mtu"], mtu);
    let wire = pair.wire(0);
    for (address, headers) in [(v4(1), 28), (v6(1), 48)] {
        assert_pings(a, &address);
        wire.clear();
        a.cmd(&format!("ping -M do -c 3 -i 0.02 -W 5 -q -Q 0xb8 -s {} {address}", mtu - headers));
        let outer = wait_for_echo_request(&wire, over.host(0));
        assert_eq!((outer.destination, outer.ttl, outer.tos, outer.tunnel.id()), (over.host(1), 17, 0xb8, ID));
        assert_eq!(outer.length, 1514, "the MTU isn't used up, or overrun: {outer:?}");
        match outer.tunnel {
            Tunnel::Udp { port, .. } => assert_eq!((kind, port), ("geneve", 6081)),
            Tunnel::Gre { .. } => assert_eq!(kind, "gretap"),
        }
        assert!(!wire.seen().iter().any(|f| f.outer().is_some_and(|o| o.fragment)), "fragments on the underlay");
    }
    let before = pair.traffic(1);
    exchange_datagrams(a, b, [&v4(0), &v4(1)], 20, 20, usize::try_from(mtu).unwrap() - 28);
    transfer(a, b, &v4(1), scaled(8 << 20));
    transfer(b, a, &v6(0), scaled(8 << 20));
    let moved = pair.traffic(1).since(before);
    let segments = scaled(8 << 20) / 1500;
    assert!(moved.rx > segments && moved.tx > segments, "{moved:?}");
    pair.assert_no_drops();
}

/// What decides where packets go on a host: entries of our maps, attachments, links.
fn live(host: &Host) -> Vec<(&'static str, Value)> {
    let mut found = Vec::new();
    for map in ["tunkey2if", "if2tunkey", "devs"] {
        // bpftool shows the free slots of devs as errors.
        let entries = host.dump(map).as_array().unwrap().clone();
        found.extend(entries.into_iter().filter(|e| e["value"].get("error").is_none()).map(|entry| (map, entry)));
    }
    found.extend(host.status()["attachments"].as_array().unwrap().iter().map(|a| ("attachment", a.clone())));
    found.extend(host.netns.cmd("ip -br link").lines().map(|l| ("link", Value::from(l))));
    found
}

/// The kernel lacks the kind: `apply` fails and says what is missing; what was in force stays so, and what was to use
/// the tunnel fails closed.
fn refused_kind(kind: &str, device: &str, module: &str, form: Form, over: Over) {
    let pair = Pair::new(form, over);
    assert_pings(&pair.workloads[0], &v4(1));
    let host = &pair.hosts[0];
    host.netns.cmd("ip link add extra type veth peer name extra-idle");
    host.netns.cmd("ip link set extra addrgenmode none up");
    host.netns.cmd("ip link set extra-idle addrgenmode none up");
    let before = live(host);
    // Another tunnel, with a mapping, beside what works.
    let (own, far) = (over.host(0), over.host(1));
    let more = format!(
        "version: 1\ntunnels:\n  other0: {{kind: {kind}, create: true, local: '{own}'}}\nmappings:\n  \
         - {{tenant: green, interface: extra, tunnel: other0, id: 5, remote: '{far}'}}\n"
    );
    let text = pair.topology(0, "kind: vxlan, create: true");
    let text = text.replace("  red: {", "  red: {tunnel: vxlan0, ").replace("  red:\n", "  red:\n    tunnel: vxlan0\n");
    host.write("a.yaml", &text);
    host.write("b.yaml", &more);
    host.expect(0, &["validate", &host.topology().display().to_string()]);
    for (code, changed) in [(4, true), (1, false)] {
        // In part at first: the mapping's own entries. After that there is nothing left that could be done.
        let output = host.run(&["apply", "--format", "json"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.matches("\"changed\":").count(), 1, "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["changed"], changed, "{text}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(&format!("the kernel has no {device} devices")), "{errors}");
        assert!(errors.contains(&format!("modprobe {module}")), "{errors}");
        let now = live(host);
        let lost: Vec<_> = before.iter().filter(|entry| !now.contains(entry)).collect();
        assert!(lost.is_empty(), "{lost:#?}");
        let extra = host.ifindex("extra");
        for (what, entry) in now.iter().filter(|entry| !before.contains(entry)) {
            let of_green = match *what {
                "tunkey2if" => entry["formatted"]["key"]["id"] == 5,
                "if2tunkey" => entry["formatted"]["key"] == extra,
                "devs" => entry["value"][0] == format!("0x{extra:02x}"),
                "attachment" => entry["interface"] == "extra",
                _ => false,
            };
            assert!(of_green, "{what}: {entry}");
        }
    }
    assert_pings(&pair.workloads[0], &v4(1));
    let status = host.status();
    assert_eq!(status["in_force"], false, "{status:#}");
    let mapping = host.mapping("green/extra");
    assert_eq!(
        (mapping["state"].as_str(), mapping["why"].as_str()),
        (Some("pending"), Some("tunnel other0 has no usable device"))
    );
    // A daemon says in its status why.
    let daemon = host.daemon_unready();
    eventually("the daemon tells the error", || {
        // Before it listens there is none in it.
        host.status()["errors"].as_array().is_some_and(|list| list.iter().any(|e| e.to_string().contains(module)))
    });
    assert_eq!(daemon.stop(), Some(0));

    // What green sends is dropped and counted, and reaches neither the underlay nor the pair's other end.
    let (wire, idle) = (pair.wire(0), Capture::on(&host.netns, "extra-idle"));
    host.netns.cmd("ip addr add 192.168.60.1/24 dev extra");
    assert!(silent(&host.netns, "192.168.60.2"));
    let traffic = host.mapping("green/extra")["traffic"].clone();
    let drops: u64 = traffic["drops"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert!(drops > 0 && traffic["tx_packets"] == 0, "{traffic:#}");
    assert_eq!(idle.seen().len(), 0);
    assert_eq!(wire.seen().iter().filter(|f| f.outer().is_some_and(|o| o.tunnel.id() == 5)).count(), 0);

    // Taken back, all is as before.
    std::fs::remove_file(host.topology().join("b.yaml")).unwrap();
    host.expect(0, &["apply", "--allow-deletes"]);
    let now = live(host);
    let sorted = |list: &[(&str, Value)]| {
        let mut lines: Vec<String> = list.iter().map(|entry| format!("{entry:?}")).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&now), sorted(&before));
    assert_eq!(host.status()["in_force"], true);
    assert_pings(&pair.workloads[0], &v4(1));
}

macro_rules! kinds {
    ($($name:ident: $kind:literal, $form:ident, $over:ident;)*) => {
        mod other_kinds_work_or_are_refused_clearly {
            use super::{Form, Over};
            $(
                #[test]
                fn $name() {
                    super::other_kind($kind, Form::$form, Over::$over);
                }
            )*
        }
    };
}

kinds!(
    geneve_port_over_ipv4: "geneve", Bridge, Ipv4;
    geneve_port_over_ipv6: "geneve", Bridge, Ipv6;
    geneve_endpoint_over_ipv4: "geneve", EndpointWire, Ipv4;
    geneve_endpoint_over_ipv6: "geneve", EndpointWire, Ipv6;
    gretap_port_over_ipv4: "gretap", Bridge, Ipv4;
    ip6gretap_port_over_ipv6: "gretap", Bridge, Ipv6;
    gretap_endpoint_over_ipv4: "gretap", EndpointWire, Ipv4;
    ip6gretap_endpoint_over_ipv6: "gretap", EndpointWire, Ipv6;
);

/// Generated ports are made of the best kind that the kernel has.
#[test]
fn generated_ports_are_dummies_where_the_kernel_has_them() {
    let expected = ["dummy", "ifb", "veth"].into_iter().find(|kind| has_kind(kind)).unwrap();
    let pair = Pair::new(Form::Bridge, Over::Ipv4);
    assert_pings(&pair.workloads[0], &v4(1));
    for host in &pair.hosts {
        let mapping = host.status()["mappings"][0].clone();
        let port = link(&host.netns, mapping["interface"].as_str().unwrap());
        let kind = &port["linkinfo"]["info_kind"];
        assert_eq!(kind, expected, "{port:#}");
        assert!(Traffic::of(host, "red").rx >= 4);
    }
}

// --- MTU of what we make.

/// Tunnel device and bridge have the underlay's MTU less what the tunnel takes.
fn mtu_of_devices(underlay: u32, nodes: [&str; 2], tunnel: &str, expected: u32) {
    let underlay = Underlay::with_mtu(underlay);
    let host = underlay.host(0);
    let text = format!(
        "version: 1\nnodes: {{host0: {}, host1: {}}}\ntunnels:\n  vxlan0: {{kind: vxlan, create: true{tunnel}}}\n\
         tenants:\n  red: {{id: {ID}, bridge: br-red}}\n",
        nodes[0], nodes[1]
    );
    host.write("a.yaml", &text);
    host.apply();
    let status = host.status();
    assert_eq!(status["in_force"], true, "{status:#}");
    assert_eq!(status["tunnels"][0]["mtu"], expected);
    let port = status["mappings"][0]["interface"].as_str().unwrap();
    for made in ["vxlan0", "br-red"] {
        assert_eq!(link(&host.netns, made)["mtu"], expected, "{made}");
    }
    assert_eq!(link(&host.netns, port)["mtu"], 65535, "the data plane, not the bridge, says what is too big");
    // A workload's veth of another MTU joins, and the bridge keeps its own.
    let _workload = host.workload("veth-w", "192.168.50.1/24");
    host.netns.cmd("ip link set veth-w mtu 1280 master br-red");
    host.apply();
    assert_eq!(link(&host.netns, "br-red")["mtu"], expected);
}

#[test]
fn mtu_is_50_less_than_an_ipv4_underlays() {
    mtu_of_devices(1500, ["172.16.1.100", "172.16.1.101"], "", 1450);
    mtu_of_devices(9000, ["172.16.1.100", "172.16.1.101"], "", 8950);
}

#[test]
fn mtu_is_70_less_where_ipv6_may_be_used() {
    mtu_of_devices(1500, ["'fd00::100'", "'fd00::101'"], "", 1430);
    mtu_of_devices(9000, ["[172.16.1.100, 'fd00::100']", "[172.16.1.101, 'fd00::101']"], "", 8930);
}

#[test]
fn mtu_follows_the_family_and_the_files() {
    let both = ["[172.16.1.100, 'fd00::100']", "[172.16.1.101, 'fd00::101']"];
    mtu_of_devices(1500, both, ", family: ipv4", 1450);
    mtu_of_devices(1500, both, ", mtu: 1400", 1400);
}
