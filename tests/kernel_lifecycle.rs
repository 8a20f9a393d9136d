//! What lives shorter than the data plane: interfaces, devices, processes, files, maps.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

#[path = "lifecycle/churn.rs"]
mod churn;
#[path = "lifecycle/earlier.rs"]
mod earlier;
#[path = "lifecycle/release.rs"]
mod release;
#[path = "lifecycle/restart.rs"]
mod restart;
#[path = "lifecycle/stream.rs"]
mod stream;

use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use stream::Stream;
use world::harness::{Netns, run};
use world::pair::TOPOLOGY;
use world::*;

/// Tests that count every packet don't share the two CPUs' queues with each other.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Pair {
    daemons: Vec<Option<Daemon>>,
    hosts: Vec<Host>,
    /// Behind `wire0`, with 192.168.61.1 and .2.
    wire: Vec<Netns>,
    /// Behind `br-red`, with 192.168.60.1 and .2.
    red: Vec<Netns>,
    /// Topology directories of one host each.
    own: Vec<std::path::PathBuf>,
    directory: tempfile::TempDir,
    _underlay: Underlay,
}

/// A port that stands for itself: what is sent out of it is encapsulated, the host's own stack receives from it.
fn make_port(host: &Host, name: &str, address: &str) {
    host.netns.cmd(&format!("ip link add {name} type veth peer name {name}x"));
    host.netns.cmd(&format!("ip addr add {address} dev {name}"));
    host.netns.cmd(&format!("ip link set {name}x up"));
    host.netns.cmd(&format!("ip link set {name} up"));
}

impl Pair {
    fn new(text: &str) -> Self {
        Self::with_env(text, &[])
    }

    /// Ends a daemon, by SIGKILL or in an orderly way.
    fn end(&mut self, n: usize, killed: bool) {
        let daemon = self.daemons[n].take().unwrap();
        if killed { daemon.kill() } else { assert_eq!(daemon.stop(), Some(0)) }
    }

    /// With these environment variables for everything that is run on the hosts.
    fn with_env(text: &str, env: &[(&str, &str)]) -> Self {
        let underlay = Underlay::new();
        let directory = tempfile::tempdir().unwrap();
        write_atomically(&directory.path().join("mesh.yaml"), text);
        let mut hosts: Vec<Host> = (0..2).map(|n| underlay.host(n)).collect();
        let (mut wire, mut own) = (Vec::new(), Vec::new());
        for (n, host) in hosts.iter_mut().enumerate() {
            host.extra_env.extend(env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
            // The directory of both, and one of its own.
            own.push(host.topology().to_owned());
            let both = format!("{}:{}", directory.path().display(), host.topology().display());
            host.use_topology(Path::new(&both));
            wire.push(host.workload("wire0", &format!("192.168.61.{}/24", n + 1)));
            make_port(host, "port0", &format!("192.168.62.{}/24", n + 1));
        }
        let daemons = hosts.iter().map(|h| Some(h.daemon())).collect();
        let mut red = Vec::new();
        if text.contains("br-red") {
            for (n, host) in hosts.iter().enumerate() {
                red.push(host.workload("w-red", &format!("192.168.60.{}/24", n + 1)));
                host.netns.cmd("ip link set w-red master br-red");
            }
        }
        Self { daemons, hosts, wire, red, own, directory, _underlay: underlay }
    }

    fn assert_all_reach(&self) {
        if let Some(red) = self.red.first() {
            assert_pings(red, "192.168.60.2");
        }
        assert_pings(&self.wire[0], "192.168.61.2");
        assert_pings(&self.hosts[0].netns, "192.168.62.2");
    }

    fn restart(&mut self, n: usize) {
        self.daemons[n] = Some(self.hosts[n].daemon());
    }
}

fn entries(dump: &Value) -> BTreeMap<String, String> {
    let list = dump.as_array().unwrap();
    list.iter().map(|e| (e["key"].to_string(), e["value"].to_string())).collect()
}

fn number(bytes: &Value) -> u32 {
    let bytes: Vec<u8> = bytes.as_array().unwrap().iter().map(hex).collect();
    u32::from_ne_bytes(bytes[..4].try_into().unwrap())
}

fn hex(byte: &Value) -> u8 {
    u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// Keys of `if2tunkey`.
fn mapped(host: &Host) -> Vec<u32> {
    host.dump("if2tunkey").as_array().unwrap().iter().map(|e| number(&e["key"])).collect()
}

/// Slot and device of each entry of `devs` that is set.
fn devices(host: &Host) -> BTreeMap<u32, u32> {
    let dump = host.dump("devs");
    let all = dump.as_array().unwrap().iter().filter(|e| e["value"].is_array());
    all.map(|e| (number(&e["key"]), number(&e["value"]))).filter(|(_, i)| *i != 0).collect()
}

fn max_entries(host: &Host, map: &str) -> u64 {
    let text = run("bpftool", &["-j", "map", "show", "pinned", host.pin(map).to_str().unwrap()]);
    serde_json::from_str::<Value>(&text).unwrap()["max_entries"].as_u64().unwrap()
}

fn state_of(host: &Host, address: &str) -> String {
    host.mapping(address)["state"].as_str().unwrap().to_owned()
}

fn await_state(host: &Host, address: &str, state: &str) {
    eventually(&format!("{address} is {state}"), || state_of(host, address) == state);
}

fn tunnel_state(host: &Host) -> String {
    host.status()["tunnels"][0]["state"].as_str().unwrap().to_owned()
}

fn exists(netns: &Netns, interface: &str) -> bool {
    netns.try_cmd(&format!("ip link show dev {interface}")).status.success()
}

fn program_exists(id: u64) -> bool {
    Command::new("bpftool").args(["prog", "show", "id", &id.to_string()]).output().unwrap().status.success()
}

/// Attachments by interface and direction: program and place.
fn attachments(host: &Host) -> BTreeMap<(u64, String), (Value, Value)> {
    let status = host.status();
    let list = status["attachments"].as_array().unwrap();
    let one = |a: &Value| {
        let key = (a["ifindex"].as_u64().unwrap(), a["direction"].as_str().unwrap().to_owned());
        (key, (a["program"].clone(), a["position"].clone()))
    };
    list.iter().map(one).collect()
}

/// The pins of TCX links, which get another inode when they are made anew. Empty on clsact.
fn link_pins(host: &Host) -> BTreeMap<String, u64> {
    let Ok(list) = std::fs::read_dir(host.pin("links")) else { return BTreeMap::new() };
    list.map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().unwrap().ino()))
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Again {
    OtherIndex,
    SameIndex,
    AtOnce,
}

#[test]
fn an_endpoint_that_is_recreated_gets_program_and_entries_back() {
    let pair = Pair::new(TOPOLOGY);
    let host = &pair.hosts[0];
    pair.assert_all_reach();
    assert_eq!(state_of(host, "wire/wire0"), "active");
    for again in [Again::OtherIndex, Again::SameIndex, Again::AtOnce] {
        let old = host.ifindex("wire0");
        assert!(mapped(host).contains(&old));
        let index = if again == Again::OtherIndex { String::new() } else { format!("index {old}") };
        let make = format!("link add wire0 {index} type veth peer name eth0 netns {}", pair.wire[0].name);
        if again == Again::AtOnce {
            let script = host.files.path().join("batch");
            std::fs::write(&script, format!("link del wire0\n{make}\nlink set wire0 up\n")).unwrap();
            host.netns.command(&["ip", "-batch", script.to_str().unwrap()]);
        } else {
            host.netns.cmd("ip link del wire0");
            await_state(host, "wire/wire0", "pending");
            assert!(host.mapping("wire/wire0")["why"].as_str().unwrap().contains("wire0 doesn't exist"));
            eventually("its entry goes", || !mapped(host).contains(&old));
            // The others don't notice.
            assert!(pings(&host.netns, "192.168.62.2", 3));
            host.netns.cmd(&format!("ip {make}"));
            host.netns.cmd("ip link set wire0 up");
        }
        pair.wire[0].cmd("ip link set eth0 up");
        pair.wire[0].cmd("ip addr add 192.168.61.1/24 dev eth0");
        assert_pings(&pair.wire[0], "192.168.61.2");
        await_state(host, "wire/wire0", "active");
        host.wait_in_force();
        let new = host.ifindex("wire0");
        assert_eq!(new == old, again != Again::OtherIndex);
        let mapped = mapped(host);
        assert!(mapped.contains(&new) && mapped.len() == 3, "{mapped:?}");
        assert!(attachments(host).contains_key(&(u64::from(new), "ingress".to_owned())));
    }
}

#[test]
fn a_port_that_is_recreated_gets_program_and_entries_back() {
    let pair = Pair::new(TOPOLOGY);
    let host = &pair.hosts[0];
    pair.assert_all_reach();
    for _ in 0..2 {
        let old = host.ifindex("port0");
        assert!(mapped(host).contains(&old));
        host.netns.cmd("ip link del port0");
        await_state(host, "port/port0", "pending");
        eventually("its entry goes", || !mapped(host).contains(&old));
        assert!(pings(&pair.wire[0], "192.168.61.2", 3));
        make_port(host, "port0", "192.168.62.1/24");
        assert_pings(&host.netns, "192.168.62.2");
        await_state(host, "port/port0", "active");
        host.wait_in_force();
        let new = host.ifindex("port0");
        assert_ne!(new, old);
        assert!(attachments(host).contains_key(&(u64::from(new), "egress".to_owned())));
        // Counted from zero: the mapping's counters are of this slot's life, and move.
        let before = host.mapping("port/port0")["traffic"]["tx_packets"].as_u64().unwrap();
        assert!(pings(&host.netns, "192.168.62.2", 3));
        assert!(host.mapping("port/port0")["traffic"]["tx_packets"].as_u64().unwrap() >= before + 3);
    }
    // A generated port is made anew itself, and joins its bridge again.
    let status = host.status();
    let red = status["mappings"].as_array().unwrap().iter().find(|m| m["tenant"] == "red").unwrap().clone();
    let name = red["interface"].as_str().unwrap();
    host.netns.cmd(&format!("ip link del {name}"));
    eventually("the generated port is back", || exists(&host.netns, name));
    assert_pings(&pair.red[0], "192.168.60.2");
    host.wait_in_force();
    let link = host.netns.cmd(&format!("ip -d link show dev {name}"));
    assert!(link.contains("master br-red") && link.contains("isolated on"), "{link}");
}

#[test]
fn a_tunnel_device_that_is_deleted_is_made_again_and_no_key_is_touched() {
    let pair = Pair::new(TOPOLOGY);
    pair.assert_all_reach();
    let host = &pair.hosts[0];
    for _ in 0..2 {
        let old = host.ifindex("vxlan0");
        let maps = ["tunkey2if", "if2tunkey"].map(|m| entries(&host.dump(m)));
        assert_eq!(maps.each_ref().map(BTreeMap::len), [3, 3]);
        let (devs, hooks, pins) = (devices(host), attachments(host), link_pins(host));
        assert_eq!(pins.is_empty(), clsact(), "{pins:?}");
        let conf = entries(&host.dump("conf"));
        let operations = host.status()["daemon"]["operations"].as_u64().unwrap();

        host.netns.cmd("ip link del vxlan0");
        eventually("the device is back", || exists(&host.netns, "vxlan0"));
        pair.assert_all_reach();
        host.wait_in_force();

        let new = host.ifindex("vxlan0");
        assert_ne!(new, old);
        assert_eq!(["tunkey2if", "if2tunkey"].map(|m| entries(&host.dump(m))), maps);
        let mut expected = devs.clone();
        *expected.get_mut(&1).unwrap() = new;
        assert_eq!(devs[&1], old);
        assert_eq!(devices(host), expected);
        let now = entries(&host.dump("conf"));
        assert_eq!(now.iter().filter(|(k, v)| conf[*k] != **v).count(), 1, "one entry of conf");
        let without = |mut all: BTreeMap<(u64, String), (Value, Value)>, ifindex: u32| {
            let program = all.remove(&(u64::from(ifindex), "ingress".to_owned())).unwrap().0;
            (all, program)
        };
        assert_eq!(without(attachments(host), new), without(hooks, old));
        let (mut before, mut after) = (pins, link_pins(host));
        before.remove(&format!("ingress_{old}"));
        after.remove(&format!("ingress_{new}"));
        assert_eq!(before, after, "no other link was made anew");
        // Make the device, set it up, two map entries, one hook, and away with what is left of the old one.
        let spent = host.status()["daemon"]["operations"].as_u64().unwrap() - operations;
        assert!((5..=7).contains(&spent), "{spent} operations");
    }
}

#[test]
fn without_create_a_deleted_tunnel_device_is_waited_for() {
    let text = TOPOLOGY.replace(", create: true", "");
    assert_ne!(text, TOPOLOGY);
    let underlay = Underlay::new();
    let directory = tempfile::tempdir().unwrap();
    write_atomically(&directory.path().join("mesh.yaml"), &text);
    let mut hosts: Vec<Host> = (0..2).map(|n| underlay.host(n)).collect();
    let make = |host: &Host| {
        host.netns.cmd("ip link add vxlan0 type vxlan external dstport 4789 nolearning");
        host.netns.cmd("ip link set vxlan0 up");
    };
    let mut wire = Vec::new();
    let mut daemons = Vec::new();
    for (n, host) in hosts.iter_mut().enumerate() {
        host.use_topology(directory.path());
        wire.push(host.workload("wire0", &format!("192.168.61.{}/24", n + 1)));
        make_port(host, "port0", &format!("192.168.62.{}/24", n + 1));
        make(host);
        daemons.push(host.daemon());
    }
    assert_pings(&wire[0], "192.168.61.2");
    assert_pings(&hosts[0].netns, "192.168.62.2");
    let host = &hosts[0];
    let maps = ["tunkey2if", "if2tunkey"].map(|m| entries(&host.dump(m)));
    for _ in 0..2 {
        assert_eq!((tunnel_state(host), state_of(host, "wire/wire0")), ("active".into(), "active".into()));
        host.netns.cmd("ip link del vxlan0");
        eventually("the tunnel is pending", || tunnel_state(host) == "pending");
        await_state(host, "wire/wire0", "pending");
        await_state(host, "port/port0", "pending");
        assert!(host.mapping("wire/wire0")["why"].as_str().unwrap().contains("vxlan0"));
        assert!(silent(&wire[0], "192.168.61.2"));
        assert!(!exists(&host.netns, "vxlan0"), "nobody said create");
        make(host);
        assert_pings(&wire[0], "192.168.61.2");
        assert_pings(&host.netns, "192.168.62.2");
        eventually("the tunnel is active", || tunnel_state(host) == "active");
        await_state(host, "wire/wire0", "active");
        assert_eq!(["tunkey2if", "if2tunkey"].map(|m| entries(&host.dump(m))), maps, "no key is touched");
    }
    // A device that isn't in external mode is no tunnel, and not ours to change.
    host.netns.cmd("ip link del vxlan0");
    host.netns.cmd("ip link add vxlan0 type vxlan id 5 dstport 4789");
    eventually("the tunnel is pending", || tunnel_state(host) == "pending");
    eventually("the problem is told", || host.status()["problems"].to_string().contains("external"));
    host.netns.cmd("ip link del vxlan0");
    make(host);
    assert_pings(&wire[0], "192.168.61.2");
}

const EDIT: &str = r"
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: LOCAL}
mappings:
";

fn edit_text(host: u32, ports: &[(&str, u32)]) -> String {
    let mut text = EDIT.replace("LOCAL", &format!("172.16.1.{}", 100 + host));
    for (name, id) in ports {
        let remote = 101 - host;
        text.push_str(&format!("- {{tenant: t-{name}, interface: {name}, id: {id}, remote: 172.16.1.{remote}}}\n"));
    }
    text
}

#[test]
fn run_follows_the_files() {
    let underlay = Underlay::new();
    let hosts = [underlay.host(0), underlay.host(1)];
    for (n, host) in hosts.iter().enumerate() {
        make_port(host, "pa", &format!("192.168.70.{}/24", n + 1));
        make_port(host, "pb", &format!("192.168.71.{}/24", n + 1));
        make_port(host, "pc", &format!("192.168.72.{}/24", n + 1));
    }
    let all = [("pa", 1), ("pb", 2), ("pc", 3)];
    hosts[1].write("a.yaml", &edit_text(1, &all));
    hosts[0].write("a.yaml", &edit_text(0, &all[..1]));
    let far = hosts[1].daemon();
    let host = &hosts[0];
    let daemon = host.daemon();
    let near = &host.netns;
    assert_pings(near, "192.168.70.2");
    assert!(silent(near, "192.168.71.2"), "not mapped yet");

    // Added.
    host.write("a.yaml", &edit_text(0, &all));
    assert_pings(near, "192.168.71.2");
    assert_pings(near, "192.168.72.2");

    // Re-keyed, on both sides; the interface keeps its slot.
    let slot = host.mapping("t-pb/pb")["slot"].clone();
    for (n, host) in hosts.iter().enumerate() {
        host.write("a.yaml", &edit_text(n as u32, &[("pa", 1), ("pb", 22), ("pc", 3)]));
    }
    for host in &hosts {
        eventually("pb has its new key", || host.mapping("t-pb/pb")["id"] == 22);
        host.wait_in_force();
    }
    assert_pings(near, "192.168.71.2");
    assert_eq!(host.mapping("t-pb/pb")["slot"], slot);
    assert_eq!(host.dump("tunkey2if").as_array().unwrap().len(), 3, "the old key is gone");

    // Removed: first accepted with the mapping still in it, and only after one more look without.
    let seen = daemon.log().len();
    host.write("a.yaml", &edit_text(0, &[("pa", 1), ("pb", 22)]));
    eventually("pc is gone", || host.status()["mappings"].as_array().unwrap().len() == 2);
    host.wait_in_force();
    let log = daemon.log()[seen..].to_owned();
    let (kept, gone) = (log.find("mappings=3"), log.find("mappings=2"));
    assert!(kept.is_some() && gone.is_some() && kept < gone, "kept for one more look, then removed:\n{log}");
    assert_eq!(mapped(host).len(), 2);
    assert!(silent(near, "192.168.72.2"));

    // Broken: what was accepted stays, and everybody is told.
    let live = ["tunkey2if", "if2tunkey", "conf"].map(|m| entries(&host.dump(m)));
    let unchanged = |what: &str| {
        assert!(pings(near, "192.168.70.2", 3) && pings(near, "192.168.71.2", 3), "{what}");
        assert_eq!(["tunkey2if", "if2tunkey", "conf"].map(|m| entries(&host.dump(m))), live, "{what}");
        assert_eq!(host.status()["mappings"].as_array().unwrap().len(), 2, "{what}");
    };
    let config_error = || host.status()["config_error"].as_str().unwrap_or_default().to_owned();
    assert_eq!(config_error(), "");
    host.write("a.yaml", &edit_text(0, &[("pa", 1), ("pb", 1)]));
    eventually("the error is told", || config_error().contains("a.yaml:"));
    assert_eq!(host.status()["in_force"], false);
    let refused = host.run(&["apply"]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("a.yaml"));
    unchanged("two mappings with one key");
    host.write("a.yaml", "version: 1\nmappings: [[[");
    eventually("the other error is told", || !config_error().contains("key") && !config_error().is_empty());
    host.expect(78, &["apply", "--allow-deletes"]);
    unchanged("no YAML");

    // A restart with broken files keeps it, too.
    daemon.kill();
    let daemon = host.daemon_unready();
    eventually("the daemon is back", || host.status()["daemon"]["running"] == true && !config_error().is_empty());
    unchanged("restart with broken files");
    // And it is kept in force: an interface that comes back gets its program and entries, files or not.
    host.netns.cmd("ip link del pa");
    await_state(host, "t-pa/pa", "pending");
    make_port(host, "pa", "192.168.70.1/24");
    assert_pings(near, "192.168.70.2");
    await_state(host, "t-pa/pa", "active");
    let live = ["tunkey2if", "if2tunkey", "conf"].map(|m| entries(&host.dump(m)));
    let unchanged = |what: &str| {
        assert!(pings(near, "192.168.70.2", 3) && pings(near, "192.168.71.2", 3), "{what}");
        assert_eq!(["tunkey2if", "if2tunkey", "conf"].map(|m| entries(&host.dump(m))), live, "{what}");
        assert_eq!(host.status()["mappings"].as_array().unwrap().len(), 2, "{what}");
    };

    // Fixed.
    host.write("a.yaml", &edit_text(0, &[("pa", 1), ("pb", 22)]));
    eventually("the error is gone", || host.status()["config_error"].is_null());
    host.wait_in_force();
    unchanged("fixed");

    // Emptied, removed, and with a file that says nothing: never a reason to delete.
    let file = host.topology().join("a.yaml");
    std::fs::remove_file(&file).unwrap();
    eventually("an empty directory is an error", || config_error().contains("never means"));
    host.expect(78, &["apply", "--allow-deletes"]);
    unchanged("empty directory");
    std::fs::remove_dir(host.topology()).unwrap();
    eventually("a missing directory is an error", || config_error().contains("make the directory"));
    host.expect(78, &["apply", "--allow-deletes"]);
    unchanged("missing directory");
    daemon.kill();
    let daemon = host.daemon_unready();
    eventually("the daemon is back", || host.status()["daemon"]["running"] == true && !config_error().is_empty());
    unchanged("restart without the directory");
    std::fs::create_dir(host.topology()).unwrap();
    std::fs::write(&file, "").unwrap();
    eventually("an empty file is an error", || config_error().contains("a.yaml"));
    host.expect(78, &["apply", "--allow-deletes"]);
    unchanged("empty file");

    // And all is well again, in a directory that is another one: pc comes back.
    host.write("a.yaml", &edit_text(0, &[("pa", 1), ("pb", 22), ("pc", 3)]));
    assert_pings(near, "192.168.72.2");
    host.wait_in_force();
    assert_eq!(daemon.stop(), Some(0));
    drop(far);
}

/// The revision that a topology has, before anybody took it over.
fn revision_of(host: &Host, text: &str) -> String {
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("other.yaml"), text).unwrap();
    let plan = host.expect(0, &["plan", "--format", "json", "--topology", elsewhere.path().to_str().unwrap()]);
    serde_json::from_str::<Value>(&plan).unwrap()["revision"].as_str().unwrap().to_owned()
}

#[test]
fn a_revision_is_waited_for_until_its_content_is_in_force() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    for name in ["pa", "pb"] {
        make_port(&host, name, "192.168.70.1/24");
    }
    let (one, both) = (edit_text(0, &[("pa", 1)]), edit_text(0, &[("pa", 1), ("pb", 2)]));
    let rekeyed = edit_text(0, &[("pa", 1), ("pb", 7)]);
    let revisions = [&one, &both, &rekeyed].map(|text| revision_of(&host, text));
    assert_eq!(revisions.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    host.write("a.yaml", &one);
    let daemon = host.daemon();
    // At once, for what is in force; in vain, for what isn't.
    let wait = |revision: &str, seconds: &str| {
        host.command(&["status", "--wait", "--revision", revision, "--timeout", seconds, "--format", "json"])
    };
    assert!(wait(&revisions[0], "60").output().unwrap().status.success());
    assert_eq!(wait(&revisions[1], "1").output().unwrap().status.code(), Some(6));

    let id_of = |name: &str| {
        let key = format!("{:?}", host.ifindex(name).to_ne_bytes().map(|b| format!("0x{b:02x}")));
        let value = entries(&host.dump("if2tunkey")).get(&key.replace(", ", ",")).cloned();
        value.map(|v| serde_json::from_str::<Value>(&v).unwrap()).map(|v| number(&v.as_array().unwrap()[12..].into()))
    };
    // Something comes, something changes, something goes: what is waited for is in the maps when the wait is over, and
    // the wait lasts as long as it isn't.
    let cases = [(&both, 1, Some(2)), (&rekeyed, 2, Some(7)), (&one, 0, None)];
    for (text, revision, id) in cases {
        let before = id_of("pb");
        let mut waiting = wait(&revisions[revision], "60").stdout(std::process::Stdio::null()).spawn().unwrap();
        let passes = || host.status()["daemon"]["passes"].as_u64().unwrap();
        let seen = passes();
        daemon.signal(Signal::HUP);
        eventually("a pass", || passes() > seen);
        assert_eq!((waiting.try_wait().unwrap(), id_of("pb")), (None, before));
        host.write("a.yaml", text);
        assert!(waiting.wait().unwrap().success());
        assert_eq!(id_of("pb"), id);
        assert_eq!(host.status()["revision"], revisions[revision].as_str());
    }
    // The content counts, not the files: said in two of them it is the same.
    let (head, mapping) = both.split_at(both.rfind("- {").unwrap());
    host.write("b.yaml", &format!("version: 1\nmappings:\n{mapping}"));
    host.write("a.yaml", head);
    assert!(wait(&revisions[1], "60").output().unwrap().status.success());
    assert_eq!(id_of("pb"), Some(2));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn many_deletions_at_once_are_held_until_they_are_allowed() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    let names: Vec<String> = (0..14).map(|n| format!("g{n}")).collect();
    for pair in names.chunks(2) {
        host.netns.cmd(&format!("ip link add {} type veth peer name {}", pair[0], pair[1]));
    }
    let text = |names: &[String]| {
        let ports: Vec<(&str, u32)> =
            names.iter().map(|n| (n.as_str(), 100 + n[1..].parse::<u32>().unwrap())).collect();
        edit_text(0, &ports)
    };
    let count = |host: &Host| (host.dump("tunkey2if").as_array().unwrap().len(), mapped(host).len());
    let kept = host.ifindex("g0");
    let newcomers = [names[0].clone(), names[12].clone(), names[13].clone()];
    let names = &names[..12];

    for with_daemon in [true, false] {
        host.write("a.yaml", &text(names));
        let daemon = with_daemon.then(|| host.daemon());
        host.apply();
        host.wait_in_force();
        assert_eq!(count(&host), (12, 12));

        // 11 of 12 go.
        host.write("a.yaml", &text(&names[..1]));
        if with_daemon {
            eventually("the deletions are held", || state_of(&host, "t-g5/g5") == "held");
            eventually("two looks later they still are", || daemon.as_ref().unwrap().log().contains("deletions held"));
        }
        let out = host.expect(3, &["apply"]);
        assert!(out.contains("Held: 11 deletions"), "{out}");
        let json: Value = serde_json::from_str(&host.expect(3, &["apply", "--format", "json"])).unwrap();
        assert_eq!(json["held"].as_array().unwrap().len(), 11);
        let status = host.status();
        let held = status["mappings"].as_array().unwrap().iter().filter(|m| m["state"] == "held").count();
        assert_eq!((held, &status["in_force"]), (11, &Value::Bool(false)));
        assert_eq!(state_of(&host, "t-g0/g0"), "active");
        assert_eq!(count(&host), (12, 12));

        // Others that come are applied, and don't release what is held.
        host.write("a.yaml", &text(&newcomers));
        host.expect(3, &["apply"]);
        assert_eq!(count(&host), (14, 14));
        assert_eq!((state_of(&host, "t-g12/g12"), state_of(&host, "t-g1/g1")), ("active".into(), "held".into()));
        host.write("a.yaml", &text(&names[..1]));
        host.expect(3, &["apply"]);

        host.expect(0, &["apply", "--allow-deletes"]);
        assert_eq!(count(&host), (1, 1));
        assert_eq!(mapped(&host), [kept]);
        assert_eq!(host.status()["in_force"], true);
        // Exactly these: the next removal is judged anew. The last one is all there is.
        host.write("a.yaml", &text(&names[1..2]));
        host.expect(3, &["apply"]);
        assert!(mapped(&host).contains(&kept));
        host.write("a.yaml", &text(&names[..1]));
        host.apply();
        if let Some(daemon) = daemon {
            assert_eq!(daemon.stop(), Some(0));
        }
    }

    // Nine of twelve are few enough, and go after one more look.
    host.write("a.yaml", &text(names));
    let daemon = host.daemon();
    host.write("a.yaml", &text(&names[..3]));
    eventually("nine are gone", || count(&host) == (3, 3));
    drop(daemon);
}

/// A foreign program on the same hook as ours, and its pins.
struct Foreign(std::path::PathBuf);

impl Foreign {
    fn load(netns: &Netns) -> Self {
        ensure_bpffs();
        let object = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(object.path(), include_bytes!(env!("TUNNEL_MESH_PROBE_OBJECT"))).unwrap();
        let pins = std::path::PathBuf::from(format!("/sys/fs/bpf/{}-probe", netns.name));
        let directory = pins.to_str().unwrap();
        run("bpftool", &["prog", "loadall", object.path().to_str().unwrap(), directory, "pinmaps", directory]);
        Self(pins)
    }

    fn attach(&self, program: &str, netns: &Netns, interface: &str, direction: &str) {
        drop(netns.try_cmd(&format!("tc qdisc add dev {interface} clsact")));
        let program = self.0.join(program);
        netns.cmd(&format!("tc filter add dev {interface} {direction} prio 77 bpf da pinned {}", program.display()));
    }

    fn is_on(netns: &Netns, interface: &str, direction: &str) -> bool {
        netns.cmd(&format!("tc filter show dev {interface} {direction}")).contains("see_tc_index")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn down_removes_what_is_ours_and_nothing_else() {
    for with_daemon in [true, false] {
        let more = "  empty: {id: 10001, bridge: br-empty}\n  fore: {id: 10002, bridge: br-fore}\n";
        let mut pair = Pair::new(&format!("{TOPOLOGY}{more}"));
        pair.assert_all_reach();
        let host = &pair.hosts[0];
        let netns = &host.netns;
        // br-red has the workload as a foreign port; br-fore one that isn't a workload; br-empty has none.
        netns.cmd("ip link add foreign0 type veth peer name foreign1");
        netns.cmd("ip link set foreign0 master br-fore");
        netns.cmd("ip link add br-theirs type bridge");
        netns.cmd("ip link add vxlan9 type vxlan external dstport 9999");
        let foreign = Foreign::load(netns);
        for (interface, direction) in [("wire0", "ingress"), ("port0", "egress"), ("eth0", "ingress")] {
            foreign.attach("see_tc_index", netns, interface, direction);
        }
        host.wait_in_force();
        let status = host.status();
        let ports: Vec<String> = status["mappings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["node"].is_string())
            .map(|m| m["interface"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(ports.len(), 3);
        let programs: Vec<u64> = attachments(host).values().map(|(p, _)| p.as_u64().unwrap()).collect();
        assert_eq!(programs.len(), 6);
        assert!(programs.iter().all(|p| program_exists(*p)));
        assert!(ports.iter().map(String::as_str).chain(["vxlan0", "br-red", "br-empty"]).all(|d| exists(netns, d)));

        if with_daemon {
            host.expect(0, &["down"]);
            let mut daemon = pair.daemons[0].take().unwrap();
            assert_eq!(daemon.child.wait().unwrap().code(), Some(0), "the daemon ends with it");
        } else {
            assert_eq!(pair.daemons[0].take().unwrap().stop(), Some(0));
            assert!(pings(&pair.wire[0], "192.168.61.2", 3), "until here it works");
            host.expect(0, &["down"]);
        }

        for ours in ports.iter().map(String::as_str).chain(["vxlan0", "br-empty"]) {
            assert!(!exists(netns, ours), "{ours} stays");
        }
        for theirs in ["br-red", "br-fore", "br-theirs", "foreign0", "foreign1", "w-red", "wire0", "port0", "vxlan9"] {
            assert!(exists(netns, theirs), "{theirs} is gone");
        }
        let ports = netns.cmd("ip -o link show master br-fore");
        assert!(ports.lines().count() == 1 && ports.contains("foreign0"), "{ports}");
        let left = host.pins.read_dir().map(|d| d.map(|e| e.unwrap().file_name()).collect::<Vec<_>>());
        assert!(left.as_ref().map_or(true, Vec::is_empty), "pins are left: {left:?}");
        eventually("the programs are gone", || programs.iter().all(|p| !program_exists(*p)));
        for (interface, direction) in [("wire0", "ingress"), ("port0", "egress"), ("eth0", "ingress")] {
            let shown = netns.cmd(&format!("tc filter show dev {interface} {direction}"));
            assert!(
                Foreign::is_on(netns, interface, direction),
                "the foreign program is gone from {interface}: {shown}"
            );
            assert!(!shown.contains("handle_"), "ours is still on {interface}: {shown}");
        }
        assert!(silent(&pair.wire[0], "192.168.61.2"));
        // Nothing is left to remove, and everything can come back.
        host.expect(0, &["down"]);
        pair.restart(0);
        pair.assert_all_reach();
    }
}

#[test]
fn maps_grow_under_traffic_without_a_lost_packet() {
    let _alone = alone();
    let pair = Pair::new(TOPOLOGY);
    pair.assert_all_reach();
    let host = &pair.hosts[0];
    let before = max_entries(host, "tunkey2if");
    let sized = ["tunkey2if", "if2tunkey", "devs", "counters"];
    assert!(sized.iter().all(|m| max_entries(host, m) == before));
    let programs: Vec<u64> = attachments(host).values().map(|(p, _)| p.as_u64().unwrap()).collect();

    // More interfaces than the maps hold: both ends of each veth pair.
    let many = if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { 200 } else { 600 };
    assert!(many > before - 64, "{before} entries are enough already");
    let script: String =
        (0..many / 2).map(|n| format!("link add m{} type veth peer name m{}\n", 2 * n, 2 * n + 1)).collect();
    let batch = host.files.path().join("batch");
    std::fs::write(&batch, script).unwrap();
    host.netns.command(&["ip", "-batch", batch.to_str().unwrap()]);

    let count = scaled(20_000);
    let streams = [
        Stream::start("endpoint out", &pair.wire[0], &pair.wire[1], "192.168.61.2", count),
        Stream::start("endpoint in", &pair.wire[1], &pair.wire[0], "192.168.61.1", count),
        Stream::start("bridge in", &pair.red[1], &pair.red[0], "192.168.60.1", count),
        Stream::start("port out", &pair.hosts[0].netns, &pair.hosts[1].netns, "192.168.62.2", count),
    ];
    let flow = || streams.iter().for_each(|s| s.flow(scaled(1_000)));
    flow();
    let traffic = host.mapping("wire/wire0")["traffic"]["tx_packets"].as_u64().unwrap();
    assert!(traffic > 0);
    // Only this host gets these mappings.
    let mut text = String::from("version: 1\nmappings:\n");
    for n in 0..many {
        text.push_str(&format!("- {{tenant: many, interface: m{n}, id: {}, remote: 172.16.1.101}}\n", 20_000 + n));
    }
    write_atomically(&pair.own[0].join("many.yaml"), &text);
    eventually("all are mapped", || mapped(host).len() as u64 == many + 3);
    host.wait_in_force();
    flow();
    let after = max_entries(host, "tunkey2if");
    assert!(after >= many + 64, "{before} -> {after}");
    assert!(sized.iter().all(|m| max_entries(host, m) == after));
    assert_eq!(mapped(host).len() as u64, many + 3);
    // Counters moved along.
    assert!(host.mapping("wire/wire0")["traffic"]["tx_packets"].as_u64().unwrap() > traffic);
    flow();
    for stream in streams {
        assert!(stream.finish() >= count);
    }
    eventually("the old programs are gone", || programs.iter().all(|p| !program_exists(*p)));
    assert!(!host.pin("next").exists() && !host.pin("switch").exists());
}

#[test]
fn one_writer_a_socket_for_the_others_and_a_signal() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    make_port(&host, "pa", "192.168.70.1/24");
    make_port(&host, "pb", "192.168.71.1/24");
    host.write("a.yaml", &edit_text(0, &[("pa", 1)]));
    // Rare passes of its own, so that those that are asked for can be told apart.
    let mut host = host;
    host.extra_env.push(("TUNNEL_MESH_INTERVAL".into(), "86400".into()));
    let daemon = host.daemon();
    let passes = || host.status()["daemon"]["passes"].as_u64().unwrap();
    assert_eq!(host.status()["daemon"]["pid"], u64::from(daemon.pid()));

    // A second daemon, also one with another socket.
    host.expect(5, &["run"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let run_dir = elsewhere.path().join("run");
    host.expect(5, &["run", "--run-dir", run_dir.to_str().unwrap()]);
    host.expect(5, &["apply", "--run-dir", run_dir.to_str().unwrap()]);
    host.expect(5, &["down", "--run-dir", run_dir.to_str().unwrap()]);
    assert_eq!(host.status()["daemon"]["pid"], u64::from(daemon.pid()), "the first one's socket still stands");
    // Looking needs no lock.
    let seen = host.expect(0, &["status", "--format", "json", "--run-dir", run_dir.to_str().unwrap()]);
    assert_eq!(serde_json::from_str::<Value>(&seen).unwrap()["daemon"]["running"], false);
    host.expect(0, &["plan", "--run-dir", run_dir.to_str().unwrap()]);

    let socket = host.files.path().join("run/control.sock");
    let mode = std::fs::symlink_metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "{mode:o}");

    // `apply` is done by the daemon.
    let before = passes();
    let operations = host.status()["daemon"]["operations"].as_u64().unwrap();
    host.write("a.yaml", &edit_text(0, &[("pa", 1), ("pb", 2)]));
    host.apply();
    assert_eq!(mapped(&host).len(), 2);
    assert!(passes() > before);
    assert!(host.status()["daemon"]["operations"].as_u64().unwrap() > operations);

    // SIGHUP makes a pass, which repairs what nobody announced.
    let key = host.ifindex("pb").to_ne_bytes().map(|b| b.to_string());
    let pin = host.pin("if2tunkey");
    let mut words = vec!["map", "delete", "pinned", pin.to_str().unwrap(), "key"];
    words.extend(key.iter().map(String::as_str));
    run("bpftool", &words);
    assert_eq!(mapped(&host).len(), 1);
    assert_eq!(state_of(&host, "t-pb/pb"), "drifted");
    let before = passes();
    assert_eq!(mapped(&host).len(), 1, "nothing else repairs it");
    daemon.signal(Signal::HUP);
    eventually("a pass is made", || passes() > before);
    eventually("the entry is back", || mapped(&host).len() == 2);
    assert_eq!(state_of(&host, "t-pb/pb"), "active");
    assert!(daemon.log().contains("SIGHUP"));

    // The socket of a daemon that was killed is in nobody's way.
    daemon.kill();
    assert!(socket.exists());
    host.apply();
    let daemon = host.daemon();
    assert_eq!(daemon.stop(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn churn_under_traffic_never_delivers_to_another_tenant() {
    let _alone = alone();
    churn::run();
}

#[test]
fn restarts_and_upgrades_lose_no_packet() {
    let _alone = alone();
    restart::run();
}
