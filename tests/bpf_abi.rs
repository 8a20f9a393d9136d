//! The layouts that Rust writes against the BTF of the compiled data plane.

#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use tunnel_mesh::bpf::abi::*;

fn types() -> Vec<Value> {
    let object = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(object.path(), include_bytes!(concat!(env!("OUT_DIR"), "/tunnel_mesh.bpf.o"))).unwrap();
    let output =
        std::process::Command::new("bpftool").args(["-j", "btf", "dump", "file"]).arg(object.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["types"].as_array().unwrap().clone()
}

fn named<'a>(types: &'a [Value], kind: &str, name: &str) -> &'a Value {
    types.iter().find(|t| t["kind"] == kind && t["name"] == name).unwrap_or_else(|| panic!("BTF has no {kind} {name}"))
}

/// Asserts size and the byte offset of every member of a struct.
fn assert_struct(types: &[Value], name: &str, size: usize, members: &[(&str, usize)]) {
    let found = named(types, "STRUCT", name);
    assert_eq!(found["size"].as_u64().unwrap() as usize, size, "size of {name}");
    let offsets: BTreeMap<String, usize> = found["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["name"].as_str().unwrap().to_owned(), m["bits_offset"].as_u64().unwrap() as usize / 8))
        .collect();
    let ours: BTreeMap<String, usize> = members.iter().map(|(n, o)| ((*n).to_owned(), *o)).collect();
    assert_eq!(offsets, ours, "members of {name}");
}

macro_rules! assert_layout {
    ($types:expr, $name:literal, $raw:ty, $($member:ident),+) => {
        assert_struct($types, $name, size_of::<$raw>(), &[$((stringify!($member), offset_of!($raw, $member))),+]);
    };
}

#[test]
fn every_struct_lies_as_the_object_says() {
    let types = &types();
    assert_layout!(types, "tm_tunkey", RawTunKey, tunnel, id, remote);
    assert_layout!(types, "tm_slot", RawSlot, slot, check);
    assert_layout!(types, "tm_if_value", RawIf, slot, check, key, local, ttl, tos, flags, reserved);
    assert_layout!(types, "tm_conf", RawConf, ifindex, flags, mark, reserved, name);
    assert_layout!(types, "tm_counters", RawCounters, rx_packets, rx_bytes, tx_packets, tx_bytes, drops);
    assert_layout!(types, "tm_unknown", RawUnknown, packets, last_seen);
    assert_layout!(types, "tm_meta", RawMeta, netns_cookie, layout, reasons);
}

#[test]
fn drop_reasons_have_the_names_and_order_of_the_enum() {
    let types = types();
    let with_first = |t: &&Value| t["kind"] == "ENUM" && t["values"][0]["name"] == "TM_DROP_UNKNOWN_KEY";
    let reasons = types.iter().find(with_first).expect("BTF has no enum of drop reasons");
    let names: Vec<String> = reasons["values"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap().trim_start_matches("TM_DROP_").to_lowercase())
        .collect();
    let mut ours: Vec<String> = DROP_REASONS.iter().map(|r| (*r).to_owned()).collect();
    ours.push("reasons".to_owned());
    assert_eq!(names, ours);
}

#[test]
fn maps_have_the_names_that_operators_look_for() {
    let types = types();
    for map in ["conf", "tunkey2if", "if2tunkey", "devs", "counters", "unknown"] {
        named(&types, "VAR", map);
    }
    for program in ["handle_ingress", "handle_egress"] {
        named(&types, "FUNC", program);
    }
}
