//! Killed at every single call that changes something, and started again.
//!
//! The binary dies as by SIGKILL right before its n-th change (see `src/fault_point.rs`), for every n there is. The next
//! run must converge, to exactly what a run that nobody disturbs makes, and a mapping that isn't concerned must not lose
//! a packet over all of it.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "lifecycle/release.rs"]
mod release;
#[path = "lifecycle/stream.rs"]
mod stream;
mod world;

use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use stream::Stream;
use world::*;

/// Every so many points; emulated machines take few of them.
fn stride() -> usize {
    if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { 9 } else { 1 }
}

/// Runs it so that it dies before change `n`. Returns whether it came that far.
fn dies_at(host: &Host, arguments: &[&str], n: usize) -> bool {
    let output = host.command(arguments).env("TUNNEL_MESH_DIE_AT", n.to_string()).output().unwrap();
    if output.status.signal() == Some(9) {
        return true;
    }
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?} without {n} changes: {err}");
    false
}

/// What is live, without what differs from run to run.
#[derive(Debug, PartialEq)]
struct Live {
    mappings: BTreeSet<String>,
    devices: BTreeSet<String>,
    attachments: BTreeSet<String>,
    pins: BTreeSet<String>,
}

impl Live {
    fn of(host: &Host) -> Self {
        let status = host.status();
        assert_eq!(status["in_force"], true, "{status:#}");
        let list = |name: &str| status[name].as_array().unwrap().clone();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let links: Value = serde_json::from_str(&host.netns.cmd("ip -j -d link")).unwrap();
        let links = links.as_array().unwrap();
        let name = |index: &Value| {
            let found = links.iter().find(|l| l["ifindex"] == *index);
            found.map_or_else(|| panic!("no link {index}"), |l| text(&l["ifname"]))
        };
        let mapping = |m: &Value| format!("{} {} {} {}", m["address"], m["id"], m["remote"], m["state"]);
        let hook = |a: &Value| format!("{} {}", name(&a["ifindex"]), text(&a["direction"]));
        let device = |l: &Value| {
            let (kind, port) = (&l["linkinfo"]["info_kind"], &l["linkinfo"]["info_slave_data"]["isolated"]);
            format!(
                "{} {kind} mtu {} master {} {port} alias {} {}",
                l["ifname"], l["mtu"], l["master"], l["ifalias"], l["altnames"]
            )
        };
        let pins = std::fs::read_dir(&host.pins).map(|d| d.map(|e| e.unwrap().file_name()).collect::<Vec<_>>());
        let mut pins: BTreeSet<String> =
            pins.unwrap_or_default().iter().map(|n| n.to_string_lossy().into_owned()).collect();
        if let Ok(programs) = std::fs::read_dir(host.pin("programs")) {
            // The index of a tunnel may be another one when the first was being written: nothing depends on it.
            let names = programs.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
            pins.extend(names.map(|n| n.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()));
        }
        Self {
            mappings: list("mappings").iter().map(mapping).collect(),
            devices: links.iter().map(device).collect(),
            attachments: list("attachments").iter().map(hook).collect(),
            pins,
        }
    }
}

/// Two hosts with a wire between two workloads, which nothing here concerns; the first host is the one that dies.
struct Bench {
    hosts: [Host; 2],
    wire: Vec<world::harness::Netns>,
    _underlay: Underlay,
}

const WIRE: &str = r"
version: 1
tunnels: {vxlan0: {kind: vxlan, create: true, local: 172.16.1.LOCAL}}
mappings:
- {tenant: wire, interface: wire0, id: 7, remote: 172.16.1.REMOTE, attach: endpoint}
";

impl Bench {
    fn new() -> Self {
        let underlay = Underlay::new();
        let hosts = [underlay.host(0), underlay.host(1)];
        let mut wire = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            wire.push(host.workload("wire0", &format!("192.168.61.{}/24", n + 1)));
            let text = WIRE.replace("LOCAL", &format!("10{n}")).replace("REMOTE", &format!("10{}", 1 - n));
            host.write("wire.yaml", &text);
            for name in ["pa", "pb", "pc", "pd"] {
                host.netns.cmd(&format!("ip link add {name} type veth peer name {name}x"));
                host.netns.cmd(&format!("ip link set {name} up"));
            }
            host.apply();
        }
        assert_pings(&wire[0], "192.168.61.2");
        Self { hosts, wire, _underlay: underlay }
    }

    fn streams(&self) -> [Stream; 2] {
        [
            Stream::slow("out", &self.wire[0], &self.wire[1], "192.168.61.2"),
            Stream::slow("in", &self.wire[1], &self.wire[0], "192.168.61.1"),
        ]
    }

    /// `change` is made on a host in its first state and killed at every point; `back` makes the first state again.
    fn at_every_point(&self, what: &str, change: impl Fn(&Host), arguments: &[&str], back: impl Fn(&Host)) {
        let host = &self.hosts[0];
        change(host);
        host.expect(0, arguments);
        let undisturbed = Live::of(host);
        back(host);
        let first = Live::of(host);
        assert_ne!(first, undisturbed, "{what} changes something");

        let streams = self.streams();
        let mut points = 0;
        for n in (0..).step_by(stride()) {
            change(host);
            let died = dies_at(host, arguments, n);
            streams.iter().for_each(|s| s.flow(20));
            if !died {
                break;
            }
            points += 1;
            host.expect(0, arguments);
            let live = Live::of(host);
            assert_eq!(live, undisturbed, "{what}, killed before change {n}");
            let again = host.expect(0, &["apply", "--format", "json"]);
            assert_eq!(serde_json::from_str::<Value>(&again).unwrap()["changed"], false, "{again}");
            back(host);
            assert_eq!(Live::of(host), first, "{what}, killed before change {n}, and back");
        }
        assert!(points >= 3, "{what}: only {points} points");
        let delivered: u64 = streams.into_iter().map(Stream::finish).sum();
        eprintln!("{what}: killed at {points} points; {delivered} packets of another mapping, none lost");
    }
}

fn mappings(lines: &[&str]) -> String {
    format!(
        "version: 1\nmappings:\n{}",
        lines.iter().map(|l| format!("- {{{l}, remote: 172.16.1.101}}\n")).collect::<String>()
    )
}

#[test]
fn an_edit_that_moves_swaps_adds_and_removes() {
    let bench = Bench::new();
    let before = mappings(&[
        "tenant: a, interface: pa, id: 1",
        "tenant: b, interface: pb, id: 2",
        "tenant: c, interface: pc, id: 3",
    ]);
    let after = mappings(&[
        "tenant: a, interface: pa, id: 2",
        "tenant: b, interface: pb, id: 1",
        "tenant: d, interface: pd, id: 3",
    ]);
    let back = |host: &Host| {
        host.write("more.yaml", &before);
        host.expect(0, &["apply", "--allow-deletes"]);
    };
    back(&bench.hosts[0]);
    bench.at_every_point("an edit", |host| host.write("more.yaml", &after), &["apply", "--allow-deletes"], back);
}

#[test]
fn devices_of_a_tenant_come_and_go() {
    let bench = Bench::new();
    let tenant =
        "version: 1\nnodes: {host0: 172.16.1.100, host1: 172.16.1.101}\ntenants: {red: {id: 10000, bridge: br-red}}\n";
    let remove = |host: &Host| {
        std::fs::remove_file(host.topology().join("tenant.yaml")).unwrap();
        host.expect(0, &["apply", "--allow-deletes"]);
    };
    let add = |host: &Host| {
        host.write("tenant.yaml", tenant);
        host.apply();
    };
    bench.at_every_point("a new tenant", |host| host.write("tenant.yaml", tenant), &["apply"], remove);
    add(&bench.hosts[0]);
    let away = |host: &Host| std::fs::remove_file(host.topology().join("tenant.yaml")).unwrap();
    bench.at_every_point("a tenant's end", away, &["apply", "--allow-deletes"], add);
}

#[test]
fn maps_that_grow() {
    let bench = Bench::new();
    let host = &bench.hosts[0];
    // Sized for what is there: the edit has more than fits.
    let script: String =
        (0..150).map(|n| format!("link add m{} type veth peer name m{}\n", 2 * n, 2 * n + 1)).collect();
    let batch = host.files.path().join("batch");
    std::fs::write(&batch, script).unwrap();
    host.netns.command(&["ip", "-batch", batch.to_str().unwrap()]);
    let lines: Vec<String> = (0..300).map(|n| format!("tenant: many, interface: m{n}, id: {}", 20_000 + n)).collect();
    let many = mappings(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let capacity = || {
        let output =
            Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(host.pin("devs")).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["max_entries"].as_u64().unwrap()
    };
    let mut streams = Some(bench.streams());
    let mut points = 0;
    // Attaching 300 programs is the long part and of no interest here: the growth comes before it.
    let small = capacity();
    for n in (0..).step_by(stride()) {
        host.write("many.yaml", &many);
        let died = dies_at(host, &["apply"], n);
        streams.as_ref().unwrap().iter().for_each(|s| s.flow(20));
        assert!(died, "the growth is over before the apply is");
        points += 1;
        if capacity() > small && !host.pin("next").exists() {
            break;
        }
        // Whoever comes next finishes what was begun, or makes nothing of it; a growth is finished only once it can't fail.
        std::fs::remove_file(host.topology().join("many.yaml")).unwrap();
        host.expect(0, &["apply", "--allow-deletes"]);
        assert!(!host.pin("next").exists());
        assert_pings(&bench.wire[0], "192.168.61.2");
        if capacity() > small {
            // Grown for good. Another small one takes its place.
            let delivered: u64 = streams.take().unwrap().into_iter().map(Stream::finish).sum();
            assert!(delivered > 0);
            host.expect(0, &["down"]);
            host.apply();
            assert_eq!(capacity(), small);
            assert_pings(&bench.wire[0], "192.168.61.2");
            streams = Some(bench.streams());
        }
    }
    let delivered: u64 = streams.take().unwrap().into_iter().map(Stream::finish).sum();
    assert!(points >= 3);
    eprintln!(
        "a growth: killed at {points} points; {delivered} packets of another mapping since the last start, none lost"
    );
}

#[test]
fn an_upgrade() {
    let mut bench = Bench::new();
    let other = release::other(bench.hosts[0].files.path());
    let streams = bench.streams();
    let host = &mut bench.hosts[0];
    let mut points = 0;
    for n in (0..).step_by(stride()) {
        host.binary = if points % 2 == 0 { other.clone() } else { binary().into() };
        let died = dies_at(host, &["apply"], n);
        streams.iter().for_each(|s| s.flow(20));
        if !died {
            break;
        }
        points += 1;
        host.apply();
        let again = host.expect(0, &["apply", "--format", "json"]);
        assert_eq!(serde_json::from_str::<Value>(&again).unwrap()["changed"], false, "{again}");
        streams.iter().for_each(|s| s.flow(20));
    }
    assert!(points >= 3, "only {points} points");
    let delivered: u64 = streams.into_iter().map(Stream::finish).sum();
    eprintln!("an upgrade: killed at {points} points; {delivered} packets, none lost");
}

#[test]
fn the_first_apply_and_down() {
    let bench = Bench::new();
    let host = &bench.hosts[0];
    let undisturbed = Live::of(host);
    let nothing_left = |host: &Host, n: usize| {
        let left: Vec<_> = std::fs::read_dir(&host.pins).map_or_else(|_| Vec::new(), Iterator::collect);
        assert!(left.is_empty(), "killed before change {n}: {left:?}");
        let links = host.netns.cmd("ip -o link");
        assert!(!links.contains("vxlan0"), "killed before change {n}: {links}");
    };
    let mut points = [0; 2];
    for n in (0..).step_by(stride()) {
        let died = dies_at(host, &["down"], n);
        if died {
            points[0] += 1;
            host.expect(0, &["down"]);
        }
        nothing_left(host, n);
        host.apply();
        assert_eq!(Live::of(host), undisturbed);
        if !died {
            break;
        }
    }
    for n in (0..).step_by(stride()) {
        host.expect(0, &["down"]);
        nothing_left(host, n);
        let died = dies_at(host, &["apply"], n);
        host.apply();
        assert_eq!(Live::of(host), undisturbed, "killed before change {n}");
        assert_pings(&bench.wire[0], "192.168.61.2");
        if !died {
            break;
        }
        points[1] += 1;
    }
    assert!(points.iter().all(|p| *p >= 3), "{points:?}");
    eprintln!("killed at {} points of down and {} of the first apply", points[0], points[1]);
}
