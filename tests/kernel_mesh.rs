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

fn link(host: &Host, name: &str) -> Option<serde_json::Value> {
    let output = host.netns.try_cmd(&format!("ip -j -d link show dev {name}"));
    if !output.status.success() {
        return None;
    }
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    Some(json[0].clone())
}

/// Name of the port that leads to that node.
fn port(host: &Host, tenant: &str, node: &str) -> String {
    let status = host.status();
    let of = |m: &&serde_json::Value| m["tenant"] == tenant && m["node"] == node;
    let found = status["mappings"].as_array().unwrap().iter().find(of).cloned();
    found.unwrap()["interface"].as_str().unwrap().to_owned()
}

#[test]
fn devices_are_made_as_promised_repaired_and_removed_again() {
    let mesh = mesh(MESH);
    let host = &mesh.hosts[0];
    let red = port(host, "red", "host1");
    let made = link(host, &red).unwrap();
    assert_eq!(made["ifalias"], format!("tunnel-mesh port red/host1 in {}", host.pins.display()));
    assert_eq!(made["altnames"][0], "red/host1");
    assert_eq!(made["master"], "br-red");
    assert_eq!(made["mtu"], 65535, "what is too big must get as far as the data plane, which answers it");
    assert_eq!(made["linkinfo"]["info_slave_data"]["isolated"], true, "{made:#}");
    let tunnel = link(host, "vxlan0").unwrap();
    assert_eq!(tunnel["mtu"], 1430);
    assert_eq!(tunnel["linkinfo"]["info_data"]["external"], true);
    assert_eq!(tunnel["linkinfo"]["info_data"]["learning"], false);

    // Altered and deleted devices come back.
    host.netns.cmd(&format!("bridge link set dev {red} isolated off"));
    host.netns.cmd(&format!("ip link set {red} mtu 1400"));
    host.netns.cmd("ip link set vxlan0 down");
    host.netns.cmd("ip link set vxlan0 type vxlan learning");
    let blue = port(host, "blue", "host2");
    host.netns.cmd(&format!("ip link del {blue}"));
    eventually("repaired", || {
        let red = link(host, &red).unwrap();
        red["mtu"] == 65535
            && red["linkinfo"]["info_slave_data"]["isolated"] == true
            && link(host, "vxlan0").unwrap()["flags"].to_string().contains("UP")
            && link(host, "vxlan0").unwrap()["linkinfo"]["info_data"]["learning"] == false
            && link(host, &blue).is_some_and(|l| l["master"] == "br-blue")
    });
    host.wait_in_force();
    assert_pings(&mesh.blue[0], "192.168.50.3");
    assert_pings(&mesh.red[0], "192.168.50.2");

    // Blue leaves host2: its ports go at both ends, and its bridge stays where a workload is in it.
    let file = mesh.directory.path().join("mesh.yaml");
    write_atomically(&file, &MESH.replace("br-blue}", "br-blue, members: [host0, host1]}"));
    eventually("blue's port to host2 is gone", || link(host, &blue).is_none());
    eventually("blue is gone from host2", || mesh.hosts[2].status()["mappings"].as_array().unwrap().len() == 2);
    assert!(link(&mesh.hosts[2], "br-blue").is_some(), "the bridge has a foreign port");
    assert!(silent(&mesh.blue[0], "192.168.50.3"));
    assert_pings(&mesh.blue[0], "192.168.50.2");
    assert_pings(&mesh.red[0], "192.168.50.3");

    // Without the workload the bridge is nobody's and goes.
    mesh.hosts[2].netns.cmd("ip link del w-blue");
    eventually("the bridge is gone", || link(&mesh.hosts[2], "br-blue").is_none());
}

/// What somebody set of every link; not what the kernel says of its carrier, which comes and goes by itself.
fn settings(host: &Host) -> Vec<serde_json::Value> {
    let links: serde_json::Value = serde_json::from_str(&host.netns.cmd("ip -j -d link")).unwrap();
    let kept = ["ifindex", "ifname", "altnames", "ifalias", "mtu", "master", "address", "group"];
    let of = |link: &serde_json::Value| {
        let isolated = link["linkinfo"]["info_slave_data"]["isolated"].clone();
        kept.iter().map(|key| link[key].clone()).chain([isolated]).collect()
    };
    links.as_array().unwrap().iter().map(of).collect()
}

/// Somebody tries a topology of their own on a host that carries traffic, with directories of their own.
#[test]
fn another_instance_touches_nothing_of_the_first() {
    let mesh = mesh(MESH);
    let host = &mesh.hosts[0];
    let before = settings(host);
    let other = Host::new(world::harness::Netns::new(), "host0");
    other.write(
        "t.yaml",
        // In the fast lane its program on the underlay device would be somebody else's for the first (docs/lanes.md).
        &MESH.replace("vxlan0: {kind: vxlan", "vxlan9: {kind: vxlan, fast: off, port: 9999").replace("br-", "b9-"),
    );
    let run = |arguments: &[&str]| {
        let mut command = host.command(arguments);
        command
            .env("TUNNEL_MESH_TOPOLOGY", other.topology())
            .env("TUNNEL_MESH_PIN_DIR", &other.pins)
            .env("TUNNEL_MESH_RUN_DIR", other.files.path().join("run"))
            .env("TUNNEL_MESH_STATE_DIR", other.files.path().join("state"));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said.concat());
    };
    run(&["apply"]);
    assert!(link(host, "b9-red").is_some() && link(host, "br-red").is_some());
    assert_pings(&mesh.red[0], "192.168.50.2");
    run(&["down"]);
    assert_eq!(settings(host), before);
    host.expect(0, &["plan", "--detailed-exitcode"]);
    assert_pings(&mesh.red[0], "192.168.50.2");
    assert_pings(&mesh.blue[0], "192.168.50.3");
}

#[test]
fn a_mesh_over_ipv6_carries_both_families() {
    let mesh = mesh(&MESH.replace("create: true}", "create: true, family: ipv6}"));
    for (n, workload) in mesh.red.iter().enumerate() {
        workload.cmd(&format!("ip addr add fd50::{}/64 dev eth0 nodad", n + 1));
    }
    assert_pings(&mesh.red[0], "192.168.50.2");
    assert_pings(&mesh.red[0], "fd50::3");
    let mapping = &mesh.hosts[0].status()["mappings"][0];
    assert!(mapping["remote"].as_str().unwrap().starts_with("fd00::"), "{mapping}");
}
