//! Pins as earlier versions of the layouts left them, made of what this version pinned.

use aya::Pod;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Words of the counters of a slot: four of packets and bytes, two of the fast lane, when it last sent by the neighbour,
/// sixteen reasons, the last answer.
type Counters = [u64; 24];
/// The same in version 2, which knew nothing of neighbours.
type Counters2 = [u64; 23];
/// The same in version 1: four of packets and bytes, twelve reasons.
type Counters1 = [u64; 16];
/// Bytes of an entry of `conf` in version 1.
const CONF: usize = 32;
/// Where an entry of today's names Ethernet devices.
const ETHERNET: [usize; 2] = [36, 56];

fn bpftool(words: &[&str]) -> serde_json::Value {
    let output = Command::new("bpftool").arg("-j").args(words).output().unwrap();
    assert!(output.status.success(), "bpftool {words:?}: {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn bytes(value: &serde_json::Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|b| b.as_str().unwrap().to_owned()).collect()
}

/// Makes a map and pins it where another one is pinned, which its programs keep.
fn replace(pin: &Path, name: &str, kind: &str, value: usize) {
    let entries = bpftool(&["map", "show", "pinned", pin.to_str().unwrap()])["max_entries"].to_string();
    fs::remove_file(pin).unwrap();
    let (pin, value) = (pin.to_str().unwrap(), value.to_string());
    bpftool(&["map", "create", pin, "type", kind, "key", "4", "value", &value, "entries", &entries, "name", name]);
}

fn counters(pin: &Path) -> Map {
    Map::PerCpuArray(MapData::from_pin(pin).unwrap())
}

/// Replaces the pins by those of version 1 or 2; what runs goes on with the maps that it has. No tunnel may use what that
/// version didn't have.
pub fn age(pins: &Path, version: u32) {
    match version {
        1 => {
            age_conf(&pins.join("conf"), CONF);
            age_counters(&pins.join("counters"), |now| {
                let mut then = Counters1::default();
                then[..4].copy_from_slice(&now[..4]);
                then[4..].copy_from_slice(&now[7..19]);
                then
            });
        }
        2 => {
            // The layout is today's, but nobody named devices there.
            age_conf(&pins.join("conf"), 64);
            age_counters(&pins.join("counters"), |now| {
                let mut then: Counters2 = [0; 23];
                then[..6].copy_from_slice(&now[..6]);
                then[6..].copy_from_slice(&now[7..]);
                then
            });
        }
        other => panic!("nothing is known of version {other}"),
    }
    let (meta, version) = (pins.join("meta"), version.to_string());
    let first = "map update pinned PIN key 0 0 0 0 value 1 1 1 1 1 1 1 1 1 1 1 1 VERSION 0 0 0";
    let word = |word| match word {
        "PIN" => meta.to_str().unwrap(),
        "VERSION" => &version,
        other => other,
    };
    bpftool(&first.split(' ').map(word).collect::<Vec<_>>());
}

/// Entries of that many bytes, without what later versions know.
fn age_conf(conf: &Path, size: usize) {
    let tunnels = bpftool(&["map", "dump", "pinned", conf.to_str().unwrap()]);
    replace(conf, "conf", "array", size);
    for entry in tunnels.as_array().unwrap() {
        let (key, mut value) = (bytes(&entry["key"]), bytes(&entry["value"]));
        // An underlay device has its tunnels there.
        if u32::from_str_radix(&value[4][2..], 16).unwrap() & 2 == 0 {
            ETHERNET.iter().for_each(|at| value[*at..at + 4].fill("0x00".to_owned()));
        }
        assert!(value[size..].iter().all(|b| b == "0x00"), "version 1 has no {value:?}");
        assert!(size > CONF || ["0x00", "0x01"].contains(&value[4].as_str()), "version 1 has no flags {value:?}");
        let mut words = vec!["map", "update", "pinned", conf.to_str().unwrap(), "key"];
        words.extend(key.iter().map(String::as_str));
        words.push("value");
        words.extend(value[..size].iter().map(String::as_str));
        bpftool(&words);
    }
}

fn age_counters<T: Pod>(pin: &Path, older: impl Fn(&Counters) -> T) {
    let now = PerCpuArray::<_, Counters>::try_from(counters(pin)).unwrap();
    let counted: Vec<_> = (0..now.len()).map(|slot| now.get(&slot, 0).unwrap()).collect();
    replace(pin, "counters", "percpu_array", size_of::<T>());
    let mut then = PerCpuArray::<_, T>::try_from(counters(pin)).unwrap();
    for (slot, values) in counted.iter().enumerate() {
        if values.iter().all(|value| value.iter().all(|n| *n == 0)) {
            continue;
        }
        let values: Vec<T> = values.iter().map(&older).collect();
        then.set(slot as u32, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    }
}
