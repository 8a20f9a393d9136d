//! Frames as they pass an interface, and the outer headers of tunnel packets.

#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_docs)]

use super::PATIENCE;
use super::harness::Netns;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A packet socket that sees everything on one interface, both ways.
pub struct Capture {
    socket: OwnedFd,
}

/// What was seen: at most the first 2 KiB, and the full length.
#[derive(Debug, Clone)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub length: usize,
}

impl Capture {
    /// Starts on that interface of that namespace.
    pub fn on(netns: &Netns, interface: &str) -> Self {
        let text = netns.cmd(&format!("ip -j link show dev {interface}"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ifindex = i32::try_from(json[0]["ifindex"].as_i64().unwrap()).unwrap();
        netns.enter(|| Self::open(ifindex))
    }

    fn open(ifindex: i32) -> Self {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: plain system calls on a descriptor that is owned from here on; the structures live on this stack.
        unsafe {
            let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(raw >= 0, "packet socket: {}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(raw);
            let buffer: i32 = 8 << 20;
            let size = u32::try_from(size_of_val(&buffer)).unwrap();
            let pointer = (&raw const buffer).cast();
            assert_eq!(libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, pointer, size), 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = all;
            address.sll_ifindex = ifindex;
            let size = u32::try_from(size_of_val(&address)).unwrap();
            let bound = libc::bind(raw, (&raw const address).cast(), size);
            assert_eq!(bound, 0, "bind to ifindex {ifindex}: {}", std::io::Error::last_os_error());
            Self { socket }
        }
    }

    /// The next frame that is there already.
    pub fn next(&self) -> Option<Frame> {
        let mut bytes = vec![0_u8; 2048];
        // SAFETY: the buffer is as long as said.
        let length = unsafe {
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            libc::recv(self.socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags)
        };
        let length = usize::try_from(length).ok()?;
        bytes.truncate(length);
        Some(Frame { bytes, length })
    }

    /// Forgets what was seen so far.
    pub fn clear(&self) {
        while self.next().is_some() {}
    }

    /// Everything that was seen so far.
    pub fn seen(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The first frame, now or later, that the function accepts.
    pub fn wait<T>(&self, what: &str, mut accept: impl FnMut(&Frame) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.next() {
                Some(frame) => {
                    if let Some(found) = accept(&frame) {
                        return found;
                    }
                }
                None => {
                    assert!(Instant::now() < end, "not seen within {PATIENCE:?}: {what}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// An IP packet that carries a tenant's frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub dont_fragment: bool,
    pub fragment: bool,
    /// Length of the whole frame.
    pub length: usize,
    pub tunnel: Tunnel,
    /// The tenant's frame.
    pub inner: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN or Geneve, as the port says.
    Udp {
        port: u16,
        checksum: u16,
        id: u32,
    },
    Gre {
        id: u32,
    },
}

impl Tunnel {
    pub fn id(self) -> u32 {
        match self {
            Self::Udp { id, .. } | Self::Gre { id } => id,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().unwrap()))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap()))
}

impl Frame {
    /// Its outer headers, where it is a tunnel's packet.
    pub fn outer(&self) -> Option<Outer> {
        let bytes = &self.bytes;
        let (mut protocol, mut at, source, destination, ttl, tos, dont_fragment, fragment);
        match u16_at(bytes, 12)? {
            0x0800 => {
                let ip = bytes.get(14..34)?;
                let flags = u16_at(ip, 6)?;
                let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
                (protocol, at) = (ip[9], 14 + usize::from(ip[0] & 15) * 4);
                (source, destination, ttl, tos) = (address(12), address(16), ip[8], ip[1]);
                (dont_fragment, fragment) = (flags & 0x4000 != 0, flags & 0x3fff != 0);
            }
            0x86dd => {
                let ip = bytes.get(14..54)?;
                let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap()).into();
                (protocol, at) = (ip[6], 54);
                (source, destination, ttl, tos) = (address(8), address(24), ip[7], ip[0] << 4 | ip[1] >> 4);
                (dont_fragment, fragment) = (false, protocol == 44);
                if protocol == 60 {
                    // Destination options: the tunnel encapsulation limit of ip6gretap.
                    protocol = *bytes.get(at)?;
                    at += 8 + usize::from(*bytes.get(at + 1)?) * 8;
                }
            }
            _ => return None,
        }
        let (tunnel, payload) = match protocol {
            17 => {
                let (port, checksum) = (u16_at(bytes, at + 2)?, u16_at(bytes, at + 6)?);
                let header = at + 8;
                // Geneve says in its first byte how many words of options follow.
                let options = if port == 6081 { usize::from(bytes.get(header)? & 63) * 4 } else { 0 };
                (Tunnel::Udp { port, checksum, id: u32_at(bytes, header + 4)? >> 8 }, header + 8 + options)
            }
            47 => {
                let flags = u16_at(bytes, at)?;
                let checksum = if flags & 0x8000 != 0 { 4 } else { 0 };
                assert_ne!(flags & 0x2000, 0, "GRE without key: {bytes:x?}");
                (Tunnel::Gre { id: u32_at(bytes, at + 4 + checksum)? }, at + 8 + checksum)
            }
            _ => return None,
        };
        let inner = bytes.get(payload..)?.to_owned();
        Some(Outer { source, destination, ttl, tos, dont_fragment, fragment, length: self.length, tunnel, inner })
    }
}

impl Outer {
    /// Whether the tenant's frame is an ICMP or ICMPv6 echo request.
    pub fn is_echo_request(&self) -> bool {
        match u16_at(&self.inner, 12) {
            Some(0x0800) => self.inner.get(23) == Some(&1) && self.inner.get(34) == Some(&8),
            Some(0x86dd) => self.inner.get(20) == Some(&58) && self.inner.get(54) == Some(&128),
            _ => false,
        }
    }
}
