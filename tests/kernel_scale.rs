//! Many interfaces: first attaches that take long, `rcu_expedited` and its journal, ten thousand mappings.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use world::*;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The switch is the whole machine's: one test at a time, and it is left as it was found.
struct Switch {
    old: String,
    _turn: MutexGuard<'static, ()>,
}

impl Switch {
    fn off() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = Self { old: Self::value(), _turn: turn };
        std::fs::write(SWITCH, "0").unwrap();
        switch
    }

    fn value() -> String {
        std::fs::read_to_string(SWITCH).unwrap().trim().to_owned()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(std::fs::write(SWITCH, &self.old));
    }
}

/// A host with that many ifb devices, mapped by files of ten.
fn host(underlay: &Underlay, count: u64) -> Host {
    let host = underlay.host(0);
    let batch = host.files.path().join("links");
    std::fs::write(&batch, (0..count).map(|n| format!("link add i{n} type ifb\n")).collect::<String>()).unwrap();
    host.netns.cmd(&format!("ip -batch {}", batch.display()));
    host.write("tunnel.yaml", "version: 1\ntunnels: {vx0: {kind: vxlan, create: true, local: 172.16.1.100}}\n");
    for file in 0..count.div_ceil(10) {
        let mut text = String::from("version: 1\nmappings:\n");
        for n in file * 10..(file * 10 + 10).min(count) {
            text.push_str(&format!("  - {{tenant: t, interface: i{n}, id: {}, remote: 172.16.1.101}}\n", n + 1));
        }
        host.write(&format!("m{file}.yaml"), &text);
    }
    host
}

fn journal(host: &Host) -> PathBuf {
    host.files.path().join("state/rcu_expedited")
}

/// Attachments that the daemon sees; the tunnel's own is one of them.
fn attached(host: &Host) -> u64 {
    host.status()["attachments"].as_array().unwrap().len() as u64
}

fn slow() -> bool {
    std::env::var_os("TUNNEL_MESH_SLOW").is_some()
}

/// Waits until the daemon is at its first attaches, and answers with how many are done.
fn await_attaching(host: &Host, count: u64) -> u64 {
    let mut seen = 0;
    eventually("the daemon answers while it attaches", || {
        if !host.files.path().join("run/control.sock").exists() {
            return false;
        }
        let asked = Instant::now();
        seen = attached(host);
        assert!(asked.elapsed() < PATIENCE / 10, "the answer took {:?}", asked.elapsed());
        seen > 0
    });
    assert!(seen <= count, "{seen} are attached already: nothing of {count} was left to be answered meanwhile");
    seen
}

#[test]
fn status_and_signals_are_answered_during_a_long_first_attach() {
    let _switch = Switch::off();
    let underlay = Underlay::new();
    let count = if slow() { 600 } else { 400 };
    let host = host(&underlay, count);
    let daemon = host.daemon_unready();
    await_attaching(&host, count);
    // It ends within a few attaches, not after all of them.
    assert_eq!(daemon.stop(), Some(0));
    let before = attached(&host);
    assert!(before <= count, "all were attached before the signal counted");
    // The next one goes on from there.
    let daemon = host.daemon();
    assert_eq!(attached(&host), count + 2);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn down_gives_up_a_long_first_attach_and_leaves_nothing() {
    let _switch = Switch::off();
    let underlay = Underlay::new();
    let count = if slow() { 600 } else { 300 };
    let host = host(&underlay, count);
    let _daemon = host.daemon_unready();
    await_attaching(&host, count);
    host.expect(0, &["down"]);
    assert!(!host.pin("links").exists() && !host.pin("conf").exists());
}

#[test]
fn rcu_expedited_is_restored_at_the_end_and_after_a_kill() {
    let _switch = Switch::off();
    let underlay = Underlay::new();
    let host = host(&underlay, if slow() { 60 } else { 2000 });
    // Somebody else may have it on for a moment, and then it is theirs: so more than one attempt.
    let caught = (0..10).any(|_| {
        std::fs::write(SWITCH, "0").unwrap();
        let mut expedited = host.command(&["run", "--rcu-expedited"]).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !(journal(&host).exists() && Switch::value() == "1") && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
        expedited.kill().unwrap();
        expedited.wait().unwrap();
        let caught = journal(&host).exists();
        if !caught {
            host.expect(0, &["down"]);
        }
        caught
    });
    assert!(caught, "the daemon was never seen with {SWITCH} on");
    assert_eq!(std::fs::read_to_string(journal(&host)).unwrap().trim(), "0");

    // The next start restores it, asked for or not.
    std::fs::write(SWITCH, "1").unwrap();
    let daemon = host.daemon_unready();
    eventually("the journal is gone", || !journal(&host).exists());
    eventually("the switch is restored", || Switch::value() == "0");
    daemon.signal(Signal::TERM);
    drop(daemon);

    for command in ["apply", "down"] {
        host.expect(0, &[command, "--rcu-expedited"]);
        assert!(!journal(&host).exists());
        eventually("the switch is restored", || Switch::value() == "0");
    }
}

#[test]
fn ten_thousand_mappings_in_a_thousand_files_converge() {
    let _switch = Switch::off();
    let underlay = Underlay::new();
    // A clsact is looked for link by link: 10,000 of them take minutes.
    let count = scaled(if clsact() { 1000 } else { 10_000 });
    let host = host(&underlay, count);
    host.expect(0, &["apply", "--rcu-expedited"]);
    let plan: serde_json::Value = serde_json::from_str(&host.expect(0, &["plan", "--format", "json"])).unwrap();
    assert_eq!(plan["operations"].as_array().unwrap().len(), 0, "{:#}", plan["operations"][0]);
    assert_eq!(attached(&host), count + 2);
    assert_eq!(host.dump("if2tunkey").as_array().unwrap().len() as u64, count);

    // One changed file changes one mapping, and nothing else is written.
    let daemon = host.daemon();
    let before = host.status()["daemon"]["operations"].as_u64().unwrap();
    let changed = "version: 1\nmappings:\n  - {tenant: t, interface: i0, id: 99999, remote: 172.16.1.101}\n";
    let file = std::fs::read_to_string(host.topology().join("m0.yaml")).unwrap();
    let rest: String = file.lines().skip(3).map(|line| format!("{line}\n")).collect();
    host.write("m0.yaml", &format!("{changed}{rest}"));
    eventually("the change is in force", || {
        host.mapping("t/i0")["id"] == 99999 && host.mapping("t/i0")["state"] == "active"
    });
    let operations = host.status()["daemon"]["operations"].as_u64().unwrap() - before;
    assert_eq!(operations, 3, "the new key, the interface, the old key");
    assert_eq!(daemon.stop(), Some(0));
    host.expect(0, &["down", "--rcu-expedited"]);
    assert_eq!(Switch::value(), "0");
}
