//! Three hosts, three daemons, one topology directory: the scenario of BCC's distributed bridge, on real tunnels.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use world::*;

const MESH: &str = r"
version: 1
nodes:
  host0: [172.16.1.100, 'fd00::100']
  host1: [172.16.1.101, 'fd00::101']
  host2: [172.16.1.102, 'fd00::102']
tunnels:
  vxlan0: {kind: vxlan, create: true}
tenants:
  red: {id: 10000, bridge: br-red}
  blue: {id: 10001, bridge: br-blue}
";

struct Mesh {
    hosts: Vec<Host>,
    daemons: Vec<Daemon>,
    red: Vec<harness::Netns>,
    blue: Vec<harness::Netns>,
    _underlay: Underlay,
    directory: tempfile::TempDir,
}

fn mesh(text: &str) -> Mesh {
    let underlay = Underlay::new();
    let directory = tempfile::tempdir().unwrap();
    write_atomically(&directory.path().join("mesh.yaml"), text);
    let mut hosts: Vec<Host> = (0..3).map(|n| underlay.host(n)).collect();
    for host in &mut hosts {
        host.use_topology(directory.path());
    }
    let daemons = hosts.iter().map(Host::daemon).collect();
    let join = |name: &str, bridge: &str| -> Vec<harness::Netns> {
        let one = |(n, host): (usize, &Host)| {
            let workload = host.workload(name, &format!("192.168.50.{}/24", n + 1));
            host.netns.cmd(&format!("ip link set {name} master {bridge}"));
            workload
        };
        hosts.iter().enumerate().map(one).collect()
    };
    let (red, blue) = (join("w-red", "br-red"), join("w-blue", "br-blue"));
    Mesh { hosts, daemons, red, blue, _underlay: underlay, directory }
}

#[test]
fn two_tenants_with_equal_addresses_reach_their_own_and_nobody_else() {
    let mesh = mesh(MESH);
    for tenant in [&mesh.red, &mesh.blue] {
        for (from, workload) in tenant.iter().enumerate() {
            for to in (0..3).filter(|to| *to != from) {
                assert_pings(workload, &format!("192.168.50.{}", to + 1));
            }
        }
    }
    // An address that only red has doesn't exist for blue.
    mesh.red[2].cmd("ip addr add 192.168.50.77/24 dev eth0");
    assert_pings(&mesh.red[0], "192.168.50.77");
    assert!(silent(&mesh.blue[0], "192.168.50.77"));
    let status = mesh.hosts[0].status();
    assert_eq!(status["in_force"], true, "{status:#}");
    assert_eq!(status["mappings"].as_array().unwrap().len(), 4);
    drop(mesh.daemons);
    drop(mesh.directory);
}
