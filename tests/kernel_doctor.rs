//! `doctor` finds what is wrong with a host: each test makes the condition and expects the finding, and nothing without it.

#![allow(clippy::unwrap_used, missing_docs)]

mod doctor;
#[path = "drift/foreign.rs"]
mod foreign;
#[path = "doctor/lanes.rs"]
mod lanes;
mod safety;
mod world;

use doctor::*;
use foreign::{Foreign, Place};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use tunnel_mesh::doctor::{Code, Facts, KernelFacts, Live};
use tunnel_mesh::model::{LaneReason, Link, Snapshot, TunnelKind};
use tunnel_mesh::plan::Plan;
use tunnel_mesh::reconcile::chains::Chains;
use tunnel_mesh::topology::{NodeChoice, SourceFile, merge, parse};
use world::*;

const NOBODY: u32 = 65_534;

const ONE: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}
mappings:
  - {tenant: red, interface: eth1, id: 123, remote: 172.16.1.101}
";

/// A host with an interface for a tenant that fits into the underlay.
fn host(underlay: &Underlay) -> Host {
    let host = underlay.host(0);
    host.netns.cmd("ip link add eth1 mtu 1450 type veth peer name eth1p");
    for end in ["eth1", "eth1p"] {
        host.netns.cmd(&format!("ip link set {end} up"));
    }
    host.write("a.yaml", ONE);
    host
}

/// What each test makes, and proves by a report that has it.
mod proven {
    pub const NO_DAEMON: &[&str] = &["no-daemon"];
    pub const MTU: &[&str] = &["mtu-too-large"];
    pub const KERNEL: &[&str] = &["kernel-too-old", "no-tcx", "no-tunnel-kind"];
    pub const SETTINGS: &[&str] = &["jit-off", "bridge-netfilter"];
    pub const PRIVILEGES: &[&str] = &["capability-missing", "unreadable", "no-foreign-names", "no-rcu-expedited"];
    pub const PINS: &[&str] = &[
        "no-bpffs",
        "pins-open",
        "foreign-pin",
        "stale-pin",
        "half-grown",
        "record-unreadable",
        "no-record",
        "other-namespace",
        "outdated-maps",
        "pending",
    ];
    pub const TOPOLOGY: &[&str] = &["no-local-address", "topology-rejected", "unusable-device", "not-in-force"];
    pub const DAEMON: &[&str] = &["port-taken", "pass-failed", "daemon-silent"];
    pub const WATCH: &[&str] = &["watch-failed"];
    pub const PROGRAMS: &[&str] =
        &["foreign-program-first", "foreign-program", "tc-index-written", "tc-index-reset", "tc-index-untold"];
    pub const LANES: &[&str] = &[
        "no-source-address",
        "checksum",
        "forwarding",
        "learned-route",
        "routing-domain",
        "underlay-device",
        "routing-rule",
        "ipsec",
        "netfilter",
        "tc-program",
        "too-many-tunnels",
        "unread",
    ];
    pub const ALL: &[&[&str]] =
        &[NO_DAEMON, MTU, KERNEL, SETTINGS, PRIVILEGES, PINS, TOPOLOGY, DAEMON, WATCH, PROGRAMS, LANES];
}

#[test]
fn every_finding_is_proven() {
    let proven: BTreeSet<&str> = proven::ALL.iter().copied().flatten().copied().collect();
    let reasons = LaneReason::ALL.iter().filter(|r| r.is_finding()).map(|r| r.name());
    let all: BTreeSet<&str> = Code::ALL.iter().map(|c| c.name()).chain(reasons).collect();
    assert_eq!(all.len(), Code::ALL.len() + LaneReason::ALL.iter().filter(|r| r.is_finding()).count(), "a name twice");
    assert_eq!(proven, all);
    // Whoever lists what a test makes holds that test to it.
    let source = include_str!("kernel_doctor.rs");
    let tests = source.lines().filter(|l| l.trim_start().starts_with("let _proof = Proof::of(proven::")).count();
    assert_eq!(tests, proven::ALL.len());
}

#[test]
fn a_good_host_has_no_findings_worth_a_warning() {
    let _proof = Proof::of(proven::NO_DAEMON);
    let underlay = Underlay::new();
    let host = host(&underlay);
    let report = doctor(&host);
    assert_eq!((report["errors"].as_u64(), report["warnings"].as_u64()), (Some(0), Some(0)), "{report:#}");
    let daemon = host.daemon();
    let report = doctor(&host);
    assert_eq!((report["errors"].as_u64(), report["warnings"].as_u64()), (Some(0), Some(0)), "{report:#}");
    assert!(report["passed"].as_array().unwrap().iter().any(|c| c == "daemon"), "{report:#}");
    assert_eq!(daemon.stop(), Some(0));
    finding(&host, "no-daemon", "warning");
}

#[test]
fn an_mtu_that_does_not_fit_is_told_with_the_one_that_does() {
    let _proof = Proof::of(proven::MTU);
    let underlay = Underlay::new();
    let host = host(&underlay);
    without(&host, "mtu-too-large");
    host.netns.cmd("ip link set eth1 mtu 1451");
    let found = finding(&host, "mtu-too-large", "warning");
    assert!(found["what"].as_str().unwrap().contains("eth1 (MTU 1451)"), "{found:#}");
    assert!(found["remedy"].as_str().unwrap().contains("mtu 1450"), "{found:#}");
}

#[test]
fn what_the_kernel_lacks_is_told_and_what_it_has_is_not() {
    let _proof = Proof::of(proven::KERNEL);
    let underlay = Underlay::new();
    let host = host(&underlay);
    let tcx = std::fs::read_to_string("/proc/kallsyms").unwrap().contains(" tcx_prog_attach\n");
    let here = doctor(&host);
    assert_eq!(codes(&here).contains(&"no-tcx".to_owned()), !tcx);
    // The first thing that is asked of bpf(2) is whether there is TCX: a kernel without it answers so.
    let answer = "inject=bpf:error=EINVAL:when=1";
    let without_tcx = doctor_by(&host, &["strace", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", answer]);
    finding_in(&without_tcx, "no-tcx", "note");

    assert!(!codes(&here).contains(&"kernel-too-old".to_owned()), "{here:#}");
    // The kernel says to such a process that it is Linux 2.6.
    let old = doctor_by(&host, &["setarch", "--uname-2.6"]);
    let found = finding_in(&old, "kernel-too-old", "error");
    assert!(found["what"].as_str().unwrap().starts_with("Linux 2.6."), "{found:#}");

    for (kind, device, module) in [("geneve", "geneve", "geneve"), ("gretap", "gretap", "ip_gre")] {
        let known = host.netns.try_cmd(&format!("ip link add probe0 type {device} external")).status.success();
        host.netns.try_cmd("ip link del probe0");
        host.write("a.yaml", &ONE.replace("kind: vxlan", &format!("kind: {kind}")));
        if known {
            without(&host, "no-tunnel-kind");
        } else {
            let found = finding(&host, "no-tunnel-kind", "error");
            assert!(found["remedy"].as_str().unwrap().contains(&format!("modprobe {module}")), "{found:#}");
        }
    }
    // And on a kernel that has all of them, as one without would say it.
    let kinds = [((TunnelKind::Gretap, true), false)].into();
    let facts = Facts { kernel: KernelFacts { kinds, ..KernelFacts::default() }, ..Facts::default() };
    let found = finding_in(&report(&facts), "no-tunnel-kind", "error");
    assert!(found["remedy"].as_str().unwrap().contains("modprobe ip6_gre"), "{found:#}");
}

#[test]
fn settings_that_cost_throughput_are_told() {
    let _proof = Proof::of(proven::SETTINGS);
    let underlay = Underlay::new();
    let host = host(&underlay);
    // The compiler's switch is the machine's own and is shown in the first namespace only, where nobody but this command
    // sees another file in its place.
    let switch = "/proc/sys/net/core/bpf_jit_enable";
    let told = |value: &str| {
        let file = host.files.path().join("switch");
        std::fs::write(&file, value).unwrap();
        let bind = format!("mount --bind {} {switch} && exec \"$@\"", file.display());
        let command = host.command(&["doctor", "--format", "json"]);
        let mut outside = std::process::Command::new("unshare");
        outside.args(["-m", "sh", "-c", &bind, "sh"]).args(command.get_args().skip(1));
        outside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        report_of(outside)
    };
    assert!(std::path::Path::new(switch).exists());
    assert!(!codes(&told("1\n")).contains(&"jit-off".to_owned()));
    let found = finding_in(&told("0\n"), "jit-off", "warning");
    assert!(found["remedy"].as_str().unwrap().contains("net.core.bpf_jit_enable=1"), "{found:#}");

    let mesh = "version: 1\nnodes: {host0: 172.16.1.100, host1: 172.16.1.101}\ntunnels: {v: {kind: vxlan, create: true}}\n\
                tenants: {red: {id: 1, bridge: br-red}}\n";
    let settings = ["iptables", "ip6tables", "arptables"].map(|name| format!("bridge-nf-call-{name}"));
    let set = |name: &str, value: &str| safety::knob(&host.netns, &format!("bridge/{name}"), value);
    // The namespace has them where the kernel has them at all; where it doesn't, one file stands for the module.
    let real = host.netns.enter(|| std::path::Path::new("/proc/sys/net/bridge").exists());
    let with = |on: &[&String]| {
        if real {
            settings.iter().for_each(|name| set(name, if on.contains(&name) { "1" } else { "0" }));
            return doctor(&host);
        }
        let files = on.iter().map(|name| format!("echo 1 >/proc/sys/net/bridge/{name} && ")).collect::<String>();
        let script = format!("mount -t tmpfs none /proc/sys/net && mkdir /proc/sys/net/bridge && {files} exec \"$@\"");
        doctor_by(&host, &["unshare", "-m", "sh", "-c", &script, "sh"])
    };
    let all: Vec<&String> = settings.iter().collect();
    assert!(!codes(&with(&all)).contains(&"bridge-netfilter".to_owned()), "no bridge is asked for");
    host.write("a.yaml", mesh);
    assert!(!codes(&with(&[])).contains(&"bridge-netfilter".to_owned()));
    for on in [&all[..], &all[..1], &all[1..2], &all[2..]] {
        let found = finding_in(&with(on), "bridge-netfilter", "warning");
        for name in &settings {
            let told = found["remedy"].as_str().unwrap().contains(&format!("net.bridge.{name}=0"));
            assert_eq!(told, on.contains(&name), "{name}: {found:#}");
        }
    }
}

#[test]
fn missing_privileges_are_errors_and_what_is_done_without_is_a_note() {
    let _proof = Proof::of(proven::PRIVILEGES);
    let underlay = Underlay::new();
    let host = host(&underlay);
    without(&host, "no-foreign-names");
    let none = doctor_by(&host, &["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    let missing = none["findings"].as_array().unwrap().iter().filter(|f| f["code"] == "capability-missing").count();
    assert_eq!(missing, 2, "{none:#}");
    assert!(codes(&none).contains(&"unreadable".to_owned()), "{none:#}");

    host.apply();
    user::give(&host, NOBODY);
    let modest = report_of(user::command(&host, NOBODY, &["doctor", "--format", "json"]));
    let found = codes(&modest);
    assert!(found.contains(&"no-foreign-names".to_owned()), "{modest:#}");
    assert!(found.contains(&"no-rcu-expedited".to_owned()), "{modest:#}");
    assert_eq!(modest["errors"], 0, "{modest:#}");
}

#[test]
fn pins_that_are_in_the_wrong_place_or_left_over_are_told() {
    let _proof = Proof::of(proven::PINS);
    let underlay = Underlay::new();
    let host = host(&underlay);
    let elsewhere = host.files.path().join("pins");
    finding_in(&doctor_with(&host, &["--pin-dir", elsewhere.to_str().unwrap()]), "no-bpffs", "error");
    without(&host, "no-bpffs");

    host.apply();
    for code in ["pins-open", "foreign-pin", "stale-pin", "no-record", "half-grown"] {
        without(&host, code);
    }
    harness::run("chmod", &["0755", host.pins.to_str().unwrap()]);
    finding(&host, "pins-open", "warning");
    harness::run("chmod", &["0700", host.pins.to_str().unwrap()]);

    std::fs::create_dir(host.pin("stranger")).unwrap();
    assert!(finding(&host, "foreign-pin", "note")["what"].as_str().unwrap().contains("stranger"));
    std::fs::remove_dir(host.pin("stranger")).unwrap();

    let (ours, left) = (host.pin("programs/handle_ingress_1"), host.pin("programs/handle_ingress_9"));
    harness::run("bpftool", &["prog", "pin", "pinned", ours.to_str().unwrap(), left.to_str().unwrap()]);
    assert_eq!(finding(&host, "stale-pin", "warning")["subject"], "programs/handle_ingress_9");
    std::fs::remove_file(&left).unwrap();
    without(&host, "stale-pin");
    let attachment =
        host.status()["attachments"].as_array().unwrap().iter().find(|a| a["interface"] == "eth1").cloned();
    host.netns.cmd("ip link del eth1");
    if attachment.unwrap()["kind"] == "tcx" {
        assert!(finding(&host, "stale-pin", "warning")["what"].as_str().unwrap().contains("interface is gone"));
    }
    finding(&host, "pending", "note");

    std::fs::create_dir_all(host.pin("next/committed")).unwrap();
    finding(&host, "half-grown", "warning");
    std::fs::remove_dir(host.pin("next/committed")).unwrap();
    std::fs::remove_dir(host.pin("next")).unwrap();

    let record = host.files.path().join("state/accepted.json");
    std::fs::write(&record, "{").unwrap();
    finding(&host, "record-unreadable", "error");
    std::fs::remove_file(&record).unwrap();
    finding(&host, "no-record", "warning");

    let other = underlay.host(1);
    finding_in(&doctor_with(&other, &["--pin-dir", host.pins.to_str().unwrap()]), "other-namespace", "error");

    // Another version's map: of another size, beside the mark that says whose it is.
    let pin = host.pin("conf");
    std::fs::remove_file(&pin).unwrap();
    let conf = pin.to_str().unwrap();
    let create = ["map", "create", conf, "type", "array", "key", "4", "value", "8", "entries", "1", "name", "conf"];
    harness::run("bpftool", &create);
    finding(&host, "outdated-maps", "warning");
}

#[test]
fn a_topology_that_does_not_fit_this_host_is_told() {
    let _proof = Proof::of(proven::TOPOLOGY);
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", &ONE.replace("172.16.1.100", "172.16.1.200"));
    assert!(finding(&host, "no-local-address", "error")["what"].as_str().unwrap().contains("172.16.1.200"));
    host.write("a.yaml", &ONE.replace("id: 123", "id: red"));
    assert!(finding(&host, "topology-rejected", "error")["what"].as_str().unwrap().contains("a.yaml:5"));
    host.write("a.yaml", ONE);
    host.netns.cmd("ip link add vxlan0 type vxlan id 5 dstport 4789 local 172.16.1.100");
    finding(&host, "unusable-device", "error");
    host.netns.cmd("ip link del vxlan0");
    host.apply();
    without(&host, "not-in-force");
    host.netns.cmd("ip link set vxlan0 down");
    finding(&host, "not-in-force", "warning");
}

#[test]
fn who_has_the_port_and_what_comes_of_it_is_told() {
    let _proof = Proof::of(proven::DAEMON);
    let underlay = Underlay::new();
    let host = host(&underlay);
    without(&host, "port-taken");
    let taken = host.netns.enter(|| std::net::UdpSocket::bind(("0.0.0.0", 4789)).unwrap());
    let found = finding(&host, "port-taken", "error");
    assert!(found["what"].as_str().unwrap().contains(&format!("(pid {})", std::process::id())), "{found:#}");
    drop(taken);
    host.netns.cmd("ip link add rival type vxlan id 5 dstport 4789 local 172.16.1.100");
    host.netns.cmd("ip link set rival up");
    let daemon = host.daemon_unready();
    eventually("a failed pass", || codes(&doctor(&host)).contains(&"pass-failed".to_owned()));
    assert!(finding(&host, "port-taken", "error")["what"].as_str().unwrap().contains("rival"));
    host.netns.cmd("ip link del rival");
    host.wait_in_force();
    without(&host, "port-taken");
    assert_eq!(daemon.stop(), Some(0));

    // Somebody else's socket in the daemon's place, which answers nothing.
    let socket = host.files.path().join("run/control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let deaf = std::thread::spawn(move || drop(listener.accept().unwrap()));
    finding(&host, "daemon-silent", "error");
    deaf.join().unwrap();
}

#[test]
fn foreign_programs_are_told_with_their_place_and_what_they_do_to_tc_index() {
    let _proof = Proof::of(proven::PROGRAMS);
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.apply();
    for code in ["foreign-program", "foreign-program-first", "tc-index-written", "tc-index-reset"] {
        without(&host, code);
    }
    let foreign = Foreign::load(&host.netns);
    let place = if clsact() { Place::ClsactFirst } else { Place::TcxFirst };
    let held = foreign.attach(&host, "eth1", "egress", place);
    let found = finding(&host, "foreign-program-first", "warning");
    assert!(found["what"].as_str().unwrap().contains("see_tc_index"), "{found:#}");
    let shown = host.status()["attachments"].as_array().unwrap().iter().find(|a| a["interface"] == "eth1").cloned();
    let shown = shown.unwrap();
    let beside = &shown["foreign"][0];
    assert_eq!((&beside["before"], &beside["position"]), (&Value::from(true), &Value::from(0)), "{shown:#}");
    assert!(beside["name"].as_str().unwrap().starts_with("see_tc_index"), "{shown:#}");
    let text = host.expect(0, &["status"]);
    assert!(text.contains("2 of 2: behind foreign see_tc_index"), "{text}");
    foreign.detach_all(&host, &[("eth1", "egress")], vec![held]);

    // Our own program, put there by somebody else: it writes tc_index.
    safety::attach_pinned(&host.netns, "eth1", "egress", 77, &host.pin("programs/handle_ingress_1"));
    finding(&host, "foreign-program", "note");
    assert!(finding(&host, "tc-index-written", "warning")["subject"].as_str().unwrap().contains("eth1"));
    host.netns.cmd("tc filter del dev eth1 egress prio 77");
    without(&host, "tc-index-written");
    let probe = safety::Probe::load(&host.netns);
    safety::attach_pinned(&host.netns, "eth1", "egress", 77, &probe.program("end_with_ok"));
    finding(&host, "tc-index-reset", "warning");
    host.netns.cmd("tc filter del dev eth1 egress prio 77");
    // What isn't a program can't be read.
    host.netns.cmd("tc filter add dev eth1 egress prio 77 protocol ip u32 match u32 0 0 flowid 1:1");
    let found = finding(&host, "tc-index-untold", "note");
    assert!(found["what"].as_str().unwrap().contains("u32 filter, priority 77"), "{found:#}");
    host.netns.cmd("tc filter del dev eth1 egress prio 77");
    without(&host, "tc-index-untold");
    // Nor can a program, by who may not open it.
    safety::attach_pinned(&host.netns, "eth1", "egress", 77, &probe.program("end_with_ok"));
    user::give(&host, NOBODY);
    let modest = report_of(user::command(&host, NOBODY, &["doctor", "--format", "json"]));
    let found = finding_in(&modest, "tc-index-untold", "note");
    assert!(found["remedy"].as_str().unwrap().contains("as root"), "{found:#}");
    host.netns.cmd("tc filter del dev eth1 egress prio 77");
    // Whoever doesn't set it has no use for the warning.
    host.write("a.yaml", &ONE.replace("create: true", "create: true, mark: 0"));
    safety::attach_pinned(&host.netns, "eth1", "egress", 77, &probe.program("end_with_ok"));
    without(&host, "tc-index-reset");
}

/// A user that nobody else is, so that his limits are nobody else's.
const WATCHER: u32 = 61_235;

#[test]
fn a_daemon_that_cannot_watch_the_files_is_told() {
    let _proof = Proof::of(proven::WATCH);
    let underlay = Underlay::new();
    let host = host(&underlay);
    let held = user::use_up_instances(WATCHER, usize::MAX);
    user::give(&host, WATCHER);
    let log = host.files.path().join("daemon.log");
    let mut command = user::command(&host, WATCHER, &["run", "-v"]);
    let child = command.stderr(std::fs::File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
    let daemon = Daemon::of(child, log);
    host.wait_in_force();
    let found = finding(&host, "watch-failed", "warning");
    assert!(found["what"].as_str().unwrap().contains("fs.inotify.max_user_instances"), "{found:#}");
    drop(held);
    host.write("b.yaml", "version: 1\n");
    eventually("it watches again", || !codes(&doctor(&host)).contains(&"watch-failed".to_owned()));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_keeps_tunnels_from_the_fast_lane_is_told_with_the_remedy() {
    let _proof = Proof::of(proven::LANES);
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.netns.cmd("ip link add eth2 mtu 1400 type veth peer name eth2p");
    let text = |replaced: (&str, &str)| match replaced {
        ("", _) => lanes::TWO.to_owned(),
        (from, to) => lanes::TWO.replace(from, to),
    };
    let reasons = |report: &Value| -> BTreeSet<String> {
        let findings = report["findings"].as_array().unwrap().iter().filter(|f| f["check"] == "lanes");
        findings.map(|f| f["code"].as_str().unwrap().to_owned()).collect()
    };
    let put = |line: &str| {
        let words: Vec<String> = line.split(' ').map(|w| w.replace('_', " ")).collect();
        host.netns.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    };
    for case in lanes::CASES {
        host.write("a.yaml", &text(("", "")));
        assert_eq!(reasons(&doctor(&host)), BTreeSet::new(), "before {}", case.code);
        case.there.iter().for_each(|line| put(line));
        host.write("a.yaml", &text(case.said));
        let report = doctor(&host);
        assert_eq!(reasons(&report), BTreeSet::from([case.code.to_owned()]), "{report:#}");
        let found = finding_in(&report, case.code, "note");
        assert!(found["what"].as_str().unwrap().contains("by the tunnel device, not the fast lane"), "{found:#}");
        case.gone.iter().for_each(|line| put(line));
    }

    host.write("a.yaml", &lanes::nine());
    let found = finding(&host, "too-many-tunnels", "note");
    assert!(found["what"].as_str().unwrap().starts_with("t8/e8: received"), "{found:#}");

    // Listing a table of the older iptables makes it, in whatever namespace, and with it the file that is root's.
    harness::Netns::new().cmd("iptables-legacy -t raw -S");
    host.write("a.yaml", &text(("", "")));
    user::give(&host, NOBODY);
    let modest = report_of(user::command(&host, NOBODY, &["doctor", "--format", "json"]));
    let found = finding_in(&modest, "unread", "note");
    assert!(found["what"].as_str().unwrap().contains("ip_tables_names"), "{found:#}");
    without(&host, "unread");

    // A VRF, where the kernel has them; and in any case as such a kernel shows it.
    if host.netns.try_cmd("ip link add vrf0 type vrf table 10").status.success() {
        host.netns.cmd("ip link set vrf0 up");
        host.netns.cmd("ip link set eth0 master vrf0");
        finding(&host, "routing-domain", "note");
        host.netns.cmd("ip link del vrf0");
        without(&host, "routing-domain");
    }
    let snapshot = Snapshot::parse(host.expect(0, &["snapshot"]).as_bytes()).unwrap();
    let mut observed = snapshot.observed;
    let eth0 = observed.links.iter().position(|l| l.name == "eth0").unwrap();
    let vrf = Link { name: "vrf0".to_owned(), ifindex: 999, kind: "vrf".into(), ..observed.links[eth0].clone() };
    observed.links[eth0].master = Some(vrf.ifindex);
    observed.links.push(vrf);
    let parsed = parse(&SourceFile { name: "a.yaml".to_owned(), text: lanes::TWO.into() });
    let desired = Arc::new(merge([&parsed]).unwrap().compile(&NodeChoice::Unknown).unwrap());
    let live = Live { observed, plan: Plan::default(), chains: Chains::default() };
    let facts = Facts { files: Some(desired), live: Some(live), ..Facts::default() };
    let found = finding_in(&report(&facts), "routing-domain", "note");
    assert!(found["what"].as_str().unwrap().contains("eth0 is in the VRF vrf0"), "{found:#}");
}
