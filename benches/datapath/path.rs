//! The ways from one workload to another that stand beside each other: four namespaces each, alike but for the way.
//!
//! sender `eth0` -- `ve0` host 0 `u0` -- `u0` host 1 `ve0` -- `eth0` receiver

use crate::harness::{Netns, veth};
use crate::objects::Cloner;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tunnel_mesh::bpf::Dataplane;

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Routed over plain veth, without a tunnel: the limit.
    Plain,
    /// The kernel's bridge and a vxlan device for the tenant.
    Bridge,
    /// BCC's way.
    Clone,
    /// tunnel-mesh.
    Ours { endpoint: bool, fast: bool },
}

impl Mode {
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::Bridge,
        Self::Clone,
        Self::Ours { endpoint: true, fast: true },
        Self::Ours { endpoint: false, fast: true },
        Self::Ours { endpoint: true, fast: false },
        Self::Ours { endpoint: false, fast: false },
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain routed veth",
            Self::Bridge => "kernel bridge + vxlan",
            Self::Clone => "BCC's way",
            Self::Ours { endpoint: true, fast: true } => "endpoint, fast",
            Self::Ours { endpoint: false, fast: true } => "port, fast",
            Self::Ours { endpoint: true, fast: false } => "endpoint, device",
            Self::Ours { endpoint: false, fast: false } => "port, device",
        }
    }
}

/// What the tunnels go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Ipv4,
    Ipv6,
}

impl Over {
    /// The largest MTU that tenants can have.
    pub fn mtu(self) -> u32 {
        match self {
            Self::Ipv4 => 1450,
            Self::Ipv6 => 1430,
        }
    }

    fn host(self, side: usize) -> IpAddr {
        match self {
            Self::Ipv4 => underlay(side).into(),
            Self::Ipv6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, side as u16 + 1).into(),
        }
    }
}

/// The tenant's tunnel id.
const ID: u32 = 1;
const BRIDGE_NF: [&str; 3] = ["iptables", "ip6tables", "arptables"];

pub struct Path {
    pub mode: Mode,
    over: Over,
    pub sender: Netns,
    pub receiver: Netns,
    hosts: [Netns; 2],
    directory: tempfile::TempDir,
    cloners: Vec<Cloner>,
}

/// A number's MAC address.
fn mac(side: usize, what: u8) -> String {
    format!("02:00:00:00:{side:02x}:{what:02x}")
}

const WORKLOAD: u8 = 1;
const HOST: u8 = 2;
const UNDERLAY: u8 = 3;

/// Underlay address of a host.
pub fn underlay(side: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 1, side as u8 + 1)
}

impl Path {
    pub fn new(mode: Mode) -> Self {
        Self::over(mode, Over::Ipv4)
    }

    pub fn over(mode: Mode, over: Over) -> Self {
        let path = Self {
            mode,
            over,
            sender: Netns::new(),
            receiver: Netns::new(),
            hosts: [Netns::new(), Netns::new()],
            directory: tempfile::tempdir().unwrap(),
            cloners: Vec::new(),
        };
        path.wire()
    }

    fn workload(&self, side: usize) -> &Netns {
        [&self.sender, &self.receiver][side]
    }

    /// Address of a workload.
    pub fn address(&self, side: usize) -> Ipv4Addr {
        match self.mode {
            Mode::Plain => Ipv4Addr::new(10, 1, side as u8 + 1, 2),
            _ => Ipv4Addr::new(10, 1, 1, side as u8 + 1),
        }
    }

    fn wire(mut self) -> Self {
        for netns in [&self.sender, &self.receiver, &self.hosts[0], &self.hosts[1]] {
            netns.enter(|| {
                let set = |file: &str, value: &str| std::fs::write(format!("/proc/sys/net/{file}"), value).unwrap();
                // Nobody speaks but us.
                set("ipv6/conf/all/disable_ipv6", "1");
                set("ipv6/conf/default/disable_ipv6", "1");
                set("ipv4/tcp_congestion_control", "reno");
                for what in BRIDGE_NF {
                    let file = format!("/proc/sys/net/bridge/bridge-nf-call-{what}");
                    if std::path::Path::new(&file).exists() {
                        std::fs::write(file, "0").unwrap();
                    }
                }
            });
        }
        let [host0, host1] = &self.hosts;
        veth((host0, "u0"), (host1, "u0"));
        for side in 0..2 {
            let (host, workload) = (&self.hosts[side], self.workload(side));
            let other = 1 - side;
            veth((host, "ve0"), (workload, "eth0"));
            let mtu = self.over.mtu();
            workload.cmd(&format!("ip link set eth0 address {} mtu {mtu}", mac(side, WORKLOAD)));
            host.cmd(&format!("ip link set ve0 address {} mtu {mtu}", mac(side, HOST)));
            host.cmd(&format!("ip link set u0 address {}", mac(side, UNDERLAY)));
            let more = match self.over {
                Over::Ipv4 => "",
                Over::Ipv6 => {
                    host.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/u0/disable_ipv6", "0").unwrap());
                    // The tunnel's own settings begin with the default.
                    host.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0").unwrap());
                    " nodad"
                }
            };
            host.cmd(&format!("ip addr add {}/24 dev u0{more}", self.over.host(side)));
            // Without ARP: no packet more than those that are counted.
            neighbour(host, "u0", self.over.host(other), &mac(other, UNDERLAY));
            workload.cmd(&format!("ip addr add {}/24 dev eth0", self.address(side)));
            match self.mode {
                Mode::Plain => self.route(side),
                Mode::Bridge => self.bridge(side),
                Mode::Clone => {}
                Mode::Ours { endpoint, fast } => self.mesh(side, endpoint, fast),
            }
            if self.mode != Mode::Plain {
                neighbour(workload, "eth0", self.address(other), &mac(other, WORKLOAD));
            }
        }
        if self.mode == Mode::Clone {
            self.cloners = (0..2).map(|side| self.cloner(side)).collect();
        }
        self
    }

    fn route(&self, side: usize) {
        let (host, workload, other) = (&self.hosts[side], self.workload(side), 1 - side);
        let gateway = Ipv4Addr::new(10, 1, side as u8 + 1, 1);
        host.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        host.cmd(&format!("ip addr add {gateway}/24 dev ve0"));
        host.cmd(&format!("ip route add 10.1.{}.0/24 via {}", other + 1, underlay(other)));
        workload.cmd(&format!("ip route add default via {gateway}"));
        neighbour(workload, "eth0", gateway, &mac(side, HOST));
        neighbour(host, "ve0", self.address(side), &mac(side, WORKLOAD));
    }

    fn bridge(&self, side: usize) {
        let (host, mtu) = (&self.hosts[side], self.over.mtu());
        let checksums = match self.over {
            Over::Ipv4 => "noudpcsum",
            Over::Ipv6 => "udp6zerocsumtx udp6zerocsumrx",
        };
        host.cmd("ip link add br0 type bridge mcast_snooping 0");
        host.cmd(&format!(
            "ip link add vx0 type vxlan id {ID} dstport 4789 local {} nolearning {checksums}",
            self.over.host(side)
        ));
        host.cmd(&format!("ip link set vx0 mtu {mtu} master br0 up"));
        host.cmd("ip link set ve0 master br0");
        host.cmd("ip link set br0 up");
        self.forwarding(side, "vx0");
        let other = 1 - side;
        host.cmd(&format!("bridge fdb add {} dev vx0 dst {} self static", mac(other, WORKLOAD), self.over.host(other)));
    }

    /// Tells the bridge where the workloads are, once and for all: `far` is the port toward the other host.
    fn forwarding(&self, side: usize, far: &str) {
        let host = &self.hosts[side];
        for (port, workload) in [("ve0", side), (far, 1 - side)] {
            host.cmd(&format!("ip link set {port} type bridge_slave learning off"));
            host.cmd(&format!("bridge fdb add {} dev {port} master static", mac(workload, WORKLOAD)));
        }
    }

    fn cloner(&self, side: usize) -> Cloner {
        let host = &self.hosts[side];
        host.cmd("ip link add br0 type bridge mcast_snooping 0");
        host.cmd("ip link add vx0 type vxlan external dstport 4789 nolearning");
        host.cmd("ip link add far0 type ifb");
        host.cmd(&format!("ip link set far0 mtu {} master br0 up", self.over.mtu()));
        host.cmd("ip link set ve0 master br0");
        host.cmd("ip link set vx0 up");
        host.cmd("ip link set br0 up");
        self.forwarding(side, "far0");
        let (far, tunnel) = (ifindex(host, "far0"), ifindex(host, "vx0"));
        Cloner::new(host, ("far0", far), ("vx0", tunnel), ID, underlay(1 - side))
    }

    /// What the binary makes of a topology.
    fn mesh(&self, side: usize, endpoint: bool, fast: bool) {
        let topology = self.directory.path().join("topology");
        std::fs::create_dir_all(&topology).unwrap();
        let tenant = if endpoint {
            "{id: 1, members: {host0: {interface: ve0, attach: endpoint}, host1: {interface: ve0, attach: endpoint}}}"
        } else {
            "{id: 1, bridge: br0}"
        };
        let text = format!(
            "version: 1\nnodes: {{host0: '{}', host1: '{}'}}\ntunnels:\n  vx0: {{kind: vxlan, create: true, fast: {}}}\n\
             tenants:\n  bench: {tenant}\n",
            self.over.host(0),
            self.over.host(1),
            if fast { "on" } else { "off" }
        );
        std::fs::write(topology.join("bench.yaml"), text).unwrap();
        self.tunnel_mesh(side, &["apply"]);
        if !endpoint {
            let host = &self.hosts[side];
            let ports = host.cmd("ip -o link show master br0");
            let far = ports.split_whitespace().nth(1).expect("a port for the other host").trim_end_matches(':');
            let far = far.split('@').next().unwrap();
            host.cmd("ip link set ve0 master br0");
            self.forwarding(side, far);
        }
    }

    /// Gives the workloads that MTU, and the devices that their packets cross on this side of the tunnel.
    pub fn set_mtu(&self, mtu: u32) {
        for side in 0..2 {
            self.workload(side).cmd(&format!("ip link set eth0 mtu {mtu}"));
            self.hosts[side].cmd(&format!("ip link set ve0 mtu {mtu}"));
            if self.mode == Mode::Bridge {
                // What doesn't fit through a port of its bridge the kernel drops without a word.
                self.hosts[side].cmd(&format!("ip link set vx0 mtu {mtu}"));
            }
        }
    }

    pub fn pins(&self, side: usize) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/{}", self.hosts[side].name))
    }

    /// Runs the binary on a host; answers with what it printed. Panics unless it succeeds.
    fn tunnel_mesh(&self, side: usize, arguments: &[&str]) -> String {
        let host = &self.hosts[side];
        let directory = self.directory.path().join(side.to_string());
        let output = Command::new("nsenter")
            .arg(format!("--net={}", host.path()))
            .arg(env!("CARGO_BIN_EXE_tunnel-mesh"))
            .args(arguments)
            .env("TUNNEL_MESH_TOPOLOGY", self.directory.path().join("topology"))
            .env("TUNNEL_MESH_NODE", format!("host{side}"))
            .env("TUNNEL_MESH_PIN_DIR", self.pins(side))
            .env("TUNNEL_MESH_RUN_DIR", directory.join("run"))
            .env("TUNNEL_MESH_STATE_DIR", directory.join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {arguments:?}: {err}{out}", self.mode.name());
        out.into_owned()
    }

    /// Lets a host's interface take frames from the generator, which needs NAPI on the receiving side.
    pub fn napi(&self, side: usize, interface: &str, on: bool) {
        self.hosts[side].cmd(&format!("ethtool -K {interface} gro {}", if on { "on" } else { "off" }));
    }

    pub fn host(&self, side: usize) -> &Netns {
        &self.hosts[side]
    }

    /// A frame of the sender's to the receiver, of 64 bytes.
    pub fn frame(&self) -> Vec<u8> {
        let to = if self.mode == Mode::Plain { mac(0, HOST) } else { mac(1, WORKLOAD) };
        frame(&to, &mac(0, WORKLOAD), self.address(0), self.address(1), 9, &[0; 22])
    }

    /// The same frame as host 0 sends it to host 1.
    pub fn outer_frame(&self) -> Vec<u8> {
        let mut payload = vec![0x08, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(self.frame());
        frame(&mac(1, UNDERLAY), &mac(0, UNDERLAY), underlay(0), underlay(1), 4789, &payload)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for side in 0..2 {
            if let Ok(mut dataplane) = Dataplane::open(&self.pins(side)) {
                drop(dataplane.remove_all());
            }
            drop(std::fs::remove_dir_all(self.pins(side)));
        }
    }
}

fn neighbour(netns: &Netns, interface: &str, address: impl Into<IpAddr>, mac: &str) {
    let address = address.into();
    netns.cmd(&format!("ip neigh replace {address} lladdr {mac} dev {interface} nud permanent"));
}

pub fn ifindex(netns: &Netns, interface: &str) -> u32 {
    let text = netns.cmd(&format!("ip -o link show dev {interface}"));
    text.split(':').next().unwrap().trim().parse().unwrap()
}

/// An IPv4 and UDP frame without UDP checksum.
fn frame(to: &str, from: &str, source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    for mac in [to, from] {
        frame.extend(mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    frame.extend([0x08, 0x00]);
    let length = payload.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend((28 + length).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend(header);
    frame.extend(40000u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + length).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}
