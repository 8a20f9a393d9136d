//! What the kernel holds for a host: map contents, attachments, link pins, written and read as an operator would.

use super::Host;
use super::harness::Netns;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

/// Map contents as bytes.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

fn bytes(value: &Value) -> Vec<u8> {
    let byte = |b: &Value| u8::from_str_radix(b.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    value.as_array().map(|list| list.iter().map(byte).collect()).unwrap_or_default()
}

/// The entries of a map. Of arrays, those that aren't all zero; of `devs`, those that hold a device.
pub fn entries(host: &Host, map: &str) -> Entries {
    let dump = host.dump(map);
    let all = dump.as_array().unwrap().iter().map(|e| (bytes(&e["key"]), bytes(&e["value"])));
    all.filter(|(_, value)| value.iter().any(|b| *b != 0)).collect()
}

/// `bpftool map ACTION` in the host's namespace, which decides what an entry of `devs` means.
pub fn write_map(host: &Host, map: &str, action: &str, key: &[u8], value: Option<&[u8]>) {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("0x{b:02x}")).collect::<Vec<_>>();
    let pin = host.pin(map);
    let mut words: Vec<String> =
        ["bpftool", "map", action, "pinned", pin.to_str().unwrap(), "key"].map(String::from).into();
    words.extend(hex(key));
    if let Some(value) = value {
        words.push("value".to_owned());
        words.extend(hex(value));
    }
    host.netns.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Ifindexes that `if2tunkey` has, in order.
pub fn mapped(host: &Host) -> Vec<u32> {
    let mut all: Vec<u32> = entries(host, "if2tunkey").keys().map(|k| u32_at(k, 0)).collect();
    all.sort_unstable();
    all
}

/// Slots of `devs` and the ifindexes they hold.
pub fn devices(host: &Host) -> BTreeMap<u32, u32> {
    entries(host, "devs").iter().map(|(k, v)| (u32_at(k, 0), u32_at(v, 0))).collect()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The bytes with those from `at` on replaced.
pub fn with_u32(mut bytes: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    bytes
}

pub fn state_of(host: &Host, address: &str) -> String {
    host.mapping(address)["state"].as_str().unwrap().to_owned()
}

/// Attachments by interface and direction: program and place.
pub fn attachments(host: &Host) -> BTreeMap<(String, String), (Value, Value)> {
    let status = host.status();
    let list = status["attachments"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap_or("gone").to_owned();
    let one =
        |a: &Value| ((text(&a["interface"]), text(&a["direction"])), (a["program"].clone(), a["position"].clone()));
    list.iter().map(one).collect()
}

/// The pins of TCX links, which get another inode when they are made anew. Empty on clsact.
pub fn link_pins(host: &Host) -> BTreeMap<String, u64> {
    let Ok(list) = std::fs::read_dir(host.pin("links")) else { return BTreeMap::new() };
    list.map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().unwrap().ino()))
        .collect()
}

pub fn exists(netns: &Netns, interface: &str) -> bool {
    netns.try_cmd(&format!("ip link show dev {interface}")).status.success()
}

/// Runs a script of `ip`, fast.
pub fn ip_batch(netns: &Netns, script: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    netns.command(&["ip", "-batch", file.path().to_str().unwrap()]);
}
