//! Two hosts whose workloads believe in an MTU that their tunnel doesn't have, and the packets that they send.

#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_docs)]

use crate::safety::{Tap, mac};
use crate::world::harness::Netns;
use crate::world::setup::{Attach, Over};
use crate::world::*;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

pub fn v4(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, u8::try_from(n + 1).unwrap())
}

pub fn v6(n: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, u16::try_from(n + 1).unwrap())
}

/// Two hosts with a workload each, of one tenant. The workloads' MTU is the underlay's.
pub struct Pair {
    pub hosts: [Host; 2],
    pub workloads: [Netns; 2],
    pub underlay: Underlay,
    pub over: Over,
    attach: Attach,
}

impl Pair {
    /// By that lane: `off` or `on`, as the files say it.
    pub fn new(attach: Attach, over: Over, fast: &str) -> Self {
        Self::with(attach, over, 1500, &format!("kind: vxlan, create: true, fast: {fast}"))
    }

    /// On an underlay of that MTU, with that text as the tunnel's.
    pub fn with(attach: Attach, over: Over, underlay: u32, tunnel: &str) -> Self {
        Self::prepared(attach, over, underlay, tunnel, |_| {})
    }

    /// With tunnel devices of somebody else's, of the kernel's own largest MTU, which don't forward.
    pub fn with_foreign_devices(attach: Attach, over: Over) -> Self {
        Self::prepared(attach, over, 1500, "kind: vxlan, create: false, fast: off", |host| {
            host.netns.cmd("ip link add vxlan0 type vxlan external dstport 4789");
            host.netns.cmd("ip link set vxlan0 addrgenmode none mtu 65535 up");
            for family in ["ipv4", "ipv6"] {
                host.netns.cmd(&format!("sysctl -qw net.{family}.conf.vxlan0.forwarding=0"));
            }
        })
    }

    fn prepared(attach: Attach, over: Over, underlay: u32, tunnel: &str, prepare: impl Fn(&Host)) -> Self {
        let underlay = Underlay::with_mtu(underlay);
        let hosts = [underlay.host(0), underlay.host(1)];
        let workloads = [0, 1].map(|n: usize| {
            // Where bridges hand packets to netfilter, that one drops malformed headers.
            for family in ["ip", "ip6"] {
                hosts[n].netns.try_cmd(&format!("sysctl -qw net.bridge.bridge-nf-call-{family}tables=0"));
            }
            let (host, workload) = (&hosts[n].netns, Netns::new());
            host.cmd(&format!(
                "ip link add veth-w mtu {} type veth peer name eth0 netns {}",
                underlay.mtu, workload.name
            ));
            host.cmd("ip link set veth-w addrgenmode none up");
            workload.cmd(&format!("ip link set eth0 addrgenmode none mtu {} up", underlay.mtu));
            workload
        });
        hosts.iter().for_each(prepare);
        let pair = Self { hosts, workloads, underlay, over, attach };
        pair.apply(tunnel);
        for n in 0..2 {
            if attach == Attach::Port {
                pair.hosts[n].netns.cmd("ip link set veth-w master br-red");
            }
            let workload = &pair.workloads[n];
            workload.cmd(&format!("ip addr add {}/24 dev eth0", v4(n)));
            workload.cmd(&format!("ip addr add {}/64 dev eth0 nodad", v6(n)));
        }
        // From now on the bridges know where everybody is, and nobody asks.
        for n in 0..2 {
            let far = mac(&pair.workloads[1 - n], "eth0").map(|b| format!("{b:02x}")).join(":");
            for address in [v4(1 - n).to_string(), v6(1 - n).to_string()] {
                assert_pings(&pair.workloads[n], &address);
                pair.workloads[n].cmd(&format!("ip neigh replace {address} lladdr {far} dev eth0 nud permanent"));
            }
        }
        pair
    }

    /// Brings the topology with that tunnel into force on both hosts.
    pub fn apply(&self, tunnel: &str) {
        let nodes = format!("nodes: {{host0: '{}', host1: '{}'}}", self.over.host(0), self.over.host(1));
        let tenant = match self.attach {
            Attach::Port => "{id: 123, bridge: br-red}".to_owned(),
            Attach::Endpoint => {
                let member = "{interface: veth-w, attach: endpoint}";
                format!("{{id: 123, members: {{host0: {member}, host1: {member}}}}}")
            }
        };
        for host in &self.hosts {
            host.write(
                "a.yaml",
                &format!("version: 1\n{nodes}\ntunnels:\n  vxlan0: {{{tunnel}}}\ntenants:\n  red: {tenant}\n"),
            );
            host.apply();
        }
    }

    /// Packets of the first workload that were too big.
    pub fn too_big(&self) -> u64 {
        let mapping = self.hosts[0].status()["mappings"][0].clone();
        mapping["traffic"]["drops"].get("too_big").map_or(0, |n| n.as_u64().unwrap())
    }

    /// Hardware addresses of the workloads.
    pub fn macs(&self) -> [[u8; 6]; 2] {
        [0, 1].map(|n: usize| mac(&self.workloads[n], "eth0"))
    }

    pub fn tap(&self, n: usize) -> Tap {
        Tap::on(&self.workloads[n], "eth0")
    }
}

/// A frame that came in, and the VLAN tag that the kernel took off: protocol and VLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    pub tag: Option<(u16, u16)>,
    pub bytes: Vec<u8>,
    /// Whether nobody has yet to fill in a checksum.
    pub complete: bool,
}

/// Has the kernel say what tags it takes off.
pub fn show_tags(tap: &Tap) {
    let on: i32 = 1;
    // SAFETY: the option's value lives across the call.
    let set = unsafe {
        let size = u32::try_from(size_of_val(&on)).unwrap();
        libc::setsockopt(tap.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, (&raw const on).cast(), size)
    };
    assert_eq!(set, 0, "PACKET_AUXDATA: {}", std::io::Error::last_os_error());
}

/// Sends that many datagrams of that size in one call, which the kernel takes apart; none of them may be fragmented.
pub fn send_in_parts(socket: &UdpSocket, size: usize, count: usize) {
    const UDP_SEGMENT: i32 = 103;
    let whole = match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    for (level, option, value) in [whole, (libc::SOL_UDP, UDP_SEGMENT, i32::try_from(size).unwrap())] {
        // SAFETY: the option's value lives across the call.
        let set = unsafe {
            let length = u32::try_from(size_of_val(&value)).unwrap();
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
        };
        assert_eq!(set, 0, "option {option}: {}", std::io::Error::last_os_error());
    }
    assert_eq!(socket.send(&vec![0x5a; size * count]).unwrap(), size * count);
}

/// The next frame that came in, if there is one; needs [`show_tags`].
pub fn next_tagged(tap: &Tap) -> Option<Tagged> {
    let mut bytes = vec![0_u8; 65536];
    loop {
        // SAFETY: every buffer lives across the call, and lengths are as said; the control message is read unaligned.
        unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut control = [0_u64; 16];
            let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = u32::try_from(size_of_val(&from)).unwrap();
            (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let length = libc::recvmsg(tap.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
            let length = usize::try_from(length).ok()?;
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            assert!(!header.is_null() && (*header).cmsg_type == libc::PACKET_AUXDATA);
            let data: libc::tpacket_auxdata = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
            let tag =
                (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some((data.tp_vlan_tpid, data.tp_vlan_tci));
            let complete = data.tp_status & libc::TP_STATUS_CSUMNOTREADY == 0;
            return Some(Tagged { tag, bytes: bytes[..length].to_vec(), complete });
        }
    }
}

/// The Internet checksum of RFC 1071.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u64 = bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An IP packet, and how it travels.
#[derive(Debug, Clone)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub ethertype: u16,
    pub tags: Vec<(u16, u16)>,
}

impl Packet {
    /// UDP over IPv4 from the first workload to the second, of that size.
    pub fn v4(size: usize, dont_fragment: bool) -> Self {
        Self::v4_of(size, dont_fragment, 17, &[0x9c, 0x40, 0x13, 0x88], (v4(0), v4(1)))
    }

    /// With that protocol, and the first bytes of what it carries.
    pub fn v4_of(
        size: usize,
        dont_fragment: bool,
        protocol: u8,
        start: &[u8],
        addresses: (Ipv4Addr, Ipv4Addr),
    ) -> Self {
        let length = u16::try_from(size).unwrap().to_be_bytes();
        let flags = if dont_fragment { 0x40 } else { 0 };
        let mut header = vec![0x45, 0x28, length[0], length[1], 0x12, 0x34, flags, 0, 33, protocol, 0, 0];
        header.extend(addresses.0.octets());
        header.extend(addresses.1.octets());
        Self { bytes: header, ethertype: 0x0800, tags: Vec::new() }.filled(size, start).with_header_checksum()
    }

    /// UDP over IPv6.
    pub fn v6(size: usize) -> Self {
        Self::v6_of(size, 17, &[0x9c, 0x40, 0x13, 0x88], (v6(0), v6(1)))
    }

    pub fn v6_of(size: usize, protocol: u8, start: &[u8], addresses: (Ipv6Addr, Ipv6Addr)) -> Self {
        let length = u16::try_from(size - 40).unwrap().to_be_bytes();
        let mut header = vec![0x61, 0x23, 0x45, 0x67, length[0], length[1], protocol, 44];
        header.extend(addresses.0.octets());
        header.extend(addresses.1.octets());
        Self { bytes: header, ethertype: 0x86dd, tags: Vec::new() }.filled(size, start)
    }

    /// Not IP at all.
    pub fn other(size: usize) -> Self {
        Self { bytes: Vec::new(), ethertype: crate::safety::EXPERIMENT, tags: Vec::new() }.filled(size, &[])
    }

    fn filled(mut self, size: usize, start: &[u8]) -> Self {
        self.bytes.extend(start);
        let more = self.bytes.len()..size;
        self.bytes.extend(more.map(|i| u8::try_from(i * 7 % 251).unwrap()));
        self
    }

    /// Puts a byte somewhere; the header checksum of IPv4 is made good.
    pub fn with(mut self, at: usize, byte: u8) -> Self {
        self.bytes[at] = byte;
        self.with_header_checksum()
    }

    fn with_header_checksum(mut self) -> Self {
        if self.ethertype == 0x0800 {
            self.bytes[10..12].fill(0);
            let sum = checksum(&[&self.bytes[..20]]).to_be_bytes();
            self.bytes[10..12].copy_from_slice(&sum);
        }
        self
    }

    /// Another VLAN tag, inside of those that it has.
    pub fn tagged(mut self, protocol: u16, vlan: u16) -> Self {
        self.tags.push((protocol, vlan));
        self
    }

    /// The frame that carries it.
    pub fn frame(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let mut frame = [to, from].concat();
        for (protocol, vlan) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(self.ethertype.to_be_bytes());
        frame.extend(&self.bytes);
        frame
    }

    /// The packet that answers it, as the kernel's own tunnels make it.
    pub fn answer(&self, mtu: u32) -> Self {
        let original = &self.bytes;
        let (mut ip, mut icmp, quote, pseudo);
        if self.ethertype == 0x0800 {
            quote = &original[..548];
            ip = vec![0x45, 0, 2, 64, 0, 0, 0x40, 0, original[8], 1, 0, 0];
            ip.extend([&original[16..20], &original[12..16]].concat());
            let sum = checksum(&[&ip]).to_be_bytes();
            ip[10..12].copy_from_slice(&sum);
            icmp = vec![3, 4, 0, 0];
            pseudo = Vec::new();
        } else {
            quote = &original[..1232];
            ip = vec![0x60, 0, 0, 0, 4, 216, 58, original[7]];
            ip.extend([&original[24..40], &original[8..24]].concat());
            icmp = vec![2, 0, 0, 0];
            pseudo = [&ip[8..40], &[0, 0, 4, 216, 0, 0, 0, 58]].concat();
        }
        icmp.extend(mtu.to_be_bytes());
        let sum = checksum(&[&pseudo, &icmp, quote]).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        Self { bytes: [&ip, &icmp, quote].concat(), ..self.clone() }
    }
}
