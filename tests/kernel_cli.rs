//! What the commands print and how they exit on a live host; bad input leaves the live state untouched.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use insta::{Settings, assert_snapshot};
use std::os::unix::fs::MetadataExt;
use world::*;

/// Names of the machine and of the moment, out of the way.
fn filtered(host: &Host, assertions: impl FnOnce()) {
    let mut settings = Settings::clone_current();
    let escaped = host.topology().display().to_string().replace('.', "\\.");
    settings.add_filter(&escaped, "TOPOLOGY");
    settings.add_filter(&host.pins.display().to_string(), "PINS");
    settings.add_filter(r"ifindex \d+", "ifindex N");
    settings.add_filter(r"program \d+", "program N");
    settings.add_filter(r"revision  [0-9a-f]{16}", "revision  REVISION");
    settings.add_filter(r"cookie \d+, this one is \d+", "cookie N, this one is N");
    settings.add_filter(r"pid \d+, \d+ passes", "pid N, N passes");
    settings.add_filter(r"(added|changed|appeared|repaired) (just now|\d+ (s|min) ago)", "$1 AGO");
    settings.add_filter(r"tcx|clsact", "HOOK");
    settings.add_filter(r"(?m)  HOOK +program", "  HOOK  program");
    settings.bind(assertions);
}

/// A host on an underlay, with two interfaces for tenants.
fn host(underlay: &Underlay) -> Host {
    let host = underlay.host(0);
    for name in ["eth1", "eth2"] {
        host.netns.cmd(&format!("ip link add {name} type veth peer name {name}p"));
        for end in [name.to_owned(), format!("{name}p")] {
            // Silent, so that counters in snapshots stay at zero.
            host.netns.cmd(&format!("ip link set {end} addrgenmode none"));
            host.netns.cmd(&format!("ip link set {end} up"));
        }
    }
    host
}

/// Everything that decides where packets go, as bpftool sees it.
fn live(host: &Host) -> String {
    let maps = ["conf", "tunkey2if", "if2tunkey"].map(|m| host.dump(m).to_string());
    let links = host.netns.cmd("ip -br link");
    format!("{}\n{links}", maps.join("\n"))
}

#[test]
fn plan_apply_status_and_down_say_what_they_do() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    filtered(&host, || {
        assert_snapshot!("plan_first", host.expect(0, &["plan"]));
        assert!(!host.pins.exists(), "plan made the pin directory");
        host.expect(2, &["plan", "--detailed-exitcode"]);
        assert_snapshot!("apply_first", host.expect(0, &["apply"]));
        assert_snapshot!("plan_nothing", host.expect(0, &["plan", "--detailed-exitcode"]));
        assert_snapshot!("status_active", host.expect(0, &["status"]));
        host.write("a.yaml", &TWO.replace("id: 456", "id: 457").replace("eth1", "eth9"));
        assert_snapshot!("plan_change", host.expect(2, &["plan", "--detailed-exitcode"]));
        host.expect(0, &["apply"]);
        assert_snapshot!("status_pending", host.expect(0, &["status"]));
        assert_snapshot!("down", host.expect(0, &["down"]));
        assert_snapshot!("down_again", host.expect(0, &["down"]));
    });
    assert!(!host.pins.exists());
    assert!(!host.netns.cmd("ip -br link").contains("vxlan0"));
}

#[test]
fn the_plan_is_what_apply_does() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    for edit in [
        TWO.to_owned(),
        TWO.replace("123", "124"),
        TWO.replace("eth1", "ethX").replace("eth2", "eth1").replace("ethX", "eth2"),
    ] {
        host.write("a.yaml", &edit);
        let mut planned = json(host.expect(0, &["plan", "--format", "json"]));
        for change in planned["changes"].as_array_mut().unwrap() {
            // Of what goes, a plan says what it carries now.
            let traffic = change.as_object_mut().unwrap().remove("traffic");
            assert_eq!(traffic.is_some(), change["action"] != "create" && change["object"] == "mapping", "{change}");
        }
        let applied = json(host.expect(0, &["apply", "--format", "json"]));
        assert_eq!(planned["operations"], applied["plan"]["operations"]);
        assert_eq!(planned["changes"], applied["plan"]["changes"]);
        assert_eq!(applied["changed"], true);
        assert_eq!(applied["operations"], planned["summary"]["operations"]);
        let again = json(host.expect(0, &["apply", "--format", "json"]));
        assert_eq!(again["changed"], false, "{again:#}");
    }
}

#[test]
fn a_bad_topology_changes_nothing() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    host.apply();
    let before = live(&host);
    let bad = [
        TWO.replace("id: 456", "id: 16777216"),
        TWO.replace("eth2", "eth1"),
        TWO.replace("remote: 172.16.1.102", "remote: 'fd00::2'"),
        TWO.replace("interface: eth2", "interfaec: eth2"),
        "version: 1\nmappings:\n".to_owned(),
        "# nothing\n".to_owned(),
        "version: 1\ntunnels: [\n".to_owned(),
    ];
    for text in bad {
        host.write("a.yaml", &text);
        host.expect(78, &["plan"]);
        host.expect(78, &["apply"]);
        assert_eq!(live(&host), before, "{text}");
    }
    std::fs::remove_file(host.topology().join("a.yaml")).unwrap();
    host.expect(78, &["apply"]);
    std::fs::remove_dir(host.topology()).unwrap();
    host.expect(78, &["apply"]);
    assert_eq!(live(&host), before);
}

#[test]
fn devices_that_do_not_fit_are_problems_and_are_left_alone() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.netns.cmd("ip link add vxlan0 type vxlan id 5 dstport 4789 local 172.16.1.100");
    host.write("a.yaml", TWO);
    let text = host.expect(4, &["apply"]);
    assert!(text.contains("collect-metadata"), "{text}");
    host.expect(4, &["apply"]);
    assert!(host.netns.cmd("ip -d link show vxlan0").contains("id 5"));
    filtered(&host, || assert_snapshot!("status_problem", host.expect(0, &["status"])));
    // The tenants' interfaces are guarded all the same: nothing of theirs reaches the host's stack.
    assert_eq!(host.status()["attachments"].as_array().unwrap().len(), 2);
}

#[test]
fn without_privileges_the_exit_code_is_77_and_says_what_is_missing() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    let bare = |arguments: &[&str]| {
        let command = host.command(arguments);
        let mut words = vec!["setpriv".to_owned(), "--bounding-set=-all".to_owned(), "--inh-caps=-all".to_owned()];
        let inner: Vec<String> = command.get_args().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
        words.extend(inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut wrapped = host.netns.spawnable(&words);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        wrapped.output().unwrap()
    };
    for arguments in [&["plan"][..], &["apply"], &["status"], &["run"]] {
        let output = bare(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(77), "{arguments:?}: {error}");
        assert!(error.contains("CAP_NET_ADMIN") && error.contains("CAP_BPF"), "{error}");
    }
    // Offline commands need none.
    assert_eq!(bare(&["validate"]).status.code(), Some(0));
}

#[test]
fn a_pin_directory_that_is_not_on_bpffs_is_refused_with_the_remedy() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    // There or not: what would be made there counts.
    let there = host.files.path().to_owned();
    let missing = there.join("pins").join("deeper");
    for (directory, named) in [(&there, &there), (&missing, &there)] {
        for command in ["plan", "apply", "status", "snapshot"] {
            let output = host.run(&["--pin-dir", directory.to_str().unwrap(), command]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{command}: {error}");
            assert!(error.starts_with(&format!("error: {} isn't on a BPF file system", named.display())), "{error}");
            assert!(error.contains("mount -t bpf") && output.stdout.is_empty(), "{command}: {error}");
        }
        assert!(!missing.parent().unwrap().exists());
    }
    // Nothing is live where nothing was made yet, which is no error.
    let yet_to_be_made = host.pins.join("deeper");
    let plan = host.expect(0, &["--pin-dir", yet_to_be_made.to_str().unwrap(), "plan"]);
    assert!(plan.contains("create maps for") && !host.pins.exists(), "{plan}");
}

#[test]
fn pins_that_are_hidden_are_no_reason_to_plan_everything_anew() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    host.apply();
    // As in `ip netns exec`, which mounts a sysfs of its own.
    let command = host.command(&["plan"]);
    let mut words = vec!["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), host.netns.name.clone()];
    words.extend(command.get_args().skip(1).map(|a| a.to_string_lossy().into_owned()));
    let mut hidden = std::process::Command::new(&words[0]);
    hidden.args(&words[1..]).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = hidden.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{error}");
    assert!(error.contains("isn't on a BPF file system") && error.contains("nsenter --net="), "{error}");
    assert!(host.expect(0, &["plan"]).ends_with("No changes.\n"));
}

#[test]
fn what_root_applies_belongs_to_the_owner_of_the_directories() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    let state = host.files.path().join("state");
    for directory in [&host.pins, &state] {
        std::fs::create_dir(directory).unwrap();
        std::os::unix::fs::chown(directory, Some(4242), Some(4242)).unwrap();
    }
    host.apply();
    let list = harness::run("find", &[host.pins.to_str().unwrap(), state.to_str().unwrap()]);
    assert!(list.contains("handle_egress") && list.contains("accepted.json"), "{list}");
    for path in list.lines() {
        assert_eq!(std::fs::symlink_metadata(path).unwrap().uid(), 4242, "{path}");
    }
}

#[test]
fn pins_that_are_not_ours_are_refused_and_left_alone() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    std::fs::create_dir(&host.pins).unwrap();
    let pin = host.pin("conf");
    harness::run(
        "bpftool",
        &[
            "map",
            "create",
            pin.to_str().unwrap(),
            "type",
            "array",
            "key",
            "4",
            "value",
            "8",
            "entries",
            "1",
            "name",
            "conf",
        ],
    );
    for command in ["plan", "apply", "status"] {
        let output = host.run(&[command]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("another layout") && error.contains("conf"), "{error}");
    }
    assert!(pin.exists());
}

#[test]
fn a_hook_that_the_kernel_lacks_is_said_so() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", TWO);
    let output = host.run(&["--hook", "tcx", "plan"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if std::fs::read_to_string("/proc/kallsyms").unwrap().contains(" tcx_prog_attach\n") {
        assert_eq!(output.status.code(), Some(0), "{error}");
    } else {
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("no TCX"), "{error}");
    }
}

#[test]
fn foreign_programs_on_our_hooks_stay() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let object = host.files.path().join("probe.o");
    std::fs::write(&object, include_bytes!(env!("TUNNEL_MESH_PROBE_OBJECT"))).unwrap();
    let probes = host.pins.with_extension("").display().to_string() + "-probe";
    harness::run("bpftool", &["prog", "loadall", object.to_str().unwrap(), &probes, "type", "classifier"]);
    host.netns.cmd("tc qdisc add dev eth1 clsact");
    host.netns.cmd(&format!("tc filter add dev eth1 egress protocol all pref 77 bpf da pinned {probes}/see_tc_index"));
    std::fs::remove_dir_all(&probes).unwrap();
    host.write("a.yaml", TWO);
    host.apply();
    host.expect(0, &["down"]);
    let left = host.netns.cmd("tc filter show dev eth1 egress");
    assert!(left.contains("pref 77") && !left.contains("handle_egress"), "{left}");
}

#[test]
fn two_capabilities_are_enough_without_root() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.write("a.yaml", &(TWO.to_owned() + "  - {interface: eth3, id: 9, remote: 172.16.1.102}\n"));
    const NOBODY: u32 = 65534;
    std::fs::create_dir(&host.pins).unwrap();
    for owned in [host.pins.as_path(), host.files.path()] {
        std::os::unix::fs::chown(owned, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let modest = |arguments: &[&str]| {
        let command = host.command(arguments);
        let caps = "-all,+bpf,+net_admin";
        let mut words = vec!["setpriv".to_owned(), format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        words.push("--clear-groups".to_owned());
        for set in ["inh-caps", "ambient-caps", "bounding-set"] {
            words.push(format!("--{set}={caps}"));
        }
        words.extend(command.get_args().skip(1).map(|a| a.to_string_lossy().into_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut wrapped = host.netns.spawnable(&words);
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped
    };
    let run = |arguments: &[&str]| {
        let output = modest(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["plan"]).contains("make the vxlan device"));
    run(&["apply"]);
    assert!(run(&["plan"]).ends_with("No changes.\n"));
    // The daemon takes over, follows a new interface, and ends.
    let mut daemon = modest(&["run"]).spawn().unwrap();
    run(&["status", "--wait", "--timeout", "60"]);
    host.netns.cmd("ip link add eth3 type veth peer name eth3p");
    eventually("eth3 is mapped", || run(&["status"]).contains("(3 active)"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    run(&["down"]);
    assert!(!host.netns.cmd("ip -br link").contains("vxlan0"));
}
