//! What is measured on: maps of their own, a namespace with thousands of interfaces, and the daemon in it.

#[path = "../../tests/harness/mod.rs"]
mod harness;

pub use harness::Netns;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tunnel_mesh::bpf::Dataplane;
use tunnel_mesh::model::{FIRST_MAPPING_SLOT, IfEntry, OuterField, SlotRef, TunKey};

/// Mappings of one file.
pub const PER_FILE: u32 = 10;

/// Entries of `tunkey2if` and of `if2tunkey`.
type Entries = (Vec<(TunKey, SlotRef)>, Vec<(u32, IfEntry)>);

/// Entries of both hashes, of the tunnel with index 1.
pub fn entries(count: u32) -> Entries {
    (0..count)
        .map(|n| {
            let slot = FIRST_MAPPING_SLOT + n;
            let key = TunKey { tunnel: 1, id: n + 1, remote: remote(n).parse().unwrap() };
            let entry = IfEntry {
                slot,
                endpoint: false,
                key,
                local: "10.9.0.1".parse().unwrap(),
                ttl: OuterField::Fixed(64),
                tos: OuterField::Fixed(0),
                df: false,
                checksum: false,
                fast: None,
                valid: true,
            };
            ((key, SlotRef { slot, endpoint: false, valid: true }), (1000 + n, entry))
        })
        .unzip()
}

fn remote(n: u32) -> String {
    format!("10.{}.{}.{}", 10 + (n >> 16), (n >> 8) & 255, n & 255)
}

/// Maps without programs, pinned in a directory of their own.
pub struct Maps {
    pub dataplane: Dataplane,
    pub pins: PathBuf,
}

impl Maps {
    pub fn new(name: &str, capacity: u32) -> Self {
        let pins = PathBuf::from(format!("/sys/fs/bpf/tm-bench-{}-{name}", std::process::id()));
        let mut dataplane = Dataplane::open(&pins).unwrap();
        dataplane.create_maps(capacity).unwrap();
        Self { dataplane, pins }
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        drop(self.dataplane.remove_all());
    }
}

/// A namespace with ifb devices `i0`, `i1`, …, and a topology that maps them, ten a file.
pub struct Lab {
    pub netns: Netns,
    pub files: tempfile::TempDir,
    pub pins: PathBuf,
    pub mappings: u32,
}

impl Lab {
    pub fn new(name: &str, mappings: u32) -> Self {
        let netns = Netns::new();
        let files = tempfile::tempdir().unwrap();
        let batch = files.path().join("links");
        let mut text = String::from("link set lo up\naddr add 10.9.0.1/32 dev lo\n");
        (0..mappings).for_each(|n| text.push_str(&format!("link add i{n} type ifb\n")));
        std::fs::write(&batch, text).unwrap();
        netns.cmd(&format!("ip -batch {}", batch.display()));
        let lab = Self {
            netns,
            files,
            pins: PathBuf::from(format!("/sys/fs/bpf/tm-bench-{}-{name}", std::process::id())),
            mappings,
        };
        std::fs::create_dir(lab.topology()).unwrap();
        let head = "version: 1\ntunnels:\n  vx0: {kind: vxlan, create: true, local: 10.9.0.1, mtu: 1450}\n";
        std::fs::write(lab.topology().join("tunnel.yaml"), head).unwrap();
        (0..mappings.div_ceil(PER_FILE)).for_each(|file| lab.write(file, 0));
        lab
    }

    pub fn topology(&self) -> PathBuf {
        self.files.path().join("topology")
    }

    pub fn state(&self) -> PathBuf {
        self.files.path().join("state")
    }

    /// Writes a file by rename; its first mapping gets an id that `version` moves.
    pub fn write(&self, file: u32, version: u32) {
        let mut text = String::from("version: 1\nmappings:\n");
        for n in file * PER_FILE..((file + 1) * PER_FILE).min(self.mappings) {
            let id = if n % PER_FILE == 0 { id(n, version) } else { n + 1 };
            text.push_str(&format!("  - {{tenant: bench, interface: i{n}, id: {id}, remote: {}}}\n", remote(n)));
        }
        let path = self.topology().join(format!("m{file}.yaml"));
        let new = self.topology().join(format!(".m{file}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.path()))
            .arg(env!("CARGO_BIN_EXE_tunnel-mesh"))
            .args(arguments)
            .env("TUNNEL_MESH_TOPOLOGY", self.topology())
            .env("TUNNEL_MESH_NODE", "bench")
            .env("TUNNEL_MESH_PIN_DIR", &self.pins)
            .env("TUNNEL_MESH_RUN_DIR", self.files.path().join("run"))
            .env("TUNNEL_MESH_STATE_DIR", self.state())
            .stdin(Stdio::null());
        command
    }

    /// Runs it; panics unless it succeeds.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Starts the daemon and waits until everything is in force.
    pub fn daemon(&self) -> Daemon {
        let log = std::fs::File::create(self.files.path().join("log")).unwrap();
        let child = self.command(&["run", "--rcu-expedited"]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let daemon = Daemon { child };
        self.run(&["status", "--wait", "--timeout", "600"]);
        daemon
    }
}

/// The id of a file's first mapping in that version: no other mapping has it.
pub fn id(n: u32, version: u32) -> u32 {
    if version == 0 { n + 1 } else { 1_000_000 + version * 20_000 + n }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_pins(&self.pins);
    }
}

pub fn remove_pins(pins: &Path) {
    if let Ok(mut dataplane) = Dataplane::open(pins) {
        drop(dataplane.remove_all());
    }
    drop(std::fs::remove_dir_all(pins));
}

pub struct Daemon {
    child: Child,
}

impl Daemon {
    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// CPU time of the process so far, in ticks of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = self.read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
