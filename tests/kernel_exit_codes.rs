//! Exit codes and streams of every command, as a table: data on stdout, everything else on stderr, no panic when nobody
//! reads, no colour where no terminal is. Scripts rely on this; a row changes only when the contract does.
//!
//! A new command needs rows of its own, or the test fails: add them below, under what the host is like by then.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use rustix::fs::{FlockOperation, Mode, OFlags};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use world::*;

/// What a stream must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Nothing at all.
    Nothing,
    /// Something that a person reads.
    Text,
    /// One JSON document.
    Json,
    /// Text with that in it.
    Says(&'static str),
}
use Stream::{Json, Nothing, Says, Text};

/// Arguments, exit code, stdout, stderr.
type Row = (&'static str, i32, Stream, Stream);

/// Wrong usage, and what is asked of the command line itself: nothing else matters.
const ANYWHERE: &[Row] = &[
    ("", 64, Nothing, Says("Usage")),
    ("frobnicate", 64, Nothing, Says("unrecognized subcommand")),
    ("--frobnicate plan", 64, Nothing, Says("unexpected argument")),
    ("--color blue plan", 64, Nothing, Says("[possible values: auto, always, never]")),
    ("-v -q plan", 64, Nothing, Says("cannot be used with")),
    ("--help", 0, Says("Usage"), Nothing),
    ("-h", 0, Says("Usage"), Nothing),
    ("--version", 0, Says("tunnel-mesh "), Nothing),
    ("run --interval 0", 64, Nothing, Says("--interval")),
    ("plan --format xml", 64, Nothing, Says("--format")),
    ("plan surplus", 64, Nothing, Says("surplus")),
    ("plan --host host1", 64, Nothing, Says("NAME=DIR")),
    ("plan --out x --all-nodes", 64, Nothing, Says("cannot be used with")),
    ("apply --plan x --allow-deletes", 64, Nothing, Says("cannot be used with")),
    ("snapshot --format xml", 64, Nothing, Says("[possible values: json, yaml]")),
    ("apply --format xml", 64, Nothing, Says("--format")),
    ("validate --format xml", 64, Nothing, Says("[possible values: ")),
    ("status --revision abc", 64, Nothing, Says("--wait")),
    ("status --timeout soon --wait", 64, Nothing, Says("soon")),
    ("doctor --format xml", 64, Nothing, Says("--format")),
    ("graph --format png", 64, Nothing, Says("[possible values: mermaid, dot, svg]")),
    ("schema surplus", 64, Nothing, Says("surplus")),
    ("completions tcsh", 64, Nothing, Says("[possible values: bash")),
    ("completions", 64, Nothing, Says("SHELL")),
    ("man frobnicate", 64, Nothing, Says("no such command")),
    ("schema", 0, Json, Nothing),
    ("completions bash", 0, Text, Nothing),
    ("man", 0, Text, Nothing),
    ("man plan", 0, Text, Nothing),
    ("down surplus", 64, Nothing, Says("surplus")),
];

/// A topology that wasn't applied yet.
const FRESH: &[Row] = &[
    ("validate", 0, Says("valid"), Nothing),
    ("validate --format json", 0, Json, Nothing),
    ("validate --format short", 0, Nothing, Nothing),
    ("validate --format github", 0, Nothing, Nothing),
    ("graph", 0, Says("flowchart"), Nothing),
    ("graph --format dot", 0, Says("graph"), Nothing),
    ("graph --format svg", 0, Says("<svg"), Nothing),
    ("status", 0, Text, Nothing),
    ("status --format json", 0, Json, Nothing),
    ("status --wait --timeout 0", 6, Text, Nothing),
    ("status --wait --timeout 0 --format json", 6, Json, Nothing),
    ("down", 0, Says("Nothing to remove"), Nothing),
    ("plan", 0, Says("to create"), Nothing),
    ("plan --format json", 0, Json, Nothing),
    ("plan --detailed-exitcode", 2, Says("to create"), Nothing),
    ("plan --detailed-exitcode --format json", 2, Json, Nothing),
    ("plan --detailed-exitcode --format markdown", 2, Says("tunnel-mesh plan"), Nothing),
    ("plan --detailed-exitcode --format diff", 2, Says("+++ desired"), Nothing),
    ("plan --live /nowhere", 1, Nothing, Says("/nowhere")),
    ("plan --live /dev/null", 1, Nothing, Says("not a snapshot")),
    ("apply --plan /dev/null", 1, Nothing, Says("not a saved plan")),
    ("plan --all-nodes", 1, Nothing, Says("declares no nodes")),
    ("snapshot", 0, Json, Nothing),
];

/// Applied, and nothing else to do.
const APPLIED: &[Row] = &[
    ("apply", 0, Says("No changes."), Nothing),
    ("apply --format json", 0, Json, Nothing),
    ("plan", 0, Says("No changes."), Nothing),
    ("plan --detailed-exitcode", 0, Says("No changes."), Nothing),
    ("plan --format diff", 0, Nothing, Nothing),
    ("snapshot", 0, Json, Nothing),
    ("snapshot --format yaml", 0, Says("mappings:"), Nothing),
    ("status", 0, Says("active"), Nothing),
    ("doctor", 0, Says("0 errors"), Nothing),
    ("doctor --format json", 0, Json, Nothing),
    ("status --wait --timeout 0", 0, Says("in force"), Nothing),
    ("status --wait --timeout 0 --revision 0000000000000000", 6, Text, Nothing),
];

/// The same with a daemon that answers.
const DAEMON: &[Row] = &[
    ("apply", 0, Says("No changes."), Nothing),
    ("apply --format json", 0, Json, Nothing),
    ("plan", 0, Says("No changes."), Nothing),
    ("status", 0, Says("running"), Nothing),
    ("status --wait --timeout 0", 0, Says("in force"), Nothing),
    ("run", 5, Nothing, Says("another tunnel-mesh")),
];

/// Files that would delete everything.
const REMOVED: &[Row] = &[
    ("validate", 0, Text, Nothing),
    ("plan", 3, Says("Held"), Nothing),
    ("plan --format json", 3, Json, Nothing),
    ("apply", 3, Says("Held"), Nothing),
    ("apply --format json", 3, Json, Nothing),
    ("status", 0, Says("held"), Nothing),
];

/// Files with an error in them.
const INVALID: &[Row] = &[
    ("validate", 78, Says("error[TM0204]"), Nothing),
    ("validate --format json", 78, Json, Nothing),
    ("validate --format short", 78, Says("error[TM0204]"), Nothing),
    ("validate --format github", 78, Says("::error"), Nothing),
    ("validate nowhere", 78, Says("error[TM0006]"), Nothing),
    ("validate nowhere --format json", 78, Json, Nothing),
    ("plan", 78, Nothing, Says("error[TM0204]")),
    ("plan --format json", 78, Nothing, Says("error[TM0204]")),
    ("apply", 78, Nothing, Says("error[TM0204]")),
    ("apply --format json", 78, Nothing, Says("error[TM0204]")),
    ("graph", 78, Nothing, Says("error[TM0204]")),
    ("doctor", 1, Says("1 error"), Nothing),
    ("doctor --format json", 1, Json, Nothing),
    ("status", 0, Text, Nothing),
];

/// A tunnel device of somebody else's in the way.
const OBSTRUCTED: &[Row] = &[
    ("plan", 0, Says("collect-metadata"), Nothing),
    ("apply", 4, Says("collect-metadata"), Says("error: vxlan0")),
    ("apply --format json", 4, Json, Says("error: vxlan0")),
    ("status", 0, Says("collect-metadata"), Nothing),
];

/// Somebody else writes.
const LOCKED: &[Row] = &[
    ("apply", 5, Nothing, Says("another tunnel-mesh")),
    ("run", 5, Nothing, Says("another tunnel-mesh")),
    ("down", 5, Nothing, Says("another tunnel-mesh")),
    ("plan", 0, Text, Nothing),
    ("status", 0, Text, Nothing),
];

/// Without privileges.
const BARE: &[Row] = &[
    ("graph", 0, Says("flowchart"), Says("note: without the state")),
    ("graph --declared", 0, Says("flowchart"), Nothing),
    ("validate", 0, Text, Nothing),
    ("plan", 77, Nothing, Says("CAP_NET_ADMIN")),
    ("apply", 77, Nothing, Says("CAP_NET_ADMIN")),
    ("run", 77, Nothing, Says("CAP_NET_ADMIN")),
    ("status", 77, Nothing, Says("CAP_NET_ADMIN")),
    ("down", 77, Nothing, Says("CAP_NET_ADMIN")),
    ("snapshot", 77, Nothing, Says("CAP_NET_ADMIN")),
];

/// Nothing of it is left.
const DOWN: &[Row] = &[
    ("down", 0, Says("Nothing to remove"), Nothing),
    ("--pin-dir /proc/self apply", 1, Nothing, Says("mount -t bpf")),
];

const ALL: [&[Row]; 10] = [ANYWHERE, FRESH, APPLIED, DAEMON, REMOVED, INVALID, OBSTRUCTED, LOCKED, BARE, DOWN];

#[test]
fn every_command_and_every_code_is_in_the_table() {
    let help = Command::new(binary()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1).take_while(|l| !l.is_empty());
    let commands: BTreeSet<&str> = commands
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert!(commands.len() >= 6, "{help}");
    let rows = || ALL.into_iter().flatten();
    for command in &commands {
        let of =
            |wanted: fn(i32) -> bool| rows().any(|(a, code, ..)| a.split(' ').any(|w| w == *command) && wanted(*code));
        assert!(of(|code| code == 64), "no row in which `{command}` is used wrongly");
        assert!(of(|code| code != 64), "no row in which `{command}` does something");
    }
    let codes: BTreeSet<i32> = rows().map(|row| row.1).collect();
    assert_eq!(codes, BTreeSet::from([0, 1, 2, 3, 4, 5, 6, 64, 77, 78]), "the contract's codes");
}

/// A host with the interfaces that the topology names.
fn host(underlay: &Underlay, n: u32) -> Host {
    let host = underlay.host(n);
    for name in ["eth1", "eth2"] {
        host.netns.cmd(&format!("ip link add {name} type veth peer name {name}p"));
    }
    host.write("a.yaml", TWO);
    host
}

#[test]
fn exit_codes_and_streams_are_those_of_the_table() {
    let underlay = Underlay::new();
    let host = host(&underlay, 0);
    let run = |rows: &[Row]| rows.iter().for_each(|row| check(row, |arguments| host.command(arguments)));
    run(ANYWHERE);
    run(FRESH);
    assert!(!host.pins.exists(), "something was made by commands that only look");
    run(&[("apply", 0, Says("Applied"), Nothing)]);
    run(APPLIED);
    {
        let daemon = host.daemon();
        run(DAEMON);
        assert_eq!(daemon.stop(), Some(0), "a daemon that is asked to end has done its work");
    }
    host.write("a.yaml", &TWO[..TWO.find("mappings:").unwrap()]);
    run(REMOVED);
    host.write("a.yaml", &TWO.replace("id: 456", "id: 16777216"));
    run(INVALID);
    host.write("a.yaml", TWO);
    {
        let lock = rustix::fs::open(&host.pins, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        run(LOCKED);
    }
    BARE.iter().for_each(|row| check(row, |arguments| bare(&host, arguments)));
    host.expect(0, &["apply", "--allow-deletes"]);
    assert!(host.expect(0, &["down"]).contains("Everything was removed"));
    run(DOWN);
}

#[test]
fn what_cannot_be_applied_wholly_is_told() {
    let underlay = Underlay::new();
    let host = host(&underlay, 0);
    host.netns.cmd("ip link add vxlan0 type vxlan id 5 dstport 4789 local 172.16.1.100");
    OBSTRUCTED.iter().for_each(|row| check(row, |arguments| host.command(arguments)));
}

/// A command without capabilities.
fn bare(host: &Host, arguments: &[&str]) -> Command {
    let command = host.command(arguments);
    let mut words = vec!["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let inner: Vec<String> = command.get_args().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    words.extend(inner.iter().map(String::as_str));
    let mut wrapped = host.netns.spawnable(&words);
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    wrapped
}

/// Runs a row: as it is, and once more where nobody reads what it writes.
fn check(row: &Row, command: impl Fn(&[&str]) -> Command) {
    let &(arguments, code, out, err) = row;
    let words: Vec<&str> = arguments.split_whitespace().collect();
    // Not a terminal: nothing is coloured, though nobody says NO_COLOR.
    let output = command(&words).env_remove("NO_COLOR").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let told = format!("`tunnel-mesh {arguments}`\n--- stdout\n{stdout}--- stderr\n{stderr}");
    assert_eq!(output.status.code(), Some(code), "{told}");
    holds(out, &stdout, &told);
    holds(err, &stderr, &told);
    assert!(!stdout.contains('\x1b') && !stderr.contains('\x1b'), "colour: {told}");

    let mut child = command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(code), "with nobody reading: {told}");
}

fn holds(wanted: Stream, found: &str, told: &str) {
    let right = match wanted {
        Nothing => found.is_empty(),
        Text => !found.trim().is_empty(),
        Json => serde_json::from_str::<serde_json::Value>(found).is_ok(),
        Says(part) => found.contains(part),
    };
    assert!(right, "not {wanted:?}: {told}");
    assert!(found.is_empty() || found.ends_with('\n'), "no end of line: {told}");
}
