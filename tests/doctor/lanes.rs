//! Conditions that keep tunnels from the fast lane, each made and unmade.

/// A condition.
pub struct Case {
    pub code: &'static str,
    /// What makes it, words split at spaces; `_` in a word is a space.
    pub there: &'static [&'static str],
    /// What takes it away.
    pub gone: &'static [&'static str],
    /// What is replaced in the topology meanwhile.
    pub said: (&'static str, &'static str),
}

const AS_IT_IS: (&str, &str) = ("", "");

/// A tenant over each family.
pub const TWO: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: [172.16.1.100, 'fd00::100'], checksum: false}
mappings:
  - {tenant: red, interface: eth1, id: 1, remote: 172.16.1.101}
  - {tenant: blue, interface: eth2, id: 2, remote: 'fd00::101'}
";

pub const CASES: &[Case] = &[
    Case { code: "no-source-address", there: &[], gone: &[], said: ("172.16.1.100", "172.16.1.200") },
    Case { code: "checksum", there: &[], gone: &[], said: ("checksum: false", "checksum: true") },
    Case {
        code: "forwarding",
        there: &["ip link add vxlan0 type vxlan external dstport 4789 udp6zerocsumrx"],
        gone: &["ip link del vxlan0"],
        said: ("create: true, ", ""),
    },
    Case {
        code: "learned-route",
        there: &["ip -6 route add default via fe80::9 dev eth0 proto ra"],
        gone: &["ip -6 route del default"],
        said: AS_IT_IS,
    },
    Case {
        code: "underlay-device",
        there: &["ip tuntap add dev tun0 mode tun", "ip addr add 172.16.1.200/24 dev tun0"],
        gone: &["ip link del tun0"],
        said: ("172.16.1.100", "172.16.1.200"),
    },
    Case {
        code: "routing-rule",
        there: &["ip rule add pref 100 to 172.16.1.101 lookup 77"],
        gone: &["ip rule del pref 100"],
        said: AS_IT_IS,
    },
    Case {
        code: "ipsec",
        there: &["ip xfrm policy add src 172.16.1.100/32 dst 172.16.1.101/32 proto udp dir out action block"],
        gone: &["ip xfrm policy flush"],
        said: AS_IT_IS,
    },
    Case {
        code: "netfilter",
        there: &[
            "nft add table inet fw",
            "nft add chain inet fw out { type filter hook output priority 0 ; policy drop ; }",
        ],
        gone: &["nft delete table inet fw"],
        said: AS_IT_IS,
    },
    Case {
        code: "tc-program",
        there: &[
            "tc qdisc add dev eth0 clsact",
            "tc filter add dev eth0 ingress prio 77 bpf bytecode 1,6_0_0_4294967295",
        ],
        gone: &["tc qdisc del dev eth0 clsact"],
        said: AS_IT_IS,
    },
];

/// Nine tunnels on one underlay device, each with a tenant.
pub fn nine() -> String {
    let tunnels =
        (0..9).map(|n| format!("  vx{n}: {{kind: vxlan, create: true, local: 172.16.1.100, port: {}}}\n", 4789 + n));
    let mappings =
        (0..9).map(|n| format!("  - {{tenant: t{n}, interface: e{n}, tunnel: vx{n}, id: 1, remote: 172.16.1.101}}\n"));
    format!("version: 1\ntunnels:\n{}mappings:\n{}", tunnels.collect::<String>(), mappings.collect::<String>())
}
