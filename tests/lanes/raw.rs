//! Packet sockets that see what a workload sees: offloads undone, VLAN tags put back, nothing cut off.
//!
//! A *frame* here is what would be on a wire: a checksum that the kernel left for later is completed, a segmentation left
//! for later is done ([`segment`](super::segment)). So frames that took different ways can be compared byte for byte.

#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_docs)]

use super::segment::{Offload, wire_frames};
use crate::world::PATIENCE;
use crate::world::harness::Netns;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// A frame as its sender hands it to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub offload: Offload,
}

impl Packet {
    /// All is done already.
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes, offload: Offload::default() }
    }

    /// What it is on the wire.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        wire_frames(&self.bytes, self.offload)
    }
}

/// A socket on one interface: sends, and sees what comes in. Nothing of what goes out.
pub struct Raw {
    socket: OwnedFd,
    /// Whole packets, segments not counted.
    name: String,
}

const IGNORE_OUTGOING: i32 = 23;
const HEADER: usize = 10;
const BATCH: usize = 64;
const LARGEST: usize = 80_000;

fn size<T>(of: &T) -> u32 {
    u32::try_from(size_of_val(of)).unwrap()
}

impl Raw {
    pub fn on(netns: &Netns, interface: &str) -> Self {
        let index = crate::safety::ifindex(netns, interface);
        let name = format!("{interface} of {}", netns.name);
        netns.enter(|| Self::open(i32::try_from(index).unwrap(), name))
    }

    fn open(ifindex: i32, name: String) -> Self {
        let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: plain system calls on a descriptor that is owned from here on; the structures live on this stack.
        unsafe {
            let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let raw = libc::socket(libc::AF_PACKET, flags, 0);
            assert!(raw >= 0, "packet socket: {}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(raw);
            let set = |level: i32, option: i32, value: i32| {
                let done = libc::setsockopt(raw, level, option, (&raw const value).cast(), size(&value));
                assert_eq!(done, 0, "socket option {level}/{option}: {}", std::io::Error::last_os_error());
            };
            set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20);
            set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20);
            set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1);
            set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1);
            set(libc::SOL_PACKET, IGNORE_OUTGOING, 1);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = protocol;
            address.sll_ifindex = ifindex;
            let bound = libc::bind(raw, (&raw const address).cast(), size(&address));
            assert_eq!(bound, 0, "bind to {name}: {}", std::io::Error::last_os_error());
            Self { socket, name }
        }
    }

    /// Sends all of them, many by a call.
    pub fn send(&self, packets: &[Packet]) {
        for batch in packets.chunks(BATCH) {
            self.send_batch(batch);
        }
    }

    fn send_batch(&self, packets: &[Packet]) {
        let headers: Vec<[u8; HEADER]> = packets.iter().map(|p| p.offload.header()).collect();
        let part = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut parts: Vec<[libc::iovec; 2]> =
            packets.iter().zip(&headers).map(|(p, h)| [part(h), part(&p.bytes)]).collect();
        // SAFETY: a message of zeros is an empty one.
        let mut messages: Vec<libc::mmsghdr> = (0..parts.len()).map(|_| unsafe { std::mem::zeroed() }).collect();
        for (message, parts) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_iov = parts.as_mut_ptr();
            message.msg_hdr.msg_iovlen = parts.len();
        }
        let mut sent = 0;
        while sent < messages.len() {
            let rest = &mut messages[sent..];
            let count = u32::try_from(rest.len()).unwrap();
            // SAFETY: everything that the messages point to outlives the call.
            let done = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            let error = std::io::Error::last_os_error();
            match usize::try_from(done) {
                Ok(done) => sent += done,
                // A TC program dropped it: it was sent for all that this socket knows.
                Err(_) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
                Err(_) if error.raw_os_error() == Some(libc::EAGAIN) => self.poll(libc::POLLOUT),
                Err(_) => panic!("send on {}: {error}: {:02x?}", self.name, packets[sent]),
            }
        }
    }

    fn poll(&self, events: i16) {
        let mut waits = libc::pollfd { fd: self.socket.as_raw_fd(), events, revents: 0 };
        // SAFETY: one descriptor, as said.
        unsafe { libc::poll(&raw mut waits, 1, 20) };
    }

    /// The frames of the next packet that is there already.
    fn receive(&self, buffer: &mut [u8]) -> Option<Vec<Vec<u8>>> {
        let mut control = [0_u64; 16];
        // SAFETY: the buffers are as long as said, and outlive the call; control messages are walked as the kernel laid
        // them out.
        let (length, vlan) = unsafe {
            let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let length = libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
            let mut vlan = None;
            let mut at = if length < 0 { std::ptr::null_mut() } else { libc::CMSG_FIRSTHDR(&raw const message) };
            while !at.is_null() {
                if (*at).cmsg_level == libc::SOL_PACKET && (*at).cmsg_type == libc::PACKET_AUXDATA {
                    let data: libc::tpacket_auxdata = std::ptr::read_unaligned(libc::CMSG_DATA(at).cast());
                    if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                        vlan = Some([data.tp_vlan_tpid, data.tp_vlan_tci]);
                    }
                }
                at = libc::CMSG_NXTHDR(&raw const message, at);
            }
            (length, vlan)
        };
        let Ok(length) = usize::try_from(length) else {
            let error = std::io::Error::last_os_error();
            // Whatever it is, a packet that this socket can't show must not look like one that didn't come.
            assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "receive on {}: {error}", self.name);
            return None;
        };
        assert!(length < buffer.len(), "a packet of more than {length} bytes on {}", self.name);
        let mut frames = wire_frames(&buffer[HEADER..length], Offload::parse(&buffer[..HEADER]));
        if let Some(tag) = vlan {
            let tag: Vec<u8> = tag.iter().flat_map(|word| word.to_be_bytes()).collect();
            for frame in &mut frames {
                frame.splice(12..12, tag.iter().copied());
            }
        }
        Some(frames)
    }

    /// Every frame that came in since the last call, up to the first one that is `last` (which isn't among them). Waits
    /// for that one.
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; LARGEST];
        let (mut all, end) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            match self.receive(&mut buffer) {
                Some(frames) if frames.len() == 1 && frames[0] == last => return all,
                Some(frames) => all.extend(frames),
                None => {
                    assert!(Instant::now() < end, "the last frame didn't reach {} within {PATIENCE:?}", self.name);
                    self.poll(libc::POLLIN);
                }
            }
        }
    }

    /// Every frame that came in since the last call.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; LARGEST];
        std::iter::from_fn(|| self.receive(&mut buffer)).flatten().collect()
    }

    /// Packets that the kernel didn't keep for this socket, since the last call.
    pub fn lost(&self) -> u32 {
        let mut stats = [0_u32; 2];
        let mut length = size(&stats);
        // SAFETY: the structure is two numbers: packets, drops.
        let done = unsafe {
            let pointer = stats.as_mut_ptr().cast();
            let level = libc::SOL_PACKET;
            libc::getsockopt(self.socket.as_raw_fd(), level, libc::PACKET_STATISTICS, pointer, &raw mut length)
        };
        assert_eq!(done, 0, "statistics of {}: {}", self.name, std::io::Error::last_os_error());
        stats[1]
    }
}

/// The processor that the calling thread is on.
pub fn some_cpu() -> usize {
    // SAFETY: no arguments.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap()
}

/// Binds the calling thread to that processor.
pub fn on_cpu(cpu: usize) {
    // SAFETY: a set of zeros is an empty one; the calls read and write nothing else.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
    }
}
