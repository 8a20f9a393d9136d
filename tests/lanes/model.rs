//! What a host must make of a frame on its underlay, by the standards and as Linux's own tunnel device does it: to whom it
//! goes, and with which bytes.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::Kind;
use super::segment::{folded, pseudo_header, put_u16, sum, u16_at};
use std::net::IpAddr;

/// Whose a delivered frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tenant {
    Red,
    Blue,
}

/// What the host knows.
#[derive(Debug, Clone)]
pub struct World {
    pub mac: [u8; 6],
    pub own: IpAddr,
    pub keys: Vec<((u32, IpAddr), Tenant)>,
    /// Whether the tunnel device takes datagrams without a checksum over IPv6.
    pub zero_checksum6: bool,
    pub kind: Kind,
    /// Whether a bridge stands between the tunnel and the workload.
    pub bridge: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody gets it.
    Nothing,
    /// That one gets exactly that.
    Delivered(Tenant, Vec<u8>),
    /// That one gets exactly that, or nobody gets anything: kernels differ.
    Perhaps(Tenant, Vec<u8>),
    /// That one gets a frame of that length, or nobody does.
    Something(Tenant, usize),
}

/// Why a frame is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Some counter of the kernel or of ours says so.
    Counted,
    /// Bits in the VXLAN header that mean something else: newer kernels count that as an error of the device.
    Bits,
    /// No kernel counts it: ARP and IEEE 802.2; a VXLAN header without the I flag, or with less than an Ethernet header behind it; a source
    /// address that can't be.
    Uncounted,
}

impl Verdict {
    /// A frame with a VLAN tag and not even a type behind it.
    pub fn is_torn_tag(&self) -> bool {
        match self {
            Self::Perhaps(_, frame) => frame.len() < 20 && matches!(u16_at(frame, 12), 0x8100 | 0x88a8),
            Self::Something(_, length) => *length < 20,
            _ => false,
        }
    }
}

type Found<T> = Result<T, Lost>;

/// What ECN makes of an inner field behind an outer one; `None`: the packet is dropped. RFC 6040, figure 4.
pub fn decapsulated_ecn(outer: u8, inner: u8) -> Option<u8> {
    match (outer & 3, inner & 3) {
        (3, 0) => None,
        (_, 0) => Some(0),
        (3, _) => Some(3),
        // ECT(1) on the way is the stronger mark.
        (1, 2) => Some(1),
        (_, inner) => Some(inner),
    }
}

/// The ECN field of the outer header. RFC 6040 in compatibility mode, as Linux has it: CE isn't copied.
pub fn encapsulated_ecn(inner: u8) -> u8 {
    if inner & 3 == 3 { 2 } else { inner & 3 }
}

impl World {
    pub fn verdict(&self, frame: &[u8]) -> Verdict {
        match self.outer(frame) {
            Err(_) => Verdict::Nothing,
            Ok((tenant, tos, inner)) => match self.inner(tenant, tos, inner) {
                Verdict::Delivered(tenant, inner) if Self::odd(frame) => Verdict::Perhaps(tenant, inner),
                verdict => verdict,
            },
        }
    }

    /// Why nobody gets it, if its outer headers say so.
    pub fn lost(&self, frame: &[u8]) -> Option<Lost> {
        match self.outer(frame) {
            Err(lost) => Some(lost),
            Ok((.., inner)) => (inner.len() < 14).then_some(Lost::Uncounted),
        }
    }

    /// Whether a right tunnel packet has what a host may refuse: a group's Ethernet address with one host's IP address
    /// (`drop_unicast_in_l2_multicast`), or IPv4 options that say something.
    fn odd(frame: &[u8]) -> bool {
        let options = if frame[12] == 8 { &frame[34..14 + usize::from(frame[14] & 15) * 4] } else { &[] };
        frame[0] & 1 != 0 || options.iter().any(|option| *option > 1)
    }

    /// The tenant, the outer TOS and the inner frame of a right tunnel packet for this host.
    fn outer<'a>(&self, frame: &'a [u8]) -> Found<(Tenant, u8, &'a [u8])> {
        let counted = Lost::Counted;
        if frame.get(..6).ok_or(counted)? != self.mac && frame[0] & 1 == 0 {
            return Err(counted);
        }
        let kind = u16_at(frame.get(12..14).ok_or(counted)?, 0);
        let (tos, from, datagram, pseudo) = match kind {
            0x0800 => Self::ipv4(&frame[14..], self.own)?,
            0x86dd => Self::ipv6(&frame[14..], self.own)?,
            0..0x600 | 0x0806 => return Err(Lost::Uncounted),
            _ => return Err(counted),
        };
        let header = datagram.get(..8).ok_or(counted)?;
        let mut length = usize::from(u16_at(header, 4));
        if length == 0 && kind == 0x86dd {
            length = datagram.len();
        }
        if length < 8 || length > datagram.len() {
            return Err(counted);
        }
        let datagram = &datagram[..length];
        let checksum = u16_at(header, 6);
        let right = folded(sum(pseudo + u32::try_from(length).unwrap(), datagram)) == 0xffff;
        let none = checksum == 0 && (kind == 0x0800 || self.zero_checksum6);
        if u16_at(header, 2) != self.kind.port() || !(none || checksum != 0 && right) {
            return Err(counted);
        }
        let header = datagram.get(8..16).ok_or(Lost::Uncounted)?;
        let start = match self.kind {
            Kind::Vxlan => Self::vxlan(header, datagram.len())?,
            Kind::Geneve => Self::geneve(header)?,
        };
        let inner = datagram.get(start..).ok_or(counted)?;
        let id = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        let tenant = self.keys.iter().find(|(key, _)| *key == (id, from)).map(|(_, tenant)| *tenant);
        match tenant {
            Some(tenant) => Ok((tenant, tos, inner)),
            None if inner.len() < 14 => Err(Lost::Uncounted),
            None => Err(counted),
        }
    }

    /// Where what is inside begins.
    fn vxlan(header: &[u8], length: usize) -> Found<usize> {
        if header[0] & 8 == 0 {
            return Err(Lost::Uncounted);
        }
        if header[..4] != Kind::Vxlan.word().to_be_bytes() || header[7] != 0 {
            return Err(if length < 30 { Lost::Uncounted } else { Lost::Bits });
        }
        Ok(16)
    }

    /// As [`World::vxlan`]. Options, flags and reserved bits are taken for what they are: nothing.
    fn geneve(header: &[u8]) -> Found<usize> {
        if header[0] >> 6 != 0 {
            return Err(Lost::Uncounted);
        }
        let ethernet = header[2..4] == [0x65, 0x58];
        if ethernet { Ok(16 + usize::from(header[0] & 63) * 4) } else { Err(Lost::Bits) }
    }

    /// TOS, source, content and the pseudo header's sum without the length.
    fn ipv4(packet: &[u8], own: IpAddr) -> Found<(u8, IpAddr, &[u8], u32)> {
        let counted = Lost::Counted;
        let fixed = packet.get(..20).ok_or(counted)?;
        let header = usize::from(fixed[0] & 15) * 4;
        let total = usize::from(u16_at(fixed, 2));
        if fixed[0] >> 4 != 4 || header < 20 || total < header || total > packet.len() {
            return Err(counted);
        }
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&fixed[at..at + 4]).unwrap());
        if folded(sum(0, &packet[..header])) != 0xffff {
            return Err(counted);
        }
        // A source that can't be, a group that nobody joined, IGMP.
        if address(12) == own || matches!(fixed[12], 0 | 127 | 224..) || matches!(fixed[16], 224..=239) || fixed[9] == 2
        {
            return Err(Lost::Uncounted);
        }
        if address(16) != own || u16_at(fixed, 6) & 0x3fff != 0 || fixed[9] != 17 {
            return Err(counted);
        }
        Ok((fixed[1], address(12), &packet[header..total], pseudo_header(packet, 0, 17, 0)))
    }

    fn ipv6(packet: &[u8], own: IpAddr) -> Found<(u8, IpAddr, &[u8], u32)> {
        let fixed = packet.get(..40).ok_or(Lost::Counted)?;
        let length = usize::from(u16_at(fixed, 4));
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).unwrap());
        if fixed[0] >> 4 != 6 || fixed[6] != 17 || length > packet.len() - 40 || address(24) != own {
            return Err(Lost::Counted);
        }
        let tos = fixed[0] << 4 | fixed[1] >> 4;
        Ok((tos, address(8), &packet[40..40 + length], pseudo_header(packet, 0, 17, 0)))
    }

    fn inner(&self, tenant: Tenant, tos: u8, inner: &[u8]) -> Verdict {
        let Some(header) = inner.get(..14) else { return Verdict::Nothing };
        // A bridge takes nothing from a group's or from no address, and what is for bridges only goes no further.
        if self.bridge && (header[6] & 1 != 0 || header[6..12] == [0; 6]) {
            return Verdict::Nothing;
        }
        let bridges_only = self.bridge && header[..5] == [1, 0x80, 0xc2, 0, 0] && header[5] < 16;
        let kind = u16_at(header, 12);
        if matches!(kind, 0x8100 | 0x88a8) {
            // Linux looks for the ECN field at the wrong place behind a tag.
            if tos & 3 != 0 {
                return Verdict::Something(tenant, inner.len());
            }
            return Verdict::Perhaps(tenant, inner.to_vec());
        }
        let mut frame = inner.to_vec();
        let needed = match kind {
            0x0800 => 34,
            0x86dd => 54,
            _ => 14,
        };
        // Since 6.9 (and what was backported) the device takes no half IP header.
        let short = frame.len() < needed;
        if !short {
            let ecn = match kind {
                0x0800 => Some(frame[15] & 3),
                0x86dd => Some(frame[15] >> 4 & 3),
                _ => None,
            };
            if let Some(ecn) = ecn {
                let Some(new) = decapsulated_ecn(tos, ecn) else { return Verdict::Nothing };
                set_ecn(&mut frame, kind, ecn, new);
            }
        }
        if short || bridges_only { Verdict::Perhaps(tenant, frame) } else { Verdict::Delivered(tenant, frame) }
    }
}

/// Changes the ECN field; an IPv4 checksum stays as right or as wrong as it was.
fn set_ecn(frame: &mut [u8], kind: u16, old: u8, new: u8) {
    if old == new {
        return;
    }
    if kind == 0x86dd {
        frame[15] = frame[15] & !0x30 | new << 4;
        return;
    }
    frame[15] = frame[15] & !3 | new;
    // RFC 1624: the new checksum is the old one less what the word grew by.
    let (old, new) = (u32::from(old), u32::from(new));
    let checksum = folded(u32::from(u16_at(frame, 24)) + if new > old { 0xffff - (new - old) } else { old - new });
    put_u16(frame, 24, checksum);
}

/// Whether a frame has less of an IP header, or of a VLAN tag, than its type calls for: some kernels' devices don't carry
/// those.
pub fn is_short(frame: &[u8]) -> bool {
    let mut at = 12;
    while let Some(kind) = frame.get(at..at + 2) {
        at += 2;
        match u16_at(kind, 0) {
            0x8100 | 0x88a8 => at += 2,
            0x0800 => return frame.len() < at + 20,
            0x86dd => return frame.len() < at + 40,
            _ => return false,
        }
    }
    true
}
