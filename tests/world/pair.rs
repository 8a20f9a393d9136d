//! Two hosts with an endpoint wire, a wire between two ports, and a bridged tenant.

use super::harness::Netns;
use super::{Daemon, Host, Underlay, assert_pings, write_atomically};
use std::path::Path;

/// What both apply.
pub const TOPOLOGY: &str = r"
version: 1
nodes: {host0: 172.16.1.100, host1: 172.16.1.101}
tunnels:
  vxlan0: {kind: vxlan, create: true}
tenants:
  red: {id: 10000, bridge: br-red}
  wire:
    id: 7
    members:
      host0: {interface: wire0, attach: endpoint}
      host1: {interface: wire0, attach: endpoint}
  port:
    id: 8
    members:
      host0: {interface: port0}
      host1: {interface: port0}
";

pub struct Pair {
    /// The daemon under test, on the first host. The other one applied once.
    pub daemon: Option<Daemon>,
    pub hosts: Vec<Host>,
    /// Behind `wire0`, with 192.168.61.1 and .2.
    pub wire: Vec<Netns>,
    /// Behind `br-red`, with 192.168.60.1 and .2.
    pub red: Vec<Netns>,
    directory: tempfile::TempDir,
    _underlay: Underlay,
}

/// A port that stands for itself: what is sent out of it is encapsulated, the host's own stack receives from it.
pub fn make_port(host: &Host, name: &str, address: &str) {
    host.netns.cmd(&format!("ip link add {name} type veth peer name {name}x"));
    host.netns.cmd(&format!("ip addr add {address} dev {name}"));
    host.netns.cmd(&format!("ip link set {name}x up"));
    host.netns.cmd(&format!("ip link set {name} up"));
}

impl Pair {
    /// All in force; the daemon makes no pass that nothing asks for.
    pub fn new() -> Self {
        Self::of(TOPOLOGY)
    }

    /// The same in the fast lane, whoever else is on the underlay device.
    pub fn fast() -> Self {
        Self::of(&TOPOLOGY.replace("create: true", "create: true, fast: on"))
    }

    fn of(topology: &str) -> Self {
        let underlay = Underlay::new();
        let directory = tempfile::tempdir().unwrap();
        write_atomically(&directory.path().join("mesh.yaml"), topology);
        let mut hosts: Vec<Host> = (0..2).map(|n| underlay.host(n)).collect();
        let (mut wire, mut red) = (Vec::new(), Vec::new());
        for (n, host) in hosts.iter_mut().enumerate() {
            host.use_topology(Path::new(directory.path()));
            host.extra_env.push(("TUNNEL_MESH_INTERVAL".into(), "86400".into()));
            wire.push(host.workload("wire0", &format!("192.168.61.{}/24", n + 1)));
            make_port(host, "port0", &format!("192.168.62.{}/24", n + 1));
        }
        hosts[1].apply();
        let daemon = Some(hosts[0].daemon());
        for (n, host) in hosts.iter().enumerate() {
            red.push(host.workload("w-red", &format!("192.168.60.{}/24", n + 1)));
            host.netns.cmd("ip link set w-red master br-red");
        }
        let pair = Self { daemon, hosts, wire, red, directory, _underlay: underlay };
        pair.assert_all_reach();
        pair.hosts[0].wait_in_force();
        pair
    }

    pub fn host(&self) -> &Host {
        &self.hosts[0]
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Replaces a part of the topology as it was at first.
    pub fn rewrite(&self, part: &str, by: &str) {
        assert!(TOPOLOGY.contains(part));
        write_atomically(&self.directory.path().join("mesh.yaml"), &TOPOLOGY.replace(part, by));
    }

    pub fn assert_all_reach(&self) {
        assert_pings(&self.red[0], "192.168.60.2");
        assert_pings(&self.wire[0], "192.168.61.2");
        assert_pings(&self.hosts[0].netns, "192.168.62.2");
    }

    /// The generated port of the bridged tenant on the first host.
    pub fn red_port(&self) -> String {
        let status = self.host().status();
        let red = status["mappings"].as_array().unwrap().iter().find(|m| m["tenant"] == "red").unwrap().clone();
        red["interface"].as_str().unwrap().to_owned()
    }
}
