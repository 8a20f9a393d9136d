//! What `status` tells of a running host: rates, last changes, unknown keys and what they were meant to be, with a daemon
//! and without one.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use serde_json::Value;
use world::*;

const MESH: &str = "\
version: 1
nodes: {host0: 172.16.1.100, host1: 172.16.1.101, host3: 172.16.1.103}
tunnels: {vxlan0: {kind: vxlan, create: true}}
tenants:
  blue: {id: 10001, members: {host0: {interface: veth-a, attach: endpoint}, host1: {interface: veth-a, attach: endpoint}}}
";

#[test]
fn rates_changes_and_drops_are_told_with_a_daemon_and_without() {
    let underlay = Underlay::new();
    let hosts = [underlay.host(0), underlay.host(1)];
    for host in &hosts {
        host.write("a.yaml", MESH);
    }
    let workloads = [hosts[0].workload("veth-a", "10.7.0.1/24"), hosts[1].workload("veth-a", "10.7.0.2/24")];
    hosts[1].apply();
    let host = &hosts[0];
    let daemon = host.daemon();
    assert_pings(&workloads[0], "10.7.0.2");
    let revision = host.status()["revision"].as_str().unwrap().to_owned();
    host.expect(0, &["status", "--wait", "--revision", &revision, "--timeout", "60"]);
    host.expect(6, &["status", "--wait", "--revision", "0123456789abcdef", "--timeout", "0"]);

    let pinging = ["ping", "-q", "-i", "0.02", "-w", "120", "10.7.0.2"];
    let mut ping = workloads[0].spawnable(&pinging).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut told = Value::Null;
    eventually("a rate", || {
        told = host.mapping("blue/veth-a");
        told["rates"]["tx_packets"].as_f64().is_some_and(|rate| rate > 1.0)
    });
    let rates = &told["rates"];
    assert!(rates["seconds"].as_f64().unwrap() >= 0.9 && rates["tx_bytes"].as_f64().unwrap() > 98.0, "{told:#}");
    let change = told["last_change"].clone();
    assert_eq!((&change["action"], &change["reason"]), (&"create".into(), &"added".into()), "{told:#}");
    assert_eq!(change["revision"], revision.as_str());
    assert!(told["origin"].as_str().unwrap().ends_with("a.yaml:5:3"), "{told:#}");
    let health = host.status()["daemon"].clone();
    assert!(health["started"].is_string() && health["last_pass"]["good"] == true, "{health:#}");
    let text = host.expect(0, &["status"]);
    assert!(text.contains("pkts") && text.contains("bit/s") && text.contains("added "), "{text}");
    assert_eq!(daemon.stop(), Some(0));

    // Without the daemon: no rate but from two looks; the record of changes is on disk.
    let told = host.mapping("blue/veth-a");
    assert!(told["rates"].is_null() && told["last_change"] == change, "{told:#}");
    let twice: Value = serde_json::from_str(&host.expect(0, &["status", "--rates", "--format", "json"])).unwrap();
    assert!(twice["mappings"][0]["rates"]["tx_packets"].as_f64().unwrap() > 0.0, "{twice:#}");
    ping.kill().unwrap();
    ping.wait().unwrap();
}

#[test]
fn an_unknown_key_comes_with_what_it_was_probably_meant_to_be() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    host.write("a.yaml", MESH);
    let _workload = host.workload("veth-a", "10.7.0.1/24");
    host.apply();
    // host3 is no member of blue, and sends to it all the same.
    let stranger = underlay.host(3);
    stranger.netns.cmd("ip link add vx type vxlan id 10001 dstport 4789 remote 172.16.1.100 local 172.16.1.103");
    stranger.netns.cmd("ip link set vx up");
    stranger.netns.cmd("ip addr add 10.7.0.9/24 dev vx");
    let mut status = Value::Null;
    eventually("the key is seen", || {
        stranger.netns.try_cmd("ping -q -c 1 -W 1 10.7.0.1");
        status = host.status();
        status["unknown"].as_array().is_some_and(|all| !all.is_empty())
    });
    let key = &status["unknown"][0];
    assert_eq!(key["why"], "node host3 isn't a member of tenant blue", "{key:#}");
    assert_eq!((&key["nearest"], &key["remote"]), (&"blue/veth-a".into(), &"172.16.1.103".into()), "{key:#}");
    assert!(status["dropped"]["unknown_key"].as_u64().unwrap() > 0, "{status:#}");
    let text = host.expect(0, &["status"]);
    let told = "id 10001 from 172.16.1.103 on vxlan0: node host3 isn't a member of tenant blue";
    assert!(text.contains(told) && text.contains("came with a key that nobody mapped"), "{text}");
}
