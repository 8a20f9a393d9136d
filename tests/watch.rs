//! `status --watch` on a terminal, made by script(1), and elsewhere. Not part of the runs on other kernels: the table is
//! the same on all of them, and their machine has no script(1).

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use world::*;

const THREE: &str = "\
version: 1
tunnels: {vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}}
mappings:
  - {tenant: red, interface: eth1, id: 123, remote: 172.16.1.101}
  - {tenant: blue, interface: eth2, id: 456, remote: 172.16.1.102}
  - {tenant: green, interface: eth3, id: 457, remote: 172.16.1.102}
";

fn host(underlay: &Underlay) -> Host {
    let host = underlay.host(0);
    host.netns.cmd("ip link add eth1 type veth peer name eth1p");
    host.write("a.yaml", THREE);
    host.apply();
    host
}

/// What a terminal of that size gets until SIGINT, which comes once the table is there; and the exit code.
fn on_terminal(host: &Host, columns: u32, lines: u32) -> (String, Option<i32>) {
    let file = host.files.path().join(format!("typescript-{columns}"));
    let inner = host.command(&["status", "--watch"]);
    let words: Vec<String> = inner.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let command = format!("stty cols {columns} rows {lines}; exec nsenter {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-f", "-c", &command]).arg(&file);
    script.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = script.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let shown = || String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
    eventually("the table", || shown().contains("MAPPING") && shown().contains("blue/eth2"));
    // The shell has become the command, the only child of script(1).
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let pid = rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let code = child.wait().unwrap().code();
    (shown(), code)
}

/// The lines of the first screenful, without control sequences.
fn screen(shown: &str) -> Vec<String> {
    let first = shown.split("\x1b[H").nth(1).unwrap();
    let first = first.split("\x1b[J").next().unwrap();
    first.split('\n').map(|line| line.replace("\x1b[K", "").trim_end_matches('\r').to_owned()).collect()
}

#[test]
fn the_table_fits_its_terminal_and_leaves_it_as_it_was() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let (wide, code) = on_terminal(&host, 120, 20);
    assert_eq!(code, Some(0), "{wide:?}");
    assert!(
        wide.contains("\x1b[?1049h") && wide.contains("\x1b[?25h\x1b[?1049l"),
        "the terminal isn't restored: {wide:?}"
    );
    let lines = screen(&wide);
    assert!(lines.iter().any(|l| l.contains("KEY")) && lines.iter().all(|l| l.chars().count() <= 120), "{lines:#?}");
    // What needs a look comes first: eth2 doesn't exist.
    let place = |what: &str| lines.iter().position(|l| l.contains(what)).unwrap();
    assert!(place("blue/eth2") < place("red/eth1") && lines[place("blue/eth2")].contains("pending"), "{lines:#?}");

    let (narrow, code) = on_terminal(&host, 30, 20);
    assert_eq!(code, Some(0));
    let lines = screen(&narrow);
    assert!(lines.iter().all(|l| l.chars().count() <= 30), "{lines:#?}");
    assert!(lines.iter().any(|l| l.contains("STATE")) && !lines.iter().any(|l| l.contains("KEY")), "{lines:#?}");
    // Too low for all: the rest is counted.
    let lines = screen(&on_terminal(&host, 80, 4).0);
    assert!(lines.len() <= 4 && lines.last().unwrap().contains("and 2 more"), "{lines:#?}");
}

#[test]
fn elsewhere_it_goes_on_until_nobody_reads_or_a_signal_comes() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let mut child = host.command(&["status", "--watch", "--format", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let status: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(status["mappings"].as_array().unwrap().len(), 3);
    }
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "a closed pipe: {}", String::from_utf8_lossy(&output.stderr));

    let mut child = host.command(&["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains("red/eth1")));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
