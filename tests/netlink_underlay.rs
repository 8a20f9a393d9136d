//! What the fast lane would pass by, read from namespaces in which somebody put it there.

#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use harness::{Netns, veth};
use std::time::Duration;
use tunnel_mesh::model::{Flow, Link, PolicyDirection, Underlay};
use tunnel_mesh::netlink::{Netlink, UnderlayWatch};

/// Two namespaces with a wire: the first is the host under test.
struct Host {
    here: Netns,
    _there: Netns,
}

impl Host {
    fn new() -> Self {
        let (here, there) = (Netns::new(), Netns::new());
        veth((&here, "eth0"), (&there, "eth0"));
        here.cmd("ip address add 10.0.0.1/24 dev eth0");
        here.cmd("ip address add fd00::1/64 dev eth0 nodad");
        Self { here, _there: there }
    }

    fn cmd(&self, line: &str) {
        self.here.cmd(line);
    }

    fn look(&self) -> Underlay {
        self.here.block_on(|| async {
            let netlink = Netlink::open().await.unwrap();
            let links = netlink.links().await.unwrap();
            let candidates: Vec<&Link> = links.iter().filter(|l| l.name == "eth0").collect();
            netlink.underlay(&candidates).await
        })
    }

    /// What the first obstacle between here and that remote is, in words.
    fn obstacle(&self, remote: &str) -> Option<String> {
        let (seen, remote) = (self.look(), remote.parse::<std::net::IpAddr>().unwrap());
        let local = if remote.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
        let link = self.here.cmd("ip -o link show eth0");
        let flow = Flow {
            local: local.parse().unwrap(),
            remote,
            port: 4789,
            tunnel: "vxlan0",
            device: "eth0",
            ifindex: link.split(':').next().unwrap().parse().unwrap(),
        };
        let outgoing = seen.obstacle_out(&flow).map(|o| format!("out: {o}"));
        outgoing.or_else(|| seen.obstacle_in(&flow).map(|o| format!("in: {o}")))
    }
}

#[test]
fn nothing_is_in_the_way_where_nobody_put_anything() {
    let host = Host::new();
    assert_eq!(host.look(), Underlay::default());
}

#[test]
fn routing_rules() {
    let host = Host::new();
    host.cmd("ip rule add pref 100 to 10.0.0.2 lookup 100");
    host.cmd("ip rule add pref 101 fwmark 0x5/0xff lookup main");
    host.cmd("ip rule add pref 102 iif eth7 lookup 102");
    host.cmd("ip -6 rule add pref 103 ipproto udp dport 4789 blackhole");
    let seen: Vec<String> = host.look().rules.iter().map(ToString::to_string).collect();
    let expected = [
        "100: from all to 10.0.0.2/32 lookup 100",
        "101: from all fwmark 0x5/0xff lookup 254",
        "102: from all iif eth7 lookup 102",
        "103: from all ipproto 17 dport 4789-4789 blackhole",
    ];
    assert_eq!(seen, expected);
    host.cmd("ip rule del pref 101");
    let policy_routed = "out: a routing rule decides about its route: 100: from all to 10.0.0.2/32 lookup 100";
    assert_eq!(host.obstacle("10.0.0.2").as_deref(), Some(policy_routed));
    assert_eq!(host.obstacle("10.0.0.3"), None);
    assert!(host.obstacle("fd00::2").unwrap().contains("103:"));
    // The rule that every namespace starts with may move out of the way of others.
    host.cmd("ip rule del pref 100");
    host.cmd("ip rule add pref 50 lookup local");
    host.cmd("ip rule del pref 0");
    assert_eq!(host.obstacle("10.0.0.2"), None);
}

#[test]
fn ipsec_policies() {
    let host = Host::new();
    let policy = |what: &str| host.cmd(&format!("ip xfrm policy add {what}"));
    let template = "tmpl src 10.0.0.1 dst 10.0.0.2 proto esp mode transport";
    policy(&format!("src 10.0.0.1/32 dst 10.0.0.2/32 dir out {template}"));
    policy("src 10.0.0.0/24 dst 10.0.0.0/24 dir fwd action block");
    policy("src 10.0.0.1/32 dst 10.0.0.3/32 dir out action allow");
    policy("src 10.0.0.4/32 dst 10.0.0.1/32 proto udp dport 4789 dir in action block");
    let directions: Vec<PolicyDirection> = host.look().ipsec.iter().map(|p| p.direction).collect();
    assert_eq!(directions.len(), 2, "what forwards and what lets pass is left out: {directions:?}");
    let out = "out: an IPsec policy is for it: src 10.0.0.1/32 dst 10.0.0.2/32 dir out";
    assert_eq!(host.obstacle("10.0.0.2").as_deref(), Some(out));
    assert_eq!(host.obstacle("10.0.0.3"), None);
    let received = "in: an IPsec policy is for it: src 10.0.0.4/32 dst 10.0.0.1/32 dir in";
    assert_eq!(host.obstacle("10.0.0.4").as_deref(), Some(received));
    assert_eq!(host.obstacle("fd00::2"), None);
    host.cmd("ip xfrm policy flush");
    assert_eq!(host.look(), Underlay::default());
    // iproute2 before 6.0 can't ask for it.
    if host.here.try_cmd("ip xfrm policy setdefault in block").status.success() {
        assert!(host.obstacle("10.0.0.2").unwrap().contains("IPsec blocks what no policy names"));
    }
}

#[test]
fn netfilter_chains() {
    let host = Host::new();
    let nft = |line: &str| host.cmd(&format!("nft {line}"));
    nft("add table inet filter");
    nft("add chain inet filter input { type filter hook input priority 0 ; policy accept ; }");
    nft("add chain inet filter forward { type filter hook forward priority 0 ; policy drop ; }");
    nft("add chain inet filter jumped");
    nft("add rule inet filter jumped counter");
    assert_eq!(host.look(), Underlay::default(), "empty, forwarding or not on a hook");
    nft("add rule inet filter input counter");
    let input = "in: the nftables chain inet filter input (input) would not see it";
    assert_eq!(host.obstacle("10.0.0.2").as_deref(), Some(input));
    assert_eq!(host.obstacle("fd00::2").as_deref(), Some(input));
    nft("flush chain inet filter input");
    assert_eq!(host.obstacle("10.0.0.2"), None);

    nft("add table ip6 mine");
    nft("add chain ip6 mine out { type route hook output priority 0 ; policy drop ; }");
    assert_eq!(host.obstacle("10.0.0.2"), None);
    let output = "out: the nftables chain ip6 mine out (output) would not see it";
    assert_eq!(host.obstacle("fd00::2").as_deref(), Some(output));
    nft("delete table ip6 mine");

    nft("add table netdev edge");
    nft("add chain netdev edge lo { type filter hook ingress device lo priority 0 ; policy drop ; }");
    assert_eq!(host.obstacle("10.0.0.2"), None);
    nft("add chain netdev edge eth { type filter hook ingress device eth0 priority 0 ; policy drop ; }");
    let ingress = "in: the nftables chain netdev edge eth (ingress) would not see it";
    assert_eq!(host.obstacle("10.0.0.2").as_deref(), Some(ingress));
}

#[test]
fn tables_of_the_older_iptables() {
    let host = Host::new();
    host.cmd("iptables-legacy -t mangle -S");
    let table = "out: the mangle table of iptables would not see it";
    assert_eq!(host.obstacle("10.0.0.2").as_deref(), Some(table));
    assert_eq!(host.obstacle("fd00::2"), None);
}

#[test]
fn filters_of_others_on_the_ingress() {
    let host = Host::new();
    host.cmd("tc qdisc add dev eth0 clsact");
    let add = |side: &str| {
        let line = format!("tc filter add dev eth0 {side} prio 7 bpf bytecode");
        let words: Vec<&str> = line.split(' ').chain(["1,6 0 0 0"]).collect();
        host.here.command(&words)
    };
    add("egress");
    assert_eq!(host.look(), Underlay::default());
    add("ingress");
    let filter = "in: the TC filter bpf of priority 7 on the underlay's ingress would not see it";
    assert_eq!(host.obstacle("10.0.0.2").as_deref(), Some(filter));
}

#[test]
fn routes_that_forwarding_would_cost() {
    let host = Host::new();
    host.cmd("ip -6 route add default via fe80::9 dev eth0 proto ra");
    host.cmd("ip -6 route add fd77::/64 dev eth0 proto ra");
    assert_eq!(host.look().learned_defaults.len(), 1);
    let accept = |value: u32| {
        let set = format!("echo {value} > /proc/sys/net/ipv6/conf/eth0/accept_ra");
        host.here.command(&["sh", "-c", &set]);
        host.look().learned_defaults.len()
    };
    assert_eq!((accept(0), accept(2), accept(1)), (0, 0, 1), "a program's, or kept while forwarding");
}

#[test]
fn changes_are_told() {
    let host = Host::new();
    let changes = [
        "ip rule add pref 100 lookup 100",
        "ip -6 rule add pref 100 lookup 100",
        "ip xfrm policy add src 10.0.0.1/32 dst 10.0.0.2/32 dir out action block",
        "nft add table inet filter",
        "nft add chain inet filter input { type filter hook input priority 0 ; }",
        "nft add rule inet filter input counter",
        "nft delete table inet filter",
    ];
    host.here.block_on(|| async {
        let mut watch = UnderlayWatch::open().await;
        let mut told = async |line: &str| {
            host.cmd(line);
            // What belongs to one change may come in several messages.
            let first = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.is_ok();
            while tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_ok() {}
            first
        };
        for line in changes {
            assert!(told(line).await, "{line}");
        }
    });
}
