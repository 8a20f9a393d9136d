//! Raw frames, probe programs, and one host with its far ends, for the safety tests.

#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_docs)]

use crate::world::harness::Netns;
use crate::world::*;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// An EtherType for local experiments (IEEE 802): nothing but our tests speaks it.
pub const EXPERIMENT: u16 = 0x88b5;

pub const BROADCAST: [u8; 6] = [0xff; 6];

/// What one frame was when a [`Tap`] saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// Whether it was on its way out of the interface.
    pub outgoing: bool,
}

/// A packet socket on one interface: sends whole frames, sees both ways.
pub struct Tap {
    socket: OwnedFd,
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

impl Tap {
    pub fn on(netns: &Netns, interface: &str) -> Self {
        let ifindex = i32::try_from(ifindex(netns, interface)).unwrap();
        netns.enter(|| {
            let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
            // SAFETY: plain system calls on a descriptor that is owned from here on; the address lives on this stack.
            unsafe {
                let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                let raw = libc::socket(libc::AF_PACKET, flags, 0);
                assert!(raw >= 0, "packet socket: {}", std::io::Error::last_os_error());
                let socket = OwnedFd::from_raw_fd(raw);
                let buffer: i32 = 16 << 20;
                let length = u32::try_from(size_of_val(&buffer)).unwrap();
                let set = libc::setsockopt(
                    raw,
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUFFORCE,
                    std::ptr::from_ref(&buffer).cast(),
                    length,
                );
                assert_eq!(set, 0, "receive buffer: {}", std::io::Error::last_os_error());
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
                address.sll_protocol = protocol;
                address.sll_ifindex = ifindex;
                let length = u32::try_from(size_of_val(&address)).unwrap();
                let bound = libc::bind(raw, std::ptr::from_ref(&address).cast(), length);
                assert_eq!(bound, 0, "bind to {interface}: {}", std::io::Error::last_os_error());
                Self { socket }
            }
        })
    }

    /// Sends one frame out of the interface.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer outlives the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        // A frame that a TC program drops is reported as ENOBUFS; it was sent for all that this socket knows.
        let error = std::io::Error::last_os_error();
        assert!(
            sent == isize::try_from(frame.len()).unwrap() || error.raw_os_error() == Some(libc::ENOBUFS),
            "send: {error}"
        );
    }

    /// Everything seen since the last call.
    pub fn drain(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        let mut buffer = vec![0u8; 65536];
        loop {
            // SAFETY: buffer and address outlive the call and their lengths are passed along.
            let (received, address) = unsafe {
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                let mut length = u32::try_from(size_of_val(&address)).unwrap();
                let received = libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    std::ptr::from_mut(&mut address).cast(),
                    &raw mut length,
                );
                (received, address)
            };
            let Ok(received) = usize::try_from(received) else {
                let error = std::io::Error::last_os_error();
                // ENETDOWN: the interface is gone or down.
                assert!(matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENETDOWN)), "receive: {error}");
                if error.raw_os_error() == Some(libc::EAGAIN) {
                    return all;
                }
                continue;
            };
            let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
            all.push(Seen { bytes: buffer[..received].to_vec(), outgoing });
        }
    }

    /// Frames that came in (not those on their way out) and contain the marker.
    pub fn received(&self, marker: &[u8]) -> usize {
        self.drain().iter().filter(|s| !s.outgoing && contains(&s.bytes, marker)).count()
    }

    /// Waits for that many incoming frames with the marker and expects no more than those.
    pub fn expect(&self, what: &str, marker: &[u8], count: usize) {
        let mut seen = 0;
        eventually(&format!("{what}: {count} frames"), || {
            seen += self.received(marker);
            seen >= count
        });
        assert_eq!(seen, count, "{what}");
    }
}

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

pub fn ifindex(netns: &Netns, interface: &str) -> u32 {
    let json: serde_json::Value =
        serde_json::from_str(&netns.cmd(&format!("ip -j link show dev {interface}"))).unwrap();
    json[0]["ifindex"].as_u64().unwrap().try_into().unwrap()
}

pub fn mac(netns: &Netns, interface: &str) -> [u8; 6] {
    let json: serde_json::Value =
        serde_json::from_str(&netns.cmd(&format!("ip -j link show dev {interface}"))).unwrap();
    let text = json[0]["address"].as_str().unwrap().to_owned();
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// An Ethernet frame.
pub fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.as_slice(), from.as_slice(), &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn ones_complement(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn ipv4(to: [u8; 6], from: [u8; 6], addresses: (Ipv4Addr, Ipv4Addr), protocol: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    header.extend(addresses.0.octets());
    header.extend(addresses.1.octets());
    let checksum = ones_complement(&header).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    header.extend(content);
    ethernet(to, from, 0x0800, &header)
}

/// A UDP datagram from the first address to the second, to that port.
pub fn udp(to: [u8; 6], from: [u8; 6], addresses: (Ipv4Addr, Ipv4Addr), port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut content = Vec::new();
    for field in [40_000, port, length, 0] {
        content.extend(u16::to_be_bytes(field));
    }
    content.extend(payload);
    ipv4(to, from, addresses, 17, &content)
}

/// An ICMP echo request.
pub fn echo(to: [u8; 6], from: [u8; 6], addresses: (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let mut content = vec![8, 0, 0, 0, 0, 7, 0, 1];
    content.extend(payload);
    let checksum = ones_complement(&content).to_be_bytes();
    content[2..4].copy_from_slice(&checksum);
    ipv4(to, from, addresses, 1, &content)
}

/// The outer headers of a VXLAN packet over IPv4, and what it carries.
#[derive(Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub port: u16,
    pub id: u32,
    pub inner: Vec<u8>,
}

impl Vxlan {
    /// Takes a captured frame apart; `None` where it isn't UDP over IPv4.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        if frame.len() < 50 || frame[12..14] != [0x08, 0x00] || frame[14] != 0x45 || frame[23] != 17 {
            return None;
        }
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
        assert_eq!(frame[42], 0x08, "only the I flag: {frame:x?}");
        Some(Self {
            from: address(26),
            to: address(30),
            port: u16::from_be_bytes([frame[36], frame[37]]),
            id: u32::from_be_bytes([0, frame[46], frame[47], frame[48]]),
            inner: frame[50..].to_vec(),
        })
    }
}

/// Sets a knob below /proc/sys/net, of that namespace.
pub fn knob(netns: &Netns, name: &str, value: &str) {
    netns.enter(|| {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path} = {value}: {e}"));
    });
}

/// No IPv6 in that namespace, so that nothing but the test sends anything there.
pub fn quiet(netns: &Netns) {
    for which in ["all", "default"] {
        knob(netns, &format!("ipv6/conf/{which}/disable_ipv6"), "1");
    }
}

/// Counter of /proc/net/snmp, of that namespace.
pub fn snmp(netns: &Netns, protocol: &str, counter: &str) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(&format!("{protocol}: ")));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|n| n == counter).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// The probe programs, loaded and pinned for one namespace.
pub struct Probe {
    directory: PathBuf,
}

static PROBE: &[u8] = include_bytes!(env!("TUNNEL_MESH_PROBE_OBJECT"));

impl Probe {
    pub fn load(netns: &Netns) -> Self {
        ensure_bpffs();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), PROBE).unwrap();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let probe = Self { directory: PathBuf::from(format!("/sys/fs/bpf/{}-probe-{number}", netns.name)) };
        let directory = probe.directory.to_str().unwrap();
        harness::run("bpftool", &["prog", "loadall", file.path().to_str().unwrap(), directory, "pinmaps", directory]);
        probe
    }

    /// Puts a program on an ingress hook, as others do.
    pub fn attach(&self, netns: &Netns, interface: &str, program: &str) {
        attach_pinned(netns, interface, "ingress", FOREIGN_PRIORITY, &self.directory.join(program));
    }

    /// Where a program of it is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// As [`Probe::attach`], before those.
    pub fn attach_first(&self, netns: &Netns, interface: &str, program: &str) {
        attach_pinned(netns, interface, "ingress", FOREIGN_PRIORITY - 1, &self.directory.join(program));
    }

    /// How many packets were seen with each tc_index; the last stands for 15 and more.
    pub fn seen(&self) -> [u64; 16] {
        let pin = self.directory.join("seen");
        let text = harness::run("bpftool", &["-j", "map", "dump", "pinned", pin.to_str().unwrap()]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut counts = [0; 16];
        for entry in json.as_array().unwrap() {
            let entry = &entry["formatted"];
            counts[usize::try_from(entry["key"].as_u64().unwrap()).unwrap()] = entry["value"].as_u64().unwrap();
        }
        counts
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// Priority of the probes' filters: behind ours.
pub const FOREIGN_PRIORITY: u16 = 99;

/// Puts a pinned program on a clsact hook of an interface.
pub fn attach_pinned(netns: &Netns, interface: &str, hook: &str, priority: u16, pin: &std::path::Path) {
    // There already where our own filters are on clsact.
    netns.try_cmd(&format!("tc qdisc add dev {interface} clsact"));
    netns.cmd(&format!("tc filter add dev {interface} {hook} prio {priority} bpf da pinned {}", pin.display()));
}

/// `bpftool map ACTION pinned PIN key KEY [value VALUE]`, bytes as they are in memory.
pub fn map_write(host: &Host, map: &str, action: &str, key: &[u8], value: Option<&[u8]>) {
    let words = |bytes: &[u8]| bytes.iter().map(|b| format!("0x{b:02x}")).collect::<Vec<_>>();
    let mut command = Command::new("bpftool");
    command.args(["map", action, "pinned"]).arg(host.pin(map)).arg("key").args(words(key));
    if let Some(value) = value {
        command.arg("value").args(words(value));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes of the only key of a map.
pub fn only_key(host: &Host, map: &str) -> Vec<u8> {
    let dump = host.dump(map);
    let entries = dump.as_array().unwrap();
    assert_eq!(entries.len(), 1, "{map}: {dump:#}");
    let byte = |b: &serde_json::Value| u8::from_str_radix(b.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    entries[0]["key"].as_array().unwrap().iter().map(byte).collect()
}

/// Drops of one reason over all slots, straight from the map: what `status` shows of them is another matter.
pub fn dropped(host: &Host, reason: &str) -> u64 {
    let place = tunnel_mesh::model::DropReason::ALL.iter().position(|r| r.name() == reason).unwrap();
    let dump = host.dump("counters");
    let cpus = dump.as_array().unwrap().iter().flat_map(|slot| slot["formatted"]["values"].as_array().unwrap());
    cpus.map(|cpu| cpu["value"]["drops"][place].as_u64().unwrap()).sum()
}

/// Takes our program off the ingress hook of a device, as an operator who knows no better.
pub fn detach_ingress(host: &Host, interface: &str) {
    if clsact() {
        host.netns.cmd(&format!("tc filter del dev {interface} ingress"));
    } else {
        let pin = host.pin("links").join(format!("ingress_{}", host.ifindex(interface)));
        std::fs::remove_file(pin).unwrap();
    }
}

/// The path of a pinned program of ours.
pub fn program_pin(host: &Host, prefix: &str) -> PathBuf {
    let directory = std::fs::read_dir(host.pin("programs")).unwrap();
    let mut all = directory.map(|e| e.unwrap().path());
    all.find(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix)).unwrap()
}
