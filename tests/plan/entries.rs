//! Map entries as an operator would write them with bpftool: encoded here anew, from `bpf-src/abi.h`, not by the program
//! under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The constants of the check.
const CHECK: [u64; 9] = [
    0xb510_d446_f113_0d99,
    0xbc35_8b2b_0d78_9519,
    0xc1da_3785_97ae_d493,
    0xe993_9c63_0de5_fe7f,
    0x9bcd_adea_3273_4b6f,
    0x99db_ffe9_70c4_db37,
    0xf313_409c_626e_b5f9,
    0xb0b1_58f5_337b_0235,
    0xdfc8_7f3a_b59b_5fd5,
];

fn check(words: &[u64]) -> u32 {
    let mut sum = CHECK[0];
    for (n, word) in words.iter().enumerate() {
        sum = sum.wrapping_add(word.wrapping_mul(CHECK[n + 1]));
    }
    (sum >> 32) as u32
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).collect()
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Key of `tunkey2if`.
pub fn tunkey(tunnel: u32, id: u32, remote: IpAddr) -> Vec<u8> {
    [&tunnel.to_ne_bytes()[..], &id.to_ne_bytes(), &mapped(remote)].concat()
}

fn slot_word(slot: u32, endpoint: bool) -> u32 {
    slot | if endpoint { 0x8000_0000 } else { 0 }
}

/// Value of `tunkey2if`.
pub fn slot_ref(key: &[u8], slot: u32, endpoint: bool) -> Vec<u8> {
    let slot = slot_word(slot, endpoint);
    let mut checked = words(key);
    checked.push(u64::from(slot));
    [slot.to_ne_bytes(), check(&checked).to_ne_bytes()].concat()
}

/// Value of `if2tunkey`.
#[derive(Debug, Clone, Copy)]
pub struct IfEntry {
    pub slot: u32,
    pub endpoint: bool,
    pub tunnel: u32,
    pub id: u32,
    pub remote: IpAddr,
    pub local: IpAddr,
    /// `None`: inherited.
    pub ttl: Option<u8>,
    pub tos: Option<u8>,
    pub df: bool,
    pub checksum: bool,
    /// In the fast lane: whether by Geneve, and the UDP port.
    pub fast: Option<(bool, u16)>,
}

/// The words of the outer IPv4 header that no packet changes, added up: they begin at version and length, flags, protocol,
/// source and destination.
fn header(entry: &IfEntry) -> u16 {
    let (IpAddr::V4(local), IpAddr::V4(remote)) = (entry.local, entry.remote) else { return 0 };
    let header =
        [&[0x45, 0, if entry.df { 0x40 } else { 0 }, 0, 0, 17][..], &local.octets(), &remote.octets()].concat();
    let sum: u64 = header.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
    // What is left by 0xffff, in ones' complement.
    match sum % 0xffff {
        0 => 0xffff,
        rest => rest as u16,
    }
}

impl IfEntry {
    pub fn encode(&self, ifindex: u32) -> Vec<u8> {
        let geneve = self.fast.is_some_and(|(geneve, _)| geneve);
        let flags = [
            (self.ttl.is_none(), 1u16),
            (self.tos.is_none(), 2),
            (self.df, 4),
            (self.checksum, 8),
            (self.fast.is_some(), 16),
            (geneve, 32),
        ];
        let flags: u16 = flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
        let mut value = Vec::new();
        value.extend(slot_word(self.slot, self.endpoint).to_ne_bytes());
        value.extend(0u32.to_ne_bytes());
        value.extend(tunkey(self.tunnel, self.id, self.remote));
        value.extend(mapped(self.local));
        value.extend([self.ttl.unwrap_or(0), self.tos.unwrap_or(0)]);
        value.extend(flags.to_ne_bytes());
        value.extend(self.fast.map_or(0, |(_, port)| port).to_be_bytes());
        value.extend(self.fast.map_or(0, |_| header(self)).to_ne_bytes());
        let mut checked = vec![u64::from(ifindex), u64::from(slot_word(self.slot, self.endpoint))];
        checked.extend(&words(&value)[1..]);
        value[4..8].copy_from_slice(&check(&checked).to_ne_bytes());
        value
    }
}

/// What `conf` says of the way to a tunnel's remotes: room for packets and index of the Ethernet device, over IPv4 and IPv6;
/// zeros where it says nothing.
pub struct Way {
    pub gre: bool,
    pub room: [u16; 2],
    pub ethernet: [u32; 2],
}

/// Value of `conf`, of so many bytes.
pub fn conf(ifindex: u32, name: &str, mark: u16, way: &Way, size: usize) -> Vec<u8> {
    let flags = if way.gre { 33 } else { 1 };
    let [v4, v6] = way.room.map(u32::from);
    let mut value = [ifindex, flags, u32::from(mark), v4 | v6 << 16].map(u32::to_ne_bytes).concat();
    value.extend(name.as_bytes());
    value.resize(size, 0);
    for (at, device) in [(36, way.ethernet[0]), (56, way.ethernet[1])] {
        if device != 0 {
            value[at..at + 4].copy_from_slice(&device.to_ne_bytes());
        }
    }
    value
}

/// A value of `conf` with what it is for: a tunnel that is decapsulated on the underlay (flags, addresses), or an underlay
/// device (its tunnels and their ports).
pub enum Role {
    Plain,
    Decapsulated { geneve: bool, zero_checksum6: bool, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr> },
    Underlay(Vec<(u32, u16)>),
}

impl Role {
    /// Writes it into the value.
    pub fn write(&self, value: &mut [u8]) {
        let detail = 32;
        match self {
            Self::Plain => {}
            Self::Decapsulated { geneve, zero_checksum6, v4, v6 } => {
                value[4] |= 4 | if *geneve { 8 } else { 0 } | if *zero_checksum6 { 16 } else { 0 };
                if let Some(v4) = v4 {
                    value[detail..detail + 4].copy_from_slice(&v4.octets());
                }
                if let Some(v6) = v6 {
                    value[detail + 8..detail + 24].copy_from_slice(&v6.octets());
                }
            }
            Self::Underlay(ports) => {
                value[4] |= 2;
                for (word, (tunnel, port)) in value[detail..].chunks_mut(4).zip(ports) {
                    word.copy_from_slice(&(tunnel << 16 | u32::from(port.to_be())).to_ne_bytes());
                }
            }
        }
    }
}

/// Value of `devs`.
pub fn dev(ifindex: u32) -> Vec<u8> {
    [ifindex, 0].map(u32::to_ne_bytes).concat()
}
