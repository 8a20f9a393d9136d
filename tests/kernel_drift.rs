//! What others do to the data plane: each is told as drift with what it was, and repaired within one pass.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "drift/foreign.rs"]
mod foreign;
mod safety;
#[path = "lifecycle/stream.rs"]
mod stream;
mod world;

use foreign::{Foreign, Place};
use rustix::process::Signal;
use serde_json::Value;
use stream::Stream;
use tunnel_mesh::model::FIRST_MAPPING_SLOT;
use world::harness::renaming;
use world::live::*;
use world::pair::Pair;
use world::*;

/// Maps whose entries a pass keeps.
const MAPS: [&str; 4] = ["conf", "tunkey2if", "if2tunkey", "devs"];

type Live = ([Entries; 4], std::collections::BTreeMap<(String, String), (Value, Value)>);

fn live(host: &Host) -> Live {
    (MAPS.map(|m| entries(host, m)), attachments(host))
}

/// Somebody does something while the daemon is held still. A plan calls all of it drift; then the daemon makes a pass,
/// says what it found in words that contain `told`, and nothing is left.
fn drifts(pair: &Pair, what: &str, act: impl FnOnce(&Host), told: &[&str]) {
    let (host, daemon) = (pair.host(), pair.daemon());
    host.wait_in_force();
    let before = host.status()["daemon"].clone();
    let seen = daemon.log().len();
    daemon.signal(Signal::STOP);
    act(host);
    let plan: Value =
        serde_json::from_str(&host.expect(2, &["plan", "--format", "json", "--detailed-exitcode"])).unwrap();
    let changes = plan["changes"].as_array().unwrap();
    assert!(!changes.is_empty() && changes.iter().all(|c| c["reason"] == "drift"), "{what}: {plan:#}");

    daemon.signal(Signal::CONT);
    daemon.signal(Signal::HUP);
    let passes = |status: &Value| status["passes"].as_u64().unwrap();
    let mut after = Value::Null;
    eventually(&format!("{what}: a pass"), || {
        after = host.status();
        passes(&after["daemon"]) > passes(&before) && after["in_force"] == true
            || passes(&after["daemon"]) > passes(&before) + 1
    });
    // In one pass, or in two where one was under way when the daemon was held still.
    assert_eq!(after["daemon"]["failed_passes"], before["failed_passes"], "{what}:\n{}", daemon.log());
    assert_eq!(after["in_force"], true, "{what}: {after:#}\n{}", daemon.log());
    let log = daemon.log()[seen..].to_owned();
    let changes: Vec<&str> = log.lines().filter(|l| l.contains("reason=")).collect();
    assert!(!changes.is_empty() && changes.iter().all(|l| l.contains("reason=Drift")), "{what}:\n{log}");
    for words in told {
        assert!(changes.iter().any(|l| l.contains(words)), "{what}: not told: {words}\n{log}\n{plan:#}");
    }
    host.expect(0, &["plan", "--detailed-exitcode"]);
}

/// As [`drifts`], and all is as it was before, to the byte.
fn restored(pair: &Pair, what: &str, act: impl FnOnce(&Host), told: &[&str]) {
    let before = live(pair.host());
    drifts(pair, what, act, told);
    assert_eq!(live(pair.host()), before, "{what}");
}

/// The only entry of `tunkey2if` with that id.
fn key_of(host: &Host, id: u32) -> (Vec<u8>, Vec<u8>) {
    entries(host, "tunkey2if").into_iter().find(|(key, _)| u32_at(key, 4) == id).unwrap()
}

fn if_key(host: &Host, interface: &str) -> Vec<u8> {
    host.ifindex(interface).to_ne_bytes().to_vec()
}

fn slot_of(host: &Host, interface: &str) -> u32 {
    let ifindex = host.ifindex(interface);
    *devices(host).iter().find(|(_, i)| **i == ifindex).unwrap().0
}

#[test]
fn entries_that_were_removed() {
    let pair = Pair::fast();
    let delete = |map: &'static str, key: Vec<u8>| move |host: &Host| write_map(host, map, "delete", &key, None);
    let host = pair.host();
    restored(&pair, "if2tunkey", delete("if2tunkey", if_key(host, "wire0")), &["if2tunkey entry is missing"]);
    restored(&pair, "tunkey2if", delete("tunkey2if", key_of(host, 8).0), &["tunkey2if entry is missing"]);
    let slot = slot_of(host, "port0");
    let told = format!("devs entry of slot {slot} is missing");
    restored(&pair, "devs", delete("devs", slot.to_ne_bytes().to_vec()), &[&told]);
    let zero = |host: &Host| write_map(host, "conf", "update", &1_u32.to_ne_bytes(), Some(&[0; 64]));
    restored(&pair, "conf", zero, &["tunnel index 1"]);
    let device = delete("devs", 1_u32.to_ne_bytes().to_vec());
    restored(&pair, "the tunnel in devs", device, &["device is vxlan0"]);
    // Everything that isn't a tunnel at once.
    let all = |host: &Host| {
        for map in ["tunkey2if", "if2tunkey", "devs"] {
            entries(host, map).keys().for_each(|key| write_map(host, map, "delete", key, None));
        }
    };
    drifts(&pair, "all", all, &["wire/wire0", "port/port0", "red/", "device is vxlan0"]);
    pair.assert_all_reach();
}

#[test]
fn entries_that_were_changed() {
    let pair = Pair::fast();
    let host = pair.host();
    let change = |map: &'static str, (key, value): (Vec<u8>, Vec<u8>), at: usize, to: u32| {
        move |host: &Host| write_map(host, map, "update", &key, Some(&with_u32(value, at, to)))
    };
    let of = |map: &str, key: Vec<u8>| (key.clone(), entries(host, map)[&key].clone());
    let wire = || of("if2tunkey", if_key(host, "wire0"));
    restored(&pair, "a broken if2tunkey", change("if2tunkey", wire(), 40, 0x00ff_00ff), &["wrong check"]);
    let told = ["wire0 {vxlan0, 4242, 172.16.1.101} endpoint", "-> wire0 {vxlan0, 7, 172.16.1.101} endpoint"];
    restored(&pair, "another id in if2tunkey", change("if2tunkey", wire(), 12, 4242), &told);
    restored(
        &pair,
        "a broken tunkey2if",
        change("tunkey2if", key_of(host, 8), 0, 77),
        &["tunkey2if entry with a wrong check"],
    );
    let conf = || of("conf", 1_u32.to_ne_bytes().to_vec());
    restored(&pair, "the mark", change("conf", conf(), 8, 7), &["mark 7 -> 1"]);
    restored(&pair, "the device in conf", change("conf", conf(), 0, host.ifindex("eth0")), &["conf has eth0"]);
    let device = of("devs", 1_u32.to_ne_bytes().to_vec());
    restored(&pair, "the tunnel in devs", change("devs", device, 0, host.ifindex("eth0")), &["devs has eth0"]);
    // A target that is somebody else's: the mapping may get another slot.
    let slot = slot_of(host, "wire0");
    let device = of("devs", slot.to_ne_bytes().to_vec());
    let told = format!("slot {slot} of devs holds eth0");
    drifts(&pair, "a target in devs", change("devs", device, 0, host.ifindex("eth0")), &[&told]);
    let eth0 = host.ifindex("eth0");
    assert!(!devices(host).iter().any(|(slot, i)| *slot >= FIRST_MAPPING_SLOT && *i == eth0));

    // What was right once, check and all: the entries of another key.
    let file = host.topology().join("mesh.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    write_atomically(&file, &text.replace("id: 8", "id: 9"));
    eventually("the other key", || host.mapping("port/port0")["id"] == 9);
    host.wait_in_force();
    let old = of("if2tunkey", if_key(host, "port0"));
    write_atomically(&file, &text);
    eventually("the key", || host.mapping("port/port0")["id"] == 8);
    host.wait_in_force();
    let told = ["port0 {vxlan0, 9, 172.16.1.101} port from 172.16.1.100 -> port0 {vxlan0, 8, 172.16.1.101} port"];
    restored(&pair, "an old key", |host| write_map(host, "if2tunkey", "update", &old.0, Some(&old.1)), &told);
    pair.assert_all_reach();
}

#[test]
fn entries_that_were_added() {
    let pair = Pair::fast();
    let host = pair.host();
    let add = |map: &'static str, key: Vec<u8>, value: Vec<u8>| {
        move |host: &Host| write_map(host, map, "update", &key, Some(&value))
    };
    let eth0 = host.ifindex("eth0");
    let wire = entries(host, "if2tunkey")[&if_key(host, "wire0")].clone();
    let told = ["eth0 {vxlan0, 7, 172.16.1.101} endpoint from 172.16.1.100 -> nothing"];
    restored(&pair, "another interface", add("if2tunkey", eth0.to_ne_bytes().into(), wire.clone()), &told);
    let told = ["ifindex 99999 {vxlan0, 7, 172.16.1.101} endpoint from 172.16.1.100 -> nothing"];
    restored(&pair, "no interface", add("if2tunkey", 99_999_u32.to_ne_bytes().into(), wire), &told);
    let (key, value) = key_of(host, 7);
    let besides = ["tunkey2if has {vxlan0, 4242, 172.16.1.101} besides"];
    restored(&pair, "another key", add("tunkey2if", with_u32(key.clone(), 4, 4242), value.clone()), &besides);
    let nobody = add("tunkey2if", with_u32(key, 4, 4243), with_u32(value, 0, 250));
    restored(&pair, "a key to nowhere", nobody, &["slot 250 {vxlan0, 4243, 172.16.1.101}"]);
    let mut device = vec![0; 8];
    device[..4].copy_from_slice(&eth0.to_ne_bytes());
    let slot = add("devs", 200_u32.to_ne_bytes().into(), device);
    restored(&pair, "another target", slot, &["slot 200 of devs holds eth0"]);
    let conf = entries(host, "conf")[&1_u32.to_ne_bytes().to_vec()].clone();
    let second = add("conf", 9_u32.to_ne_bytes().into(), conf.clone());
    restored(&pair, "another tunnel", second, &["release tunnel index 9, a second one of vxlan0"]);
    let mut named = conf;
    named[16..20].copy_from_slice(b"evil");
    restored(&pair, "an unknown tunnel", add("conf", 9_u32.to_ne_bytes().into(), named), &["release tunnel index 9"]);
    pair.assert_all_reach();
}

#[test]
fn programs_that_were_detached() {
    let pair = Pair::fast();
    let hooks = [
        ("wire0", "ingress", "handle_egress"),
        ("port0", "egress", "handle_egress"),
        ("vxlan0", "ingress", "handle_ingress"),
    ];
    for (interface, direction, program) in hooks {
        let told = format!("attach {program} to {interface} {direction}");
        let detach = |host: &Host| foreign::detach_ours(host, interface, direction);
        restored(&pair, &format!("detached from {interface}"), detach, &[&told]);
        let unhook = |host: &Host| {
            if clsact() {
                host.netns.cmd(&format!("tc qdisc del dev {interface} clsact"));
            } else {
                // The kernel detaches some time later: before, after or while the daemon looks.
                let pin = format!("{direction}_{}", host.ifindex(interface));
                std::fs::remove_file(host.pin("links").join(pin)).unwrap();
            }
        };
        restored(&pair, &format!("the pin of {interface}, or its qdisc"), unhook, &[&told]);
        assert_eq!(link_pins(pair.host()).is_empty(), clsact());
        if !clsact() {
            // Somebody still holds what the pin held: it is taken over, and not a packet is lost.
            let mut held = None;
            let unpin = |host: &Host| held = Some(foreign::unpin_and_hold(host, interface, direction));
            restored(&pair, &format!("the pin of {interface}, held"), unpin, &[&told]);
            drop(held);
        }
        pair.assert_all_reach();
    }
}

#[test]
fn foreign_programs_beside_ours_are_left_alone() {
    let pair = Pair::fast();
    let host = pair.host();
    let foreign = Foreign::load(&host.netns);
    let hooks = [("wire0", "ingress"), ("port0", "egress"), ("vxlan0", "ingress"), ("eth0", "ingress")];
    let before = live(host);
    let mut kinds = vec![Place::Clsact];
    if !clsact() {
        kinds.push(Place::TcxLast);
    }
    for place in kinds {
        let held: Vec<_> = hooks.iter().map(|(i, d)| foreign.attach(host, i, d, place)).collect();
        pair.daemon().signal(Signal::HUP);
        let passes = || host.status()["daemon"]["passes"].as_u64().unwrap();
        let seen = passes();
        eventually("a pass", || passes() > seen || pair.daemon().log().contains("SIGHUP"));
        // No drift, nothing to do; ours run first, and theirs are still there.
        host.expect(0, &["plan", "--detailed-exitcode"]);
        assert_eq!(live(host), before, "{place:?}");
        for (interface, direction) in hooks {
            assert!(Foreign::is_on(host, interface, direction, place), "{place:?} on {interface}");
        }
        pair.assert_all_reach();
        drop(held);
    }
    // And what is repaired beside them leaves them alone, too.
    restored(&pair, "beside", |host| foreign::detach_ours(host, "port0", "egress"), &["attach handle_egress to port0"]);
    assert!(Foreign::is_on(host, "port0", "egress", Place::Clsact));
}

#[test]
fn a_foreign_program_before_ours_is_overtaken_without_a_gap() {
    let pair = Pair::fast();
    let host = pair.host();
    let foreign = Foreign::load(&host.netns);
    let red = pair.red_port();
    let hooks = [("wire0", "ingress"), ("port0", "egress"), ("vxlan0", "ingress"), (red.as_str(), "egress")];
    let count = scaled(20_000);
    let streams = [
        Stream::start("endpoint out", &pair.wire[0], &pair.wire[1], "192.168.61.2", count),
        Stream::start("endpoint in", &pair.wire[1], &pair.wire[0], "192.168.61.1", count),
        Stream::start("bridge out", &pair.red[0], &pair.red[1], "192.168.60.2", count),
        Stream::start("port out", &pair.hosts[0].netns, &pair.hosts[1].netns, "192.168.62.2", count),
    ];
    let flow = || streams.iter().for_each(|s| s.flow(scaled(500)));
    flow();
    for round in 0..3 {
        let place = if clsact() { Place::ClsactFirst } else { Place::TcxFirst };
        let mut held = Vec::new();
        let act = |host: &Host| held.extend(hooks.iter().map(|(i, d)| foreign.attach(host, i, d, place)));
        let told: Vec<String> = hooks
            .iter()
            .map(|(i, d)| format!("on {i} {d} back to the head of its chain (it was at position 1)"))
            .collect();
        drifts(&pair, &format!("before ours, {round}"), act, &told.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(attachments(host).values().all(|(_, position)| *position == 0));
        for (interface, direction) in hooks {
            assert!(Foreign::is_on(host, interface, direction, place), "theirs is gone from {interface}");
        }
        flow();
        // Theirs goes, ours stays.
        foreign.detach_all(host, &hooks, held);
        flow();
        host.expect(0, &["plan", "--detailed-exitcode"]);
    }
    for stream in streams {
        assert!(stream.finish() >= count);
    }
}

#[test]
fn devices_that_were_altered_or_deleted() {
    let pair = Pair::fast();
    let host = pair.host();
    let red = pair.red_port();
    let ip = |line: String| move |host: &Host| drop(host.netns.cmd(&line));
    let altered = [
        ("ip link set vxlan0 down".to_owned(), "down -> up"),
        ("ip link set vxlan0 mtu 1400".to_owned(), "MTU 1400 -> 1450"),
        (format!("ip link set {red} down"), "down -> up"),
        (format!("ip link set {red} mtu 1300"), "MTU 1300 -> 65535"),
        (format!("ip link set {red} nomaster"), "join bridge br-red (it is in none)"),
        (format!("bridge link set dev {red} isolated off"), "isolated off -> on"),
        ("ip link set br-red down".to_owned(), "down -> up"),
        ("ip link set br-red mtu 1400".to_owned(), "MTU 1400 -> 1450"),
    ];
    for (line, told) in altered {
        restored(&pair, &line, ip(line.clone()), &[told]);
        pair.assert_all_reach();
    }
    host.netns.cmd("ip link add br-other type bridge");
    let line = format!("ip link set {red} master br-other");
    restored(&pair, &line, ip(line.clone()), &["join bridge br-red (it is in br-other)"]);
    pair.assert_all_reach();

    // Deleted or renamed: made anew, and nothing stays of the old one.
    let gone = [
        (format!("ip link del {red}"), format!("make the port {red} again: it is missing")),
        ("ip link del vxlan0".to_owned(), "make the vxlan device".to_owned()),
        ("ip link del br-red".to_owned(), "make the bridge".to_owned()),
        (renaming(&red, "stray0"), format!("make the port {red} again: it is missing")),
        (renaming("vxlan0", "stray1"), "delete stray1, which it was renamed to".to_owned()),
    ];
    for (line, told) in gone {
        let each = |host: &Host| {
            for line in line.lines() {
                host.netns.cmd(&format!("ip {}", line.trim_start_matches("ip ")));
            }
        };
        drifts(&pair, &line, each, &[&told]);
        if line.contains("br-red") {
            host.netns.cmd("ip link set w-red master br-red");
        }
        pair.assert_all_reach();
        assert!(!exists(&host.netns, "stray0") && !exists(&host.netns, "stray1"), "{line}");
        let port = host.netns.cmd(&format!("ip -d link show dev {red}"));
        assert!(port.contains("master br-red") && port.contains("isolated on"), "{line}: {port}");
        assert_eq!(mapped(host).len(), 3, "{line}");
    }
}
