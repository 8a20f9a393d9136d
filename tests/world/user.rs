//! Another user than root, with the two capabilities that a daemon needs.

use super::Host;
use rustix::fs::inotify::{self, CreateFlags};
use rustix::process::Uid;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::process::Command;

/// Gives a host's directories to a user.
pub fn give(host: &Host, user: u32) {
    drop(std::fs::create_dir(&host.pins));
    for owned in [host.pins.as_path(), host.files.path()] {
        super::harness::run("chown", &["-R", &format!("{user}:{user}"), owned.to_str().unwrap()]);
        chown(owned, Some(user), Some(user)).unwrap();
    }
}

/// The command as that user, with CAP_BPF and CAP_NET_ADMIN and no more.
pub fn command(host: &Host, user: u32, arguments: &[&str]) -> Command {
    let mut words = vec!["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={user}")];
    words.push("--clear-groups".to_owned());
    words.extend(["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all,+bpf,+net_admin")));
    wrapped(host, &words.iter().map(String::as_str).collect::<Vec<_>>(), arguments)
}

/// The command behind another one, in the host's namespace.
pub fn wrapped(host: &Host, prefix: &[&str], arguments: &[&str]) -> Command {
    let command = host.command(arguments);
    let own: Vec<String> = command.get_args().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = prefix.iter().copied().chain(own.iter().map(String::as_str)).collect();
    let mut wrapped = host.netns.spawnable(&words);
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.stdin(std::process::Stdio::null());
    wrapped
}

/// Opens inotify instances as that user until there are no more, or as many as said.
pub fn use_up_instances(user: u32, most: usize) -> Vec<OwnedFd> {
    let as_user = std::thread::spawn(move || {
        // Of this thread only.
        let user = Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        let mut held = Vec::new();
        while held.len() < most {
            match inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) {
                Ok(instance) => held.push(instance),
                Err(error) => {
                    assert_eq!(error, rustix::io::Errno::MFILE);
                    break;
                }
            }
        }
        held
    });
    as_user.join().unwrap()
}
