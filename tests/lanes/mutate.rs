//! Tunnel packets with something wrong in them, always the same ones for the same seed.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::Kind;
use super::inner::{self, Checksum, Ip, NEAR, ip, payload};
use super::outer::{Outer, Places, fix_udp_checksum, places};
use super::raw::Packet;
use super::segment::{fix_ipv4_checksum, put_u16, u16_at};

/// Numbers that look random (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below that.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[1]
    }

    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// The seed, and how to have another one.
pub fn seed() -> u64 {
    let text = std::env::var("TUNNEL_MESH_SEED").unwrap_or_else(|_| "20240611".to_owned());
    text.parse().unwrap_or_else(|_| panic!("TUNNEL_MESH_SEED is no number: {text}"))
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Nothing.
    Right,
    CutOff,
    Trailer,
    EthernetAddress,
    EthernetType,
    Version,
    HeaderLength,
    IpLength,
    Fragment,
    Protocol,
    IpChecksum,
    Source,
    Destination,
    Options,
    Port,
    UdpLength,
    UdpChecksum,
    Flags,
    Reserved,
    TunnelId,
    Ecn,
    InnerCutOff,
    InnerType,
    InnerHeader,
    InnerAddress,
    Bits,
    Bytes,
}

pub const ALL: [Wrong; 27] = [
    Wrong::Right,
    Wrong::CutOff,
    Wrong::Trailer,
    Wrong::EthernetAddress,
    Wrong::EthernetType,
    Wrong::Version,
    Wrong::HeaderLength,
    Wrong::IpLength,
    Wrong::Fragment,
    Wrong::Protocol,
    Wrong::IpChecksum,
    Wrong::Source,
    Wrong::Destination,
    Wrong::Options,
    Wrong::Port,
    Wrong::UdpLength,
    Wrong::UdpChecksum,
    Wrong::Flags,
    Wrong::Reserved,
    Wrong::TunnelId,
    Wrong::Ecn,
    Wrong::InnerCutOff,
    Wrong::InnerType,
    Wrong::InnerHeader,
    Wrong::InnerAddress,
    Wrong::Bits,
    Wrong::Bytes,
];

/// A tenant's frame: one of many kinds, unlike any other by its number.
pub fn tenants_frame(random: &mut Random, number: u32) -> Vec<u8> {
    let v6 = random.below(2) == 1;
    let tos = random.pick(&[0, 1, 2, 3, 0xb8, 0xba]);
    let length = random.pick(&[0, 1, 18, 40, 100, 333]);
    let data = [&number.to_be_bytes()[..], &payload(length, random.byte())].concat();
    let header = Ip { tos, id: u16::try_from(number & 0xffff).unwrap(), ..ip(v6) };
    match random.below(6) {
        0 => inner::ethernet(inner::FAR, inner::EXPERIMENT, &data),
        1 => header.echo(&data).bytes,
        // Pushed, and not in a row: nobody merges it with another.
        2 => header.tcp(0x18, number.wrapping_mul(100_003), &data, Checksum::Whole).bytes,
        3 => header.udp(&data, Checksum::Zero).bytes,
        4 => inner::tagged(&header.udp(&data, Checksum::Whole), 0x8100, 5).bytes,
        _ => header.udp(&data, Checksum::Whole).bytes,
    }
}

/// Makes that wrong. `ids`: those of both tenants; checksums are made to fit again where they are not what is wrong.
pub fn spoil(random: &mut Random, wrong: Wrong, outer: &Outer, inner: &[u8], ids: [u32; 2]) -> Packet {
    let v6 = outer.to.is_ipv6();
    let at = places(v6);
    let mut frame = outer.frame(inner);
    let summed = u16_at(&frame, at.udp + 6) != 0;
    apply(random, wrong, &mut frame, at, v6, ids, outer.kind);
    // Some are wrong in two ways.
    if wrong != Wrong::Right && random.below(4) == 0 {
        let second = random.pick(&ALL);
        apply(random, second, &mut frame, at, v6, ids, outer.kind);
    }
    let by_chance = matches!(wrong, Wrong::IpChecksum | Wrong::Bits | Wrong::Bytes | Wrong::CutOff);
    if !by_chance && !v6 && frame.len() >= at.udp {
        fix_ipv4_checksum(&mut frame, at.ip);
    }
    let moved = !v6 && frame[at.ip..].first().is_some_and(|first| first & 15 != 5);
    if summed && !by_chance && !moved && wrong != Wrong::UdpChecksum {
        fix_udp_checksum(&mut frame, at);
    }
    Packet::plain(frame)
}

fn apply(random: &mut Random, wrong: Wrong, frame: &mut Vec<u8>, at: Places, v6: bool, ids: [u32; 2], kind: Kind) {
    if frame.len() < at.inner {
        return;
    }
    match wrong {
        Wrong::Right => {}
        Wrong::CutOff => {
            let length = 14 + random.below(frame.len() - 14);
            frame.truncate(length);
        }
        Wrong::Trailer => {
            let more = payload(1 + random.below(60), random.byte());
            frame.extend(more);
        }
        Wrong::EthernetAddress => frame[random.below(6)] ^= 1 << random.pick(&[1, 2, 3, 4, 5, 6, 7]),
        Wrong::EthernetType => {
            let kind = random.pick(&[0x0800, 0x86dd, 0x88b5, 0x6558, 0x8847, 0x88cc]);
            put_u16(frame, 12, kind);
        }
        Wrong::Version => frame[at.ip] = frame[at.ip] & 15 | random.byte() & 0xf0,
        Wrong::HeaderLength if v6 => frame[at.ip + 1 + random.below(3)] ^= random.byte(),
        Wrong::HeaderLength => frame[at.ip] = 0x40 | random.byte() & 15,
        Wrong::IpLength => {
            let place = at.ip + if v6 { 4 } else { 2 };
            let length = other_length(random, u16_at(frame, place));
            put_u16(frame, place, length);
        }
        // Of IPv6 the hop limit, which says nothing here.
        Wrong::Fragment if v6 => frame[at.ip + 7] = random.byte(),
        Wrong::Fragment => {
            let word = random.pick(&[0x2000, 0x2001, 1, 0x1fff, 0x4000, 0x8000, 0xe000, 0x00ff]);
            put_u16(frame, at.ip + 6, word);
        }
        Wrong::Protocol => {
            let place = at.ip + if v6 { 6 } else { 9 };
            frame[place] = random.pick(&[6, 47, 132, 136, 253, 254, 4, 50]);
        }
        Wrong::IpChecksum if v6 => {}
        Wrong::IpChecksum => {
            let checksum = u16_at(frame, at.ip + 10).wrapping_add(1 + random.word() % 0xfffd);
            put_u16(frame, at.ip + 10, checksum);
        }
        Wrong::Source | Wrong::Destination => {
            let length = if v6 { 16 } else { 4 };
            let start = at.ip + if v6 { 8 } else { 12 } + if wrong == Wrong::Source { 0 } else { length };
            // Its last two bytes: neighbours, not the addresses that no packet may have.
            frame[start + length - 1 - random.below(2)] ^= 1 << random.below(7);
        }
        Wrong::Options if v6 => frame[at.ip + 6] = random.pick(&[0, 43, 44, 60, 59]),
        Wrong::Options => {
            // No-operation and end of list.
            let words = 1 + random.below(10);
            frame.splice(at.udp..at.udp, vec![random.pick(&[0, 1]); words * 4]);
            frame[at.ip] = 0x45 + u8::try_from(words).unwrap();
            let length = u16_at(frame, at.ip + 2) + u16::try_from(words * 4).unwrap();
            put_u16(frame, at.ip + 2, length);
            fix_ipv4_checksum(frame, at.ip);
        }
        Wrong::Port => {
            let port = random.pick(&[4788, 4790, 8472, 53, 0, 1, 6081, 0x12b5, 0xb512]);
            put_u16(frame, at.udp + 2, port);
        }
        Wrong::UdpLength => {
            let length = other_length(random, u16_at(frame, at.udp + 4));
            put_u16(frame, at.udp + 4, length);
        }
        Wrong::UdpChecksum => {
            let checksum = u16_at(frame, at.udp + 6).wrapping_add(1 + random.word() % 0xfffd);
            put_u16(frame, at.udp + 6, checksum);
        }
        Wrong::Flags if kind == Kind::Geneve => {
            // Versions, control packets, critical options, other contents, and options: there, or said to be there.
            let word = random.pick(&[0x4000_6558, 0x0080_6558, 0x0040_6558, 0x0000_0800, 0x003f_6558, 0x0000_6559]);
            let words = random.below(64);
            let word = match random.below(3) {
                0 => word,
                _ => Kind::Geneve.word() | u32::try_from(words).unwrap() << 24,
            };
            frame[at.tunnel..at.tunnel + 4].copy_from_slice(&word.to_be_bytes());
            if random.below(2) == 0 {
                frame.splice(at.inner..at.inner, payload(words * 4, random.byte()));
                grow(frame, at, v6, words * 4);
            }
        }
        Wrong::Flags => {
            // Without I, with the group policy's bits (GBP), GPE's, remote checksum offload's.
            let flags = [0x0000_0000, 0x8800_0000, 0x8840_0001, 0x0c00_0003, 0x0820_0000, 0x0800_0001, 0xff00_0000];
            let word: u32 = random.pick(&flags) | if random.below(3) == 0 { 1 << random.below(32) } else { 0 };
            frame[at.tunnel..at.tunnel + 4].copy_from_slice(&word.to_be_bytes());
        }
        Wrong::Reserved => frame[at.tunnel + random.pick(&[1, 2, 3, 7])] = random.byte(),
        Wrong::TunnelId => {
            let id = match random.below(4) {
                0 => ids[0],
                1 => ids[1],
                2 => ids[0] ^ 1 << random.below(24),
                _ => u32::from(random.word()),
            };
            frame[at.tunnel + 4..at.tunnel + 7].copy_from_slice(&id.to_be_bytes()[1..]);
        }
        Wrong::Ecn if v6 => frame[at.ip + 1] = frame[at.ip + 1] & !0x30 | random.byte() & 0x30,
        Wrong::Ecn => frame[at.ip + 1] = random.byte(),
        Wrong::InnerCutOff => {
            let length = at.inner + random.below(frame.len() - at.inner + 1).min(60);
            frame.truncate(length);
            let length = u16::try_from(length).unwrap();
            let (udp, ip) = (u16::try_from(at.udp).unwrap(), u16::try_from(at.ip).unwrap());
            put_u16(frame, at.udp + 4, length - udp);
            if v6 { put_u16(frame, at.ip + 4, length - udp) } else { put_u16(frame, at.ip + 2, length - ip) }
        }
        Wrong::InnerType if frame.len() >= at.inner + 14 => {
            let kind = random.pick(&[0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x88b5, 46, 0x0801, 0x6558]);
            put_u16(frame, at.inner + 12, kind);
        }
        Wrong::InnerHeader if frame.len() > at.inner + 14 => {
            // Version, lengths, offsets, options: whatever stands there.
            let place = at.inner + 14 + random.below((frame.len() - at.inner - 14).min(40));
            frame[place] = random.byte();
        }
        Wrong::InnerAddress if frame.len() >= at.inner + 14 => {
            frame[at.inner + random.below(12)] ^= 1 << random.below(8)
        }
        Wrong::InnerType | Wrong::InnerHeader | Wrong::InnerAddress => {}
        Wrong::Bits => {
            for _ in 0..=random.below(4) {
                frame[random.below(at.inner)] ^= 1 << random.below(8);
            }
        }
        Wrong::Bytes => {
            for _ in 0..=random.below(3) {
                let place = random.below(frame.len());
                frame[place] = random.byte();
            }
        }
    }
}

/// Lengths for so many bytes more.
fn grow(frame: &mut [u8], at: Places, v6: bool, bytes: usize) {
    let bytes = u16::try_from(bytes).unwrap();
    for place in [at.udp + 4, at.ip + if v6 { 4 } else { 2 }] {
        let length = u16_at(frame, place).wrapping_add(bytes);
        put_u16(frame, place, length);
    }
}

fn other_length(random: &mut Random, length: u16) -> u16 {
    match random.below(8) {
        0 => 0,
        1 => u16::MAX,
        2 => length.wrapping_add(1),
        3 => length.wrapping_sub(1),
        4 => u16::try_from(random.below(40)).unwrap(),
        5 => length.wrapping_sub(u16::try_from(random.below(100)).unwrap()),
        6 => length.wrapping_add(u16::try_from(random.below(100)).unwrap()),
        _ => random.word(),
    }
}

/// A tenant's frame with something wrong in it, as the workload itself sends it.
pub fn spoil_inner(random: &mut Random, number: u32) -> Packet {
    let mut frame = tenants_frame(random, number);
    for _ in 0..=random.below(3) {
        match random.below(4) {
            0 => {
                let length = 14 + random.below(frame.len() - 13);
                frame.truncate(length);
            }
            1 => frame.extend(payload(1 + random.below(50), random.byte())),
            2 if frame.len() > 14 => {
                let place = 14 + random.below((frame.len() - 14).min(60));
                frame[place] = random.byte();
            }
            _ => {
                let place = 12 + random.below((frame.len() - 12).min(24));
                frame[place] ^= 1 << random.below(8);
            }
        }
    }
    assert_eq!(frame[6..12], NEAR);
    Packet::plain(frame)
}
