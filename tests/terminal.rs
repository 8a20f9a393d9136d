//! What people see on a terminal: colours and where there are none, narrow ones, progress of long work. Every command gets
//! a terminal of its own for each of its outputs.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "terminal/pty.rs"]
mod pty;
mod world;

use pty::Terminal;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use world::*;

/// Long names, both families, an interface that is missing.
const MESH: &str = "\
version: 1
nodes: {host0: [172.16.1.100, 'fd00::100'], host1: 172.16.1.101, warehouse-storage-17: 'fd00:1111:2222:3333:4444:5555:6666:7777'}
tunnels: {vxlan0: {kind: vxlan, create: true}}
tenants:
  red: {id: 16777215, members: {host0: {interface: eth1}, host1: {interface: eth1}}}
  storage-replication:
    id: 456
    members: {host0: {interface: eth2}, warehouse-storage-17: {interface: eth2}}
  lab: {id: 7, members: {host0: {interface: eth9}, host1: {interface: eth9}}}
";

const WRONG: &str = "\
version: 1
tunnels: {vxlan0: {kind: vxlan, local: 10.0.0.1}}
mappings:
  - {tenant: red, interface: eth1, id: 16777216, remote: 10.0.0.3, tunnel: vxlan0}
  - {tenant: storage-replication, interface: eth2, id: 1, remote: 10.0.0.3, tunnel: a-tunnel-that-nobody-declared}
";

fn host(underlay: &Underlay) -> Host {
    let host = underlay.host(0);
    for name in ["eth1", "eth2"] {
        host.netns.cmd(&format!("ip link add {name} type veth peer name {name}p"));
        host.netns.cmd(&format!("ip link set {name} addrgenmode none"));
    }
    host.write("mesh.yaml", MESH);
    host
}

/// The command, of which nothing is said about colour: not in the words that it heeds. What other programs take for a
/// reason to colour, one that runs in CI above all, is there all the time.
fn command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = host.command(arguments);
    command.env_remove("NO_COLOR").env_remove("TUNNEL_MESH_COLOR").env("TERM", "xterm-256color");
    command.env("CI", "true").env("CLICOLOR", "1").env("CLICOLOR_FORCE", "1");
    command
}

/// What it writes to both of its outputs, each a terminal of that width.
fn on_terminal(mut command: Command, columns: u16) -> String {
    let (out, err) = (Terminal::new(columns, 50), Terminal::new(columns, 50));
    command.stdout(out.stdio()).stderr(err.stdio()).status().unwrap();
    drop(command);
    out.end() + &err.end()
}

/// What it writes to pipes.
fn in_pipe(mut command: Command) -> String {
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// Without colours.
fn plain(text: &str) -> String {
    let parts = text.split('\x1b').enumerate();
    let code = |part: &str| {
        let (code, rest) = part.split_once('m').unwrap_or_else(|| panic!("no colour: {part:?}"));
        assert!(code.starts_with('[') && code[1..].chars().all(|c| c.is_ascii_digit() || c == ';'), "{part:?}");
        rest.to_owned()
    };
    parts.map(|(n, part)| if n == 0 { part.to_owned() } else { code(part) }).collect()
}

/// Words in order of the alphabet.
fn words(text: &str) -> Vec<&str> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.sort_unstable();
    words
}

/// Lines that a terminal of that width would break, and could have been broken better.
fn too_long(text: &str, columns: usize) -> Vec<&str> {
    let broken = |line: &&str| line.chars().count() > columns && line.trim().contains(' ');
    text.lines().filter(broken).collect()
}

/// What is shown in colour, at a host that has the state for it: one mapping waits, one has drifted.
fn looks(host: &Host) -> Vec<Vec<String>> {
    host.netns.cmd("ip link set vxlan0 down");
    // Only words of the moment are in there.
    std::fs::remove_file(host.files.path().join("state/history.json")).unwrap();
    let snapshot = host.files.path().join("host0.json");
    std::fs::write(&snapshot, host.expect(0, &["snapshot"])).unwrap();
    let changed = host.files.path().join("changed");
    std::fs::create_dir(&changed).unwrap();
    std::fs::write(changed.join("mesh.yaml"), MESH.replace("id: 456", "id: 457").replace("eth1}", "eth3}")).unwrap();
    let wrong = host.files.path().join("wrong.yaml");
    std::fs::write(&wrong, WRONG).unwrap();
    let path = |path: &std::path::Path| path.display().to_string();
    let elsewhere = ["plan", "--live", &path(&snapshot), "--topology", &path(&changed)].map(str::to_owned);
    let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    vec![
        list(&["validate", &path(&wrong)]),
        list(&["plan"]),
        elsewhere.to_vec(),
        [&elsewhere[..], &list(&["--all-nodes"])].concat(),
        list(&["apply", "--topology", &path(&wrong)]),
        list(&["status"]),
        list(&["doctor"]),
    ]
}

#[test]
fn colour_is_for_terminals_and_never_says_anything_alone() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.apply();
    for look in looks(&host) {
        let look: Vec<&str> = look.iter().map(String::as_str).collect();
        let with = |name: &str, value: &str| {
            let mut command = command(&host, &look);
            command.env(name, value);
            command
        };
        let asked = |when: &str| command(&host, &[&["--color", when], &look[..]].concat());
        let colored = on_terminal(command(&host, &look), 100);
        assert!(colored.contains("\x1b["), "{look:?}: no colour on a terminal: {colored}");
        let text = plain(&colored);
        assert!(words(&text).len() > 10, "{look:?}: {text}");
        for (why, told) in [
            ("NO_COLOR=1", on_terminal(with("NO_COLOR", "1"), 100)),
            ("TERM=dumb", on_terminal(with("TERM", "dumb"), 100)),
            ("--color never", on_terminal(asked("never"), 100)),
            ("TUNNEL_MESH_COLOR=never", on_terminal(with("TUNNEL_MESH_COLOR", "never"), 100)),
        ] {
            assert_eq!(told, text, "{look:?}: {why}");
        }
        // An empty one says nothing.
        assert_eq!(on_terminal(with("NO_COLOR", ""), 100), colored, "{look:?}");
        let piped = in_pipe(command(&host, &look));
        assert!(!piped.contains('\x1b'), "{look:?}: {piped}");
        let insisted = in_pipe(asked("always"));
        assert!(insisted.contains("\x1b["), "{look:?}: --color always, to a pipe: {insisted}");
        assert_eq!(plain(&insisted), piped, "{look:?}");
    }
}

#[test]
fn help_and_usage_heed_the_same_words() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    for look in [&["--help"][..], &["plan", "--frobnicate"]] {
        let colored = on_terminal(command(&host, look), 100);
        assert!(colored.contains("\x1b["), "{colored}");
        for never in [&["--color", "never"][..], &["--color=never"]] {
            assert_eq!(on_terminal(command(&host, &[never, look].concat()), 100), plain(&colored));
        }
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb"), ("TUNNEL_MESH_COLOR", "never")] {
            let mut command = command(&host, look);
            command.env(name, value);
            assert_eq!(on_terminal(command, 100), plain(&colored), "{name}");
        }
        assert!(!in_pipe(command(&host, look)).contains('\x1b'));
    }
}

#[test]
fn a_narrow_terminal_loses_nothing() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.apply();
    let looks = looks(&host);
    for look in &looks[1..] {
        let look: Vec<&str> = look.iter().map(String::as_str).collect();
        if look[0] == "apply" {
            // Lines of a file with a mark below them: those are cut by who draws them.
            continue;
        }
        let piped = in_pipe(command(&host, &look));
        assert!(too_long(&piped, 80).len() > 1, "{look:?}: nothing to fold: {piped}");
        for columns in [40, 60, 80, 100] {
            let text = plain(&on_terminal(command(&host, &look), columns));
            assert_eq!(too_long(&text, columns.into()), Vec::<&str>::new(), "{look:?} at {columns}:\n{text}");
            assert_eq!(words(&text), words(&piped), "{look:?} at {columns}:\n{text}");
            // What somebody copies stays in one piece.
            let key = "{vxlan0, 16777215, 172.16.1.101}";
            assert!(!piped.contains(key) || text.contains(key), "{look:?} at {columns}:\n{text}");
        }
    }
    // Of errors the places are whole, and the lines of the file are cut around what is wrong.
    let validate: Vec<&str> = looks[0].iter().map(String::as_str).collect();
    let short = in_pipe(command(&host, &[&validate[..], &["--format", "short"]].concat()));
    let places: Vec<&str> = short.lines().map(|line| line.split_once(": ").unwrap().0).collect();
    assert_eq!(places.len(), 2, "{short}");
    for columns in [40, 60, 80] {
        let text = plain(&on_terminal(command(&host, &validate), columns));
        for part in places.iter().chain(&["16777216", "a-tunnel-that-nobody-declared", "2 errors."]) {
            assert!(text.contains(part), "{part} at {columns}:\n{text}");
        }
        let drawn: Vec<&str> = text.lines().filter(|l| l.contains(" | ")).collect();
        assert_eq!(drawn.len(), 4, "{text}");
        drawn.iter().for_each(|line| assert!(line.chars().count() <= columns.into(), "at {columns}: {line}\n{text}"));
    }
}

/// The lines of the last whole screenful, without control sequences.
fn screen(seen: &str) -> Vec<String> {
    let frames: Vec<&str> = seen.split("\x1b[H").skip(1).collect();
    let frame = frames.iter().rev().find_map(|f| f.split_once("\x1b[J")).unwrap().0;
    frame.split("\r\n").map(|line| plain(&line.replace("\x1b[K", ""))).collect()
}

#[test]
fn the_live_table_drops_columns_and_says_so() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.apply();
    let terminal = Terminal::new(200, 20);
    let mut child = command(&host, &["status", "--watch"]).stdout(terminal.stdio()).spawn().unwrap();
    terminal.await_text("MAPPING");
    let pid = Pid::from_child(&child);
    let heading = |lines: &[String]| lines.iter().find(|l| l.starts_with("MAPPING")).cloned().unwrap();
    let row = |lines: &[String]| lines.iter().find(|l| l.starts_with("red/eth1")).cloned().unwrap();
    let wide = screen(&terminal.seen());
    assert!(!heading(&wide).contains('…') && row(&wide).contains("{vxlan0, 16777215, 172.16.1.101}"), "{wide:#?}");
    assert!(heading(&wide).contains("LANE") && row(&wide).contains("  fast  "), "{wide:#?}");
    for columns in [80, 60, 40, 20] {
        terminal.resize(columns, 20);
        kill_process(pid, Signal::WINCH).unwrap();
        let fits = |lines: &[String]| lines.iter().all(|l| l.chars().count() <= columns.into());
        eventually("the table fits", || {
            fits(&screen(&terminal.seen())) && heading(&screen(&terminal.seen())).ends_with('…')
        });
        let lines = screen(&terminal.seen());
        assert_eq!(heading(&lines).contains("STATE"), columns > 20, "{lines:#?}");
        assert_eq!(heading(&lines).contains("LANE"), columns == 80, "{lines:#?}");
        assert!(row(&lines).starts_with("red/eth1"), "{lines:#?}");
    }
    assert!(terminal.seen().contains("\x1b[33m"), "what waits has a colour");
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(terminal.end().ends_with("\x1b[?25h\x1b[?1049l"));
}

#[test]
fn the_live_table_without_colour_and_on_a_dumb_terminal() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    host.apply();
    let until = |mut command: Command, text: &str| {
        let terminal = Terminal::new(100, 20);
        let mut child = command.stdout(terminal.stdio()).spawn().unwrap();
        drop(command);
        terminal.await_text(text);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        terminal.end()
    };
    let mut bare = command(&host, &["status", "--watch"]);
    bare.env("NO_COLOR", "1");
    let seen = until(bare, "storage-replication/eth2");
    let colour = |part: &str| part.trim_start_matches(|c: char| "[;0123456789".contains(c)).starts_with('m');
    assert!(seen.contains("\x1b[H") && !seen.split('\x1b').skip(1).any(colour), "{seen:?}");
    let mut dumb = command(&host, &["status", "--watch"]);
    dumb.env("TERM", "dumb");
    let seen = until(dumb, "attachments");
    assert!(!seen.contains('\x1b') && seen.contains("storage-replication/eth2"), "{seen:?}");
}

/// Takes the line away.
const CLEAR: &str = "\r\x1b[K";

#[test]
fn waiting_for_the_daemon_is_told_on_a_terminal_and_the_line_goes_away() {
    let underlay = Underlay::new();
    let host = host(&underlay);
    let run = host.files.path().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let daemon = std::os::unix::net::UnixListener::bind(run.join("control.sock")).unwrap();
    let answer = |mut stream: std::os::unix::net::UnixStream| {
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        stream.write_all(b"{\"error\": \"no\"}\n").unwrap();
    };
    for columns in [80, 20] {
        let terminal = Terminal::new(columns, 20);
        let mut child = command(&host, &["apply"]).stderr(terminal.stdio()).stdout(Stdio::null()).spawn().unwrap();
        let (stream, _) = daemon.accept().unwrap();
        // A daemon that takes its time: until the line is there.
        terminal.await_text("waiting for the da");
        answer(stream);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        let seen = terminal.end();
        let (progress, rest) = seen.rsplit_once(CLEAR).unwrap();
        assert_eq!(rest, "error: the daemon failed: no\n", "{seen:?}");
        for line in progress.split(CLEAR) {
            assert!(line.chars().count() < columns.into() && !line.contains('\n'), "{line:?} at {columns}");
        }
    }
    // Nothing of it for a pipe, a quiet user, or a terminal that can't take lines away.
    let mut dumb = command(&host, &["apply"]);
    dumb.env("TERM", "dumb");
    for mut command in [command(&host, &["apply", "--quiet"]), dumb] {
        let terminal = Terminal::new(80, 20);
        let mut child = command.stderr(terminal.stdio()).stdout(Stdio::null()).spawn().unwrap();
        drop(command);
        let (stream, _) = daemon.accept().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(900));
        answer(stream);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(terminal.end(), "error: the daemon failed: no\n");
    }
}

/// A switch of the whole machine, left as it was found: without it a first attach takes as long as elsewhere.
struct Unhurried(String);

impl Unhurried {
    const SWITCH: &str = "/sys/kernel/rcu_expedited";

    fn new() -> Self {
        let old = std::fs::read_to_string(Self::SWITCH).unwrap();
        std::fs::write(Self::SWITCH, "0").unwrap();
        Self(old)
    }
}

impl Drop for Unhurried {
    fn drop(&mut self) {
        drop(std::fs::write(Self::SWITCH, self.0.trim()));
    }
}

#[test]
fn a_long_apply_tells_how_far_it_is_and_leaves_no_trace_of_it() {
    const COUNT: u32 = 400;
    let _unhurried = Unhurried::new();
    let underlay = Underlay::new();
    let host = underlay.host(0);
    let batch = host.files.path().join("links");
    std::fs::write(&batch, (0..COUNT).map(|n| format!("link add i{n} type ifb\n")).collect::<String>()).unwrap();
    host.netns.cmd(&format!("ip -batch {}", batch.display()));
    let mappings = (0..COUNT).map(|n| format!("  - {{interface: i{n}, id: {}, remote: 172.16.1.101}}\n", n + 1));
    host.write(
        "a.yaml",
        &format!(
            "version: 1\ntunnels: {{vx0: {{kind: vxlan, create: true, local: 172.16.1.100}}}}\nmappings:\n{}",
            mappings.collect::<String>()
        ),
    );
    let (out, err) = (Terminal::new(80, 20), Terminal::new(80, 20));
    let mut apply = command(&host, &["apply"]);
    assert!(apply.stdout(out.stdio()).stderr(err.stdio()).status().unwrap().success());
    drop(apply);
    let (out, err) = (plain(&out.end()), err.end());
    assert!(out.ends_with("operations.\n") && out.contains("Applied: "), "{out}");
    let lines: Vec<&str> = err.split(CLEAR).collect();
    let (first, last, told) = (lines[0], lines[lines.len() - 1], &lines[1..lines.len() - 1]);
    assert!(first.is_empty() && last.is_empty() && !told.is_empty(), "{err:?}");
    assert!(told.iter().all(|line| !line.contains('\n') && line.ends_with(" s)")), "{err:?}");
    let numbers = |line: &&str| {
        let (done, of) = line.split_once(" of ")?;
        Some((done.rsplit(' ').next()?.parse::<u32>().ok()?, of.split(' ').next()?.parse::<u32>().ok()?))
    };
    let numbers: Vec<_> = told.iter().filter_map(numbers).collect();
    assert!(numbers.iter().all(|(done, of)| done <= of && *of > COUNT) && numbers.is_sorted(), "{numbers:?}");
    assert!(numbers.last().unwrap().0 > numbers[0].0, "{numbers:?}");

    host.expect(0, &["down"]);
    let output = host.run(&["apply"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
