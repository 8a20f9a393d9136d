//! The catalogue: every kind of packet that a tenant sends, and which lane is to take it.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::inner::*;
use super::raw::Packet;

/// Which lane takes a packet where the tunnel is `fast: on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Fast,
    Device,
    /// The programs' own choice: only what arrives counts.
    Either,
}

pub struct Case {
    pub name: String,
    pub takes: Takes,
    pub packets: Vec<Packet>,
}

fn case(name: &str, takes: Takes, packets: Vec<Packet>) -> Case {
    Case { name: name.to_owned(), takes, packets }
}

/// All of them, for a tenant with that MTU.
pub fn all(mtu: usize) -> Vec<Case> {
    let mut all = vec![arp_cases(), not_ip(mtu), tags(), nested()];
    for v6 in [false, true] {
        all.extend([udp(v6, mtu), tcp(v6, mtu), gso(v6, mtu), icmp(v6, mtu), many(v6), marks(v6)]);
        all.extend([fragments(v6), options(v6), smallest(v6), trailers(v6)]);
    }
    all
}

fn family(v6: bool) -> &'static str {
    if v6 { "ipv6" } else { "ipv4" }
}

fn arp_cases() -> Case {
    let padded = |mut frame: Vec<u8>| {
        frame.resize(60, 0);
        frame
    };
    let frames = [arp(BROADCAST, 1), arp(FAR, 2), padded(arp(BROADCAST, 1)), padded(arp(FAR, 2))];
    case("arp", Takes::Device, frames.map(Packet::plain).into())
}

fn not_ip(mtu: usize) -> Case {
    let multicast = [0x01, 0x80, 0xc2, 1, 2, 3];
    let mut frames = Vec::new();
    for length in [0, 1, 2, 3, 20, 46, 100, 1_000, mtu] {
        frames.push(ethernet(BROADCAST, EXPERIMENT, &payload(length, 1)));
        frames.push(ethernet(FAR, EXPERIMENT, &payload(length, 2)));
    }
    // IEEE 802.3: a length where others have a type.
    frames.push(ethernet(multicast, 46, &payload(46, 3)));
    frames.push(ethernet(FAR, 100, &payload(100, 4)));
    case("not IP, from an empty frame to a jumbo", Takes::Device, frames.into_iter().map(Packet::plain).collect())
}

fn tags() -> Case {
    let mut packets = Vec::new();
    for v6 in [false, true] {
        let data = payload(300, 5);
        let one = ip(v6).udp(&data, Checksum::Whole);
        let left = ip(v6).udp(&data, Checksum::Partial);
        let large = ip(v6).tcp_gso(0x18, 1, &payload(5_000, 6), 1_000);
        for packet in [&one, &left, &large] {
            // A VLAN, all bits set, priority only, a service tag, and a tag within a tag.
            packets.extend([tagged(packet, 0x8100, 7), tagged(packet, 0x8100, 0xffff), tagged(packet, 0x8100, 0x6000)]);
            packets.push(tagged(packet, 0x88a8, 9));
        }
        packets.push(tagged(&tagged(&one, 0x8100, 7), 0x8100, 8));
        packets.push(tagged(&tagged(&one, 0x8100, 7), 0x88a8, 8));
    }
    packets.push(tagged(&Packet::plain(arp(BROADCAST, 1)), 0x8100, 7));
    packets.push(tagged(&Packet::plain(ethernet(FAR, EXPERIMENT, &payload(100, 7))), 0x8100, 4_094));
    case("VLAN tags", Takes::Device, packets)
}

/// Protocols whose content looks like a header that somebody may want to see.
fn nested() -> Case {
    let within = ip(false).udp(&payload(50, 8), Checksum::Whole).bytes;
    let vxlan = [&[8, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0], &within[..]].concat();
    let packets = vec![
        Packet::plain(ip(false).frame(4, &within[14..])),
        Packet::plain(ip(true).frame(4, &within[14..])),
        Packet::plain(ip(false).frame(47, &[&[0, 0, 8, 0], &within[14..]].concat())),
        ip(false).udp_between(50_000, 4_789, &vxlan, Checksum::Whole),
        ip(true).udp_between(50_000, 4_789, &vxlan, Checksum::Zero),
        Packet::plain(ip(false).frame(50, &payload(100, 9))),
        Packet::plain(ip(true).frame(59, &[])),
        Packet::plain(ip(false).frame(132, &payload(64, 10))),
        Packet::plain(ip(false).frame(255, &payload(33, 11))),
    ];
    case("tunnels in the tunnel, and rare protocols", Takes::Fast, packets)
}

fn udp(v6: bool, mtu: usize) -> Case {
    let headers = if v6 { 48 } else { 28 };
    let mut packets = Vec::new();
    for how in [Checksum::Whole, Checksum::Partial, Checksum::Zero] {
        for length in [0, 1, 17, 18, 19, 100, 511, 1_000, 1_403, 4_000, mtu - headers] {
            packets.push(ip(v6).udp(&payload(length, 12), how));
        }
    }
    case(&format!("{} udp, all checksums, up to a jumbo", family(v6)), Takes::Fast, packets)
}

fn tcp(v6: bool, mtu: usize) -> Case {
    let headers = if v6 { 72 } else { 52 };
    let mut packets = Vec::new();
    for how in [Checksum::Whole, Checksum::Partial] {
        // SYN, SYN with ECN, ACK, data, FIN, RST, urgent data.
        for (flags, length) in [(2, 0), (0xc2, 0), (0x10, 0), (0x18, 500), (0x11, 1), (4, 0), (0x38, 77)] {
            packets.push(ip(v6).tcp(flags, 1_000_000, &payload(length, 13), how));
        }
        packets.push(ip(v6).tcp(0x18, u32::MAX - 10, &payload(mtu - headers, 14), how));
    }
    case(&format!("{} tcp", family(v6)), Takes::Fast, packets)
}

fn gso(v6: bool, mtu: usize) -> Case {
    let size = |headers: usize| u16::try_from(mtu - headers - if v6 { 20 } else { 0 }).unwrap();
    let one = |flags: u8, length: usize, segment: u16| ip(v6).tcp_gso(flags, 77, &payload(length, 15), segment);
    let packets = vec![
        one(0x10, 2_800, 1_400),
        one(0x18, 5_001, 1_000),
        one(0x19, 30_000, 1_448),
        // Sequence numbers that wrap, and a congestion window reduced (ECN).
        ip(v6).tcp_gso(0x18, u32::MAX - 2_000, &payload(9_000, 16), 1_448),
        Ip { tos: 2, ..ip(v6) }.tcp_gso(0x98, 5, &payload(9_000, 17), 1_448),
        one(0x18, 60_000, size(52)),
        one(0x18, 6_400, 100),
    ];
    case(&format!("{} tcp, left to be cut up", family(v6)), Takes::Fast, packets)
}

fn icmp(v6: bool, mtu: usize) -> Case {
    let lengths = [0, 1, 56, 1_000, mtu - if v6 { 48 } else { 28 }];
    let mut packets: Vec<Packet> = lengths.iter().map(|length| ip(v6).echo(&payload(*length, 18))).collect();
    // An error with the start of what it is about.
    let about = ip(v6).udp(&payload(20, 19), Checksum::Whole).bytes;
    let error = [&[if v6 { 1 } else { 3 }, 3, 0x12, 0x34, 0, 0, 0, 0], &about[14..]].concat();
    packets.push(Packet::plain(ip(v6).frame(if v6 { 58 } else { 1 }, &error)));
    case(&format!("{} icmp", family(v6)), Takes::Fast, packets)
}

/// Broadcast and multicast.
fn many(v6: bool) -> Case {
    let data = payload(200, 20);
    let to = |to: [u8; 6], host: u8| Ip { to, host, ..ip(v6) };
    let group = if v6 { [0x33, 0x33, 0, 0, 0, 1] } else { [1, 0, 0x5e, 0, 0, 1] };
    let mut packets = vec![to(group, 255).udp(&data, Checksum::Whole), to(group, 255).udp(&data, Checksum::Partial)];
    packets.push(to(BROADCAST, 255).udp(&data, Checksum::Whole));
    packets.push(to(BROADCAST, 255).udp(&payload(4_000, 21), Checksum::Partial));
    case(&format!("{} broadcast and multicast", family(v6)), Takes::Fast, packets)
}

/// DSCP, ECN and TTL of the tenant are the tenant's.
fn marks(v6: bool) -> Case {
    let mut packets = Vec::new();
    for tos in [0, 1, 2, 3, 0xb8, 0xb9, 0xba, 0xbb, 0xfc, 0xff] {
        packets.push(Ip { tos, ..ip(v6) }.udp(&payload(64, tos), Checksum::Whole));
        packets.push(Ip { tos, ..ip(v6) }.tcp_gso(0x18, 9, &payload(3_000, tos), 1_400));
    }
    for ttl in [0, 1, 2, 255] {
        packets.push(Ip { ttl, ..ip(v6) }.udp(&payload(64, ttl), Checksum::Whole));
    }
    case(&format!("{} dscp, ecn and ttl", family(v6)), Takes::Fast, packets)
}

/// The tenant's own fragments: first, middle, last, and don't-fragment.
fn fragments(v6: bool) -> Case {
    let whole = ip(v6).udp(&payload(2_400, 22), Checksum::Whole).bytes;
    let content = &whole[if v6 { 54 } else { 34 }..];
    let part = |fragment: u16, from: usize, to: usize| {
        Packet::plain(Ip { fragment, ..ip(v6) }.frame(17, &content[from..to.min(content.len())]))
    };
    let mut packets = vec![part(0x2000, 0, 800), part(0x2000 | 100, 800, 1_600), part(200, 1_600, 2_408)];
    // The end first, a tiny first fragment, and a last byte at the largest offset.
    packets.extend([part(200, 1_600, 2_408), part(0x2000, 0, 8), part(0x1fff, 0, 1)]);
    case(&format!("{} fragments of the tenant", family(v6)), Takes::Either, packets)
}

fn options(v6: bool) -> Case {
    // Router alert, padding, a record of the route; hop-by-hop, destination options, a routing header.
    let options: &[&'static [u8]] = if v6 {
        &[&[0, 0, 5, 2, 0, 0, 1, 0], &[60, 0, 1, 4, 0, 0, 0, 0], &[43, 0, 4, 0, 0, 0, 0, 0]]
    } else {
        &[
            &[0x94, 4, 0, 0],
            &[1, 1, 1, 0],
            &[
                7, 39, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 0, 0, 0, 0,
            ],
        ]
    };
    let mut packets = Vec::new();
    for options in options {
        packets.push(Ip { options, ..ip(v6) }.udp(&payload(100, 23), Checksum::Whole));
        packets.push(Ip { options, ..ip(v6) }.udp(&payload(100, 24), Checksum::Partial));
        packets.push(Ip { options, ..ip(v6) }.tcp(0x18, 1, &payload(100, 25), Checksum::Whole));
    }
    let name = if v6 { "ipv6 extension headers" } else { "ipv4 options" };
    case(name, Takes::Either, packets)
}

/// Nothing behind the header, and a few bytes behind it that may be no header any more.
fn smallest(v6: bool) -> Case {
    let mut packets: Vec<Packet> = (0..9).map(|length| Packet::plain(ip(v6).frame(17, &payload(length, 26)))).collect();
    packets.extend((0..9).map(|length| Packet::plain(ip(v6).frame(253, &payload(length, 27)))));
    case(&format!("{} smallest", family(v6)), Takes::Fast, packets)
}

/// More bytes in the frame than the IP header speaks of: Ethernet's padding, and more.
fn trailers(v6: bool) -> Case {
    let mut packets = Vec::new();
    for (length, more) in [(0, 18), (1, 17), (3, 3), (100, 1), (100, 400)] {
        for mut packet in [ip(v6).udp(&payload(length, 28), Checksum::Whole), ip(v6).echo(&payload(length, 29))] {
            packet.bytes.extend(payload(more, 30));
            packets.push(packet);
        }
    }
    case(&format!("{} with a trailer", family(v6)), Takes::Either, packets)
}
