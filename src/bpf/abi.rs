//! The layouts that the eBPF programs share with us (`bpf-src/abi.h`), and their translation from and to the model.
//!
//! Raw structures are exactly what lies in the maps: integers in host order, addresses in network order. They have no
//! padding, so every byte of them is data. A test holds them against the BTF of the embedded object.
#![allow(unsafe_code)]

use crate::model::{
    Conf, Counters, Decap, DropReason, FastHeader, IfEntry, Local, OuterField, Role, SLOT_LIMIT, SlotRef,
    TUNNEL_INDEXES, TunKey, TunnelPort, UNDERLAY_PORTS_MAX, UnknownKey, Way,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Version of the layouts, kept in `meta`; another one is not ours to touch.
pub(super) const ABI_VERSION: u32 = 3;
/// Entries of `unknown`.
pub(super) const UNKNOWN_ENTRIES: u32 = 1024;
/// Entries of `conf`.
pub(super) const CONF_ENTRIES: u32 = TUNNEL_INDEXES;

/// Index of `meta` that holds the cookie of the network namespace.
pub(super) const META_NAMESPACE: u32 = TUNNEL_INDEXES;

const SLOT_MASK: u32 = SLOT_LIMIT - 1;
const SLOT_ENDPOINT: u32 = 1 << 31;
const CONF_VALID: u32 = 1;
const CONF_UNDERLAY: u32 = 2;
const CONF_FAST: u32 = 4;
const CONF_GENEVE: u32 = 8;
const CONF_ZERO_CSUM6: u32 = 16;
const CONF_GRE: u32 = 32;
/// Places in `conf`'s `detail` of the devices whose frames may be written whole.
const ETHERNET4: usize = 1;
const ETHERNET6: usize = 6;
const IF_INHERIT_TTL: u16 = 1;
const IF_INHERIT_TOS: u16 = 2;
const IF_DF: u16 = 4;
const IF_CHECKSUM: u16 = 8;
const IF_FAST: u16 = 16;
const IF_GENEVE: u16 = 32;
/// Reasons that the counters have room for; those beyond [`DropReason::ALL`] aren't used yet.
const DROP_REASONS: usize = 16;

/// Odd constants of the check, as in `bpf-src/abi.h`.
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

/// Plain data without padding, for which every bit pattern is a value: what map keys and values are.
///
/// # Safety
/// The type must be `repr(C)`, without padding, references or invalid bit patterns.
pub(super) unsafe trait Plain: Copy + Default {
    /// The bytes of a slice of them, as the kernel reads them.
    fn bytes_of(slice: &[Self]) -> &[u8] {
        // SAFETY: the type has no padding (the trait's contract), so all bytes of the slice are initialized.
        unsafe { std::slice::from_raw_parts(slice.as_ptr().cast(), size_of_val(slice)) }
    }

    /// The value that lies at the start of `bytes`; the default value where they are too short.
    fn from_bytes(bytes: &[u8]) -> Self {
        if bytes.len() < size_of::<Self>() {
            return Self::default();
        }
        // SAFETY: long enough, read without need of alignment, and every bit pattern is valid (the trait's contract).
        unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() }
    }
}

// SAFETY: plain integers.
unsafe impl Plain for u32 {}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
            pub(super) struct $name { $(pub(super) $field: $type),* }

            // The fields fill the structure: no padding.
            const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);
            // SAFETY: repr(C), only integers and arrays of them, no padding.
            unsafe impl Plain for $name {}

            #[cfg(test)]
            impl $name {
                const LAYOUT: (usize, &'static [(&'static str, usize)]) =
                    (size_of::<$name>(), &[$((stringify!($field), std::mem::offset_of!($name, $field))),*]);
            }
        )*
    };
}

plain! {
    /// `struct tm_tunkey`.
    RawTunKey { tunnel: u32, id: u32, remote: [u8; 16] }
    /// `struct tm_slot_ref`. Written and read as one aligned 64-bit word by the kernel and the programs.
    RawSlotRef { slot: u32, check: u32 }
    /// `struct tm_if_entry`.
    RawIfEntry {
        slot: u32, check: u32, tunnel: u32, id: u32, remote: [u8; 16], local: [u8; 16], ttl: u8, tos: u8, flags: u16,
        port: u16, header: u16,
    }
    /// `struct tm_conf`.
    RawConf {
        ifindex: u32, flags: u32, mark: u32, room: u32, name: [u8; 16], detail: [u32; UNDERLAY_PORTS_MAX],
    }
    /// `struct tm_dev`.
    RawDev { ifindex: u32, program: u32 }
    /// `struct tm_counters`.
    RawCounters {
        rx_packets: u64, rx_bytes: u64, tx_packets: u64, tx_bytes: u64, rx_fast: u64, tx_fast: u64,
        by_neighbour: u64,
        drops: [u64; DROP_REASONS],
        next_answer_ns: u64,
    }
    /// `struct tm_unknown`.
    RawUnknown { packets: u64, last_seen_ns: u64 }
    /// `struct tm_meta`.
    RawMeta { build: u64, program: u32, abi: u32 }
}

/// The 64-bit words of a structure, in host order.
fn words<const N: usize>(raw: &impl Plain) -> [u64; N] {
    let bytes = Plain::bytes_of(std::slice::from_ref(raw));
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(eight);
    }
    words
}

/// Upper half of the sum of words times constants.
fn check(words: impl IntoIterator<Item = u64>) -> u32 {
    let sum = words
        .into_iter()
        .zip(&CHECK[1..])
        .fold(CHECK[0], |sum, (word, constant)| sum.wrapping_add(word.wrapping_mul(*constant)));
    (sum >> 32) as u32
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn unmapped(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

fn slot_word(slot: u32, endpoint: bool) -> u32 {
    (slot & SLOT_MASK) | if endpoint { SLOT_ENDPOINT } else { 0 }
}

impl From<&TunKey> for RawTunKey {
    fn from(key: &TunKey) -> Self {
        Self { tunnel: key.tunnel, id: key.id, remote: mapped(key.remote) }
    }
}

impl From<&RawTunKey> for TunKey {
    fn from(raw: &RawTunKey) -> Self {
        Self { tunnel: raw.tunnel, id: raw.id, remote: unmapped(raw.remote) }
    }
}

impl RawSlotRef {
    fn check_for(key: &RawTunKey, slot: u32) -> u32 {
        check(words::<3>(key).into_iter().chain([u64::from(slot)]))
    }

    /// The value of a key, with its check.
    pub(super) fn encode(key: &RawTunKey, value: &SlotRef) -> Self {
        let slot = slot_word(value.slot, value.endpoint);
        Self { slot, check: Self::check_for(key, slot) }
    }

    /// What the value says; not valid where its check doesn't fit the key, or bits are set that nobody defined.
    pub(super) fn decode(&self, key: &RawTunKey) -> SlotRef {
        let defined = self.slot & !(SLOT_MASK | SLOT_ENDPOINT) == 0;
        SlotRef {
            slot: self.slot & SLOT_MASK,
            endpoint: self.slot & SLOT_ENDPOINT != 0,
            valid: defined && self.check == Self::check_for(key, self.slot),
        }
    }
}

impl RawIfEntry {
    fn check_for(&self, ifindex: u32) -> u32 {
        let words = words::<7>(self);
        check([u64::from(ifindex), u64::from(self.slot)].into_iter().chain(words.into_iter().skip(1)))
    }

    /// The value of an interface, with its check.
    pub(super) fn encode(ifindex: u32, entry: &IfEntry) -> Self {
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
        flags |= if entry.df { IF_DF } else { 0 };
        flags |= if entry.checksum { IF_CHECKSUM } else { 0 };
        flags |= if entry.fast.is_some() { IF_FAST } else { 0 };
        flags |= if entry.fast.is_some_and(|f| f.geneve) { IF_GENEVE } else { 0 };
        let mut raw = Self {
            slot: slot_word(entry.slot, entry.endpoint),
            check: 0,
            tunnel: entry.key.tunnel,
            id: entry.key.id,
            remote: mapped(entry.key.remote),
            local: mapped(entry.local),
            ttl,
            tos,
            flags,
            port: entry.fast.map_or(0, |f| f.port).to_be(),
            header: entry.fast.map_or(0, |_| header_sum(entry)),
        };
        raw.check = raw.check_for(ifindex);
        raw
    }

    /// What the value says; not valid where its check doesn't fit, or bits are set that nobody defined.
    pub(super) fn decode(&self, ifindex: u32) -> IfEntry {
        let field = |value, inherit| {
            if self.flags & inherit == 0 { OuterField::Fixed(value) } else { OuterField::Inherit }
        };
        let defined = self.slot & !(SLOT_MASK | SLOT_ENDPOINT) == 0
            && self.flags & !(IF_INHERIT_TTL | IF_INHERIT_TOS | IF_DF | IF_CHECKSUM | IF_FAST | IF_GENEVE) == 0;
        let fast = (self.flags & IF_FAST != 0)
            .then_some(FastHeader { geneve: self.flags & IF_GENEVE != 0, port: u16::from_be(self.port) });
        let mut entry = IfEntry {
            slot: self.slot & SLOT_MASK,
            endpoint: self.slot & SLOT_ENDPOINT != 0,
            key: TunKey { tunnel: self.tunnel, id: self.id, remote: unmapped(self.remote) },
            local: unmapped(self.local),
            ttl: field(self.ttl, IF_INHERIT_TTL),
            tos: field(self.tos, IF_INHERIT_TOS),
            df: self.flags & IF_DF != 0,
            checksum: self.flags & IF_CHECKSUM != 0,
            fast,
            valid: false,
        };
        let header = entry.fast.map_or(0, |_| header_sum(&entry));
        let plain = entry.fast.is_some() || (self.flags & IF_GENEVE == 0 && self.port == 0);
        entry.valid = defined && plain && header == self.header && self.check == self.check_for(ifindex);
        entry
    }
}

/// Sum of the 16-bit words of the outer IPv4 header that are the same for every packet (RFC 1071): version, length of the
/// header, flags, protocol and addresses. 0 over IPv6.
fn header_sum(entry: &IfEntry) -> u16 {
    let (IpAddr::V4(local), IpAddr::V4(remote)) = (entry.local, entry.key.remote) else { return 0 };
    let (l, r) = (local.octets(), remote.octets());
    let flags = if entry.df { 0x40 } else { 0 };
    let words = [[0x45, 0], [flags, 0], [0, 17], [l[0], l[1]], [l[2], l[3]], [r[0], r[1]], [r[2], r[3]]];
    let sum: u32 = words.into_iter().map(|word| u32::from(u16::from_ne_bytes(word))).sum();
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

impl From<&Conf> for RawConf {
    /// Names are cut to 15 bytes, which is what the kernel allows a device.
    fn from(conf: &Conf) -> Self {
        let mut name = [0; 16];
        for (to, from) in name[..15].iter_mut().zip(conf.name.as_bytes()) {
            *to = *from;
        }
        let mut raw = Self {
            ifindex: conf.ifindex,
            flags: CONF_VALID,
            mark: u32::from(conf.mark),
            room: u32::from(conf.way.v4.unwrap_or_default()) | u32::from(conf.way.v6.unwrap_or_default()) << 16,
            name,
            ..Self::default()
        };
        raw.flags |= if conf.way.gre { CONF_GRE } else { 0 };
        if let Role::Tunnel(_) = conf.role {
            raw.detail[ETHERNET4] = conf.way.ethernet4.unwrap_or_default();
            raw.detail[ETHERNET6] = conf.way.ethernet6.unwrap_or_default();
        }
        match &conf.role {
            Role::Tunnel(None) => {}
            Role::Tunnel(Some(decap)) => {
                raw.flags |= CONF_FAST;
                raw.flags |= if decap.geneve { CONF_GENEVE } else { 0 };
                raw.flags |= if decap.zero_checksum6 { CONF_ZERO_CSUM6 } else { 0 };
                raw.detail[0] = decap.local.v4.map_or(0, |v4| u32::from_ne_bytes(v4.octets()));
                let v6 = decap.local.v6.map_or([0; 16], |v6| v6.octets());
                for (word, four) in raw.detail[2..6].iter_mut().zip(v6.as_chunks::<4>().0) {
                    *word = u32::from_ne_bytes(*four);
                }
            }
            Role::Underlay(ports) => {
                raw.flags |= CONF_UNDERLAY;
                for (word, port) in raw.detail.iter_mut().zip(ports) {
                    *word = port.tunnel << 16 | u32::from(port.port.to_be());
                }
            }
        }
        raw
    }
}

impl RawConf {
    /// What the entry says; `None` where it isn't in use.
    pub(super) fn decode(&self) -> Option<Conf> {
        let known = |room: u32| Some((room & 0xffff) as u16).filter(|room| *room != 0);
        let tunnel = self.flags & CONF_UNDERLAY == 0;
        let device = |place: usize| Some(self.detail[place]).filter(|ifindex| tunnel && *ifindex != 0);
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        (self.flags & CONF_VALID != 0).then(|| Conf {
            ifindex: self.ifindex,
            name: String::from_utf8_lossy(&self.name[..end]).into_owned(),
            mark: u16::try_from(self.mark).unwrap_or(u16::MAX),
            role: self.role(),
            way: Way {
                gre: self.flags & CONF_GRE != 0,
                v4: known(self.room),
                v6: known(self.room >> 16),
                ethernet4: device(ETHERNET4),
                ethernet6: device(ETHERNET6),
            },
        })
    }

    fn role(&self) -> Role {
        if self.flags & CONF_UNDERLAY != 0 {
            let ports = self.detail.iter().take_while(|word| **word != 0);
            let port = |word: &u32| TunnelPort { tunnel: word >> 16, port: u16::from_be((word & 0xffff) as u16) };
            return Role::Underlay(ports.map(port).collect());
        }
        let v4 = Ipv4Addr::from(self.detail[0].to_ne_bytes());
        let mut octets = [0; 16];
        for (octets, word) in octets.chunks_exact_mut(4).zip(&self.detail[2..6]) {
            octets.copy_from_slice(&word.to_ne_bytes());
        }
        let v6 = Ipv6Addr::from(octets);
        let local = Local { v4: (!v4.is_unspecified()).then_some(v4), v6: (!v6.is_unspecified()).then_some(v6) };
        Role::Tunnel((self.flags & CONF_FAST != 0).then_some(Decap {
            geneve: self.flags & CONF_GENEVE != 0,
            local,
            zero_checksum6: self.flags & CONF_ZERO_CSUM6 != 0,
        }))
    }
}

impl RawCounters {
    /// Sums one slot over CPUs; `None` where nothing was counted.
    pub(super) fn sum(per_cpu: impl Iterator<Item = Self>) -> Option<Counters> {
        let mut sum = Counters::default();
        for cpu in per_cpu {
            sum.rx_packets = sum.rx_packets.wrapping_add(cpu.rx_packets);
            sum.rx_bytes = sum.rx_bytes.wrapping_add(cpu.rx_bytes);
            sum.tx_packets = sum.tx_packets.wrapping_add(cpu.tx_packets);
            sum.tx_bytes = sum.tx_bytes.wrapping_add(cpu.tx_bytes);
            sum.rx_fast = sum.rx_fast.wrapping_add(cpu.rx_fast);
            sum.tx_fast = sum.tx_fast.wrapping_add(cpu.tx_fast);
            for (total, one) in sum.drops.iter_mut().zip(cpu.drops) {
                *total = total.wrapping_add(one);
            }
        }
        (sum != Counters::default()).then_some(sum)
    }
}

impl RawUnknown {
    /// `now_ns`: CLOCK_MONOTONIC in nanoseconds.
    pub(super) fn decode(&self, key: &RawTunKey, now_ns: u64) -> UnknownKey {
        let age_ms = now_ns.saturating_sub(self.last_seen_ns) / 1_000_000;
        UnknownKey { key: key.into(), packets: self.packets, age_ms }
    }
}

const _: () = assert!(DropReason::ALL.len() <= DROP_REASONS);

#[cfg(test)]
#[path = "abi_tests.rs"]
mod tests;
