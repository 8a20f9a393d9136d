//! What the programs and user space agree on: the Rust side of `bpf-src/abi.h`.
//!
//! Integers are in host byte order, addresses in network byte order; an IPv4 address is stored IPv4-mapped. A test
//! compares every layout here with the BTF of the compiled object.

#![allow(unsafe_code)]

use crate::model::{Conf, IfEntry, OuterField, SlotRef, TunKey};
use std::net::{IpAddr, Ipv6Addr};

/// Version of the layouts, kept in the map `meta`.
pub const LAYOUT: u32 = 1;

/// Names of the drop reasons, in the order of `enum tm_drop`.
pub const DROP_REASONS: [&str; 10] = [
    "unknown_key",
    "no_tunnel_key",
    "no_conf",
    "wrong_device",
    "no_entry",
    "target_gone",
    "split_horizon",
    "set_tunnel_key",
    "redirect",
    "inconsistent",
];

const SLOT_MASK: u32 = 0x0fff_ffff;
const SLOT_ENDPOINT: u32 = 0x8000_0000;
const CONF_VALID: u32 = 1;
const IF_INHERIT_TTL: u16 = 1;
const IF_INHERIT_TOS: u16 = 2;
const IF_DF: u16 = 4;
const IF_CHECKSUM: u16 = 8;

/// Plain data without padding, which may be read from and written to a map as bytes.
///
/// # Safety
///
/// Every byte of the type is initialised and every bit pattern is a valid value.
pub unsafe trait Plain: Copy + Default {}

/// The bytes of plain values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// The bytes of plain values, to be written.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is a valid value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), std::mem::size_of_val(values)) }
}

// SAFETY: integers have no padding and no invalid bit patterns.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}

macro_rules! plain {
    ($($name:ident),*) => { $(
        // SAFETY: `repr(C)` of integers laid out without gaps; the sizes are checked by a test.
        unsafe impl Plain for $name {}
    )* };
}

plain!(RawTunKey, RawSlot, RawIf, RawConf, RawCounters, RawUnknown, RawMeta, RawDev);

/// `struct tm_tunkey`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawTunKey {
    /// Tunnel index.
    pub tunnel: u32,
    /// Tunnel id.
    pub id: u32,
    /// Remote, network byte order, four words as they lie in memory.
    pub remote: [u32; 4],
}

/// `struct tm_slot`.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawSlot {
    /// Slot and flags.
    pub slot: u32,
    /// Check of key and slot.
    pub check: u32,
}

/// `struct tm_if_value`.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawIf {
    /// Slot and flags.
    pub slot: u32,
    /// Check of ifindex and value.
    pub check: u32,
    /// Tunnel key.
    pub key: RawTunKey,
    /// Underlay source, as `RawTunKey::remote`.
    pub local: [u32; 4],
    /// Outer TTL.
    pub ttl: u8,
    /// Outer TOS.
    pub tos: u8,
    /// `TM_IF_*`.
    pub flags: u16,
    /// Zero.
    pub reserved: u32,
}

/// `struct tm_conf`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawConf {
    /// Index of the tunnel device; 0: none.
    pub ifindex: u32,
    /// `TM_CONF_*`.
    pub flags: u32,
    /// Value for `tc_index`.
    pub mark: u32,
    /// Zero.
    pub reserved: u32,
    /// Name, NUL-terminated.
    pub name: [u8; 16],
}

/// `struct tm_counters` of one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawCounters {
    /// Packets received through the tunnel, segments counted.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Packets sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Drops by reason.
    pub drops: [u64; DROP_REASONS.len()],
}

/// `struct tm_unknown`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawUnknown {
    /// Packets.
    pub packets: u64,
    /// Nanoseconds of the boot-time clock.
    pub last_seen: u64,
}

/// `struct tm_meta`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawMeta {
    /// Cookie of the network namespace; 0: not set.
    pub netns_cookie: u64,
    /// [`LAYOUT`].
    pub layout: u32,
    /// How many drop reasons the counters have.
    pub reasons: u32,
}

/// `struct bpf_devmap_val` of the kernel's UAPI.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawDev {
    /// Index of the device.
    pub ifindex: u32,
    /// XDP program of the entry: none.
    pub program: u32,
}

fn mixed(seed: u64, words: impl IntoIterator<Item = u32>) -> u32 {
    let sum = words.into_iter().enumerate().fold(seed, |sum, (n, word)| {
        let factor = 0xc2b2_ae3d_27d4_eb4e_u64.wrapping_mul(n as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
        sum.wrapping_add(u64::from(word).wrapping_mul(factor))
    });
    (sum >> 32) as u32
}

fn check_slot(key: &RawTunKey, slot: u32) -> u32 {
    mixed(0x746d_5f73_6c6f_7401, [key.tunnel, key.id].into_iter().chain(key.remote).chain([slot]))
}

fn check_if(ifindex: u32, value: &RawIf) -> u32 {
    let last = u32::from(value.ttl) | u32::from(value.tos) << 8 | u32::from(value.flags) << 16;
    let words = [ifindex, value.slot, value.key.tunnel, value.key.id];
    mixed(0x746d_5f69_6676_6101, words.into_iter().chain(value.key.remote).chain(value.local).chain([last]))
}

fn words_of(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    words
}

fn address_of(words: [u32; 4]) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let v6 = Ipv6Addr::from(octets);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

impl From<TunKey> for RawTunKey {
    fn from(key: TunKey) -> Self {
        Self { tunnel: key.tunnel, id: key.id, remote: words_of(key.remote) }
    }
}

impl From<RawTunKey> for TunKey {
    fn from(raw: RawTunKey) -> Self {
        Self { tunnel: raw.tunnel, id: raw.id, remote: address_of(raw.remote) }
    }
}

fn slot_word(slot: u32, endpoint: bool) -> u32 {
    (slot & SLOT_MASK) | if endpoint { SLOT_ENDPOINT } else { 0 }
}

impl RawSlot {
    /// The value for that key, with its check.
    pub fn new(key: &RawTunKey, value: SlotRef) -> Self {
        let slot = slot_word(value.slot, value.endpoint);
        Self { slot, check: check_slot(key, slot) }
    }

    /// What a live value says.
    pub fn read(&self, key: &RawTunKey) -> SlotRef {
        // Flags that nobody defined make a value wrong, too: it would not be the one that we write.
        let known = self.slot & !(SLOT_MASK | SLOT_ENDPOINT) == 0;
        SlotRef {
            slot: self.slot & SLOT_MASK,
            endpoint: self.slot & SLOT_ENDPOINT != 0,
            valid: known && self.check == check_slot(key, self.slot),
        }
    }
}

impl RawIf {
    /// The value for that interface, with its check.
    pub fn new(ifindex: u32, entry: &IfEntry) -> Self {
        let mut flags = 0;
        let mut field = |field: OuterField, inherit: u16| match field {
            OuterField::Inherit => {
                flags |= inherit;
                0
            }
            OuterField::Fixed(value) => value,
        };
        let ttl = field(entry.ttl, IF_INHERIT_TTL);
        let tos = field(entry.tos, IF_INHERIT_TOS);
        if entry.df {
            flags |= IF_DF;
        }
        if entry.checksum {
            flags |= IF_CHECKSUM;
        }
        let mut raw = Self {
            slot: slot_word(entry.slot, entry.endpoint),
            check: 0,
            key: entry.key.into(),
            local: words_of(entry.local),
            ttl,
            tos,
            flags,
            reserved: 0,
        };
        raw.check = check_if(ifindex, &raw);
        raw
    }

    /// What a live value says.
    pub fn read(&self, ifindex: u32) -> IfEntry {
        let field = |value: u8, inherit: u16| {
            if self.flags & inherit != 0 { OuterField::Inherit } else { OuterField::Fixed(value) }
        };
        let mut entry = IfEntry {
            slot: self.slot & SLOT_MASK,
            endpoint: self.slot & SLOT_ENDPOINT != 0,
            key: self.key.into(),
            local: address_of(self.local),
            ttl: field(self.ttl, IF_INHERIT_TTL),
            tos: field(self.tos, IF_INHERIT_TOS),
            df: self.flags & IF_DF != 0,
            checksum: self.flags & IF_CHECKSUM != 0,
            valid: true,
        };
        // Valid is what we would have written, bit for bit.
        entry.valid = Self::new(ifindex, &entry) == *self;
        entry
    }
}

impl From<&Conf> for RawConf {
    fn from(conf: &Conf) -> Self {
        let mut name = [0; 16];
        for (to, from) in name.iter_mut().zip(conf.name.bytes().take(15)) {
            *to = from;
        }
        Self { ifindex: conf.ifindex, flags: CONF_VALID, mark: u32::from(conf.mark), reserved: 0, name }
    }
}

impl RawConf {
    /// What a live entry says; `None` where it isn't in use.
    pub fn read(&self) -> Option<Conf> {
        if self.flags & CONF_VALID == 0 {
            return None;
        }
        let length = self.name.iter().position(|b| *b == 0).unwrap_or(self.name.len());
        Some(Conf {
            ifindex: self.ifindex,
            name: String::from_utf8_lossy(&self.name[..length]).into_owned(),
            mark: u16::try_from(self.mark).unwrap_or(u16::MAX),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry() -> IfEntry {
        IfEntry {
            slot: 77,
            endpoint: true,
            key: TunKey { tunnel: 1, id: 456, remote: "10.0.0.3".parse().unwrap() },
            local: "10.0.0.1".parse().unwrap(),
            ttl: OuterField::Inherit,
            tos: OuterField::Fixed(4),
            df: true,
            checksum: false,
            valid: true,
        }
    }

    #[test]
    fn values_come_back_as_they_were_written() {
        let entry = entry();
        assert_eq!(RawIf::new(7, &entry).read(7), entry);
        let key = RawTunKey::from(entry.key);
        assert_eq!(TunKey::from(key), entry.key);
        let slot = SlotRef { slot: 99, endpoint: false, valid: true };
        assert_eq!(RawSlot::new(&key, slot).read(&key), slot);
    }

    #[test]
    fn a_value_of_another_key_is_not_valid() {
        let entry = entry();
        assert!(!RawIf::new(7, &entry).read(8).valid);
        let key = RawTunKey::from(entry.key);
        let other = RawTunKey { id: 457, ..key };
        assert!(!RawSlot::new(&key, SlotRef { slot: 99, endpoint: false, valid: true }).read(&other).valid);
    }

    #[test]
    fn every_changed_word_changes_the_check() {
        let raw = RawIf::new(7, &entry());
        for byte in (0..std::mem::size_of::<RawIf>()).filter(|b| !(4..8).contains(b)) {
            let mut one = [raw];
            bytes_of_mut(&mut one)[byte] ^= 0x10;
            assert!(!one[0].read(7).valid, "byte {byte}");
        }
    }

    #[test]
    fn ipv4_is_stored_mapped_in_network_byte_order() {
        let key = RawTunKey::from(entry().key);
        assert_eq!(bytes_of(&key.remote), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 3]);
    }
}
