//! Where inotify ends: its queue, and the numbers of its instances and watches, which are counted by user.

use crate::site::*;
use crate::world::*;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::process::Signal;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard};

/// A user that nobody else is, so that his limits are nobody else's.
const USER: u32 = 61_234;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn limit(name: &str) -> usize {
    fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).unwrap().trim().parse().unwrap()
}

pub fn overflow() {
    let site = Site::new();
    let daemon = site.started(&[("a.yaml", whole(0..3))]);
    let overflows = || site.host.status()["daemon"]["watch_overflows"].as_u64().unwrap();
    assert_eq!(overflows(), 0);
    daemon.signal(Signal::STOP);
    // Equal events in a row are one to the kernel: two names in turn are not.
    let (one, two) = (site.host.topology().join("one"), site.host.topology().join("two"));
    fs::write(&one, "").unwrap();
    for _ in 0..limit("max_queued_events") / 2 + 1000 {
        fs::rename(&one, &two).unwrap();
        fs::rename(&two, &one).unwrap();
    }
    // Said after the queue was full: nobody tells.
    fs::write(site.host.topology().join("b.yaml"), text(10..12)).unwrap();
    fs::write(site.host.topology().join("a.yaml"), whole([0, 1, 4])).unwrap();
    daemon.signal(Signal::CONT);
    site.follows("overflow", [0, 1, 2], [0, 1, 4, 10, 11]);
    eventually("the overflow is counted", || overflows() > 0);
    assert!(daemon.log().contains("inotify's queue overflowed"), "{}", daemon.log());
}

/// The daemon as that user, with the two capabilities it needs.
fn modest(site: &Site) -> Modest {
    let host = &site.host;
    user::give(host, USER);
    let mut wrapped = user::command(host, USER, &["run", "-v"]);
    let log = host.files.path().join("daemon.log");
    let child = wrapped.stderr(fs::File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
    Modest(child)
}

struct Modest(Child);

impl Drop for Modest {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The daemon finds that limit reached, says so, follows the files all the same, and watches again when it may.
fn polls(sysctl: &str, held: Vec<OwnedFd>) {
    let site = Site::new();
    let directory = site.host.topology().to_owned();
    fs::write(directory.join("a.yaml"), whole(0..3)).unwrap();
    let _daemon = modest(&site);
    site.host.wait_in_force();
    let log = || fs::read_to_string(site.host.files.path().join("daemon.log")).unwrap();
    let trouble = || site.host.status()["daemon"]["watch_error"].as_str().unwrap_or_default().to_owned();
    assert!(trouble().contains(sysctl), "{}\n{}", trouble(), log());
    assert!(site.host.expect(0, &["status"]).contains(sysctl), "{}", site.host.expect(0, &["status"]));
    let told = |log: &str| log.lines().filter(|l| l.contains("WARN") && l.contains(sysctl)).count();
    assert!(log().contains("looking every second instead"), "{}", log());

    fs::write(directory.join("b.yaml"), text(10..13)).unwrap();
    site.follows("polling: a new file", 0..3, [0, 1, 2, 10, 11, 12]);
    write_atomically(&directory.join("a.yaml"), &whole([0, 1, 5]));
    site.follows("polling: a change", [0, 1, 2, 10, 11, 12], [0, 1, 5, 10, 11, 12]);
    fs::remove_file(directory.join("b.yaml")).unwrap();
    site.follows("polling: a file goes", [0, 1, 5, 10, 11, 12], [0, 1, 5]);
    assert_eq!(told(&log()), 1, "once is enough:\n{}", log());

    drop(held);
    fs::write(directory.join("c.yaml"), text([20])).unwrap();
    site.follows("the limit is no longer reached", [0, 1, 5], [0, 1, 5, 20]);
    eventually("it watches again", || trouble().is_empty());
    assert!(log().contains("watched again"), "{}", log());
}

pub fn instances() {
    let _alone = alone();
    let held = user::use_up_instances(USER, usize::MAX);
    assert_eq!(held.len(), limit("max_user_instances"));
    polls("fs.inotify.max_user_instances", held);
}

pub fn watches() {
    let _alone = alone();
    // A watch is an instance on a file: few files do.
    let instances = user::use_up_instances(USER, (limit("max_user_instances") - 8).min(400));
    let directory = tempfile::tempdir().unwrap();
    let files = limit("max_user_watches") / instances.len() + 1;
    let paths: Vec<_> = (0..files).map(|n| directory.path().join(n.to_string())).collect();
    paths.iter().for_each(|path| fs::write(path, "").unwrap());
    let used_up = instances.iter().any(|instance| {
        paths.iter().any(|path| inotify::add_watch(instance, path, WatchFlags::MODIFY) == Err(rustix::io::Errno::NOSPC))
    });
    assert!(used_up, "{} instances on {files} files are within the limit", instances.len());
    polls("fs.inotify.max_user_watches", instances);
}
