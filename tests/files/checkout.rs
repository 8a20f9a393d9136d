//! Checkouts: 2,000 files by git, and as slowly as over a bad line.

use crate::site::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Files of a checkout; on emulated machines fewer.
fn count() -> u32 {
    if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { 200 } else { 2000 }
}

/// A file for an interface, whether the host has it or not.
fn file_of(n: u32, comment: &str) -> String {
    format!("# {comment}\n{}", text([n]))
}

fn git_in(directory: &Path, words: &[&str]) {
    let mut command = Command::new("git");
    command.current_dir(directory).args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0"]);
    // Nothing of the machine's own settings.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null").env("HOME", directory);
    let output = command.args(words).output().unwrap();
    assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn git() {
    let site = Site::new();
    let worktree = site.host.topology().to_owned();
    git_in(&worktree, &["init", "-q", "-b", "one"]);
    fs::write(worktree.join("tunnel.yaml"), TUNNEL).unwrap();
    let directory = worktree.join("mappings");
    fs::create_dir(&directory).unwrap();
    let commit = |name: &str, mappings: &dyn Fn(u32) -> bool| {
        for n in 0..count() {
            let file = directory.join(format!("m{n}.yaml"));
            if mappings(n) {
                fs::write(file, file_of(n, name)).unwrap();
            } else {
                drop(fs::remove_file(file));
            }
        }
        git_in(&worktree, &["add", "-A"]);
        git_in(&worktree, &["commit", "-q", "-m", name]);
    };
    // Every file differs; one has not 3 and 7, two has not 5 and 8.
    let (one, two) = (|n: u32| n != 3 && n != 7, |n: u32| n != 5 && n != 8);
    commit("one", &one);
    git_in(&worktree, &["checkout", "-q", "-b", "two"]);
    commit("two", &two);
    git_in(&worktree, &["checkout", "-q", "one"]);
    let of = |which: &dyn Fn(u32) -> bool| (0..INTERFACES).filter(|n| which(*n)).collect::<Vec<_>>();
    let both: Vec<u32> = (0..INTERFACES).filter(|n| one(*n) && two(*n)).collect();
    let daemon = site.host.daemon();
    site.becomes("one", of(&one));

    for (branch, before, after) in [("two", of(&one), of(&two)), ("one", of(&two), of(&one))] {
        site.never_without(branch, both.clone(), || {
            let start = Instant::now();
            git_in(&worktree, &["checkout", "-q", branch]);
            eprintln!("git took {:?}", start.elapsed());
            site.follows(&format!("checkout of {branch}"), before.clone(), after.clone());
        });
        let mappings = site.host.status()["mappings"].as_array().unwrap().len();
        assert_eq!(mappings as u32, count() - 2);
    }
    // A lock that an aborted git left behind holds nothing up for good.
    fs::write(worktree.join(".git/index.lock"), "").unwrap();
    fs::remove_file(directory.join("m0.yaml")).unwrap();
    // The daemon does everything else meanwhile.
    let asked = Instant::now();
    site.host.status();
    eprintln!("status beside a lock of git: {:?}", asked.elapsed());
    let mut without: BTreeSet<u32> = of(&one).into_iter().collect();
    assert!(without.remove(&0));
    site.becomes("a lock left behind", without);
    assert_eq!(daemon.stop(), Some(0));
}

/// Sleeps as long as it takes to be that far.
fn pace(start: Instant, whole: Duration, part: u32, of: u32) {
    let due = start + whole * part / of;
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
}

/// 2,000 files over 10 s. Some mappings move to files that come much later than their old ones went: fewer than the
/// deletion guard would hold, so that only the delay of removals keeps them.
pub fn slow() {
    let site = Site::new();
    let directory = site.host.topology().to_owned();
    fs::write(directory.join("tunnel.yaml"), TUNNEL).unwrap();
    for n in 0..count() {
        fs::write(directory.join(format!("m{n}.yaml")), file_of(n, "one")).unwrap();
    }
    let daemon = site.host.daemon();
    let all: Vec<u32> = (0..INTERFACES).collect();
    site.becomes("one", all.clone());
    let over = Duration::from_secs(10);
    let moved = [1, 2, 3, 4, 5];
    site.never_without("a slow checkout", all.clone(), || {
        let start = Instant::now();
        for n in 0..count() {
            // As git does it: the old file goes before the new one is written.
            let file = directory.join(format!("m{n}.yaml"));
            fs::remove_file(&file).unwrap();
            pace(start, over, n, count());
            if !moved.contains(&n) {
                fs::write(&file, file_of(n, "two")).unwrap();
            }
        }
        for n in moved {
            fs::write(directory.join(format!("z{n}.yaml")), file_of(n, "two")).unwrap();
        }
        eprintln!("the checkout took {:?}", start.elapsed());
        // Long enough for whatever was still to be confirmed.
        let passes = || site.host.status()["daemon"]["passes"].as_u64().unwrap();
        let seen = passes();
        std::thread::sleep(Duration::from_secs(3));
        eprintln!("passes: {seen}, then {}", passes());
        site.host.wait_in_force();
    });
    site.becomes("two", all.clone());
    // And everything deleted first, then written again as slowly.
    site.never_without("from nothing", all.clone(), || {
        let start = Instant::now();
        for entry in fs::read_dir(&directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        fs::write(directory.join("tunnel.yaml"), TUNNEL).unwrap();
        for n in 0..count() {
            pace(start, over / 2, n, count());
            fs::write(directory.join(format!("m{n}.yaml")), file_of(n, "three")).unwrap();
        }
        site.host.wait_in_force();
    });
    assert_eq!(site.host.status()["mappings"].as_array().unwrap().len() as u32, count());
    assert_eq!(daemon.stop(), Some(0));
}
