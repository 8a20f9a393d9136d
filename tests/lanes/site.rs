//! The two hosts of a set-up, their workloads, and what they count.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::cases::Takes;
use super::inner::{FAR, NEAR};
use super::model::{Tenant, World};
use super::outer::{Outer, places};
use super::segment::{folded, pseudo_header, sum, u16_at};
use super::{Attach, BLUE, Lane, Over, RED, Setup};
use crate::safety::{knob, mac};
use crate::world::harness::Netns;
use crate::world::*;
use serde_json::Value;

/// MTU of the underlay: jumbo frames are sent too.
pub const UNDERLAY: u32 = 9_000;

pub struct Site {
    pub setup: Setup,
    pub hosts: [Host; 2],
    /// Workloads of the tenant red, with the addresses [`NEAR`] and [`FAR`].
    pub red: [Netns; 2],
    pub blue: [Netns; 2],
    pub underlay: Underlay,
    /// Of a packet from the first host to the second: where to, and from where.
    macs: [[u8; 6]; 2],
}

impl Site {
    /// Connected, in force by the device.
    pub fn new(setup: Setup) -> Self {
        let underlay = Underlay::with_mtu(UNDERLAY);
        no_bridge_netfilter(&underlay.netns);
        let hosts = [0, 1].map(|n| underlay.host(n));
        let hosts = hosts.map(|mut host| {
            no_bridge_netfilter(&host.netns);
            knob(&host.netns, "ipv6/conf/default/disable_ipv6", "1");
            host.extra_env.push(("TUNNEL_MESH_HOOK".into(), setup.hook.name().into()));
            host
        });
        // Nobody asks for anybody's address: no packets but the test's.
        for n in 0..2 {
            let far = mac(&hosts[1 - n].netns, "eth0").map(|b| format!("{b:02x}")).join(":");
            for over in [Over::Ipv4, Over::Ipv6] {
                let address = over.host(1 - n);
                hosts[n].netns.cmd(&format!("ip neigh replace {address} lladdr {far} dev eth0 nud permanent"));
            }
        }
        let workloads = |tenant: &str| {
            [0, 1].map(|n| {
                let workload = Netns::new();
                crate::safety::quiet(&workload);
                let (host, own) =
                    (&hosts[n].netns, if n == 0 { NEAR } else { FAR }.map(|b| format!("{b:02x}")).join(":"));
                host.cmd(&format!("ip link add w-{tenant} type veth peer name eth0 netns {}", workload.name));
                workload.cmd(&format!("ip link set eth0 address {own} up"));
                host.cmd(&format!("ip link set w-{tenant} up"));
                workload
            })
        };
        let (red, blue) = (workloads("red"), workloads("blue"));
        let macs = [1, 0].map(|n: usize| mac(&hosts[n].netns, "eth0"));
        let site = Self { setup, hosts, red, blue, underlay, macs };
        site.use_lane(Lane::Device, "");
        let mtu = site.mtu();
        for (n, host) in site.hosts.iter().enumerate() {
            for (tenant, workload) in [("red", &site.red[n]), ("blue", &site.blue[n])] {
                workload.cmd(&format!("ip link set eth0 mtu {mtu}"));
                host.netns.cmd(&format!("ip link set w-{tenant} mtu {mtu}"));
                if setup.attach == Attach::Port {
                    host.netns.cmd(&format!("ip link set w-{tenant} master br-{tenant}"));
                    // Addresses are made up in here: the bridge mustn't remember who was where.
                    let port = site.port(n, tenant);
                    for link in [format!("w-{tenant}"), port] {
                        host.netns.cmd(&format!("bridge link set dev {link} learning off"));
                    }
                }
            }
        }
        site
    }

    /// Bytes that a tenant's packet may have.
    pub fn mtu(&self) -> usize {
        usize::try_from(UNDERLAY - self.setup.over.overhead()).unwrap()
    }

    /// Brings the topology into force with plain packets by that lane. `more` is added to the tunnel.
    pub fn use_lane(&self, lane: Lane, more: &str) {
        let fast = lane.fast();
        let over = self.setup.over;
        let tenant = |name: &str, id: u32| match self.setup.attach {
            Attach::Port => format!("  {name}: {{id: {id}, bridge: br-{name}}}\n"),
            Attach::Endpoint => {
                let member = format!("{{interface: w-{name}, attach: endpoint}}");
                format!("  {name}:\n    id: {id}\n    members: {{host0: {member}, host1: {member}}}\n")
            }
        };
        let text = format!(
            "version: 1\nnodes: {{host0: '{}', host1: '{}'}}\ntunnels:\n  vxlan0: {{kind: {}, create: true, fast: {fast}{more}}}\ntenants:\n{}{}",
            over.host(0),
            over.host(1),
            self.setup.kind.name(),
            tenant("red", RED),
            tenant("blue", BLUE)
        );
        for host in &self.hosts {
            host.write("mesh.yaml", &text);
            host.apply();
        }
    }

    /// What the second host knows.
    pub fn world(&self) -> World {
        let link: Value = serde_json::from_str(&self.hosts[1].netns.cmd("ip -j -d link show dev vxlan0")).unwrap();
        let from = self.setup.over.host(0);
        World {
            mac: self.macs[0],
            own: self.setup.over.host(1),
            keys: vec![((RED, from), Tenant::Red), ((BLUE, from), Tenant::Blue)],
            zero_checksum6: link[0]["linkinfo"]["info_data"]["udp_zero_csum6_rx"] == true,
            bridge: self.setup.attach == Attach::Port,
            kind: self.setup.kind,
        }
    }

    /// A packet from the first host to the second, of that tenant.
    pub fn outer(&self, tunnel_id: u32) -> Outer {
        let (from, to) = (self.setup.over.host(0), self.setup.over.host(1));
        let checksum = self.setup.over == Over::Ipv6;
        let kind = self.setup.kind;
        Outer {
            macs: self.macs,
            from,
            to,
            tos: 0,
            id: 1,
            source_port: 50_000,
            checksum,
            kind,
            word: kind.word(),
            tunnel_id,
        }
    }

    /// Expects of these frames of a tenant that they took the lane that the case says. `near`, `far`: what both hosts
    /// counted.
    pub fn assert_lane(&self, what: &str, lane: Lane, takes: Takes, frames: &[Vec<u8>], near: Counts, far: Counts) {
        let packets = frames.len() as u64;
        let what = format!("{what}: {packets} packets: {near:?}, {far:?}");
        match (lane, takes) {
            (Lane::Device, _) => assert_eq!((near.tx_fast, far.rx_fast), (0, 0), "{what}"),
            (Lane::Fast, Takes::Fast) => {
                assert_eq!(near.tx_fast, packets, "{what}");
                let old = before_6_3();
                let left = frames.iter().filter(|frame| old && self.changes_family(frame)).count() as u64;
                assert!(far.rx_fast >= packets - left, "{what}");
            }
            (Lane::Fast, Takes::Device) => {
                assert_eq!(near.tx_fast, 0, "{what}");
                // In, a port takes frames of all kinds.
                assert!(self.setup.attach == Attach::Port || far.rx_fast == 0, "{what}");
            }
            (Lane::Fast, Takes::Either) => {}
        }
    }

    /// Whether older kernels can't decapsulate it at once: of the other family than what is around it, for an endpoint,
    /// or too short for the outer family's header.
    fn changes_family(&self, frame: &[u8]) -> bool {
        let v6 = u16_at(frame, 12) == 0x86dd;
        v6 != (self.setup.over == Over::Ipv6) && (self.setup.attach == Attach::Endpoint || frame.len() < 14 + 40)
    }

    /// The headers of a tunnel packet of the first host's tenant red and what is in it; `None`: some other packet. The
    /// headers have to be right, and are given without what may differ from packet to packet.
    pub fn taken_apart(&self, what: &str, frame: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let v6 = self.setup.over == Over::Ipv6;
        let at = places(v6);
        if frame.len() < at.inner || u16_at(frame, at.udp + 2) != self.setup.kind.port() {
            return None;
        }
        let mut header = frame[..at.inner].to_vec();
        let length = u16::try_from(frame.len() - at.udp).unwrap();
        let what = format!("{what}: {header:02x?}");
        if v6 {
            assert_eq!((header[14] >> 4, header[20], u16_at(&header, 18)), (6, 17, length), "{what}");
        } else {
            assert_eq!((header[14], header[23], u16_at(&header, 16)), (0x45, 17, length + 20), "{what}");
            assert_eq!(folded(sum(0, &header[14..34])), 0xffff, "{what}");
            assert_eq!(header[20] & 0xbf | header[21], 0, "{what}");
            header[18..20].fill(0);
            header[24..26].fill(0);
        }
        assert_eq!(u16_at(&header, at.udp + 4), length, "{what}");
        if u16_at(&header, at.udp + 6) != 0 {
            let pseudo = pseudo_header(frame, 14, 17, length.into());
            assert_eq!(folded(sum(pseudo, &frame[at.udp..])), 0xffff, "{what}");
        }
        header[at.udp..at.udp + 2].fill(0);
        header[at.udp + 6..at.udp + 8].fill(0);
        let tunnel = [self.setup.kind.word().to_be_bytes(), (RED << 8).to_be_bytes()].concat();
        assert_eq!(header[at.tunnel..at.inner], tunnel, "{what}");
        assert_eq!(header[..12], self.macs.concat(), "{what}");
        Some((header, frame[at.inner..].to_vec()))
    }

    /// Gives the workloads of red addresses, and each the other's Ethernet address.
    pub fn give_addresses(&self) {
        for (n, workload) in self.red.iter().enumerate() {
            for which in ["all", "default", "eth0"] {
                knob(workload, &format!("ipv6/conf/{which}/disable_ipv6"), "0");
            }
            let (own, other) = (n + 1, 2 - n);
            let far = if n == 0 { FAR } else { NEAR }.map(|b| format!("{b:02x}")).join(":");
            workload.cmd(&format!("ip addr add 192.168.50.{own}/24 dev eth0"));
            workload.cmd(&format!("ip addr add fd50::{own}/64 dev eth0 nodad"));
            for address in [format!("192.168.50.{other}"), format!("fd50::{other}")] {
                workload.cmd(&format!("ip neigh replace {address} lladdr {far} dev eth0 nud permanent"));
            }
        }
    }

    /// The generated port of a tenant's bridge.
    fn port(&self, n: usize, tenant: &str) -> String {
        let status = self.hosts[n].status();
        let mapping = status["mappings"].as_array().unwrap().iter().find(|m| m["tenant"] == tenant).unwrap().clone();
        mapping["interface"].as_str().unwrap().to_owned()
    }

    pub fn counts(&self, n: usize) -> Counts {
        Counts::of(&self.hosts[n].status())
    }
}

/// Whether this kernel can't be told which family stays when a header goes.
fn before_6_3() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) < (Some(6), Some(3))
}

/// Bridges in there look at no packet's content.
pub fn no_bridge_netfilter(netns: &Netns) {
    netns.enter(|| {
        for which in ["arptables", "iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{which}");
            if std::fs::exists(&path).unwrap() {
                std::fs::write(&path, "0").unwrap();
            }
        }
    });
}

/// What a host's `status` says was carried and dropped, over all tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub tx: u64,
    pub tx_fast: u64,
    pub rx: u64,
    pub rx_fast: u64,
    /// For whatever reason, unknown keys among them.
    pub drops: u64,
}

impl Counts {
    pub fn of(status: &Value) -> Self {
        let list = |key: &str| status[key].as_array().unwrap().iter();
        let sum = |key: &str| list("mappings").map(|m| m["traffic"][key].as_u64().unwrap_or(0)).sum();
        let reasons = |drops: &Value| -> u64 { drops.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum() };
        let drops = list("mappings").map(|m| reasons(&m["traffic"]["drops"]));
        let drops = drops.chain(list("tunnels").map(|t| reasons(&t["drops"]))).chain([reasons(&status["drops"])]);
        Self {
            tx: sum("tx_packets"),
            tx_fast: sum("tx_fast"),
            rx: sum("rx_packets"),
            rx_fast: sum("rx_fast"),
            drops: drops.sum(),
        }
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            tx: self.tx - before.tx,
            tx_fast: self.tx_fast - before.tx_fast,
            rx: self.rx - before.rx,
            rx_fast: self.rx_fast - before.rx_fast,
            drops: self.drops - before.drops,
        }
    }
}
