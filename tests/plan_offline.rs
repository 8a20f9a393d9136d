//! Plans without root and without a kernel: against snapshots, against an earlier revision, for every node; each form of
//! output as a snapshot.

#![allow(clippy::unwrap_used, missing_docs)]

mod memory;

use insta::{Settings, assert_snapshot};
use memory::topology::{Choice, desired, fresh_kernel};
use memory::{MemoryKernel, block};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tunnel_mesh::model::*;
use tunnel_mesh::plan::{Input, plan};
use tunnel_mesh::reconcile::Reconciler;
use tunnel_mesh::topology::{NodeChoice, SourceFile, adopt, merge, parse, write as yaml};

const BEFORE: &str = "\
version: 1
nodes: {host0: 172.16.1.100, host1: 172.16.1.101, host2: 172.16.1.102}
tunnels:
  vxlan0: {kind: vxlan, create: true}
tenants:
  red: {id: 10000, bridge: br-red}
  blue: {id: 10001, bridge: br-blue, members: [host0, host1]}
  wire7:
    id: 7
    members:
      host0: {interface: veth-a, attach: endpoint}
      host1: {interface: veth-b, attach: endpoint}
  old:
    id: 8
    members:
      host0: {interface: veth-old}
      host2: {interface: veth-old}
";

/// Blue gets another id and a member, a wire goes, another one comes whose interface is missing.
fn after() -> String {
    BEFORE
        .replace("id: 10001, bridge: br-blue, members: [host0, host1]", "id: 10002, bridge: br-blue")
        .replace("  old:\n    id: 8", "  new:\n    id: 9")
        .replace("veth-old", "veth-new")
}

/// A directory that everybody may read, with one topology file in `name/`.
fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("mesh.yaml"), text).unwrap();
    path
}

fn compile(text: &str, node: &str) -> Desired {
    let parsed = parse(&SourceFile { name: "base/mesh.yaml".to_owned(), text: text.as_bytes().to_vec() });
    merge([&parsed]).unwrap().compile(&NodeChoice::Named(node.to_owned())).unwrap()
}

/// The host of a node with that topology in force, its underlay's MTU and its veths.
fn host(text: &str, node: &str, mtu: u32, links: &[&str]) -> MemoryKernel {
    let desired = compile(text, node);
    let mut kernel = MemoryKernel::with_links(links);
    let eth0 = kernel.add_link("eth0");
    kernel.state.links.last_mut().unwrap().mtu = mtu;
    let local = desired.tunnels["vxlan0"].local;
    kernel.state.addresses.push(Address { ifindex: eth0, address: IpAddr::V4(local.v4.unwrap()) });
    let mut reconciler = Reconciler::new(kernel);
    let report = block(reconciler.pass(&desired, None)).unwrap();
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    std::mem::take(reconciler.kernel())
}
/// Its snapshot: every mapping carries something.
fn snapshot(kernel: &MemoryKernel, text: &str, node: &str) -> Snapshot {
    let observed = kernel.seen();
    let entries = observed.maps.iter().flat_map(|m| &m.if2tunkey);
    let busy = |(n, slot): (u64, u32)| {
        let flow = Throughput {
            rx_packets: 1000 * (n + 1),
            rx_bytes: 64_000 * (n + 1),
            tx_packets: 1234 * n,
            tx_bytes: 98_765 * n,
            rx_packets_per_second: 1500 * n,
            tx_packets_per_second: 7 * n,
            bytes_per_second: 2_000_000 * n,
        };
        (slot, flow)
    };
    let traffic: BTreeMap<u32, Throughput> = (0..).zip(entries.map(|(_, e)| e.slot)).map(busy).collect();
    let accepted = Intent { desired: compile(text, node).into(), ..Intent::default() };
    Snapshot {
        format_version: SNAPSHOT_VERSION,
        host: format!("{node}.example"),
        node: Some(node.to_owned()),
        accepted: Some(accepted),
        traffic,
        observed,
    }
}

fn save(snapshot: &Snapshot, directory: &Path) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    let path = directory.join(format!("{}.json", snapshot.node.as_deref().unwrap()));
    std::fs::write(&path, serde_json::to_vec_pretty(snapshot).unwrap()).unwrap();
    path
}

/// The command as a user who may do nothing: no root, no capability, no BPF file system.
fn unprivileged(directory: &Path, arguments: &[&str]) -> Output {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where root alone may enter the build directory, the binary is taken out of it.
    let binary = directory.join("tunnel-mesh");
    if !binary.exists() {
        // By another process: while a thread of this one holds it open to write, nobody could run it.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_tunnel-mesh")).arg(&binary).status().unwrap();
        assert!(copied.success(), "copy the binary to {}", binary.display());
    }
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
        command.arg("--no-new-privs").arg(&binary);
        command
    } else {
        Command::new(&binary)
    };
    command.current_dir(directory).args(arguments).env_clear().env("COLUMNS", "100").output().unwrap()
}

/// Exit code and both streams in one text.
fn told(directory: &Path, arguments: &[&str]) -> String {
    let output = unprivileged(directory, arguments);
    format!(
        "exit {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap()
    )
}

fn settled(assertions: impl FnOnce()) {
    let mut settings = Settings::clone_current();
    settings.add_filter(r#"("(?:revision|fingerprint)": )"[0-9a-f]{16}""#, r#"$1"HASH""#);
    settings.add_filter(r"revision [0-9a-f]{16}", "revision HASH");
    settings.bind(assertions);
}

/// A directory with the files of a pull request, and a snapshot of host0 before it.
fn review() -> (tempfile::TempDir, Snapshot) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "base", BEFORE);
    write(directory.path(), "head", &after());
    let kernel = host(BEFORE, "host0", 1500, &["veth-a", "veth-old"]);
    let snapshot = snapshot(&kernel, BEFORE, "host0");
    save(&snapshot, &directory.path().join("snapshots"));
    (directory, snapshot)
}

#[test]
fn every_form_of_a_plan_against_a_snapshot() {
    let (directory, mut snapshot) = review();
    // And somebody changed an entry meanwhile.
    let maps = snapshot.observed.maps.as_mut().unwrap();
    let wire = snapshot.observed.links.iter().find(|l| l.name == "veth-a").unwrap().ifindex;
    maps.if2tunkey.iter_mut().find(|(ifindex, _)| *ifindex == wire).unwrap().1.ttl = OuterField::Fixed(3);
    save(&snapshot, &directory.path().join("snapshots"));
    let live = ["--topology", "head", "--live", "snapshots/host0.json"];
    let with = |more: &[&str]| told(directory.path(), &[&["plan"], &live[..], more].concat());
    settled(|| {
        assert_snapshot!("text", with(&["--detailed-exitcode", "--node", "host0"]));
        // The node that the snapshot is of needn't be said.
        assert_snapshot!("json", with(&["--format", "json"]));
        assert_snapshot!("markdown", with(&["--format", "markdown"]));
        assert_snapshot!("diff", with(&["--format", "diff"]));
    });
    let colored = with(&["--color", "always"]);
    let plain = with(&["--color", "never"]);
    assert!(colored.contains("\x1b[3"), "{colored}");
    // Colour says nothing alone: without it the text is the same.
    let stripped: String = colored
        .split('\x1b')
        .enumerate()
        .map(|(n, part)| if n == 0 { part } else { part.split_once('m').unwrap().1 })
        .collect();
    assert_eq!(stripped, plain);
    // In the same order whenever it is asked.
    assert_eq!(with(&["--format", "json"]), with(&["--format", "json"]));
}

#[test]
fn what_a_snapshot_has_in_force_plans_empty() {
    let (directory, _) = review();
    let with = |more: &[&str]| {
        told(directory.path(), &[&["plan", "--topology", "base", "--live", "snapshots"], more].concat())
    };
    let told_nothing = with(&["--detailed-exitcode"]);
    assert!(
        told_nothing.starts_with("exit 0") && told_nothing.ends_with("No changes.\n--- stderr\n"),
        "{told_nothing}"
    );
    assert_eq!(with(&["--format", "diff"]), "exit 0\n--- stdout\n--- stderr\n");
    // From standard input, too.
    let snapshot = std::fs::File::open(directory.path().join("snapshots/host0.json")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tunnel-mesh"))
        .args(["plan", "--topology", "base", "--live", "-"])
        .current_dir(directory.path())
        .stdin(snapshot)
        .output()
        .unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("No changes.\n"));
}

#[test]
fn too_many_removals_are_held_off_host_too() {
    let (directory, _) = review();
    write(directory.path(), "head", &BEFORE[..BEFORE.find("tenants:").unwrap()]);
    let live = ["plan", "--topology", "head", "--live", "snapshots"];
    assert_snapshot!("held", told(directory.path(), &live));
    let allowed = told(directory.path(), &[&live[..], &["--allow-deletes"]].concat());
    assert!(allowed.starts_with("exit 0") && allowed.contains("at once: allowed"), "{allowed}");
}

#[test]
fn every_node_of_a_pull_request() {
    let (directory, _) = review();
    let all = ["plan", "--topology", "head", "--all-nodes"];
    let with = |more: &[&str]| told(directory.path(), &[&all[..], more].concat());
    // host0 by its snapshot, the others by what was declared before.
    let against = ["--live", "snapshots", "--base", "base"];
    let forms = [("nodes_text", "text"), ("nodes_markdown", "markdown"), ("nodes_diff", "diff")];
    settled(|| {
        for (name, form) in forms {
            assert_snapshot!(name, with(&[&against[..], &["--format", form]].concat()));
        }
    });
    let json = with(&[&against[..], &["--format", "json", "--detailed-exitcode"]].concat());
    let (exit, rest) = json.split_once("\n--- stdout\n").unwrap();
    assert_eq!(exit, "exit 2");
    let json: serde_json::Value = serde_json::from_str(rest.split("--- stderr").next().unwrap()).unwrap();
    assert_eq!(json["summary"]["nodes"], 3);
    let nodes = json["nodes"].as_array().unwrap();
    assert!(nodes[0]["operations"].as_array().unwrap().len() > 5, "{:#}", nodes[0]);
    assert!(nodes[0]["fingerprint"].is_string() && nodes[1]["fingerprint"].is_null());
    assert_eq!(nodes[1]["against"].as_str().unwrap().split(' ').next(), Some("against"));
    // Nothing to compare with: all that is declared.
    assert!(with(&[]).contains("as declared"));
    // A node that is gone is said, and a snapshot of nobody.
    write(directory.path(), "head", &after().replace("host2", "host3"));
    let renamed = with(&against);
    assert!(
        renamed.contains("node host2 isn't declared any more") && renamed.contains("node host3 (new)"),
        "{renamed}"
    );
}

#[test]
fn two_hosts_of_a_snapshot_directory_need_a_node() {
    let (directory, snapshot) = review();
    let second = Snapshot { node: Some("host1".to_owned()), ..snapshot };
    save(&second, &directory.path().join("snapshots"));
    let live = ["plan", "--topology", "base", "--live", "snapshots"];
    let told_which = told(directory.path(), &live);
    assert!(told_which.starts_with("exit 1") && told_which.contains("host0, host1: say --node"), "{told_which}");
    assert!(told(directory.path(), &[&live[..], &["--node", "host0"]].concat()).contains("No changes."));
}

/// Topologies of hosts that don't share one, for the mesh check.
fn meshed(hosts: &[(&str, &str)], more: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut arguments = vec!["plan".to_owned(), "--all-nodes".to_owned()];
    for (name, text) in hosts {
        write(directory.path(), name, text);
        arguments.extend(["--host".to_owned(), format!("{name}={name}")]);
    }
    arguments.extend(more.iter().map(|s| (*s).to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    told(directory.path(), &arguments)
}

fn own(local: &str, tunnel: &str, mappings: &str) -> String {
    format!("version: 1\ntunnels:\n  t0: {{{tunnel}, local: {local}}}\nmappings:\n{mappings}")
}

#[test]
fn the_mesh_check_finds_what_does_not_match() {
    let there = |id: u32, remote: &str| format!("  - {{tenant: red, interface: e, id: {id}, remote: '{remote}'}}\n");
    let vxlan = "kind: vxlan";
    let host0 = own("10.0.0.1", vxlan, &there(5, "10.0.0.2"));
    let fine = meshed(&[("a", &host0), ("b", &own("10.0.0.2", vxlan, &there(5, "10.0.0.1")))], &[]);
    assert!(fine.starts_with("exit 0") && fine.contains("both ends of every link agree"), "{fine}");

    let both = "['10.0.0.2', 'fd00::2']";
    let other = |id| there(id, "10.0.0.9");
    let cases = [
        ("one-way", own("10.0.0.2", vxlan, &other(7).replace("red", "blue"))),
        ("id", own("10.0.0.2", vxlan, &there(6, "10.0.0.1"))),
        ("kind", own("10.0.0.2", "kind: geneve", &there(5, "10.0.0.1"))),
        ("port", own("10.0.0.2", "kind: vxlan, port: 4790", &there(5, "10.0.0.1"))),
    ];
    for (amiss, host1) in cases {
        let found = meshed(&[("a", &host0), ("b", &host1)], &[]);
        assert!(found.starts_with("exit 78") && found.contains(&format!("[{amiss}]")), "{amiss}: {found}");
        assert_snapshot!(format!("mesh_{amiss}"), found);
    }
    // host0 has both families and speaks IPv4; host1 answers by IPv6.
    let host0 = own("['10.0.0.1', 'fd00::1']", vxlan, &there(5, "10.0.0.2"));
    let family = meshed(&[("a", &host0), ("b", &own(both, vxlan, &there(5, "fd00::1")))], &[]);
    assert!(family.starts_with("exit 78"), "{family}");
    assert_snapshot!("mesh_family", family);
    // MTUs: declared ones, and only a warning.
    let with_mtu =
        |local, remote, mtu: u32| own(local, &format!("kind: vxlan, create: true, mtu: {mtu}"), &there(5, remote));
    let (host0, host1) = (with_mtu("10.0.0.1", "10.0.0.2", 1450), with_mtu("10.0.0.2", "10.0.0.1", 8950));
    let mtu = meshed(&[("a", &host0), ("b", &host1)], &[]);
    assert!(mtu.starts_with("exit 0"), "{mtu}");
    assert_snapshot!("mesh_mtu", mtu);
    let json = meshed(&[("a", &host0), ("b", &host1)], &["--format", "json"]);
    let json: serde_json::Value =
        serde_json::from_str(json.split_once("--- stdout\n").unwrap().1.split("--- stderr").next().unwrap()).unwrap();
    assert_eq!((&json["mesh"][0]["amiss"], &json["mesh"][0]["severity"]), (&"mtu".into(), &"warning".into()));
}

#[test]
fn the_mesh_check_sees_what_devices_really_are() {
    let (directory, _) = review();
    let snapshots = directory.path().join("snapshots");
    // host1's underlay carries more, and its end of the wire is missing.
    let kernel = host(BEFORE, "host1", 9000, &[]);
    save(&snapshot(&kernel, BEFORE, "host1"), &snapshots);
    let all = ["plan", "--topology", "base", "--all-nodes", "--live", "snapshots"];
    let found = told(directory.path(), &all);
    assert!(
        found.contains("[mtu]") && found.contains("MTU of tunnel vxlan0 is 1450 on host0, 8950 on host1"),
        "{found}"
    );
    assert!(found.contains("[pending]") && found.contains("waits for veth-b on host1"), "{found}");
}

/// Any of the interfaces may be mapped, whatever to.
fn wanted() -> impl Strategy<Value = Vec<Option<Choice>>> {
    let choice = (any::<u8>(), any::<u8>(), any::<u8>(), any::<bool>());
    let choice = choice.prop_map(|(tunnel, id, far, endpoint)| Choice { tunnel, id, far, endpoint });
    prop::collection::vec(prop::option::weighted(0.7, choice), 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_live_is_adopted_as_a_topology_that_plans_empty(wanted in wanted(), ttl in 1u8..) {
        let mut reconciler = Reconciler::new(fresh_kernel());
        block(reconciler.pass(&desired(&wanted, ttl, 0), None)).unwrap();
        let observed = reconciler.kernel().seen();
        prop_assert_eq!(adopt::untold(&observed), Vec::<String>::new());
        let (text, notes) = yaml::topology(&adopt::adopt(&observed), "host0");
        prop_assert_eq!(notes, Vec::<String>::new());
        let nobody = BTreeSet::new();
        let compiled = compile(&text, "host0");
        let planned = plan(Input { desired: &compiled, observed: &observed, accepted: None, was_pending: &nobody });
        prop_assert!(planned.is_empty(), "{text}{planned:#?}");
        prop_assert_eq!(planned.problems.len(), 0);
    }
}
