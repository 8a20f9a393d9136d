//! Three hosts: a tenant's bridge on each, or workloads joined by wires.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::{Hook, Lane, Over};
use crate::safety::{BROADCAST, EXPERIMENT, Seen, Tap, contains, ethernet, knob, mac, quiet, udp};
use crate::world::harness::Netns;
use crate::world::*;
use std::net::Ipv4Addr;

/// Three hosts with one topology directory.
pub struct Hosts {
    all: Vec<Host>,
    pub underlay: Underlay,
    over: Over,
    directory: tempfile::TempDir,
}

impl Hosts {
    fn new(over: Over, hook: Hook) -> Self {
        let underlay = Underlay::new();
        super::site::no_bridge_netfilter(&underlay.netns);
        let directory = tempfile::tempdir().unwrap();
        let host = |n: u32| {
            let mut host = underlay.host(n);
            knob(&host.netns, "ipv6/conf/default/disable_ipv6", "1");
            super::site::no_bridge_netfilter(&host.netns);
            host.use_topology(directory.path());
            host.extra_env.push(("TUNNEL_MESH_HOOK".into(), hook.name().into()));
            host
        };
        Self { all: (0..3).map(host).collect(), underlay, over, directory }
    }

    /// Brings these tenants into force in that lane.
    fn apply(&self, lane: Lane, tenants: &str) {
        let nodes: Vec<String> = (0..3).map(|n| format!("host{n}: '{}'", self.over.host(n))).collect();
        let text = format!(
            "version: 1\nnodes: {{{}}}\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, fast: {}}}\ntenants:\n{tenants}",
            nodes.join(", "),
            lane.fast()
        );
        write_atomically(&self.directory.path().join("mesh.yaml"), &text);
        for host in &self.all {
            host.apply();
        }
    }
}

impl std::ops::Deref for Hosts {
    type Target = [Host];

    fn deref(&self) -> &[Host] {
        &self.all
    }
}

pub struct Mesh {
    pub hosts: Hosts,
    /// One workload a host, 192.168.50.(1+n).
    pub red: Vec<Netns>,
}

impl Mesh {
    pub fn new(over: Over, hook: Hook) -> Self {
        let mut mesh = Self { hosts: Hosts::new(over, hook), red: Vec::new() };
        mesh.use_lane(Lane::Device);
        let workload = |(n, host): (usize, &Host)| {
            let workload = Netns::new();
            quiet(&workload);
            host.netns.cmd(&format!("ip link add w-red type veth peer name eth0 netns {}", workload.name));
            workload.cmd("ip link set eth0 up");
            workload.cmd(&format!("ip addr add 192.168.50.{}/24 dev eth0", n + 1));
            host.netns.cmd("ip link set w-red up master br-red");
            workload
        };
        mesh.red = mesh.hosts.iter().enumerate().map(workload).collect();
        mesh
    }

    pub fn use_lane(&self, lane: Lane) {
        self.hosts.apply(lane, "  red: {id: 10000, bridge: br-red}\n");
    }

    /// The generated ports of a host.
    pub fn ports(&self, n: usize) -> Vec<String> {
        let status = self.hosts[n].status();
        status["mappings"].as_array().unwrap().iter().map(|m| m["interface"].as_str().unwrap().to_owned()).collect()
    }

    /// Broadcasts of each workload in turn, for either lane, come to each other one exactly once, and each host sends
    /// exactly two copies of its own and none of the others'. What still went round when all had arrived would come by
    /// again while the next ones do: they are counted last.
    pub fn assert_one_copy_each(&self, what: &str) {
        let taps: Vec<Tap> = self.red.iter().map(|w| Tap::on(w, "eth0")).collect();
        let wires: Vec<Tap> = (0..3).map(|n| Tap::on(&self.hosts.underlay.netns, &format!("p{n}"))).collect();
        let macs: Vec<[u8; 6]> = self.red.iter().map(|w| mac(w, "eth0")).collect();
        let (mut arrived, mut sent) = (vec![Vec::new(); 3], vec![Vec::new(); 3]);
        let mut markers = Vec::new();
        for round in 0..3 {
            for (from, tap) in taps.iter().enumerate() {
                for kind in ["ip", "other"] {
                    let marker = format!("<{what}: {kind} {round} from {from}>");
                    let address = Ipv4Addr::new(192, 168, 50, u8::try_from(from + 1).unwrap());
                    let frame = match kind {
                        "ip" => udp(BROADCAST, macs[from], (address, Ipv4Addr::BROADCAST), 9, marker.as_bytes()),
                        _ => ethernet(BROADCAST, macs[from], EXPERIMENT, marker.as_bytes()),
                    };
                    tap.send(&frame);
                    markers.push((from, marker));
                }
            }
            eventually(&format!("{what}: round {round} everywhere"), || {
                for n in 0..3 {
                    arrived[n].extend(taps[n].drain().into_iter().filter(|s| !s.outgoing));
                    sent[n].extend(wires[n].drain().into_iter().filter(|s| !s.outgoing));
                }
                let last = &markers[markers.len() - 6..];
                let has = |n: usize, marker: &str| arrived[n].iter().any(|s| contains(&s.bytes, marker.as_bytes()));
                (0..3).all(|n| last.iter().all(|(from, marker)| *from == n || has(n, marker)))
            });
        }
        let count = |seen: &[Seen], marker: &str| seen.iter().filter(|s| contains(&s.bytes, marker.as_bytes())).count();
        for (from, marker) in &markers {
            let expected = |own: usize, others: usize| [0, 1, 2].map(|n| if n == *from { own } else { others });
            assert_eq!(
                [0, 1, 2].map(|n| count(&arrived[n], marker)),
                expected(0, 1),
                "copies of {marker} that arrived"
            );
            assert_eq!(
                [0, 1, 2].map(|n| count(&sent[n], marker)),
                expected(2, 0),
                "copies of {marker} that hosts sent"
            );
        }
    }
}

/// The first host's workload has two legs, each a wire to another host's workload, and routes between them.
pub struct Wires {
    pub hosts: Hosts,
    /// The router, and the two that talk by way of it: 10.0.1.1 and 10.0.2.2.
    pub workloads: Vec<Netns>,
}

impl Wires {
    pub fn new(over: Over, hook: Hook) -> Self {
        let hosts = Hosts::new(over, hook);
        let workloads: Vec<Netns> = (0..3).map(|_| Netns::new()).collect();
        let legs =
            [(0, "leg1", "10.0.1.254"), (0, "leg2", "10.0.2.254"), (1, "leg1", "10.0.1.1"), (2, "leg2", "10.0.2.2")];
        workloads.iter().for_each(quiet);
        for (n, leg, address) in legs {
            let workload = &workloads[n];
            hosts[n].netns.cmd(&format!("ip link add {leg} type veth peer name {leg} netns {}", workload.name));
            hosts[n].netns.cmd(&format!("ip link set {leg} up"));
            workload.cmd(&format!("ip link set {leg} mtu {} up", 1500 - over.overhead()));
            workload.cmd(&format!("ip addr add {address}/24 dev {leg}"));
        }
        knob(&workloads[0], "ipv4/ip_forward", "1");
        workloads[1].cmd("ip route add default via 10.0.1.254");
        workloads[2].cmd("ip route add default via 10.0.2.254");
        let wires = Self { hosts, workloads };
        wires.use_lane(Lane::Device);
        wires
    }

    pub fn use_lane(&self, lane: Lane) {
        let wire = |n: usize| {
            let end = format!("{{interface: leg{n}, attach: endpoint}}");
            format!("  wire{n}:\n    id: {n}\n    members: {{host0: {end}, host{n}: {end}}}\n")
        };
        self.hosts.apply(lane, &(wire(1) + &wire(2)));
    }
}
