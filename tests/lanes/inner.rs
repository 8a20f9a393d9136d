//! What a workload may send, built by hand: every kind of frame, whole or with work left to the kernel.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::raw::Packet;
use super::segment::{Gso, GsoKind, Offload, fix_ipv4_checksum, folded, network, pseudo_header, put_u16, sum};

pub const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub const FAR: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// An EtherType for local experiments.
pub const EXPERIMENT: u16 = 0x88b5;

/// How a checksum is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    Whole,
    /// Left to the kernel.
    Partial,
    /// None (UDP).
    Zero,
}

/// An IP header to be.
#[derive(Debug, Clone, Copy)]
pub struct Ip {
    pub to: [u8; 6],
    pub v6: bool,
    pub tos: u8,
    pub ttl: u8,
    /// IPv4: the word with flags and fragment offset. IPv6: likewise, and a fragment header where it isn't 0.
    pub fragment: u16,
    /// IPv4: multiples of 4. IPv6: an extension header, its first byte the type of that header.
    pub options: &'static [u8],
    pub id: u16,
    /// Last byte of the destination address; 255: broadcast or all nodes.
    pub host: u8,
}

pub fn ip(v6: bool) -> Ip {
    Ip { to: FAR, v6, tos: 0, ttl: 64, fragment: 0, options: &[], id: 0x1234, host: 2 }
}

pub fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &NEAR, &kind.to_be_bytes(), payload].concat()
}

/// Bytes that tell where one of them is from.
pub fn payload(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|n| u8::try_from((n * 7 + n / 251 + usize::from(salt) * 13) % 251).unwrap()).collect()
}

impl Ip {
    /// An Ethernet frame with that content, of that protocol.
    pub fn frame(self, protocol: u8, content: &[u8]) -> Vec<u8> {
        let header =
            if self.v6 { self.header6(protocol, content.len()) } else { self.header4(protocol, content.len()) };
        let mut frame = ethernet(self.to, if self.v6 { 0x86dd } else { 0x0800 }, &header);
        frame.extend(content);
        if !self.v6 {
            fix_ipv4_checksum(&mut frame, 14);
        }
        frame
    }

    fn header4(self, protocol: u8, length: usize) -> Vec<u8> {
        let words = u8::try_from(5 + self.options.len() / 4).unwrap();
        let total = u16::try_from(usize::from(words) * 4 + length).unwrap_or(u16::MAX);
        let mut header = vec![0x40 | words, self.tos];
        for word in [total, self.id, self.fragment] {
            header.extend(word.to_be_bytes());
        }
        header.extend([self.ttl, protocol, 0, 0, 192, 168, 50, 1, 192, 168, 50, self.host]);
        header.extend(self.options);
        header
    }

    fn header6(self, protocol: u8, length: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut next = protocol;
        if self.fragment != 0 {
            // Offset in units of 8 with the M flag last, where IPv4 has it first.
            let word = (self.fragment & 0x1fff) << 3 | (self.fragment & 0x2000) >> 13;
            let id = self.id.to_be_bytes();
            extensions = [&[next, 0][..], &word.to_be_bytes(), &[0, 0], &id].concat();
            next = 44;
        }
        if let Some((kind, rest)) = self.options.split_first() {
            extensions = [&[next], rest, &extensions[..]].concat();
            next = *kind;
        }
        let total = u16::try_from(extensions.len() + length).unwrap_or(u16::MAX).to_be_bytes();
        let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0, total[0], total[1], next, self.ttl];
        header.extend([0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let to = if self.host == 255 { [0xff, 2] } else { [0xfd, 0x50] };
        header.extend(to);
        header.extend([0; 13]);
        header.push(if self.host == 255 { 1 } else { self.host });
        header.extend(extensions);
        header
    }

    /// With the checksum of its content, which has it at that offset.
    fn summed(self, protocol: u8, content: &[u8], at: u16, how: Checksum) -> Packet {
        let mut bytes = self.frame(protocol, content);
        let (start, field) = (bytes.len() - content.len(), bytes.len() - content.len() + usize::from(at));
        // ICMP has no pseudo header.
        let pseudo = if protocol == 1 { 0 } else { pseudo_header(&bytes, 14, protocol, content.len()) };
        let mut offload = Offload::default();
        match how {
            Checksum::Zero => {}
            Checksum::Whole => {
                let checksum = !folded(sum(pseudo, &bytes[start..]));
                put_u16(&mut bytes, field, if checksum == 0 && protocol == 17 { 0xffff } else { checksum });
            }
            Checksum::Partial => {
                put_u16(&mut bytes, field, folded(pseudo));
                offload.checksum = Some((u16::try_from(start).unwrap(), at));
            }
        }
        Packet { bytes, offload }
    }

    pub fn udp(self, payload: &[u8], how: Checksum) -> Packet {
        self.udp_between(40_000, 7_777, payload, how)
    }

    pub fn udp_between(self, from: u16, to: u16, payload: &[u8], how: Checksum) -> Packet {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut content: Vec<u8> = [from, to, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
        content.extend(payload);
        self.summed(17, &content, 6, how)
    }

    /// With those flags (and ten options' bytes, as Linux sends a timestamp).
    pub fn tcp(self, flags: u8, number: u32, payload: &[u8], how: Checksum) -> Packet {
        let mut content: Vec<u8> = [40_001_u16, 7_777].into_iter().flat_map(u16::to_be_bytes).collect();
        content.extend(number.to_be_bytes());
        content.extend([0, 0, 0, 9, 0x80, flags, 0x20, 0, 0, 0, 0, 0]);
        content.extend([1, 1, 8, 10, 0, 0, 1, 0, 0, 0, 2, 0]);
        content.extend(payload);
        self.summed(6, &content, 16, how)
    }

    /// Left to the kernel to be cut into segments of that size.
    pub fn tcp_gso(self, flags: u8, number: u32, payload: &[u8], size: u16) -> Packet {
        let mut packet = self.tcp(flags, number, payload, Checksum::Partial);
        let kind = if self.v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
        let headers = u16::try_from(packet.bytes.len() - payload.len()).unwrap();
        packet.offload.gso = Some(Gso { kind, ecn: flags & 0x80 != 0, size, headers });
        packet
    }

    pub fn udp_gso(self, payload: &[u8], size: u16) -> Packet {
        let mut packet = self.udp(payload, Checksum::Partial);
        let headers = u16::try_from(packet.bytes.len() - payload.len()).unwrap();
        packet.offload.gso = Some(Gso { kind: GsoKind::Udp, ecn: false, size, headers });
        packet
    }

    /// An echo request.
    pub fn echo(self, payload: &[u8]) -> Packet {
        let (kind, protocol) = if self.v6 { (128, 58) } else { (8, 1) };
        let content = [&[kind, 0, 0, 0, 0, 7, 0, 1], payload].concat();
        self.summed(protocol, &content, 2, Checksum::Whole)
    }
}

pub fn arp(to: [u8; 6], operation: u8) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let body = [&NEAR[..], &[192, 168, 50, 1], &to, &[192, 168, 50, 2]].concat();
    ethernet(to, 0x0806, &[&head[..], &body].concat())
}

/// With a VLAN tag in front.
pub fn tagged(packet: &Packet, kind: u16, tag: u16) -> Packet {
    let mut packet = packet.clone();
    let word: Vec<u8> = [kind, tag].into_iter().flat_map(u16::to_be_bytes).collect();
    packet.bytes.splice(12..12, word);
    if let Some((start, _)) = &mut packet.offload.checksum {
        *start += 4;
    }
    if let Some(gso) = &mut packet.offload.gso {
        gso.headers += 4;
    }
    packet
}

/// A number that makes a frame unlike any other: the IPv4 identification, else the IPv6 flow label's end.
pub fn number(packet: &mut Packet, number: u16) {
    let (at, kind) = network(&packet.bytes);
    match kind {
        0x0800 => {
            put_u16(&mut packet.bytes, at + 4, number);
            fix_ipv4_checksum(&mut packet.bytes, at);
        }
        0x86dd => put_u16(&mut packet.bytes, at + 2, number),
        _ => {}
    }
}
