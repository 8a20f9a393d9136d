//! `doctor` finds what is wrong with a host: each test makes the condition and expects the finding, and nothing without it.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "drift/foreign.rs"]
mod foreign;
mod safety;
mod world;

use foreign::{Foreign, Place};
use serde_json::Value;
use world::*;

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

/// The report; its exit code must fit it.
fn doctor(host: &Host) -> Value {
    let output = host.run(&["doctor", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let expected = i32::from(report["errors"].as_u64().unwrap() > 0);
    assert_eq!(output.status.code(), Some(expected), "{report:#}");
    report
}

fn codes(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().map(|f| f["code"].as_str().unwrap().to_owned()).collect()
}

/// The finding with that code, with its severity; it must have a remedy.
fn finding(host: &Host, code: &str, severity: &str) -> Value {
    let report = doctor(host);
    let found = report["findings"].as_array().unwrap().iter().find(|f| f["code"] == code).cloned();
    let found = found.unwrap_or_else(|| panic!("no finding {code} in {report:#}"));
    assert_eq!(found["severity"], severity, "{found:#}");
    assert!(!found["remedy"].as_str().unwrap().is_empty(), "{found:#}");
    found
}

/// Nothing of that code.
fn without(host: &Host, code: &str) {
    let report = doctor(host);
    assert!(!codes(&report).contains(&code.to_owned()), "{report:#}");
}

#[test]
fn a_good_host_has_no_findings_worth_a_warning() {
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
    let underlay = Underlay::new();
    let host = host(&underlay);
    without(&host, "mtu-too-large");
    host.netns.cmd("ip link set eth1 mtu 1451");
    let found = finding(&host, "mtu-too-large", "warning");
    assert!(found["what"].as_str().unwrap().contains("eth1 (MTU 1451)"), "{found:#}");
    assert!(found["remedy"].as_str().unwrap().contains("mtu 1450"), "{found:#}");
}

/// As [`doctor`], as another user with other means.
fn doctor_by(host: &Host, prefix: &[&str]) -> Value {
    let command = host.command(&["doctor", "--format", "json"]);
    let mut words: Vec<String> = prefix.iter().map(|w| (*w).to_owned()).collect();
    words.extend(command.get_args().skip(1).map(|a| a.to_string_lossy().into_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut wrapped = host.netns.spawnable(&words);
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = wrapped.output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn what_the_kernel_lacks_is_told_and_what_it_has_is_not() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let tcx = std::fs::read_to_string("/proc/kallsyms").unwrap().contains(" tcx_prog_attach\n");
    assert_eq!(codes(&doctor(&host)).contains(&"no-tcx".to_owned()), !tcx);
    let geneve = host.netns.try_cmd("ip link add probe0 type geneve external").status.success();
    host.netns.try_cmd("ip link del probe0");
    host.write("a.yaml", &ONE.replace("kind: vxlan", "kind: geneve"));
    if geneve {
        without(&host, "no-tunnel-kind");
    } else {
        let found = finding(&host, "no-tunnel-kind", "error");
        assert!(found["remedy"].as_str().unwrap().contains("modprobe geneve"), "{found:#}");
    }
}

#[test]
fn settings_that_cost_throughput_are_told() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let mesh = "version: 1\nnodes: {host0: 172.16.1.100, host1: 172.16.1.101}\ntunnels: {v: {kind: vxlan, create: true}}\n\
                tenants: {red: {id: 1, bridge: br-red}}\n";
    host.write("a.yaml", mesh);
    without(&host, "jit-off");
    // In a mount namespace of its own, the machine's settings look otherwise.
    let script = "mount -t tmpfs none /proc/sys/net && mkdir /proc/sys/net/core /proc/sys/net/bridge && \
                  echo 0 >/proc/sys/net/core/bpf_jit_enable && echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables && \
                  exec \"$@\"";
    let report = doctor_by(&host, &["unshare", "-m", "sh", "-c", script, "sh"]);
    let found = codes(&report);
    assert!(found.contains(&"jit-off".to_owned()) && found.contains(&"bridge-netfilter".to_owned()), "{report:#}");
}

#[test]
fn missing_privileges_are_errors_and_what_is_done_without_is_a_note() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    without(&host, "no-foreign-names");
    let none = doctor_by(&host, &["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    let missing = none["findings"].as_array().unwrap().iter().filter(|f| f["code"] == "capability-missing").count();
    assert_eq!(missing, 2, "{none:#}");
    assert!(codes(&none).contains(&"unreadable".to_owned()), "{none:#}");

    host.apply();
    for path in [host.pins.as_path(), host.files.path()] {
        harness::run("chown", &["-R", "65534:65534", path.to_str().unwrap()]);
    }
    let caps = "-all,+bpf,+net_admin";
    let (inh, ambient) = (format!("--inh-caps={caps}"), format!("--ambient-caps={caps}"));
    let modest = doctor_by(
        &host,
        &[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            &inh,
            &ambient,
            &format!("--bounding-set={caps}"),
        ],
    );
    let found = codes(&modest);
    assert!(found.contains(&"no-foreign-names".to_owned()), "{modest:#}");
    assert!(found.contains(&"no-rcu-expedited".to_owned()), "{modest:#}");
    assert_eq!(modest["errors"], 0, "{modest:#}");
}

#[test]
fn pins_that_are_in_the_wrong_place_or_left_over_are_told() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let elsewhere = host.files.path().join("pins");
    let output = host.run(&["--pin-dir", elsewhere.to_str().unwrap(), "doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("[no-bpffs]"), "{text}");

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
    let output = other.run(&["--pin-dir", host.pins.to_str().unwrap(), "doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("[other-namespace]"), "{text}");

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
    // Whoever doesn't set it has no use for the warning.
    host.write("a.yaml", &ONE.replace("create: true", "create: true, mark: 0"));
    safety::attach_pinned(&host.netns, "eth1", "egress", 77, &probe.program("end_with_ok"));
    without(&host, "tc-index-reset");
}
