//! Stopping, killing, starting and upgrading the daemon while packets flow.

use super::*;

/// Packets over all streams; fewer on emulated machines.
const PACKETS: u64 = 1_000_000;

/// Ids of the programs that are attached.
fn attached(host: &Host) -> BTreeMap<(u64, String), u64> {
    attachments(host).into_iter().map(|(hook, (program, _))| (hook, program.as_u64().unwrap())).collect()
}

pub fn run() {
    let hooks = if clsact() { vec!["clsact"] } else { vec!["tcx", "clsact"] };
    for hook in hooks {
        let delivered = restarts(hook);
        eprintln!("{hook}: {delivered} packets, none lost");
    }
}

fn restarts(hook: &str) -> u64 {
    let mut pair = Pair::with_env(TOPOLOGY, &[("TUNNEL_MESH_HOOK", hook)]);
    pair.assert_all_reach();
    let other = release::other(pair.directory.path().parent().unwrap());
    let count = scaled(PACKETS / 3 + 1);
    let streams = [
        Stream::start("endpoint", &pair.wire[0], &pair.wire[1], "192.168.61.2", count),
        Stream::start("bridge", &pair.red[1], &pair.red[0], "192.168.60.1", count),
        Stream::start("port", &pair.hosts[0].netns, &pair.hosts[1].netns, "192.168.62.2", count),
    ];
    let some = scaled(5_000);
    let flow = || streams.iter().for_each(|s| s.flow(some));
    for round in 0..6 {
        let n = round % 2;
        flow();
        pair.end(n, true);
        flow();
        if round % 3 == 2 {
            // Someone makes a pass by hand before the daemon is back.
            pair.hosts[n].apply();
            flow();
        }
        pair.restart(n);
        flow();
    }
    for n in 0..2 {
        pair.end(n, false);
        flow();
        for _ in 0..2 {
            let out = pair.hosts[n].expect(0, &["apply", "--format", "json"]);
            let report: Value = serde_json::from_str(&out).unwrap();
            assert_eq!(report["changed"], false, "{out}");
        }
        assert_eq!(pair.hosts[n].status()["daemon"]["running"], false);
        flow();
        pair.restart(n);
        flow();
    }
    // Another release, and back again: killed in its turn, or stopped.
    for round in 0..4 {
        let n = round % 2;
        let before = attached(&pair.hosts[n]);
        flow();
        pair.end(n, round < 2);
        pair.hosts[n].binary = if round < 2 { other.clone() } else { binary().into() };
        pair.restart(n);
        flow();
        let after = attached(&pair.hosts[n]);
        assert!(before.keys().eq(after.keys()), "{before:?}\n{after:?}");
        assert!(before.iter().all(|(hook, program)| after[hook] != *program), "every program is replaced");
    }
    carried_over(&mut pair, &flow);
    // A release whose maps have a layout that nobody knows: what is pinned is made anew beside what runs.
    for n in 0..2 {
        pair.end(n, n == 0);
        let host = &pair.hosts[n];
        let entries = mapped(host);
        let pin = host.pin("if2tunkey");
        std::fs::remove_file(&pin).unwrap();
        let smaller = ["type", "hash", "key", "4", "value", "8", "entries", "512", "name", "if2tunkey"];
        super::run("bpftool", &[&["map", "create", pin.to_str().unwrap()], &smaller[..]].concat());
        let plan = host.expect(0, &["plan"]);
        assert!(plan.contains("another layout"), "{plan}");
        flow();
        pair.restart(n);
        flow();
        let mut after = mapped(&pair.hosts[n]);
        let mut entries = entries;
        entries.sort_unstable();
        after.sort_unstable();
        assert_eq!(after, entries);
    }
    // A reload and an edit that doesn't concern these mappings lose nothing, either.
    pair.daemons[0].as_ref().unwrap().signal(Signal::HUP);
    write_atomically(
        &pair.directory.path().join("more.yaml"),
        "version: 1\ntenants:\n  more: {id: 99, bridge: br-more}\n",
    );
    for host in &pair.hosts {
        eventually("the new tenant's bridge", || exists(&host.netns, "br-more"));
        host.wait_in_force();
    }
    flow();
    let delivered: u64 = streams.into_iter().map(Stream::finish).sum();
    assert!(delivered >= scaled(PACKETS));
    std::fs::remove_file(other).unwrap();
    delivered
}

/// An upgrade from an earlier version of the layouts, another one on each host: entries stay as they are, slots and counters
/// too.
fn carried_over(pair: &mut Pair, flow: &dyn Fn()) {
    let file = pair.directory.path().join("mesh.yaml");
    for n in 0..2 {
        let version = n as u32 + 1;
        // Version 1 had no fast lane.
        let text =
            if version == 1 { TOPOLOGY.replace("create: true", "create: true, fast: off") } else { TOPOLOGY.into() };
        write_atomically(&file, &text);
        for host in &pair.hosts {
            eventually("the lane is in force", || {
                host.status()["config_error"].is_null() && host.status()["in_force"] == true
            });
            host.expect(0, &["apply"]);
        }
        flow();
        pair.end(n, n == 0);
        let host = &pair.hosts[n];
        let traffic = |host: &Host| {
            let status = host.status();
            let all = status["mappings"].as_array().unwrap().clone();
            let one = |m: &Value| {
                let packets = ["rx_packets", "tx_packets"].map(|k| m["traffic"][k].as_u64().unwrap());
                (m["address"].to_string(), (m["slot"].clone(), packets))
            };
            all.iter().map(one).collect::<BTreeMap<_, _>>()
        };
        let maps = |host: &Host| ["tunkey2if", "if2tunkey"].map(|m| entries(&host.dump(m)));
        earlier::age(&host.pins, version);
        let (before, live, capacity) = (traffic(host), maps(host), max_entries(host, "counters"));
        assert!(before.values().any(|(_, [rx, tx])| *rx > 0 && *tx > 0), "{before:?}");
        let plan = host.expect(0, &["plan"]);
        assert!(plan.contains("carry entries and counters over to the layout of this version"), "{plan}");
        flow();
        pair.restart(n);
        flow();
        let host = &pair.hosts[n];
        assert_eq!((maps(host), max_entries(host, "counters")), (live, capacity));
        for (address, (slot, [rx, tx])) in traffic(host) {
            let (old, [old_rx, old_tx]) = &before[&address];
            assert!(slot == *old && rx >= *old_rx && tx >= *old_tx, "{address}: {slot} {rx} {tx}, before {before:?}");
        }
        host.expect(0, &["plan", "--detailed-exitcode"]);
    }
}
