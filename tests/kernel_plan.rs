//! A plan is what `apply` does: its operations, carried out by somebody else, give the same live state. Saved plans, and
//! snapshots of real hosts.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "plan/entries.rs"]
mod entries;
#[path = "plan/interpreter.rs"]
mod interpreter;
mod world;

use interpreter::Interpreter;
use serde_json::Value;
use world::harness::Netns;
use world::live::{Entries, attachments, entries as map_entries, write_map};
use world::*;

/// The lane is said, so that what is written doesn't depend on the machine.
const HEAD: &str = "\
version: 1
nodes: {host0: 172.16.1.100, host1: 172.16.1.101, host2: 172.16.1.102}
tunnels:
  vxlan0: {kind: vxlan, create: true, fast: 'off'}
";

/// The maps that decide.
const MAPS: [&str; 4] = ["conf", "tunkey2if", "if2tunkey", "devs"];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn plan(host: &Host) -> Value {
    json(&host.expect(0, &["plan", "--format", "json"]))
}

/// A host with four interfaces for tenants; the last one is a workload's.
fn host(underlay: &Underlay) -> (Host, Netns) {
    let host = underlay.host(0);
    for name in ["eth1", "eth2", "eth3"] {
        host.netns.cmd(&format!("ip link add {name} type veth peer name {name}p"));
        host.netns.cmd(&format!("ip link set {name} up"));
    }
    let workload = host.workload("eth4", "192.168.9.1/24");
    (host, workload)
}

/// Map contents, attachments and devices: everything that decides where packets go.
fn live(host: &Host) -> (Vec<Entries>, Vec<(String, String)>, Value) {
    let maps = MAPS.map(|m| map_entries(host, m)).to_vec();
    let hooks = attachments(host).into_iter().map(|(hook, (program, position))| {
        assert!(program.is_number() && position == 0, "{hook:?}");
        hook
    });
    let forwards = |name: &str| {
        let file = |family: &str| format!("/proc/sys/net/{family}/conf/{name}/forwarding");
        ["ipv4", "ipv6"].map(|family| host.netns.enter(|| std::fs::read_to_string(file(family)).unwrap()))
    };
    let links = json(&host.netns.cmd("ip -j -d link show"));
    let links = links.as_array().unwrap().iter().map(|l| {
        let alias = l["ifalias"].as_str().map(|a| a.split(" in ").next().unwrap().to_owned());
        let info = &l["linkinfo"];
        let of = |data: &Value| {
            let told = ["external", "port", "local", "learning", "isolated", "mcast_snooping", "udp_zero_csum6_rx"];
            told.map(|name| data[name].clone())
        };
        let (kind, data) = (&info["info_kind"], of(&info["info_data"]));
        let isolated = info["info_slave_data"]["isolated"].clone();
        serde_json::json!([
            l["ifindex"],
            l["ifname"],
            l["mtu"],
            l["master"],
            alias,
            l["altnames"],
            kind,
            data,
            isolated,
            l["flags"].as_array().unwrap().contains(&"UP".into()),
            l["inet6_addr_gen_mode"],
            forwards(l["ifname"].as_str().unwrap())
        ])
    });
    (maps, hooks.collect(), links.collect())
}

#[test]
fn operations_carried_out_by_somebody_else_are_what_apply_does() {
    carried_out_by_somebody_else("off", &[]);
}

#[test]
fn the_same_in_the_fast_lane() {
    carried_out_by_somebody_else("on", &["handle_underlay", "\"fast\":{", "\"forward\""]);
}

/// `mentioned`: what the plans have to speak of.
fn carried_out_by_somebody_else(fast: &str, mentioned: &[&str]) {
    let head = HEAD.replace("'off'", &format!("'{fast}'"));
    let underlay = Underlay::new();
    // One after the other on an underlay that doesn't know: both are host0, with the same indexes.
    let ((by_hand, _a), (applied, _b)) = (host(&underlay), {
        let other = Underlay::new();
        let made = host(&other);
        (made.0, (made.1, other))
    });
    let mapping = |interface: &str, rest: &str| format!("  - {{tenant: t, interface: {interface}, {rest}}}\n");
    let two = mapping("eth1", "id: 1, remote: 172.16.1.101") + &mapping("eth2", "id: 2, remote: 172.16.1.102");
    let swapped = mapping("eth2", "id: 1, remote: 172.16.1.101")
        + &mapping("eth1", "id: 2, remote: 172.16.1.102")
        + &mapping("eth3", "id: 9, remote: 172.16.1.101, tunnel: vxlan1")
        + &mapping("eth4", "id: 4, remote: 172.16.1.101, attach: endpoint");
    let swapped = swapped.replace("remote: 172.16.1.102}", "remote: 172.16.1.102, tunnel: vxlan0}");
    let swapped = swapped.replace("remote: 172.16.1.101}", "remote: 172.16.1.101, tunnel: vxlan0}");
    let swapped = swapped.replace("attach: endpoint", "tunnel: vxlan0, attach: endpoint");
    let red = "tenants:\n  red: {id: 100, tunnel: vxlan0, bridge: br-red}\n";
    let second = "  vxlan1: {kind: vxlan, port: 4790, create: true, mtu: 1400, ttl: inherit, df: true, fast: 'off'}\n";
    let second = &second.replace("'off'", &format!("'{fast}'"));
    // More than there is room for.
    let many: String = (0..300)
        .map(|n| mapping(&format!("late{n}"), &format!("id: {}, tunnel: vxlan0, remote: 172.16.1.101", 1_000 + n)))
        .collect();
    let steps = [
        ("two mappings", format!("{head}mappings:\n{two}")),
        ("more than there is room for", format!("{head}mappings:\n{two}{many}")),
        ("a bridge with ports", format!("{head}{red}mappings:\n{two}{many}")),
        ("keys that swap, a second tunnel, an endpoint", format!("{head}{second}{red}mappings:\n{swapped}{many}")),
        ("another id and mark, one node less", {
            let fewer = head.replace(", host2: 172.16.1.102", "").replace("create: true", "create: true, mark: 7");
            format!("{fewer}{second}{}mappings:\n{swapped}{many}", red.replace("100", "101"))
        }),
        (
            "all but one go",
            format!("{head}mappings:\n{many}{}", mapping("eth4", "id: 5, remote: 172.16.1.102, attach: endpoint")),
        ),
    ];
    for host in [&by_hand, &applied] {
        for n in 0..200 {
            host.netns.cmd(&format!("ip link add late{n} type ifb"));
        }
    }
    let (mut interpreter, mut said) = (Interpreter::new(&by_hand), String::new());
    for (n, (what, text)) in steps.iter().enumerate() {
        by_hand.write("a.yaml", text);
        applied.write("a.yaml", text);
        let report = json(&applied.expect(0, &["apply", "--format", "json"]));
        if n == 0 && !Interpreter::from_nothing() {
            by_hand.apply();
        } else {
            let plan = plan(&by_hand);
            // The same operations, whoever makes them; aliases say whose devices they are.
            let told = |operations: &Value| {
                operations
                    .to_string()
                    .replace(&by_hand.node, "")
                    .replace(&*by_hand.pins.display().to_string(), "PINS")
                    .replace(&*applied.pins.display().to_string(), "PINS")
            };
            assert_eq!(told(&plan["operations"]), told(&report["plan"]["operations"]), "{what}");
            said.push_str(&plan["operations"].to_string());
            interpreter.run(&plan);
        }
        // What was accepted explains the next plan: names of tenants, changes beside drift.
        let record = |host: &Host| host.files.path().join("state/accepted.json");
        std::fs::create_dir_all(record(&by_hand).parent().unwrap()).unwrap();
        std::fs::copy(record(&applied), record(&by_hand)).unwrap();
        assert_eq!(live(&by_hand), live(&applied), "{what}");
        by_hand.expect(0, &["plan", "--detailed-exitcode"]);
        assert!(plan(&by_hand)["changes"].as_array().unwrap().is_empty(), "{what}");
    }
    // Nearly every operation there is came up.
    let mut wanted = vec![
        "load_program",
        "unload_program",
        "create_link",
        "change_link",
        "delete_link",
        "attach",
        "detach",
        "reset_counters",
        "set_conf",
        "clear_conf",
        "set_dev",
        "clear_dev",
        "set_tunkey",
        "delete_tunkey",
        "set_if",
        "delete_if",
        "grow_maps",
    ];
    wanted.extend(Interpreter::from_nothing().then_some("create_maps"));
    for op in wanted {
        assert!(interpreter.done.contains_key(op), "{op} didn't come up: {:?}", interpreter.done);
    }
    for word in mentioned {
        assert!(said.contains(word), "{word} didn't come up: {said}");
    }
}

const TWO: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: 172.16.1.100, fast: 'off'}
mappings:
  - {tenant: red, interface: eth1, id: 123, remote: 172.16.1.101}
  - {tenant: blue, interface: eth2, id: 456, remote: 172.16.1.102}
";

/// Where a plan is saved.
fn saved(host: &Host) -> String {
    host.files.path().join("plan.json").display().to_string()
}

/// What the command says on stderr as it fails with that code.
fn refused(host: &Host, code: i32, arguments: &[&str]) -> String {
    let output = host.run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    error
}

#[test]
fn a_saved_plan_is_carried_out_exactly_or_not_at_all() {
    let underlay = Underlay::new();
    let (host, _workload) = host(&underlay);
    let file = saved(&host);
    host.write("a.yaml", TWO);
    let told = host.expect(0, &["plan", "--out", &file]);
    assert!(told.contains(&format!("apply --plan {file}")), "{told}");
    let planned = json(&std::fs::read_to_string(&file).unwrap());
    // Without the files: the plan has all that it needs.
    std::fs::remove_file(host.topology().join("a.yaml")).unwrap();
    let applied = json(&host.expect(0, &["apply", "--plan", &file, "--format", "json"]));
    assert_eq!(applied["plan"]["operations"], planned["operations"]);
    assert_eq!((&applied["changed"], &applied["revision"]), (&true.into(), &planned["revision"]));
    // Once.
    let error = refused(&host, 5, &["apply", "--plan", &file]);
    assert!(error.contains("since the plan was made") && error.contains("make a new plan"), "{error}");

    // What has nothing to do with it doesn't make it stale.
    host.write("a.yaml", &TWO.replace("id: 456", "id: 457"));
    host.expect(0, &["plan", "--out", &file]);
    host.netns.cmd("ip link add stranger type veth peer name strangerp");
    host.netns.cmd("ip link set stranger up");
    host.netns.cmd("ip addr add 192.0.2.1/24 dev stranger");
    host.expect(0, &["apply", "--plan", &file]);
    assert_eq!(host.mapping("blue/eth2")["id"], 457);

    // What has, does: an entry that somebody wrote, an interface that came back, another topology in force.
    let stale = |id: u32, act: &dyn Fn()| {
        host.write("a.yaml", &TWO.replace("id: 456", &format!("id: {id}")));
        host.expect(0, &["plan", "--out", &file]);
        act();
        let before = MAPS.map(|m| map_entries(&host, m));
        let error = refused(&host, 5, &["apply", "--plan", &file]);
        assert!(error.contains("since the plan was made"), "{error}");
        assert_eq!(MAPS.map(|m| map_entries(&host, m)), before, "a refused plan changed something");
        host.apply();
    };
    stale(458, &|| {
        let (key, mut value) = map_entries(&host, "if2tunkey").into_iter().next().unwrap();
        value[48] = 3;
        write_map(&host, "if2tunkey", "update", &key, Some(&value));
    });
    stale(459, &|| {
        host.netns.cmd("ip link del eth1");
        host.netns.cmd("ip link add eth1 type veth peer name eth1p");
    });
    stale(460, &|| {
        host.write("a.yaml", &TWO.replace("id: 456", "id: 461"));
        host.apply();
    });
    // And what isn't one is refused by its name.
    for text in ["", "{}", "[]", "null", r#"{"format_version": 9}"#, r#"{"format_version": 1}"#] {
        std::fs::write(&file, text).unwrap();
        let error = refused(&host, 1, &["apply", "--plan", &file]);
        assert!(error.contains(&file), "{error}");
    }
}

#[test]
fn a_saved_plan_goes_through_the_daemon() {
    let underlay = Underlay::new();
    let (host, _workload) = host(&underlay);
    let file = saved(&host);
    host.write("a.yaml", TWO);
    let daemon = host.daemon();
    // All go at once: that is held, until somebody has seen the plan and says yes to it.
    host.write("a.yaml", &TWO[..TWO.find("mappings:").unwrap()]);
    eventually("the removal is held", || host.status()["mappings"][0]["state"] == "held");
    assert!(host.expect(3, &["plan"]).contains("2 held"));
    host.expect(0, &["plan", "--allow-deletes", "--out", &file]);

    // The daemon's files say something else by now: that plan is void, and nothing was done.
    host.write("a.yaml", &TWO.replace("456", "457"));
    eventually("the files are read", || host.status()["mappings"].to_string().contains("457"));
    let error = refused(&host, 5, &["apply", "--plan", &file]);
    assert!(error.contains("the plan is for topology revision"), "{error}");
    assert_eq!(host.status()["mappings"].as_array().unwrap().len(), 2);
    host.wait_in_force();

    host.write("a.yaml", &TWO[..TWO.find("mappings:").unwrap()]);
    eventually("the removal is held", || host.status()["mappings"][0]["state"] == "held");
    host.expect(0, &["plan", "--allow-deletes", "--out", &file]);
    let planned = json(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(planned["guard"]["verdict"], "allowed");
    let applied = json(&host.expect(0, &["apply", "--plan", &file, "--format", "json"]));
    assert_eq!(applied["plan"]["operations"], planned["operations"]);
    assert_eq!(applied["changed"], true);
    assert!(host.status()["mappings"].as_array().unwrap().is_empty());
    refused(&host, 5, &["apply", "--plan", &file]);
    // The daemon goes on as ever.
    host.write("a.yaml", TWO);
    eventually("both are back", || host.status()["mappings"].as_array().unwrap().len() == 2);
    host.wait_in_force();
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_snapshot_plans_elsewhere_what_would_be_planned_here() {
    let underlay = Underlay::new();
    let (host, _workload) = host(&underlay);
    host.write("a.yaml", TWO);
    host.apply();
    let snapshot = host.files.path().join("snapshot.json");
    std::fs::write(&snapshot, host.expect(0, &["snapshot"])).unwrap();
    let live = snapshot.display().to_string();
    let elsewhere = |arguments: &[&str]| {
        let mut words = vec!["plan", "--live", &live];
        words.extend(arguments);
        // Nobody's namespace, and no pins.
        std::process::Command::new(binary())
            .args(words)
            .env("TUNNEL_MESH_TOPOLOGY", host.topology())
            .env("TUNNEL_MESH_PIN_DIR", "/nowhere")
            .output()
            .unwrap()
    };
    let same = elsewhere(&["--detailed-exitcode"]);
    let told = String::from_utf8_lossy(&same.stdout);
    assert!(same.status.code() == Some(0) && told.ends_with("No changes.\n"), "{told}");

    host.write("a.yaml", &TWO.replace("id: 456", "id: 457").replace("eth1", "eth3"));
    let file = saved(&host);
    let there = elsewhere(&["--format", "json", "--out", &file]);
    assert_eq!(there.status.code(), Some(0), "{}", String::from_utf8_lossy(&there.stderr));
    let (mut there, mut here) = (json(&String::from_utf8(there.stdout).unwrap()), plan(&host));
    for plan in [&mut there, &mut here] {
        for change in plan["changes"].as_array_mut().unwrap() {
            change.as_object_mut().unwrap().remove("traffic");
        }
    }
    assert_eq!(there, here);
    // And what was planned there is applied here, as nothing has moved on.
    host.expect(0, &["apply", "--plan", &file]);
    host.expect(0, &["plan", "--detailed-exitcode"]);
}

/// The host's snapshot as a topology, with nothing said on stderr.
fn adopt(host: &Host) -> String {
    let output = host.run(&["snapshot", "--format", "yaml"]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{out}");
    out
}

/// Takes the snapshot for the topology, with nothing known of what was accepted: it plans empty.
fn plans_empty(host: &Host, text: &str) {
    drop(std::fs::remove_file(host.files.path().join("state/accepted.json")));
    for file in std::fs::read_dir(host.topology()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    host.write("adopted.yaml", text);
    let planned = host.expect(0, &["plan", "--detailed-exitcode"]);
    assert!(planned.ends_with("No changes.\n"), "{text}{planned}");
    let applied = host.expect(0, &["apply"]);
    assert!(applied.ends_with("No changes.\n"), "{text}{applied}");
}

#[test]
fn a_host_of_a_mesh_is_adopted_from_what_is_live() {
    let underlay = Underlay::new();
    let (host, _workload) = host(&underlay);
    let text = format!(
        "{HEAD}  vxlan1: {{kind: vxlan, port: 4790, create: true, mtu: 1400, ttl: inherit, df: true, mark: 5, fast: 'off'}}\n\
         tenants:\n  red: {{id: 100, tunnel: vxlan0, bridge: br-red}}\n  \
         wire: {{id: 7, tunnel: vxlan1, members: {{host0: {{interface: eth4, attach: endpoint}}, host1: {{interface: e}}}}}}\n\
         mappings:\n  - {{tenant: blue, interface: eth1, id: 9, remote: 172.16.1.101, tunnel: vxlan0}}\n"
    );
    // Whichever lane is taken: here the daemon's own choice first, then what the files say.
    host.write("a.yaml", &text.replace(", fast: 'off'", ""));
    host.apply();
    let adopted = adopt(&host);
    plans_empty(&host, &adopted);
    std::fs::remove_file(host.topology().join("adopted.yaml")).unwrap();
    host.write("a.yaml", &text);
    host.apply();
    let adopted = adopt(&host);
    assert!(adopted.contains("red: {id: 100, tunnel: vxlan0, bridge: br-red"), "{adopted}");
    assert!(adopted.contains("tenant: wire, interface: eth4") && adopted.contains("tenant: blue"), "{adopted}");
    plans_empty(&host, &adopted);
}

#[test]
fn a_host_that_was_set_up_by_hand_is_adopted() {
    let underlay = Underlay::new();
    let (host, _workload) = host(&underlay);
    // Somebody made the device; the programs and the empty maps are there, and of mappings nothing.
    host.netns.cmd("ip link add vxlan0 type vxlan external dstport 4789 nolearning");
    host.netns.cmd("ip link set vxlan0 up");
    let start = "version: 1\ntunnels: {vxlan0: {kind: vxlan, local: 172.16.1.100, fast: 'off'}}\n\
                 mappings: [{interface: eth1, id: 1, remote: 172.16.1.101}]\n";
    host.write("a.yaml", start);
    host.apply();
    for (key, _) in map_entries(&host, "tunkey2if") {
        write_map(&host, "tunkey2if", "delete", &key, None);
    }
    // With bpftool: eth1 gets another key, eth3 and the workload's interface one of their own.
    let put = |interface: &str, slot: u32, endpoint: bool, id: u32, remote: &str| {
        let ifindex = host.ifindex(interface);
        let remote = remote.parse().unwrap();
        let entry = entries::IfEntry {
            slot,
            endpoint,
            tunnel: 1,
            id,
            remote,
            local: "172.16.1.100".parse().unwrap(),
            ttl: Some(9),
            tos: None,
            df: true,
            checksum: true,
            fast: None,
        };
        let key = entries::tunkey(1, id, remote);
        write_map(&host, "devs", "update", &slot.to_ne_bytes(), Some(&entries::dev(ifindex)));
        write_map(&host, "tunkey2if", "update", &key, Some(&entries::slot_ref(&key, slot, endpoint)));
        write_map(&host, "if2tunkey", "update", &ifindex.to_ne_bytes(), Some(&entry.encode(ifindex)));
    };
    put("eth1", 64, false, 4711, "172.16.1.102");
    put("eth3", 65, false, 4712, "172.16.1.102");
    put("eth4", 70, true, 4713, "172.16.1.101");
    // And the programs, which bpftool and tc can attach, or a program of somebody's own.
    let mut interpreter = Interpreter::new(&host);
    let kind = if clsact() { "clsact" } else { "tcx" };
    for (interface, direction) in [("eth3", "egress"), ("eth4", "ingress")] {
        let link = serde_json::json!({"name": interface, "ifindex": host.ifindex(interface)});
        let attach = serde_json::json!({"op": "attach", "change": interface, "program": "handle_egress", "link": link,
            "direction": direction, "kind": kind, "replace": false});
        interpreter.run(
            &serde_json::json!({"format_version": 1, "changes": [{"address": interface}], "operations": [attach]}),
        );
    }
    let adopted = adopt(&host);
    for told in [
        "interface: eth1, id: 4711",
        "interface: eth3, id: 4712",
        "id: 4713, remote: 172.16.1.101",
        "attach: endpoint",
        "ttl: 9",
        "tos: inherit",
        "df: true",
        "checksum: true",
    ] {
        assert!(adopted.contains(told), "{told}: {adopted}");
    }
    assert!(!adopted.contains("create"), "{adopted}");
    plans_empty(&host, &adopted);

    // What no topology says is said.
    let (key, mut value) = map_entries(&host, "if2tunkey").into_iter().next().unwrap();
    value[48] = 77;
    write_map(&host, "if2tunkey", "update", &key, Some(&value));
    let output = host.run(&["snapshot", "--format", "yaml"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && error.contains("note: "), "{error}");
}

#[test]
fn traffic_of_what_goes_is_told_before_it_goes() {
    let underlay = Underlay::new();
    let (host, workload) = host(&underlay);
    host.write("a.yaml", &TWO.replace("interface: eth2", "interface: eth4, attach: endpoint"));
    host.apply();
    // Sent without end, and into the tunnel whether or not anybody is there.
    workload.cmd("ip neigh add 192.168.9.2 lladdr 02:00:00:00:00:01 dev eth0");
    let mut flood = workload.spawnable(&["ping", "-f", "-q", "192.168.9.2"]);
    let mut flood = flood.stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually("something is sent", || host.mapping("blue/eth4")["traffic"]["tx_packets"].as_u64().unwrap() > 10);
    host.write("a.yaml", &TWO[..TWO.find("  - {tenant: blue").unwrap()]);
    // However seldom this machine lets it send: a plan that looks at the right moment says so.
    let (mut text, mut json) = (String::new(), Value::Null);
    eventually("the plan tells what is under way", || {
        (text, json) = (host.expect(0, &["plan"]), plan(&host));
        let change = json["changes"].as_array().unwrap().iter().find(|c| c["address"] == "blue/eth4").unwrap();
        assert!(change["traffic"]["tx_packets"].as_u64().unwrap() > 10, "{change:#}");
        text.contains("packets/s in") && change["traffic"]["tx_packets_per_second"].as_u64().unwrap() > 0
    });
    flood.kill().unwrap();
    flood.wait().unwrap();
    assert!(text.contains("- eth4") && text.contains("bit/s) now"), "{text}");
}
