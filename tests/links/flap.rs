//! A thousand interfaces that are deleted, recreated, renamed and moved at once, more than the daemon's netlink socket
//! holds.

use crate::harness::{Netns, renaming};
use crate::safety::{BROADCAST, EXPERIMENT, Tap, ethernet, quiet};
use crate::world::live::*;
use crate::world::*;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Instant;

/// Interfaces; on emulated machines fewer.
fn count() -> u32 {
    if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { 100 } else { 1000 }
}

fn topology() -> String {
    let mut text =
        "version: 1\ntunnels: {vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}}\nmappings:\n".to_owned();
    for n in 0..count() {
        writeln!(text, "- {{tenant: many, interface: f{n}, id: {}, remote: 172.16.1.101}}", 1000 + n).unwrap();
    }
    text
}

/// Both ends of a veth pair are mapped: `f0` and `f1`, `f2` and `f3`, ...
fn add(n: u32) -> String {
    format!("link add f{n} up type veth peer name f{}\nlink set f{} up\n", n + 1, n + 1)
}

fn pairs() -> impl Iterator<Item = u32> {
    (0..count()).step_by(2)
}

/// Names and indexes of all our interfaces.
fn links(netns: &Netns) -> BTreeMap<String, u32> {
    let json: serde_json::Value = serde_json::from_str(&netns.cmd("ip -j link show type veth")).unwrap();
    let one = |l: &serde_json::Value| {
        (l["ifname"].as_str().unwrap().to_owned(), u32::try_from(l["ifindex"].as_u64().unwrap()).unwrap())
    };
    json.as_array().unwrap().iter().map(one).filter(|(name, _)| name.starts_with('f')).collect()
}

/// What `if2tunkey` should hold: index and tunnel id, by the names that there are.
fn expected(netns: &Netns) -> BTreeMap<u32, u32> {
    let named = links(netns).into_iter().filter_map(|(name, index)| Some((index, name[1..].parse::<u32>().ok()?)));
    named.map(|(index, n)| (index, 1000 + n)).collect()
}

fn settled(host: &Host, what: &str) {
    let start = Instant::now();
    let want = expected(&host.netns);
    let entries_are_right = || {
        let live: BTreeMap<u32, u32> =
            entries(host, "if2tunkey").iter().map(|(k, v)| (u32_at(k, 0), u32_at(v, 12))).collect();
        live == want
    };
    eventually(&format!("{what}: the entries follow"), entries_are_right);
    host.wait_in_force();
    let by_slot = devices(host);
    let devs: BTreeSet<u32> = by_slot.iter().filter(|(slot, _)| **slot >= 64).map(|(_, i)| *i).collect();
    assert_eq!(devs, want.keys().copied().collect(), "{what}: devs");
    // Each key leads to the interface of its name.
    let leads: BTreeMap<u32, u32> =
        entries(host, "tunkey2if").iter().map(|(k, v)| (by_slot[&u32_at(v, 0)], u32_at(k, 4))).collect();
    assert_eq!(leads, want, "{what}: tunkey2if");
    let hooks = attachments(host);
    let on = hooks.iter().filter(|((_, d), (program, _))| d == "egress" && program.is_number()).count();
    assert_eq!(on, want.len(), "{what}: programs");
    eprintln!("{what}: {} interfaces after {:?}", want.len(), start.elapsed());
}

pub fn run() {
    let underlay = Underlay::new();
    let mut host = underlay.host(0);
    quiet(&host.netns);
    quiet(&underlay.netns);
    host.netns.cmd("ip neigh add 172.16.1.101 lladdr 02:00:00:00:00:01 dev eth0");
    host.extra_env.push(("TUNNEL_MESH_INTERVAL".into(), "86400".into()));
    let (netns, other) = (&host.netns, Netns::new());
    ip_batch(netns, &pairs().map(add).collect::<String>());
    host.write("a.yaml", &topology());
    let daemon = host.daemon();
    settled(&host, "at first");
    let overruns = || host.status()["daemon"]["netlink_overruns"].as_u64().unwrap();
    assert_eq!(overruns(), 0);

    // More than the socket holds: the daemon is held still, and a third each is recreated with the index of the other end
    // of its pair, gets the name of the other end, and is moved to another namespace.
    daemon.signal(Signal::STOP);
    let flap: String = pairs()
        .map(|n| format!("link set f{n} down\nlink set f{n} mtu 1400\nlink set f{n} mtu 1500\nlink set f{n} up\n"))
        .collect();
    // Until the kernel had to drop messages, which it counts by socket.
    let mut rounds = 0;
    while dropped_messages(netns) == 0 {
        ip_batch(netns, &flap);
        rounds += 1;
        assert!(rounds < 1000, "the socket never overran");
    }
    let (index, mut script) = (links(netns), String::new());
    for n in pairs() {
        match n / 2 % 3 {
            0 => {
                let (a, b) = (index[&format!("f{n}")], index[&format!("f{}", n + 1)]);
                let ends = format!("f{n} index {b} up type veth peer name f{} index {a}", n + 1);
                script.push_str(&format!("link del f{n}\nlink add {ends}\nlink set f{} up\n", n + 1));
            }
            1 => {
                let (a, b) = (format!("f{n}"), format!("f{}", n + 1));
                script.push_str(&(renaming(&a, "x") + &renaming(&b, &a) + &renaming("x", &b)));
            }
            _ => script.push_str(&format!("link set f{n} netns {}\n", other.name)),
        }
    }
    ip_batch(netns, &script);
    // The kernel alone: what carries the tenant's key finds no device that left or was deleted.
    let live = devices(&host);
    let there: BTreeSet<u32> = links(netns).into_values().collect();
    assert!(live.iter().all(|(slot, i)| *slot < 64 || there.contains(i)), "devs names a device that is gone");
    daemon.signal(Signal::CONT);
    settled(&host, "overrun");
    assert!(overruns() > 0, "{}", daemon.log());
    eprintln!("overrun after {rounds} rounds of {} messages and more", 4 * count() / 2);

    // Back from the other namespace.
    let back: String = pairs()
        .filter(|n| n / 2 % 3 == 2)
        .map(|n| format!("link set f{n} netns {}\nlink set f{n} up\n", netns.name))
        .collect();
    let (moves, ups): (Vec<&str>, Vec<&str>) = back.lines().partition(|l| l.contains("netns"));
    ip_batch(&other, &(moves.join("\n") + "\n"));
    ip_batch(netns, &(ups.join("\n") + "\n"));
    settled(&host, "back");

    // And it carries: one of each third, told apart by its id on the wire.
    let wire = Tap::on(&underlay.netns, "p0");
    for n in [0_u32, 2, 4] {
        let marker = format!("<flap {n}>");
        let tap = Tap::on(netns, &format!("f{n}"));
        tap.send(&ethernet(BROADCAST, [2; 6], EXPERIMENT, marker.as_bytes()));
        let mut ids = Vec::new();
        eventually("it is on the wire", || {
            let seen = wire.drain().into_iter().filter(|s| crate::safety::contains(&s.bytes, marker.as_bytes()));
            ids.extend(seen.filter_map(|s| crate::safety::Vxlan::parse(&s.bytes)).map(|v| v.id));
            !ids.is_empty()
        });
        assert_eq!(ids, [1000 + n]);
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// Messages that netlink sockets of that namespace have lost.
fn dropped_messages(netns: &Netns) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    let columns = text.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    columns.map(|c| c[8].parse::<u64>().unwrap()).sum()
}
