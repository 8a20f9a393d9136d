//! Metrics and health of a running daemon, scraped as Prometheus scrapes them.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use world::*;

const PORT: u16 = 9469;

/// A daemon that serves metrics there.
fn serving(host: &Host, address: &str) -> Daemon {
    let mut host_env = host.command(&["run", "-v"]);
    host_env.env("TUNNEL_MESH_METRICS", address);
    let log = std::fs::File::create(host.files.path().join("daemon.log")).unwrap();
    let child = host_env.stderr(log).stdout(Stdio::null()).spawn().unwrap();
    Daemon::of(child, host.files.path().join("daemon.log"))
}

/// Status line, headers and body of an answer; none where nobody listens.
fn try_get(host: &Host, address: &str, request: &str) -> Option<(String, String)> {
    let answer = host.netns.enter(|| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

fn get(host: &Host, path: &str) -> (String, String) {
    let address = format!("127.0.0.1:{PORT}");
    let mut answer = None;
    eventually(&format!("{path} is answered"), || {
        answer = try_get(host, &address, &format!("GET {path}"));
        answer.is_some()
    });
    answer.unwrap()
}

/// The samples of a scrape by their full name with labels.
fn scrape(host: &Host) -> BTreeMap<String, f64> {
    let (head, body) = get(host, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("version=0.0.4"), "{head}");
    let samples = body.lines().filter(|l| !l.starts_with('#'));
    samples
        .map(|l| l.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

const RED: &str = "\
version: 1
nodes: {host0: 172.16.1.100, host1: 172.16.1.101}
tunnels: {vxlan0: {kind: vxlan, create: true}}
tenants:
  red: {id: 7, members: {host0: {interface: veth-a, attach: endpoint}, host1: {interface: veth-a, attach: endpoint}}}
";

#[test]
fn a_scrape_tells_traffic_states_and_passes_and_health_follows_the_topology() {
    let underlay = Underlay::new();
    let hosts = [underlay.host(0), underlay.host(1)];
    let host = &hosts[0];
    let daemon = serving(host, &format!("127.0.0.1:{PORT}"));
    // Alive, and not ready: there is no topology yet.
    assert!(get(host, "/livez").0.starts_with("HTTP/1.1 200"));
    let (head, body) = get(host, "/readyz");
    assert!(head.starts_with("HTTP/1.1 503") && body.contains("no topology"), "{head} {body}");
    let before = scrape(host);
    assert_eq!(before["tunnel_mesh_config_last_load_successful"], 0.0, "an empty directory is no topology");

    for host in &hosts {
        host.write("a.yaml", RED);
    }
    let workloads = [hosts[0].workload("veth-a", "10.7.0.1/24"), hosts[1].workload("veth-a", "10.7.0.2/24")];
    hosts[1].apply();
    host.wait_in_force();
    eventually("ready", || get(host, "/readyz").0.starts_with("HTTP/1.1 200"));
    assert_pings(&workloads[0], "10.7.0.2");
    let labels = |way: &str| format!("{{direction=\"{way}\",remote=\"172.16.1.101\",tenant=\"red\"}}");
    let mut now = BTreeMap::new();
    eventually("traffic is told", || {
        now = scrape(host);
        now.get(&format!("tunnel_mesh_packets_total{}", labels("rx"))).is_some_and(|n| *n >= 4.0)
    });
    assert!(now[&format!("tunnel_mesh_bytes_total{}", labels("tx"))] >= 4.0 * 98.0);
    assert_eq!(now["tunnel_mesh_mappings{state=\"active\"}"], 1.0);
    assert_eq!(now["tunnel_mesh_mappings{state=\"pending\"}"], 0.0);
    assert_eq!(now["tunnel_mesh_map_entries{map=\"tunkey2if\"}"], 1.0);
    assert_eq!(now["tunnel_mesh_topology_files"], 1.0);
    assert_eq!(now["tunnel_mesh_config_last_load_successful"], 1.0);
    assert_eq!(now["tunnel_mesh_reconcile_errors"], 0.0);
    let passes = now["tunnel_mesh_reconcile_passes_total{result=\"good\"}"];
    assert!(passes >= 1.0 && now["tunnel_mesh_reconcile_duration_seconds_count"] >= passes);
    let revision = host.status()["revision"].as_str().unwrap().to_owned();
    assert_eq!(now[&format!("tunnel_mesh_topology_info{{node=\"host0\",revision=\"{revision}\"}}")], 1.0);

    // A key that nobody mapped: the far end sends with another id.
    hosts[1].write("a.yaml", &RED.replace("id: 7", "id: 8"));
    hosts[1].apply();
    let unknown = "tunnel_mesh_dropped_packets_total{reason=\"unknown_key\",tenant=\"\"}";
    let told = scrape(host)[unknown];
    assert!(silent(&workloads[1], "10.7.0.1"));
    eventually("the drops are told", || scrape(host)[unknown] > told);

    // A broken edit: what was accepted stays in force, so it is ready; but it is told.
    host.write("a.yaml", &RED.replace("id: 7", "id: seven"));
    eventually("the rejection is told", || scrape(host)["tunnel_mesh_config_last_load_successful"] == 0.0);
    assert!(get(host, "/readyz").0.starts_with("HTTP/1.1 200"));
    host.write("a.yaml", RED);
    // An interface that goes makes its mapping pending; the counter of what it carried doesn't go back.
    let before = scrape(host)[&format!("tunnel_mesh_packets_total{}", labels("rx"))];
    host.netns.cmd("ip link del veth-a");
    eventually("it is pending", || scrape(host)["tunnel_mesh_mappings{state=\"pending\"}"] == 1.0);
    let after = scrape(host).get(&format!("tunnel_mesh_packets_total{}", labels("rx"))).copied();
    assert!(after.is_none_or(|after| after >= before), "{before} went back to {after:?}");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(try_get(host, &format!("127.0.0.1:{PORT}"), "GET /livez"), None);
}

#[test]
fn only_what_there_is_is_answered_and_a_taken_port_is_an_error() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    let _daemon = serving(&host, &format!("[::1]:{PORT}"));
    let address = format!("[::1]:{PORT}");
    let ask = |request: &str| {
        let mut head = String::new();
        eventually("an answer", || {
            try_get(&host, &address, request).is_some_and(|(found, _)| {
                head = found;
                true
            })
        });
        head.lines().next().unwrap().to_owned()
    };
    assert!(ask("GET /livez").starts_with("HTTP/1.1 200"));
    assert!(ask("HEAD /metrics").starts_with("HTTP/1.1 200"));
    assert!(ask("GET /").starts_with("HTTP/1.1 404"));
    assert!(ask("POST /metrics").starts_with("HTTP/1.1 405"));
    assert_eq!(try_get(&host, &format!("127.0.0.1:{PORT}"), "GET /livez"), None, "IPv4 wasn't asked for");

    let other = underlay.host(1);
    let second = other.netns.enter(|| std::net::TcpListener::bind(("127.0.0.1", PORT)).unwrap());
    let output = other.run(&["run", "--metrics", &format!("127.0.0.1:{PORT}")]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("listen for metrics on 127.0.0.1:{PORT}")) && error.contains("in use"), "{error}");
    assert!(!other.pins.exists(), "it began although it can't serve");
    drop(second);
}

#[test]
fn clients_that_say_nothing_hold_up_neither_passes_nor_other_clients() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    host.write("a.yaml", RED);
    let _workload = host.workload("veth-a", "10.7.0.1/24");
    let daemon = serving(&host, &format!("127.0.0.1:{PORT}"));
    host.wait_in_force();
    get(&host, "/livez");
    // Fewer than there are places: those stay for others.
    let silent: Vec<TcpStream> =
        host.netns.enter(|| (0..12).map(|_| TcpStream::connect(("127.0.0.1", PORT)).unwrap()).collect());
    // And some that ask and never read.
    for mut stream in
        host.netns.enter(|| (0..2).map(|_| TcpStream::connect(("127.0.0.1", PORT)).unwrap()).collect::<Vec<_>>())
    {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        std::mem::forget(stream);
    }
    let passes = host.status()["daemon"]["passes"].as_u64().unwrap();
    host.netns.cmd("ip link set veth-a down");
    host.netns.cmd("ip link set veth-a up");
    eventually("a pass", || host.status()["daemon"]["passes"].as_u64().unwrap() > passes);
    assert!(scrape(&host).contains_key("tunnel_mesh_topology_files"));
    drop(silent);
    assert_eq!(daemon.stop(), Some(0));
}
