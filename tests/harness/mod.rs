//! Network namespaces for tests: made per test, entered by closures and commands, removed on drop.
//!
//! Needs root. A test that can't get its namespace fails: there are no skipped tests.

// Every test binary compiles its own copy and uses a part of it.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace of its own, named `tm-<pid>-<n>`, with its loopback up.
#[derive(Debug)]
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("tm-{}-{number}", std::process::id()) };
        run("ip", &["netns", "add", &namespace.name]);
        namespace.cmd("ip link set lo up");
        namespace
    }

    /// Where the namespace is bound, for `nsenter --net=` and `setns`.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs a closure on a thread inside the namespace. The mounts stay the caller's, so bpffs is where it was.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                f()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// As [`Netns::enter`], for asynchronous code: on a current-thread runtime of its own.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, f: impl FnOnce() -> F + Send) -> T {
        self.enter(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f()))
    }

    /// Runs a command inside, words split at white space; answers with its standard output. Panics unless it succeeds.
    pub fn cmd(&self, line: &str) -> String {
        self.command(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Netns::cmd`], with the words given.
    pub fn command(&self, words: &[&str]) -> String {
        run_words(&self.wrapped(words), words)
    }

    /// Runs a command inside, whatever its end.
    pub fn try_cmd(&self, line: &str) -> Output {
        let words = self.wrapped(&line.split_whitespace().collect::<Vec<_>>());
        Command::new(&words[0]).args(&words[1..]).output().unwrap()
    }

    /// A command to be spawned inside, for processes that run beside the test.
    pub fn spawnable(&self, words: &[&str]) -> Command {
        let words = self.wrapped(words);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    fn wrapped(&self, words: &[&str]) -> Vec<String> {
        let prefix = ["nsenter".to_owned(), format!("--net={}", self.path()), "--".to_owned()];
        prefix.into_iter().chain(words.iter().map(|&word| word.to_owned())).collect()
    }
}

/// Lines for `ip -batch` that give a link another name. Before Linux 6.2 a link that is up can't be renamed: there it goes
/// down meanwhile.
pub fn renaming(from: &str, to: &str) -> String {
    static LIVE: LazyLock<bool> = LazyLock::new(|| {
        let netns = Netns::new();
        netns.cmd("ip link add probe0 type veth peer name probe1");
        netns.cmd("ip link set probe0 up");
        netns.try_cmd("ip link set probe0 name probe2").status.success()
    });
    let rename = format!("link set {from} name {to}\n");
    if *LIVE { rename } else { format!("link set {from} down\n{rename}link set {to} up\n") }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Runs a command in the test's own namespace; answers with its standard output. Panics unless it succeeds.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let words: Vec<String> = std::iter::once(program).chain(arguments.iter().copied()).map(str::to_owned).collect();
    run_words(&words, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn run_words(words: &[String], shown: &[&str]) -> String {
    let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "`{}` failed ({}):\n{err}{out}", shown.join(" "), output.status);
    out.into_owned()
}

/// A veth pair between two namespaces, both ends up.
pub fn veth(a: (&Netns, &str), b: (&Netns, &str)) {
    a.0.cmd(&format!("ip link add {} type veth peer name {} netns {}", a.1, b.1, b.0.name));
    a.0.cmd(&format!("ip link set {} up", a.1));
    b.0.cmd(&format!("ip link set {} up", b.1));
}
