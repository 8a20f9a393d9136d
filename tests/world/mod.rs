//! Hosts on an underlay, workloads behind them, and the binary run as its users run it.
//!
//! Every host is a network namespace with its own pin, run and state directory; everything is removed on drop.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod frames;
#[path = "../harness/mod.rs"]
pub mod harness;
pub mod live;
pub mod pair;
pub mod setup;
pub mod stream;
pub mod user;

use harness::Netns;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything that must happen may take before the test gives up. Generous: emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_tunnel-mesh")
}

/// One host with two mappings, whose tunnel tunnel-mesh makes.
pub const TWO: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, create: true, local: 172.16.1.100}
mappings:
  - {tenant: red, interface: eth1, id: 123, remote: 172.16.1.101}
  - {tenant: blue, interface: eth2, id: 456, remote: 172.16.1.102}
";

/// Whether this run is on clsact (older kernels, or asked for).
pub fn clsact() -> bool {
    std::env::var("TUNNEL_MESH_HOOK").is_ok_and(|v| v == "clsact")
}

/// Less of everything on emulated machines.
pub fn scaled(count: u64) -> u64 {
    if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { (count / 50).max(1) } else { count }
}

/// Waits until the condition holds; panics with its name when it doesn't.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "didn't happen within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An underlay: a bridge in a namespace of its own.
pub struct Underlay {
    pub netns: Netns,
    pub mtu: u32,
}

impl Underlay {
    pub fn new() -> Self {
        Self::with_mtu(1500)
    }

    pub fn with_mtu(mtu: u32) -> Self {
        let netns = Netns::new();
        netns.cmd("ip link set lo up");
        netns.cmd("ip link add br0 type bridge");
        netns.cmd(&format!("ip link set br0 mtu {mtu} up"));
        Self { netns, mtu }
    }

    /// A host with 172.16.1.(100+n) and fd00::(100+n), both on `eth0`.
    pub fn host(&self, n: u32) -> Host {
        let netns = Netns::new();
        let port = format!("p{n}");
        self.netns.cmd(&format!("ip link add {port} mtu {} type veth peer name eth0 netns {}", self.mtu, netns.name));
        self.netns.cmd(&format!("ip link set {port} master br0 up"));
        netns.cmd("ip link set lo up");
        netns.cmd(&format!("ip link set eth0 mtu {} up", self.mtu));
        netns.cmd(&format!("ip addr add 172.16.1.{}/24 dev eth0", 100 + n));
        netns.cmd(&format!("ip addr add fd00::{}/64 dev eth0 nodad", 100 + n));
        Host::new(netns, &format!("host{n}"))
    }
}

/// One host.
pub struct Host {
    pub netns: Netns,
    pub node: String,
    pub pins: PathBuf,
    pub files: tempfile::TempDir,
    pub extra_env: Vec<(String, String)>,
    /// What is run on it.
    pub binary: PathBuf,
    topology: PathBuf,
}

impl Host {
    /// A host in that namespace, with an empty topology directory of its own.
    pub fn new(netns: Netns, node: &str) -> Self {
        ensure_bpffs();
        let files = tempfile::tempdir().unwrap();
        let topology = files.path().join("topology");
        std::fs::create_dir(&topology).unwrap();
        let pins = PathBuf::from(format!("/sys/fs/bpf/{}", netns.name));
        Self { netns, node: node.to_owned(), pins, files, extra_env: Vec::new(), binary: binary().into(), topology }
    }

    pub fn topology(&self) -> &Path {
        &self.topology
    }

    /// Takes its topology from there.
    pub fn use_topology(&mut self, directory: &Path) {
        self.topology = directory.to_owned();
    }

    /// Writes a topology file by rename, as a careful tool does.
    pub fn write(&self, name: &str, text: &str) {
        write_atomically(&self.topology.join(name), text);
    }

    pub fn pin(&self, name: &str) -> PathBuf {
        self.pins.join(name)
    }

    /// The command in this host's namespace, ready to run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns.name))
            .arg(&self.binary)
            .args(arguments)
            .env("TUNNEL_MESH_TOPOLOGY", &self.topology)
            .env("TUNNEL_MESH_NODE", &self.node)
            .env("TUNNEL_MESH_PIN_DIR", &self.pins)
            .env("TUNNEL_MESH_RUN_DIR", self.files.path().join("run"))
            .env("TUNNEL_MESH_STATE_DIR", self.files.path().join("state"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        for (name, value) in &self.extra_env {
            command.env(name, value);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it and expects that exit code; returns stdout.
    pub fn expect(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "tunnel-mesh {arguments:?}\nstdout:\n{out}\nstderr:\n{err}");
        out.into_owned()
    }

    pub fn apply(&self) -> String {
        self.expect(0, &["apply"])
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.expect(0, &["status", "--format", "json"])).unwrap()
    }

    /// The mapping with that address in `status`.
    pub fn mapping(&self, address: &str) -> serde_json::Value {
        let status = self.status();
        let found = status["mappings"].as_array().unwrap().iter().find(|m| m["address"] == address).cloned();
        found.unwrap_or_else(|| panic!("no mapping {address} in {status:#}"))
    }

    /// Starts the daemon and waits until its topology is in force.
    pub fn daemon(&self) -> Daemon {
        let daemon = self.daemon_unready();
        self.wait_in_force();
        // What an earlier daemon left may be in force before this one listens to signals.
        eventually("the daemon answers", || self.status()["daemon"]["pid"] == u64::from(daemon.pid()));
        daemon
    }

    /// Starts the daemon without waiting.
    pub fn daemon_unready(&self) -> Daemon {
        let log = std::fs::File::create(self.files.path().join("daemon.log")).unwrap();
        let child = self.command(&["run", "-v"]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        Daemon { child, log: self.files.path().join("daemon.log") }
    }

    /// Waits until the daemon says that everything is in force.
    pub fn wait_in_force(&self) {
        let seconds = PATIENCE.as_secs().to_string();
        let output = self.run(&["status", "--wait", "--timeout", &seconds]);
        if output.status.code() != Some(0) {
            let log = std::fs::read_to_string(self.files.path().join("daemon.log")).unwrap_or_default();
            panic!(
                "not in force:\n{}\n{}\ndaemon's log:\n{log}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    /// A workload in a namespace of its own, its veth's host side named `name`, with that address on `eth0`.
    pub fn workload(&self, name: &str, address: &str) -> Netns {
        let netns = Netns::new();
        self.netns.cmd(&format!("ip link add {name} type veth peer name eth0 netns {}", netns.name));
        self.netns.cmd(&format!("ip link set {name} up"));
        netns.cmd("ip link set lo up");
        netns.cmd("ip link set eth0 up");
        let nodad = if address.contains(':') { " nodad" } else { "" };
        netns.cmd(&format!("ip addr add {address} dev eth0{nodad}"));
        netns
    }

    pub fn ifindex(&self, interface: &str) -> u32 {
        let text = self.netns.cmd(&format!("ip -j link show dev {interface}"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[0]["ifindex"].as_u64().unwrap().try_into().unwrap()
    }

    /// `bpftool map dump` of one of our maps, as JSON.
    pub fn dump(&self, map: &str) -> serde_json::Value {
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(self.pin(map)).output().unwrap();
        assert!(output.status.success(), "dump {map}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The namespace takes devices and filters along; pins outlive it.
        drop(std::fs::remove_dir_all(&self.pins));
    }
}

/// A daemon, ended on drop.
pub struct Daemon {
    pub child: Child,
    log: PathBuf,
}

impl Daemon {
    /// One that was started otherwise, and its log.
    pub fn of(child: Child, log: PathBuf) -> Self {
        Self { child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it at once, as the kernel does to a process out of memory.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as systemd does and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("daemon's log:\n{}", self.log());
        }
    }
}

/// Mounts bpffs where the machine hasn't.
pub fn ensure_bpffs() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        if !mounts.lines().any(|l| l.split(' ').nth(1) == Some("/sys/fs/bpf")) {
            let status = Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]).status().unwrap();
            assert!(status.success(), "mount bpffs on /sys/fs/bpf");
        }
    });
}

pub fn write_atomically(path: &Path, text: &str) {
    let temporary = path.with_file_name(format!(".{}.new", path.file_name().unwrap().to_string_lossy()));
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(&temporary, path).unwrap();
}

/// Pings from that namespace; true when every one of `count` is answered.
pub fn pings(from: &Netns, to: &str, count: u32) -> bool {
    ping(from, &["-c", &count.to_string(), "-i", "0.02", "-W", "5", "-q", to])
}

/// Waits for the first answer, then expects `count` in a row.
pub fn assert_pings(from: &Netns, to: &str) {
    eventually(&format!("{to} answers"), || ping(from, &["-c", "1", "-W", "1", "-q", to]));
    assert!(pings(from, to, 3), "{to} answered once and then no more");
}

/// True when nothing answers.
pub fn silent(from: &Netns, to: &str) -> bool {
    !ping(from, &["-c", "2", "-i", "0.1", "-W", "1", "-q", to])
}

fn ping(from: &Netns, arguments: &[&str]) -> bool {
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", from.name))
        .arg("ping")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    output.status.success()
}
