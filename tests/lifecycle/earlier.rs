//! Pins as version 1 of the layouts left them, made of what this version pinned.

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Words of the counters of a slot: four of packets and bytes, two of the fast lane, sixteen reasons, the last answer.
type Counters = [u64; 23];
/// The same in version 1: four of packets and bytes, twelve reasons.
type Counters1 = [u64; 16];
/// Bytes of an entry of `conf` in version 1.
const CONF: usize = 32;

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

/// Replaces the pins; what runs goes on with the maps that it has. No tunnel may use what version 1 didn't have.
pub fn age(pins: &Path) {
    let conf = pins.join("conf");
    let tunnels = bpftool(&["map", "dump", "pinned", conf.to_str().unwrap()]);
    replace(&conf, "conf", "array", CONF);
    for entry in tunnels.as_array().unwrap() {
        let (key, value) = (bytes(&entry["key"]), bytes(&entry["value"]));
        assert!(value.len() > CONF && value[CONF..].iter().all(|b| b == "0x00"), "version 1 has no {value:?}");
        assert!(["0x00", "0x01"].contains(&value[4].as_str()), "version 1 has no flags {value:?}");
        let mut words = vec!["map", "update", "pinned", conf.to_str().unwrap(), "key"];
        words.extend(key.iter().map(String::as_str));
        words.push("value");
        words.extend(value[..CONF].iter().map(String::as_str));
        bpftool(&words);
    }

    let pin = pins.join("counters");
    let now = PerCpuArray::<_, Counters>::try_from(counters(&pin)).unwrap();
    let counted: Vec<_> = (0..now.len()).map(|slot| now.get(&slot, 0).unwrap()).collect();
    replace(&pin, "counters", "percpu_array", size_of::<Counters1>());
    let mut then = PerCpuArray::<_, Counters1>::try_from(counters(&pin)).unwrap();
    for (slot, values) in counted.iter().enumerate() {
        if values.iter().all(|value| value.iter().all(|n| *n == 0)) {
            continue;
        }
        let older = values.iter().map(|value| {
            let mut older = Counters1::default();
            older[..4].copy_from_slice(&value[..4]);
            older[4..].copy_from_slice(&value[6..18]);
            older
        });
        then.set(slot as u32, PerCpuValues::try_from(older.collect::<Vec<_>>()).unwrap(), 0).unwrap();
    }
    let meta = pins.join("meta");
    let first = "map update pinned PIN key 0 0 0 0 value 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0 0";
    bpftool(
        &first.split(' ').map(|word| if word == "PIN" { meta.to_str().unwrap() } else { word }).collect::<Vec<_>>(),
    );
}
