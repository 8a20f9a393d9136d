//! Each thing that keeps packets from the fast lane, put on a host for real: it is seen, told, heeded, and forgotten when
//! it is gone; and no packet is lost when a mapping changes lanes. Runs on this machine's kernel; what is read on older ones
//! is tested in `tests/netlink_underlay.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

#[path = "lifecycle/stream.rs"]
mod stream;

use serde_json::Value;
use stream::Stream;
use world::harness::Netns;
use world::pair::Pair;
use world::*;

/// Codes of the reasons for the device lane, out and in; `fast` where there is none.
fn lanes(host: &Host, address: &str) -> (String, String) {
    lanes_in(&host.mapping(address))
}

fn lanes_in(mapping: &Value) -> (String, String) {
    let lanes = &mapping["lanes"];
    assert!(lanes.is_object(), "{mapping:#}");
    let code = |way: &str| lanes[way]["code"].as_str().unwrap_or("fast").to_owned();
    (code("sent_by_device"), code("received_by_device"))
}

fn expected(out: &str, into: &str) -> (String, String) {
    (out.to_owned(), into.to_owned())
}

/// Packets of a mapping so far: sent and received, and of those the ones by the fast lane.
fn counted(host: &Host, address: &str) -> [u64; 4] {
    let traffic = host.mapping(address)["traffic"].clone();
    ["tx_packets", "tx_fast", "rx_packets", "rx_fast"].map(|n| traffic[n].as_u64().unwrap())
}

/// Pings both ways and expects the lanes that the packets take, by the counters of the first host.
fn assert_lanes_carry(pair: &Pair, out_fast: bool, in_fast: bool) {
    let wire = || counted(pair.host(), "wire/wire0");
    // The neighbours' addresses, which go by the device.
    assert_pings(&pair.wire[0], "192.168.61.2");
    let before = wire();
    assert!(pings(&pair.wire[0], "192.168.61.2", 20));
    let after = wire();
    let moved: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    let [sent, sent_fast, received, received_fast] = moved[..] else { panic!("{moved:?}") };
    assert!(sent >= 20 && received >= 20, "{moved:?}");
    assert_eq!((sent_fast >= 20, received_fast >= 20), (out_fast, in_fast), "{moved:?}");
}

/// A thing in the way: what puts it there, what takes it away, and what comes of it.
struct Case {
    there: &'static [&'static str],
    gone: &'static [&'static str],
    codes: (&'static str, &'static str),
    /// Whether tunnels still get through.
    passes: bool,
    /// Whether the daemon is told of it; else it finds out with the next pass.
    told: bool,
}

const CASES: &[Case] = &[
    Case {
        there: &[
            "nft add table inet fw",
            "nft add chain inet fw out { type filter hook output priority 0 ; }",
            "nft add rule inet fw out udp dport 4789 drop",
        ],
        gone: &["nft delete table inet fw"],
        codes: ("netfilter", "fast"),
        passes: false,
        told: true,
    },
    Case {
        there: &[
            "nft add table ip fw",
            "nft add chain ip fw in { type filter hook input priority 0 ; }",
            "nft add rule ip fw in udp dport 4789 drop",
        ],
        gone: &["nft delete table ip fw"],
        codes: ("fast", "netfilter"),
        passes: false,
        told: true,
    },
    Case {
        there: &[
            "nft add table netdev fw",
            "nft add chain netdev fw in { type filter hook ingress device eth0 priority 0 ; policy accept ; }",
            "nft add rule netdev fw in counter",
        ],
        gone: &["nft delete table netdev fw"],
        codes: ("fast", "netfilter"),
        passes: true,
        told: true,
    },
    Case {
        there: &["ip rule add pref 100 to 172.16.1.101 ipproto udp dport 4789 blackhole"],
        gone: &["ip rule del pref 100"],
        codes: ("routing-rule", "fast"),
        passes: false,
        told: true,
    },
    Case {
        there: &["ip xfrm policy add src 172.16.1.100/32 dst 172.16.1.101/32 proto udp dir out action block"],
        gone: &["ip xfrm policy flush"],
        codes: ("ipsec", "fast"),
        passes: false,
        told: true,
    },
    Case {
        there: &["ip xfrm policy add src 172.16.1.101/32 dst 172.16.1.100/32 proto udp dir in action block"],
        gone: &["ip xfrm policy flush"],
        codes: ("fast", "ipsec"),
        passes: false,
        told: true,
    },
    Case {
        there: &[
            "tc qdisc add dev eth0 clsact",
            "tc filter add dev eth0 ingress prio 77 bpf bytecode 1,6_0_0_4294967295",
        ],
        gone: &["tc filter del dev eth0 ingress prio 77"],
        codes: ("fast", "tc-program"),
        passes: true,
        told: false,
    },
];

/// Runs a command inside; `_` in its words are spaces. That a qdisc is there already is fine.
fn put(netns: &Netns, line: &str) {
    let words: Vec<String> = line.split(' ').map(|w| w.replace('_', " ")).collect();
    if line.contains("qdisc add") {
        drop(netns.try_cmd(line));
    } else {
        netns.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_in_the_way_is_seen_heeded_and_forgotten() {
    // Nothing but what the daemon is told of makes it look.
    let pair = Pair::new();
    let host = pair.host();
    let (wire, port) = ("wire/wire0", "port/port0");
    let all_fast = expected("fast", "fast");
    assert_eq!((lanes(host, wire), lanes(host, port)), (all_fast.clone(), all_fast.clone()));
    assert_lanes_carry(&pair, true, true);
    for Case { there, gone, codes: (out, into), passes, told } in CASES {
        let look = || {
            if !told {
                pair.daemon().signal(rustix::process::Signal::HUP);
            }
        };
        eprintln!("{}", there.last().unwrap());
        there.iter().for_each(|line| put(&host.netns, line));
        look();
        let codes = expected(out, into);
        eventually("it is seen", || lanes(host, wire) == codes && lanes(host, port) == codes);
        host.wait_in_force();
        if *passes {
            assert_lanes_carry(&pair, *out == "fast", *into == "fast");
        } else {
            assert!(silent(&pair.wire[0], "192.168.61.2"), "it isn't heeded");
        }
        let doctor = host.run(&["doctor", "--format", "json"]).stdout;
        let doctor: Value = serde_json::from_slice(&doctor).unwrap();
        let code = if *out == "fast" { into } else { out };
        let found = doctor["findings"].as_array().unwrap().iter().find(|f| f["check"] == "lanes").unwrap().clone();
        assert_eq!((found["code"].as_str().unwrap(), found["severity"].as_str().unwrap()), (*code, "note"));
        gone.iter().for_each(|line| put(&host.netns, line));
        look();
        eventually("it is forgotten", || lanes(host, wire) == all_fast);
        host.wait_in_force();
        assert_lanes_carry(&pair, true, true);
    }
}

const TWO: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: [172.16.1.100, 'fd00::100'], fast: FAST, checksum: false}
mappings:
  - {tenant: red, interface: eth1, id: 1, remote: 172.16.1.101}
  - {tenant: blue, interface: eth2, id: 2, remote: 'fd00::101'}
";

/// A host with two interfaces for tenants, and its topology.
fn host(underlay: &Underlay, fast: &str) -> Host {
    let host = underlay.host(0);
    for name in ["eth1", "eth2"] {
        host.netns.cmd(&format!("ip link add {name} type veth peer name {name}p"));
        host.netns.cmd(&format!("ip link set {name} up"));
        host.netns.cmd(&format!("ip link set {name}p up"));
    }
    host.write("a.yaml", &TWO.replace("FAST", fast));
    host
}

#[test]
fn what_the_files_say_goes_before_what_is_found() {
    let underlay = Underlay::new();
    let host = host(&underlay, "auto");
    host.netns.cmd("nft add table ip fw");
    host.netns.cmd("nft add chain ip fw out { type filter hook output priority 0 ; policy drop ; }");
    host.apply();
    assert_eq!(lanes(&host, "red/eth1"), expected("netfilter", "fast"));
    assert_eq!(lanes(&host, "blue/eth2"), expected("fast", "fast"), "of the other family");
    assert!(host.expect(0, &["status"]).contains("the nftables chain ip fw out (output) would not see it"));
    host.write("a.yaml", &TWO.replace("FAST", "on"));
    let plan = host.expect(0, &["plan"]);
    assert!(plan.contains("lane device -> fast"), "{plan}");
    host.apply();
    assert_eq!(lanes(&host, "red/eth1"), expected("fast", "fast"));
    let doctor: Value = serde_json::from_slice(&host.run(&["doctor", "--format", "json"]).stdout).unwrap();
    let found = doctor["findings"].as_array().unwrap().iter().find(|f| f["check"] == "lanes").unwrap().clone();
    assert_eq!((found["code"].as_str(), found["severity"].as_str()), (Some("netfilter"), Some("warning")));
    host.write("a.yaml", &TWO.replace("FAST", "off"));
    host.apply();
    assert_eq!(lanes(&host, "red/eth1"), expected("fast-off", "fast-off"));
    assert!(!host.status()["attachments"].as_array().unwrap().iter().any(|a| a["interface"] == "eth0"));
}

#[test]
fn a_plan_tells_the_lanes_before_anything_is_made() {
    let underlay = Underlay::new();
    let host = host(&underlay, "auto");
    host.netns.cmd("iptables-legacy -t raw -S");
    host.netns.cmd("ip -6 route add default via fe80::9 dev eth0 proto ra");
    let plan: Value = serde_json::from_str(&host.expect(0, &["plan", "--format", "json"])).unwrap();
    let of = |address: &str| {
        let found = plan["lanes"].as_array().unwrap().iter().find(|m| m["address"] == address).unwrap().clone();
        lanes_in(&serde_json::json!({ "lanes": found }))
    };
    assert_eq!(of("red/eth1"), expected("netfilter", "netfilter"));
    assert_eq!(of("blue/eth2"), expected("learned-route", "fast"));
    let text = host.expect(0, &["plan"]);
    let told = "sent and received by the tunnel device: the raw table of iptables would not see it";
    assert!(text.contains(told), "{text}");
    assert!(text.contains("net.ipv6.conf.eth0.accept_ra to 2"), "{text}");
    host.apply();
    // The route is what it was about.
    assert!(host.netns.cmd("ip -6 route show default").contains("proto ra"));
    assert_eq!(lanes(&host, "blue/eth2"), expected("learned-route", "fast"));
}

#[test]
fn a_mapping_changes_lanes_without_a_lost_packet() {
    let pair = Pair::new();
    let host = pair.host();
    let streams = [
        Stream::start("endpoint out", &pair.wire[0], &pair.wire[1], "192.168.61.2", 0),
        Stream::start("endpoint in", &pair.wire[1], &pair.wire[0], "192.168.61.1", 0),
        Stream::start("bridge in", &pair.red[1], &pair.red[0], "192.168.60.1", 0),
        Stream::start("port out", &pair.hosts[0].netns, &pair.hosts[1].netns, "192.168.62.2", 0),
        Stream::start("port in", &pair.hosts[1].netns, &pair.hosts[0].netns, "192.168.62.1", 0),
    ];
    let flow = || streams.iter().for_each(|s| s.flow(scaled(2_000)));
    let fast = |wanted: bool| {
        let codes = ["wire/wire0", "port/port0"].map(|address| lanes(host, address));
        let is_fast = |code: &str| (code == "fast") == wanted;
        codes.iter().all(|(out, into)| is_fast(out) && is_fast(into))
    };
    let before = counted(host, "wire/wire0");
    flow();
    for round in 0..3 {
        for setting in ["off", "on", "off", "auto"] {
            pair.rewrite("create: true", &format!("create: true, fast: {setting}"));
            eventually("the files are in force", || fast(setting != "off"));
            host.wait_in_force();
            flow();
        }
        let table = format!("t{round}");
        host.netns.cmd(&format!("nft add table inet {table}"));
        for hook in ["input", "output"] {
            let chain = format!("nft add chain inet {table} {hook} {{ type filter hook {hook} priority 0 ; }}");
            host.netns.cmd(&chain);
            host.netns.cmd(&format!("nft add rule inet {table} {hook} counter"));
        }
        eventually("the chains are seen", || fast(false));
        host.wait_in_force();
        flow();
        host.netns.cmd(&format!("nft delete table inet {table}"));
        eventually("the chains are forgotten", || fast(true));
        host.wait_in_force();
        flow();
    }
    let after = counted(host, "wire/wire0");
    let [sent, sent_fast, received, received_fast] = [0, 1, 2, 3].map(|n| after[n] - before[n]);
    for stream in streams {
        stream.finish();
    }
    // Both lanes had their share of both ways.
    assert!(sent_fast > 0 && sent_fast < sent, "{sent_fast} of {sent}");
    assert!(received_fast > 0 && received_fast < received, "{received_fast} of {received}");
}
