//! The published play, run by Ansible on a host: with and without the daemon, and what it says of changes.
//!
//! Not among the kernel tests, which also run in virtual machines without Python.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use world::live::{entries, write_map};
use world::*;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ansible");

/// A host with the interfaces that the inventory names for it, without a topology.
fn host(underlay: &Underlay) -> Host {
    let host = underlay.host(0);
    for name in ["eth1", "eth2"] {
        host.netns.cmd(&format!("ip link add {name} type veth peer name {name}p"));
    }
    host
}

/// Runs the play for host0.
fn play(host: &Host, more: &[&str]) -> Output {
    let home = host.files.path().join("home");
    std::fs::create_dir_all(&home).unwrap();
    let topology_dir = format!("topology_dir={}", host.topology().display());
    let (inventory, playbook) = (format!("{EXAMPLE}/inventory.yaml"), format!("{EXAMPLE}/play.yaml"));
    let mut words = vec!["ansible-playbook", "-i", &inventory, &playbook, "--connection", "local", "--limit", "host0"];
    words.extend(["-e", &topology_dir, "-e", "ansible_python_interpreter=/usr/bin/python3"]);
    words.extend(more);
    let mut command = host.netns.spawnable(&words);
    let binary = Path::new(binary()).parent().unwrap().display();
    let path = format!("{binary}:{}", std::env::var("PATH").unwrap());
    // What the daemon and `apply` of this host are told, Ansible's modules inherit.
    let plain = host.command(&[]);
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", path).env("HOME", &home).env("LC_ALL", "C.UTF-8").env("ANSIBLE_NOCOLOR", "1");
    command.env_remove("TUNNEL_MESH_NODE").output().unwrap()
}

/// What each task said, by its name: `ok`, `changed` or `fatal`.
fn said(output: &Output) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut task = String::new();
    let mut all = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("TASK [") {
            task = rest.split(']').next().unwrap().to_owned();
        }
        if let Some((word, _)) = line.split_once(": [host0]") {
            all.insert(task.clone(), word.to_owned());
        }
    }
    assert!(!all.is_empty(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    all
}

/// Plays, and expects what the two tasks say.
fn expect(host: &Host, more: &[&str], topology: &str, in_force: &str) {
    let output = play(host, more);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    let wanted =
        [("In force", in_force), ("Topology", topology)].map(|(task, said)| (task.to_owned(), said.to_owned()));
    assert_eq!(said(&output), BTreeMap::from(wanted), "{text}");
    host.expect(0, &["plan", "--detailed-exitcode"]);
}

#[test]
fn a_play_works_without_the_daemon() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    expect(&host, &[], "changed", "changed");
    assert_eq!(entries(&host, "tunkey2if").len(), 2);
    expect(&host, &[], "ok", "ok");
    // Somebody else changed the live state.
    let (key, _) = entries(&host, "tunkey2if").into_iter().next().unwrap();
    write_map(&host, "tunkey2if", "delete", &key, None);
    expect(&host, &[], "ok", "changed");
    // What doesn't validate is never put in place.
    let before = std::fs::read(host.topology().join("mesh.yaml")).unwrap();
    let output = play(&host, &["-e", "underlay_address=172.16.1.101"]);
    assert_eq!(said(&output)["Topology"], "fatal");
    assert!(String::from_utf8_lossy(&output.stdout).contains("TM0208"), "the remote is this host itself");
    assert_eq!(std::fs::read(host.topology().join("mesh.yaml")).unwrap(), before);
    // All at once: held, and the play says so by failing; allowed, it goes through.
    let other = ["-e", r#"{"wires": [{"tenant": "green", "interface": "eth3", "id": 9, "peer": "host1"}]}"#];
    let output = play(&host, &other);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said(&output)["In force"], "fatal", "{text}");
    assert!(text.contains("\"rc\": 3"), "{text}");
    assert_eq!(entries(&host, "tunkey2if").len(), 2);
    expect(&host, &[&other[..], &["-e", "allow_deletes=true"]].concat(), "ok", "changed");
    assert!(entries(&host, "tunkey2if").is_empty());
}

#[test]
fn a_play_works_beside_the_daemon() {
    let underlay = Underlay::new();
    let mut host = host(&underlay);
    host.extra_env.push(("TUNNEL_MESH_INTERVAL".into(), "86400".into()));
    host.write("mesh.yaml", "version: 1\n");
    let _daemon = host.daemon();
    // The daemon may be there first, so that nothing is left for the second task; the first one has said it.
    let output = play(&host, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(said(&output)["Topology"], "changed");
    host.expect(0, &["plan", "--detailed-exitcode"]);
    assert_eq!(entries(&host, "tunkey2if").len(), 2);
    expect(&host, &[], "ok", "ok");
    // Drift, which the daemon hasn't seen yet.
    let (key, _) = entries(&host, "tunkey2if").into_iter().next().unwrap();
    write_map(&host, "tunkey2if", "delete", &key, None);
    expect(&host, &[], "ok", "changed");
}
