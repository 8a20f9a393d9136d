//! Tunnel packets as a far host puts them on the underlay, built by hand.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::Kind;
use super::raw::Packet;
use super::segment::{fix_ipv4_checksum, folded, pseudo_header, put_u16, sum};
use std::net::IpAddr;

/// What the far host says. Whole and right, until something changes its bytes.
#[derive(Debug, Clone)]
pub struct Outer {
    pub macs: [[u8; 6]; 2],
    pub from: IpAddr,
    pub to: IpAddr,
    pub tos: u8,
    pub id: u16,
    pub source_port: u16,
    /// A UDP checksum, or none.
    pub checksum: bool,
    pub kind: Kind,
    /// The tunnel header's first word.
    pub word: u32,
    pub tunnel_id: u32,
}

/// Where the headers of a whole one begin.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    pub ip: usize,
    pub udp: usize,
    /// The VXLAN or Geneve header.
    pub tunnel: usize,
    pub inner: usize,
}

pub fn places(v6: bool) -> Places {
    let udp = if v6 { 54 } else { 34 };
    Places { ip: 14, udp, tunnel: udp + 8, inner: udp + 16 }
}

impl Outer {
    pub fn frame(&self, inner: &[u8]) -> Vec<u8> {
        let v6 = self.to.is_ipv6();
        let at = places(v6);
        let mut frame = [&self.macs[0][..], &self.macs[1], if v6 { &[0x86, 0xdd] } else { &[8, 0] }].concat();
        let datagram = u16::try_from(16 + inner.len()).unwrap();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x45, self.tos]);
                frame.extend([20 + datagram, self.id, 0].into_iter().flat_map(u16::to_be_bytes));
                frame.extend([64, 17, 0, 0]);
                frame.extend([from.octets(), to.octets()].concat());
                fix_ipv4_checksum(&mut frame, at.ip);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                frame.extend(datagram.to_be_bytes());
                frame.extend([17, 64]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            _ => panic!("two families in {self:?}"),
        }
        frame.extend([self.source_port, self.kind.port(), datagram, 0].into_iter().flat_map(u16::to_be_bytes));
        frame.extend(self.word.to_be_bytes());
        frame.extend((self.tunnel_id << 8).to_be_bytes());
        frame.extend(inner);
        if self.checksum {
            fix_udp_checksum(&mut frame, at);
        }
        frame
    }
}

impl Outer {
    /// The same, cut into that many fragments of about one size.
    pub fn fragments(&self, inner: &[u8], parts: usize) -> Vec<Packet> {
        let whole = self.frame(inner);
        let v6 = self.to.is_ipv6();
        let start = places(v6).udp;
        let size = (whole.len() - start).div_ceil(parts).next_multiple_of(8);
        let chunks: Vec<&[u8]> = whole[start..].chunks(size).collect();
        let fragment = |(n, chunk): (usize, &&[u8])| {
            let more = u16::from(n + 1 < chunks.len());
            let offset = u16::try_from(n * size).unwrap();
            let mut frame = whole[..start].to_vec();
            if v6 {
                frame[20] = 44;
                frame.extend([17, 0]);
                frame.extend((offset | more).to_be_bytes());
                frame.extend(u32::from(self.id).to_be_bytes());
                put_u16(&mut frame, 18, u16::try_from(8 + chunk.len()).unwrap());
            } else {
                put_u16(&mut frame, 16, u16::try_from(20 + chunk.len()).unwrap());
                put_u16(&mut frame, 20, (offset / 8) | (more << 13));
                fix_ipv4_checksum(&mut frame, 14);
            }
            frame.extend(*chunk);
            Packet::plain(frame)
        };
        chunks.iter().enumerate().map(fragment).collect()
    }
}

/// Gives a frame the UDP checksum that its bytes call for, where it still has the headers.
pub fn fix_udp_checksum(frame: &mut [u8], at: Places) {
    if frame.len() < at.udp + 8 {
        return;
    }
    put_u16(frame, at.udp + 6, 0);
    let length = frame.len() - at.udp;
    let checksum = !folded(sum(pseudo_header(frame, at.ip, 17, length), &frame[at.udp..]));
    put_u16(frame, at.udp + 6, if checksum == 0 { 0xffff } else { checksum });
}
