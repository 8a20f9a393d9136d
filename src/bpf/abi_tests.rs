//! Holds the raw structures against the embedded object's BTF, and their translation against itself.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Structures by name: size and (member, offset in bytes). Enumerations by name: their names, in order of value.
#[derive(Default)]
struct Btf {
    structs: BTreeMap<String, (usize, Vec<(String, usize)>)>,
    enums: BTreeMap<String, Vec<String>>,
}

fn u32_at(bytes: &[u8], offset: usize) -> usize {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap()) as usize
}

fn text_at(bytes: &[u8], offset: usize) -> String {
    let text = &bytes[offset..];
    String::from_utf8(text[..text.iter().position(|b| *b == 0).unwrap()].to_vec()).unwrap()
}

/// The section of that name in a 64-bit ELF file of this machine's byte order.
fn section<'a>(elf: &'a [u8], wanted: &str) -> &'a [u8] {
    let u64_at = |offset: usize| u64::from_ne_bytes(elf[offset..offset + 8].try_into().unwrap()) as usize;
    let u16_at = |offset: usize| u16::from_ne_bytes(elf[offset..offset + 2].try_into().unwrap()) as usize;
    let (table, entry, count, names) = (u64_at(0x28), u16_at(0x3a), u16_at(0x3c), u16_at(0x3e));
    let names = u64_at(table + names * entry + 0x18);
    let header = (0..count)
        .map(|i| table + i * entry)
        .find(|header| text_at(elf, names + u32_at(elf, *header)) == wanted)
        .unwrap();
    &elf[u64_at(header + 0x18)..][..u64_at(header + 0x20)]
}

fn object_btf() -> Btf {
    let section = section(include_bytes!(env!("TUNNEL_MESH_BPF_OBJECT")), ".BTF");
    let header = u32_at(section, 4);
    let types = &section[header + u32_at(section, 8)..][..u32_at(section, 12)];
    let strings = &section[header + u32_at(section, 16)..];
    let mut btf = Btf::default();
    let mut at = 0;
    while at < types.len() {
        let name = text_at(strings, u32_at(types, at));
        let info = u32_at(types, at + 4);
        let (count, kind, size) = (info & 0xffff, info >> 24 & 0x1f, u32_at(types, at + 8));
        at += 12;
        match kind {
            // STRUCT, UNION: name, type, offset in bits.
            4 | 5 => {
                let members = (0..count).map(|i| at + i * 12);
                let members = members.map(|m| (text_at(strings, u32_at(types, m)), u32_at(types, m + 8) / 8));
                btf.structs.insert(name, (size, members.collect()));
                at += count * 12;
            }
            // ENUM: name, value.
            6 => {
                let mut values: Vec<_> =
                    (0..count).map(|i| at + i * 8).map(|v| (u32_at(types, v + 4), u32_at(types, v))).collect();
                values.sort_unstable();
                btf.enums.insert(name, values.into_iter().map(|(_, name)| text_at(strings, name)).collect());
                at += count * 8;
            }
            // INT, VAR, DECL_TAG: one more word. ARRAY: three.
            1 | 14 | 17 => at += 4,
            3 => at += 12,
            // FUNC_PROTO: name, type. DATASEC: type, offset, size. ENUM64: three words.
            13 => at += count * 8,
            15 | 19 => at += count * 12,
            _ => {}
        }
    }
    btf
}

#[test]
fn structures_lie_as_the_programs_think() {
    let btf = object_btf();
    let ours = [
        ("tm_tunkey", RawTunKey::LAYOUT),
        ("tm_slot_ref", RawSlotRef::LAYOUT),
        ("tm_if_entry", RawIfEntry::LAYOUT),
        ("tm_conf", RawConf::LAYOUT),
        ("tm_dev", RawDev::LAYOUT),
        ("tm_counters", RawCounters::LAYOUT),
        ("tm_unknown", RawUnknown::LAYOUT),
        ("tm_meta", RawMeta::LAYOUT),
    ];
    for (name, (size, fields)) in ours {
        let fields: Vec<_> = fields.iter().map(|(field, offset)| ((*field).to_owned(), *offset)).collect();
        assert_eq!(btf.structs.get(name), Some(&(size, fields)), "{name}");
        assert_eq!(size % 8, 0, "{name} is whole words");
    }
}

#[test]
fn drop_reasons_have_the_programs_order() {
    let mut theirs = object_btf().enums.remove("tm_drop").unwrap();
    assert_eq!(theirs.pop().as_deref(), Some("TM_DROP_REASONS"));
    assert_eq!(theirs.len(), DROP_REASONS);
    theirs.retain(|name| !name.starts_with("TM_DROP_SPARE"));
    let ours: Vec<_> =
        DropReason::ALL.iter().map(|reason| format!("TM_DROP_{}", reason.name().to_uppercase())).collect();
    assert_eq!(theirs, ours);
    for (index, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
}

/// Verifiers of Linux 6.1 and older refuse narrower ones when the loader lacks CAP_PERFMON.
#[test]
fn programs_store_only_whole_words_on_their_stack() {
    let object = include_bytes!(env!("TUNNEL_MESH_BPF_OBJECT"));
    let mut stores = 0;
    for name in ["classifier", ".text"] {
        for (index, instruction) in section(object, name).chunks_exact(8).enumerate() {
            let (code, to) = (instruction[0], instruction[1] & 0xf);
            // ST or STX in memory mode, to the frame pointer.
            if matches!(code & 0xe7, 0x62 | 0x63) && to == 10 {
                assert_eq!(code & 0x18, 0x18, "{name}, instruction {index}: {instruction:02x?}");
                stores += 1;
            }
        }
    }
    assert!(stores > 0);
}

/// How far below the frame pointer the code in a section reaches, at most, in bytes.
fn deepest(code: &[u8]) -> u32 {
    let mut deepest = 0;
    let mut addresses = [false; 16];
    for instruction in code.chunks_exact(8) {
        let (code, to, from) = (instruction[0], usize::from(instruction[1] & 0xf), instruction[1] >> 4);
        let offset = i32::from(i16::from_ne_bytes([instruction[2], instruction[3]]));
        let number = i32::from_ne_bytes(instruction[4..8].try_into().unwrap());
        let reaches = match code {
            // LDX from it, ST and STX to it.
            0x61 | 0x69 | 0x71 | 0x79 if from == 10 => offset,
            0x62 | 0x6a | 0x72 | 0x7a | 0x63 | 0x6b | 0x73 | 0x7b if to == 10 => offset,
            // Something is added to a copy of it.
            0x07 if addresses[to] => number,
            _ => 0,
        };
        deepest = deepest.max(reaches.min(0).unsigned_abs());
        // MOV of the frame pointer; whatever else is written to a register ends that.
        addresses[to] = code == 0xbf && from == 10;
    }
    deepest
}

/// Linux 6.1 counts the frames of functions that call each other in steps of 32 bytes, and allows 512. One step is left for
/// other compilers.
#[test]
fn stacks_have_room_on_old_kernels() {
    let objects =
        [&include_bytes!(env!("TUNNEL_MESH_BPF_OBJECT"))[..], include_bytes!(env!("TUNNEL_MESH_OTHER_OBJECT"))];
    for object in objects {
        let (programs, functions) = (section(object, "classifier"), section(object, ".text"));
        // Functions call no other functions: of a chain there are two frames at most.
        assert!(functions.chunks_exact(8).all(|i| i[0] != 0x85 || i[1] >> 4 == 0), "a function calls another one");
        let frames = [deepest(programs), deepest(functions)];
        assert!(frames.iter().all(|frame| *frame > 100), "{frames:?}");
        let counted: u32 = frames.iter().map(|frame| frame.next_multiple_of(32)).sum();
        assert!(counted <= 512 - 32, "{frames:?} count as {counted}");
    }
}

/// Macros aren't in BTF, so they are read from the header itself.
#[test]
fn constants_are_those_of_the_header() {
    let header = include_str!("../../bpf-src/abi.h");
    let defined = |name: &str| {
        let line = header.lines().find(|line| line.split_whitespace().nth(1) == Some(name)).unwrap();
        let value = line.split_whitespace().nth(2).unwrap().trim_end_matches(['U', 'L']);
        match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
            None => value.parse().unwrap(),
        }
    };
    let ours = [
        ("TM_ABI_VERSION", u64::from(ABI_VERSION)),
        ("TM_TUNNEL_INDEXES", u64::from(CONF_ENTRIES)),
        ("TM_UNKNOWN_ENTRIES", u64::from(UNKNOWN_ENTRIES)),
        ("TM_SLOT_MASK", u64::from(SLOT_MASK)),
        ("TM_SLOT_ENDPOINT", u64::from(SLOT_ENDPOINT)),
        ("TM_CONF_VALID", u64::from(CONF_VALID)),
        ("TM_IF_INHERIT_TTL", u64::from(IF_INHERIT_TTL)),
        ("TM_IF_INHERIT_TOS", u64::from(IF_INHERIT_TOS)),
        ("TM_IF_DF", u64::from(IF_DF)),
        ("TM_IF_CHECKSUM", u64::from(IF_CHECKSUM)),
    ];
    for (name, value) in ours {
        assert_eq!(defined(name), value, "{name}");
    }
    for (index, constant) in CHECK.into_iter().enumerate() {
        assert_eq!(defined(&format!("TM_CHECK_{index}")), constant, "TM_CHECK_{index}");
        assert_eq!(constant & 1, 1, "an even constant loses bits");
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(|octets| Ipv6Addr::from(octets).to_canonical())
    ]
}

fn key() -> impl Strategy<Value = TunKey> {
    (any::<u32>(), any::<u32>(), address()).prop_map(|(tunnel, id, remote)| TunKey { tunnel, id, remote })
}

fn outer_field() -> impl Strategy<Value = OuterField> {
    prop_oneof![Just(OuterField::Inherit), any::<u8>().prop_map(OuterField::Fixed)]
}

fn entry() -> impl Strategy<Value = IfEntry> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let fast = proptest::option::of((any::<bool>(), any::<u16>()));
    let fast = fast.prop_map(|fast| fast.map(|(geneve, port)| FastHeader { geneve, port }));
    (0..SLOT_LIMIT, key(), address(), outer_field(), outer_field(), flags, fast).prop_map(
        |(slot, key, local, ttl, tos, f, fast)| IfEntry {
            slot,
            endpoint: f.0,
            key,
            local,
            ttl,
            tos,
            df: f.1,
            checksum: f.2,
            fast,
            valid: true,
        },
    )
}

proptest! {
    #[test]
    fn slot_refs_come_back(key in key(), slot in 0..SLOT_LIMIT, endpoint: bool) {
        let value = SlotRef { slot, endpoint, valid: true };
        let raw = RawTunKey::from(&key);
        prop_assert_eq!(TunKey::from(&raw), key);
        prop_assert_eq!(RawSlotRef::encode(&raw, &value).decode(&raw), value);
    }

    #[test]
    fn slot_refs_of_another_key_are_not_valid(one in key(), other in key(), slot in 0..SLOT_LIMIT) {
        prop_assume!(one != other);
        let value = RawSlotRef::encode(&(&one).into(), &SlotRef { slot, endpoint: false, valid: true });
        prop_assert!(!value.decode(&(&other).into()).valid);
    }

    #[test]
    fn entries_come_back(ifindex: u32, entry in entry()) {
        prop_assert_eq!(RawIfEntry::encode(ifindex, &entry).decode(ifindex), entry);
    }

    #[test]
    fn a_changed_bit_of_an_entry_is_seen(ifindex: u32, entry in entry(), bit in 0..size_of::<RawIfEntry>() * 8) {
        let mut bytes = RawIfEntry::bytes_of(&[RawIfEntry::encode(ifindex, &entry)]).to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!RawIfEntry::from_bytes(&bytes).decode(ifindex).valid);
    }

    #[test]
    fn a_torn_entry_is_seen(ifindex: u32, one in entry(), other in entry(), words in 1..6usize) {
        let (one, other) = (RawIfEntry::encode(ifindex, &one), RawIfEntry::encode(ifindex.wrapping_add(1), &other));
        let mut bytes = RawIfEntry::bytes_of(&[one]).to_vec();
        let new = RawIfEntry::bytes_of(&[other]).to_vec();
        bytes[words * 8..].copy_from_slice(&new[words * 8..]);
        prop_assume!(bytes != RawIfEntry::bytes_of(&[one]));
        prop_assert!(!RawIfEntry::from_bytes(&bytes).decode(ifindex).valid);
    }
}

#[test]
fn neighbouring_keys_have_checks_of_their_own() {
    let mut seen = std::collections::BTreeSet::new();
    for id in 0..200 {
        for host in 0..50 {
            let key = TunKey { tunnel: 1, id, remote: IpAddr::from([10, 0, 0, host]) };
            let value = SlotRef { slot: 64 + id, endpoint: false, valid: true };
            seen.insert(RawSlotRef::encode(&(&key).into(), &value).check);
        }
    }
    // 10,000 values of 32 bits: a collision or two would be chance, more would be a pattern.
    assert!(seen.len() >= 9_997, "{} of 10,000 differ", seen.len());
}

#[test]
fn conf_comes_back_and_cleared_conf_is_none() {
    let (v4, v6) = (Some("10.0.0.1".parse().unwrap()), Some("fd00::1".parse().unwrap()));
    let decap = |local, geneve| Role::Tunnel(Some(Decap { geneve, local, zero_checksum6: !geneve }));
    let ports = (1..=UNDERLAY_PORTS_MAX as u32).map(|n| TunnelPort { tunnel: n, port: 4789 + n as u16 }).collect();
    let roles = [
        Role::default(),
        decap(Local { v4, v6 }, true),
        decap(Local { v4, v6: None }, false),
        decap(Local { v4: None, v6 }, false),
        Role::Underlay(Vec::new()),
        Role::Underlay(ports),
    ];
    let ways = [
        Way::default(),
        Way { gre: false, v4: Some(1450), v6: Some(1430), ethernet4: Some(2), ethernet6: None },
        Way { gre: true, v4: None, v6: Some(u16::MAX), ethernet4: None, ethernet6: Some(u32::MAX) },
    ];
    for (role, way) in roles.into_iter().flat_map(|role| ways.map(|way| (role.clone(), way))) {
        // An underlay device has its tunnels in that place.
        let way = if matches!(role, Role::Underlay(_)) { Way { ethernet4: None, ethernet6: None, ..way } } else { way };
        let conf = Conf { ifindex: 7, name: "vxlan0".to_owned(), mark: 1, role, way };
        assert_eq!(RawConf::from(&conf).decode(), Some(conf));
    }
    assert_eq!(RawConf::default().decode(), None);
}

#[test]
fn an_ipv4_remote_lies_ipv4_mapped() {
    let key = TunKey { tunnel: 1, id: 2, remote: IpAddr::from([10, 0, 0, 3]) };
    assert_eq!(RawTunKey::from(&key).remote, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 3]);
}

#[test]
fn counters_are_summed_over_cpus() {
    let cpu = RawCounters { rx_packets: 1, tx_bytes: u64::MAX, ..RawCounters::default() };
    let sum = RawCounters::sum([cpu, cpu].into_iter()).unwrap();
    assert_eq!((sum.rx_packets, sum.tx_bytes), (2, u64::MAX - 1));
    assert_eq!(RawCounters::sum([RawCounters::default()].into_iter()), None);
}
