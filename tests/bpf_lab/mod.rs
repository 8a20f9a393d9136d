//! Hosts as network namespaces with real vxlan devices, for the kernel tests of the bpf edge.
//!
//! Everything is named after the test process and removed when the lab is dropped. The tests need root, and fail
//! without it.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tunnel_mesh::bpf::{Dataplane, probe_tcx};
use tunnel_mesh::model::{Attach, Conf, Direction, IfEntry, OuterField, Program, SlotRef, TunKey};

/// Index of the tunnel in every host.
pub const TUNNEL: u32 = 1;
/// The program of that tunnel.
pub const INGRESS: Program = Program::HandleIngress { tunnel: TUNNEL };
/// What the tunnels write into tc_index.
pub const MARK: u16 = 7;

static LABS: AtomicU32 = AtomicU32::new(0);

/// Namespaces and pins of one test.
pub struct Lab {
    name: String,
    namespaces: Vec<String>,
    pins: Vec<PathBuf>,
}

/// One host: a namespace with an underlay interface, an external vxlan device and a data plane of its own.
pub struct Host {
    pub ns: String,
    pub dp: Dataplane,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

/// Whether hosts attach by TCX: where the kernel has it, unless `TUNNEL_MESH_HOOK` says `clsact`.
pub fn uses_tcx() -> bool {
    std::env::var_os("TUNNEL_MESH_HOOK").is_none_or(|hook| hook != "clsact") && probe_tcx().unwrap()
}

/// Runs a command to its end, in the namespace of the calling thread.
pub fn output(command: &str) -> Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap_or_else(|e| panic!("{command}: {e}"))
}

/// Runs a command that must succeed and returns what it printed.
pub fn run(command: &str) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a closure in a network namespace, in a thread of its own.
pub fn in_netns<T: Send>(ns: &str, f: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{ns}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            f()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl Lab {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "the kernel tests need root");
        let name = format!("tm-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        Self { name, namespaces: Vec::new(), pins: Vec::new() }
    }

    /// A new namespace.
    pub fn namespace(&mut self, label: &str) -> String {
        let ns = format!("{}-{label}", self.name);
        run(&format!("ip netns add {ns}"));
        self.namespaces.push(ns.clone());
        in_netns(&ns, || {
            // No router solicitations and the like: counters are compared with what the test sent.
            for scope in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/router_solicitations"), "0").unwrap();
                fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0").unwrap();
            }
            run("ip link set lo up");
        });
        ns
    }

    /// A pin directory, not made yet.
    pub fn pin_dir(&mut self, label: &str) -> PathBuf {
        let dir = Path::new("/sys/fs/bpf").join(format!("{}-{label}", self.name));
        self.pins.push(dir.clone());
        dir
    }

    /// A host without underlay: maps of 256 slots, both programs, and the tunnel set up.
    pub fn host(&mut self, label: &str, number: u8) -> Host {
        let ns = self.namespace(label);
        let pins = self.pin_dir(label);
        let mut dp = Dataplane::open_writer(&pins).unwrap();
        dp.create_maps(256).unwrap();
        dp.load(Program::HandleEgress).unwrap();
        dp.load(INGRESS).unwrap();
        let host =
            Host { ns, dp, v4: IpAddr::from([10, 9, 0, number]), v6: format!("fd00:9::{number}").parse().unwrap() };
        in_netns(&host.ns, || run("ip link add vxlan0 type vxlan external dstport 4789 udp6zerocsumrx"));
        host
    }

    /// Loads and pins somebody else's program, `foreign`, and its map, `seen`; returns the directory.
    pub fn foreign_program(&mut self) -> PathBuf {
        let object = tempfile::NamedTempFile::new().unwrap();
        fs::write(object.path(), include_bytes!(env!("TUNNEL_MESH_FOREIGN_OBJECT"))).unwrap();
        let dir = self.pin_dir("foreign");
        fs::create_dir(&dir).unwrap();
        let (object, pins) = (object.path().display(), dir.display());
        run(&format!("bpftool prog load {object} {pins}/foreign type classifier pinmaps {pins}"));
        dir
    }

    /// Two hosts, `a` (10.9.0.1, fd00:9::1) and `b` (.2), joined by their underlay.
    pub fn two_hosts(&mut self) -> (Host, Host) {
        let (a, b) = (self.host("a", 1), self.host("b", 2));
        run(&format!("ip -n {} link add u0 type veth peer name u0 netns {}", a.ns, b.ns));
        for host in [&a, &b] {
            let (ns, v4, v6) = (&host.ns, host.v4, host.v6);
            run(&format!("ip -n {ns} addr add {v4}/24 dev u0"));
            run(&format!("ip -n {ns} addr add {v6}/64 dev u0 nodad"));
            run(&format!("ip -n {ns} link set u0 up"));
            host.tunnel_up();
        }
        // The kernel may take a second to believe in a carrier.
        for address in [b.v4, b.v6] {
            let deadline = Instant::now() + Duration::from_secs(10);
            while a.ping(&address.to_string(), 1) == 0 {
                assert!(Instant::now() < deadline, "the underlay doesn't carry {address}");
            }
        }
        (a, b)
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in &self.namespaces {
            drop(Command::new("ip").args(["netns", "del", ns]).status());
        }
        for dir in &self.pins {
            // A test may have put strangers there.
            drop(Dataplane::open(dir).and_then(|mut dp| dp.remove_all()));
            drop(fs::remove_dir_all(dir));
        }
    }
}

impl Host {
    /// Runs a closure in the host's namespace.
    pub fn within<T: Send>(&self, f: impl FnOnce(&Dataplane) -> T + Send) -> T {
        in_netns(&self.ns, || f(&self.dp))
    }

    /// Index of an interface.
    pub fn ifindex(&self, name: &str) -> u32 {
        let text = run(&format!("ip -n {} -o link show dev {name}", self.ns));
        text.split(':').next().unwrap().trim().parse().unwrap()
    }

    /// Brings vxlan0 up and declares it as the tunnel, by its present ifindex.
    pub fn tunnel_up(&self) {
        run(&format!("ip -n {} link set vxlan0 up", self.ns));
        let ifindex = self.ifindex("vxlan0");
        self.within(|dp| {
            dp.write_devs(&[(TUNNEL, ifindex)]).unwrap();
            dp.write_conf(&[(TUNNEL, Conf { ifindex, name: "vxlan0".to_owned(), mark: MARK, ..Conf::default() })])
                .unwrap();
        });
        self.attach(INGRESS, "vxlan0", Direction::Ingress);
    }

    /// Attaches a pinned program: by TCX where the kernel has it, else by clsact, with tc.
    pub fn attach(&self, program: Program, interface: &str, direction: Direction) {
        let ifindex = self.ifindex(interface);
        if uses_tcx() {
            // A second view of the same pins: attaching needs the right to write.
            let dir = self.dp.pin_dir();
            return in_netns(&self.ns, || {
                Dataplane::open(dir).unwrap().tcx_attach(program, ifindex, direction).unwrap();
            });
        }
        let pin = match program {
            Program::HandleEgress => "handle_egress".to_owned(),
            Program::HandleIngress { tunnel } => format!("handle_ingress_{tunnel}"),
            Program::HandleUnderlay { index } => format!("handle_underlay_{index}"),
        };
        let pin = self.dp.pin_dir().join("programs").join(pin);
        self.attach_clsact(&pin, interface, direction);
    }

    /// Attaches a pinned program by clsact, with tc.
    pub fn attach_clsact(&self, pin: &Path, interface: &str, direction: Direction) {
        let direction = if direction == Direction::Egress { "egress" } else { "ingress" };
        self.within(|_| {
            output(&format!("tc qdisc add dev {interface} clsact"));
            run(&format!(
                "tc filter replace dev {interface} {direction} pref 49152 handle 0x746d protocol all bpf direct-action \
                 object-pinned {}",
                pin.display()
            ));
        });
    }

    /// The entry of an interface that sends to a remote.
    pub fn entry(&self, slot: u32, id: u32, remote: IpAddr, attach: Attach) -> IfEntry {
        IfEntry {
            slot,
            endpoint: attach == Attach::Endpoint,
            key: TunKey { tunnel: TUNNEL, id, remote },
            local: if remote.is_ipv4() { self.v4 } else { self.v6 },
            ttl: OuterField::Fixed(0),
            tos: OuterField::Inherit,
            df: false,
            checksum: remote.is_ipv6(),
            fast: None,
            valid: true,
        }
    }

    /// Maps an interface that exists: all entries, and the program.
    pub fn map(&self, interface: &str, slot: u32, id: u32, remote: IpAddr, attach: Attach) {
        let ifindex = self.ifindex(interface);
        let entry = self.entry(slot, id, remote, attach);
        self.within(|dp| {
            dp.write_devs(&[(slot, ifindex)]).unwrap();
            dp.write_if2tunkey(&[(ifindex, entry)]).unwrap();
            let value = SlotRef { slot, endpoint: entry.endpoint, valid: true };
            dp.write_tunkey2if(&[(entry.key, value)]).unwrap();
        });
        let direction = if attach == Attach::Port { Direction::Egress } else { Direction::Ingress };
        self.attach(Program::HandleEgress, interface, direction);
    }

    /// Makes an interface that can be a port: one end of a veth pair, with an address where given.
    pub fn add_port(&self, name: &str, address: Option<&str>) {
        let ns = &self.ns;
        run(&format!("ip -n {ns} link add {name} type veth peer name {name}p"));
        for device in [name.to_owned(), format!("{name}p")] {
            self.within(|_| fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap());
            run(&format!("ip -n {ns} link set {device} up"));
        }
        if let Some(address) = address {
            run(&format!("ip -n {ns} addr add {address} dev {name}"));
        }
    }

    /// Pings and returns how many of `count` packets were answered.
    pub fn ping(&self, address: &str, count: u32) -> u32 {
        ping_in(&self.ns, address, count)
    }

    /// Counters of a slot.
    pub fn counters(&self, slot: u32) -> tunnel_mesh::model::Counters {
        self.dp.counters().unwrap().into_iter().find(|(s, _)| *s == slot).map(|(_, c)| c).unwrap_or_default()
    }
}

/// Pings from a namespace and returns how many of `count` packets were answered.
pub fn ping_in(ns: &str, address: &str, count: u32) -> u32 {
    let text = in_netns(ns, || {
        let output = output(&format!("ping -n -q -c {count} -i 0.005 -W 1 {address}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
    line.split(", ").nth(1).and_then(|part| part.split(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
