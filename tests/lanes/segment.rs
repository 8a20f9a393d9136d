//! What the kernel leaves to the device: a checksum to complete, a large packet to cut up. Done here, by the book.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

/// Work that is left, in the words of `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Where the checksum begins and where in there it is kept.
    pub checksum: Option<(u16, u16)>,
    pub gso: Option<Gso>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    pub kind: GsoKind,
    /// Whether the segments may say that they met congestion (TCP with ECN).
    pub ecn: bool,
    pub size: u16,
    /// Bytes of all headers.
    pub headers: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    Tcp4 = 1,
    Tcp6 = 4,
    Udp = 5,
}

const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;

impl Offload {
    pub fn header(self) -> [u8; 10] {
        let mut words = [0_u16; 4];
        let mut bytes = [0; 10];
        if let Some(gso) = self.gso {
            bytes[1] = gso.kind as u8 | if gso.ecn { ECN } else { 0 };
            (words[0], words[1]) = (gso.headers, gso.size);
        }
        if let Some((start, offset)) = self.checksum {
            bytes[0] = NEEDS_CHECKSUM;
            (words[2], words[3]) = (start, offset);
        }
        for (at, word) in words.iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[2 + 2 * at], bytes[3 + 2 * at]]);
        let kind = match bytes[1] & !ECN {
            0 => None,
            1 => Some(GsoKind::Tcp4),
            4 => Some(GsoKind::Tcp6),
            5 => Some(GsoKind::Udp),
            other => panic!("a packet of GSO type {other}"),
        };
        let gso = kind.map(|kind| Gso { kind, ecn: bytes[1] & ECN != 0, size: word(1), headers: word(0) });
        let checksum = (bytes[0] & NEEDS_CHECKSUM != 0).then(|| (word(2), word(3)));
        Self { checksum, gso }
    }
}

/// The sum of 16-bit words that Internet checksums are the complement of.
pub fn sum(start: u32, bytes: &[u8]) -> u32 {
    let mut sum = start;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u32::from(word[0]) << 8 | u32::from(word[1]);
        if sum > 0x7fff_ffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum + words.remainder().first().map_or(0, |last| u32::from(*last) << 8)
}

pub fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Sum over the pseudo header of an IP packet (that begins at `ip`) whose content is of that protocol and length.
pub fn pseudo_header(bytes: &[u8], ip: usize, protocol: u8, length: usize) -> u32 {
    let addresses = if bytes[ip] >> 4 == 4 { &bytes[ip + 12..ip + 20] } else { &bytes[ip + 8..ip + 40] };
    sum(u32::from(protocol) + u32::try_from(length).unwrap(), addresses)
}

/// Where the network header is and of which type, behind the VLAN tags.
pub fn network(bytes: &[u8]) -> (usize, u16) {
    let mut at = 12;
    while matches!(u16_at(bytes, at), 0x8100 | 0x88a8) {
        at += 4;
    }
    (at + 2, u16_at(bytes, at))
}

pub fn fix_ipv4_checksum(bytes: &mut [u8], ip: usize) {
    let length = usize::from(bytes[ip] & 15) * 4;
    if bytes.len() >= ip + length.max(12) {
        put_u16(bytes, ip + 10, 0);
        let checksum = !folded(sum(0, &bytes[ip..ip + length]));
        put_u16(bytes, ip + 10, checksum);
    }
}

/// The frames that a packet is on a wire.
pub fn wire_frames(bytes: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let Some((start, offset)) = offload.checksum else {
        assert_eq!(offload.gso, None, "GSO without a checksum to complete");
        return vec![bytes.to_vec()];
    };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    let Some(gso) = offload.gso else {
        let mut frame = bytes.to_vec();
        let checksum = !folded(sum(0, &frame[start..]));
        put_u16(&mut frame, field, if checksum == 0 && offset == 6 { 0xffff } else { checksum });
        return vec![frame];
    };
    let (ip, _) = network(bytes);
    let tcp = gso.kind != GsoKind::Udp;
    let headers = start + if tcp { usize::from(bytes[start + 12] >> 4) * 4 } else { 8 };
    let chunks: Vec<&[u8]> = bytes[headers..].chunks(usize::from(gso.size)).collect();
    let segment = |(n, chunk): (usize, &&[u8])| {
        let mut frame = [&bytes[..headers], chunk].concat();
        let length = frame.len();
        if frame[ip] >> 4 == 4 {
            put_u16(&mut frame, ip + 2, u16::try_from(length - ip).unwrap());
            let id = u16_at(&frame, ip + 4).wrapping_add(u16::try_from(n).unwrap());
            put_u16(&mut frame, ip + 4, id);
            fix_ipv4_checksum(&mut frame, ip);
        } else {
            put_u16(&mut frame, ip + 4, u16::try_from(length - ip - 40).unwrap());
        }
        if tcp {
            let before = u32::try_from(n * usize::from(gso.size)).unwrap();
            let number = u32::from_be_bytes(frame[start + 4..start + 8].try_into().unwrap()).wrapping_add(before);
            frame[start + 4..start + 8].copy_from_slice(&number.to_be_bytes());
            // FIN and PSH are the last one's, CWR is the first one's.
            let last = if n + 1 == chunks.len() { 0xff } else { !0x09 };
            frame[start + 13] &= last & if n == 0 { 0xff } else { !0x80 };
        } else {
            put_u16(&mut frame, start + 4, u16::try_from(length - start).unwrap());
        }
        put_u16(&mut frame, field, 0);
        let pseudo = pseudo_header(&frame, ip, if tcp { 6 } else { 17 }, length - start);
        let checksum = !folded(sum(pseudo, &frame[start..]));
        put_u16(&mut frame, field, if checksum == 0 && !tcp { 0xffff } else { checksum });
        frame
    };
    chunks.iter().enumerate().map(segment).collect()
}
