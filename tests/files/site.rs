//! One host with many interfaces, each to be mapped by a file of its own, and what is in force of them.

use crate::world::live::{entries, ip_batch, u32_at};
use crate::world::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Interfaces `m0`, `m1`, ... that the host has.
pub const INTERFACES: u32 = 60;

/// What a file says that has the tunnel only.
pub const TUNNEL: &str = "version: 1\ntunnels: {vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}}\n";

/// Id of the mapping of interface `m<n>`.
pub fn id(n: u32) -> u32 {
    1000 + n
}

fn line(n: u32) -> String {
    format!("- {{tenant: many, interface: m{n}, id: {}, remote: 172.16.1.101}}\n", id(n))
}

/// A file with these mappings.
pub fn text(mappings: impl IntoIterator<Item = u32>) -> String {
    let lines: String = mappings.into_iter().map(line).collect();
    if lines.is_empty() { "version: 1\n".to_owned() } else { format!("version: 1\nmappings:\n{lines}") }
}

/// A file with the tunnel and these mappings.
pub fn whole(mappings: impl IntoIterator<Item = u32>) -> String {
    TUNNEL.to_owned() + text(mappings).strip_prefix("version: 1\n").unwrap()
}

pub struct Site {
    pub host: Host,
    /// When all of the last change was in force: before the next one was made.
    settled: Mutex<Instant>,
    _underlay: Underlay,
}

impl Site {
    pub fn new() -> Self {
        let underlay = Underlay::new();
        let mut host = underlay.host(0);
        let pairs = (0..INTERFACES).step_by(2);
        let links: String = pairs.map(|n| format!("link add m{n} up type veth peer name m{}\n", n + 1)).collect();
        ip_batch(&host.netns, &links);
        host.extra_env.push(("TUNNEL_MESH_INTERVAL".into(), "86400".into()));
        Self { host, settled: Mutex::new(Instant::now()), _underlay: underlay }
    }

    /// What is in force now.
    pub fn live(&self) -> BTreeSet<u32> {
        entries(&self.host, "if2tunkey").values().map(|value| u32_at(value, 12) - id(0)).collect()
    }

    /// Waits until exactly these are in force, and says how long that took.
    pub fn becomes(&self, what: &str, wanted: impl IntoIterator<Item = u32>) -> Duration {
        let (start, wanted) = (Instant::now(), wanted.into_iter().collect());
        let mut live = BTreeSet::new();
        let end = start + PATIENCE;
        while live != wanted {
            assert!(Instant::now() < end, "{what}: in force is {live:?}, not {wanted:?}\n{:#}", self.host.status());
            live = self.live();
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("{what}: {:?}", start.elapsed());
        start.elapsed()
    }

    /// What came is in force soon, without what went being gone; what went goes only after a second without a change.
    pub fn follows(&self, what: &str, before: impl IntoIterator<Item = u32>, after: impl IntoIterator<Item = u32>) {
        let (before, after): (BTreeSet<u32>, BTreeSet<u32>) =
            (before.into_iter().collect(), after.into_iter().collect());
        let union = before.union(&after).copied();
        if after.is_superset(&before) {
            self.becomes(what, after);
        } else {
            if !before.is_superset(&after) {
                self.becomes(&format!("{what}: additions"), union);
            }
            self.becomes(&format!("{what}: removals"), after);
            let elapsed = self.settled.lock().unwrap().elapsed();
            assert!(elapsed > Duration::from_millis(900), "{what}: removed after {elapsed:?}");
        }
        self.host.wait_in_force();
        *self.settled.lock().unwrap() = Instant::now();
    }

    /// Does something, and watches all the time that these mappings stay in force.
    pub fn never_without<T>(&self, what: &str, keep: impl IntoIterator<Item = u32>, act: impl FnOnce() -> T) -> T {
        let keep: BTreeSet<u32> = keep.into_iter().collect();
        let (done, looks) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let live = self.live();
                    assert!(live.is_superset(&keep), "{what}: in force is only {live:?} of {keep:?}");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
            eventually("the watch begins", || looks.load(Ordering::Relaxed) > 0 || watching.is_finished());
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            done.store(true, Ordering::Relaxed);
            if let Err(panic) = watching.join() {
                std::panic::resume_unwind(panic);
            }
            eprintln!("{what}: looked {} times", looks.load(Ordering::Relaxed));
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn config_error(&self) -> String {
        self.host.status()["config_error"].as_str().unwrap_or_default().to_owned()
    }

    /// The daemon, with these files in force.
    pub fn started(&self, files: &[(&str, String)]) -> Daemon {
        for (name, text) in files {
            std::fs::write(self.host.topology().join(name), text).unwrap();
        }
        let daemon = self.host.daemon();
        *self.settled.lock().unwrap() = Instant::now();
        daemon
    }
}

/// Makes the directory and writes the files into it, plainly.
pub fn fill(directory: &Path, files: &[(&str, String)]) {
    std::fs::create_dir_all(directory).unwrap();
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
}
