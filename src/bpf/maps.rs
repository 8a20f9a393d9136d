//! The pinned maps as a set: what each must look like, opening them, checking them.
//!
//! `aya` takes over a pinned map without a look at it, and a map of another layout means corrupted memory. So nothing
//! is used before type, sizes and flags have been compared.

use super::LayoutMismatch;
use super::abi::{
    ABI_VERSION, CONF_ENTRIES, META_NAMESPACE, RawConf, RawCounters, RawDev, RawIfEntry, RawMeta, RawSlotRef,
    RawTunKey, RawUnknown, UNKNOWN_ENTRIES,
};
use super::batch::{Map, RawMap};
use super::earlier::Earlier;
use super::pins::Pins;
use super::sys::{self, MapFd, MapInfo};
use anyhow::{Context, Result, anyhow};
use std::io::ErrorKind;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const DEVMAP: u32 = 14;
/// `BPF_F_RDONLY_PROG`, which the kernel sets on every DEVMAP.
const RDONLY_PROG: u32 = 1 << 7;

/// What a map must look like.
struct Spec {
    name: &'static str,
    kind: u32,
    key_size: usize,
    value_size: usize,
    flags: u32,
    /// Entries; `None`: as many as there are slots.
    entries: Option<u32>,
}

const fn spec<K, V>(name: &'static str, kind: u32, entries: Option<u32>) -> Spec {
    let flags = if kind == DEVMAP { RDONLY_PROG } else { 0 };
    Spec { name, kind, key_size: size_of::<K>(), value_size: size_of::<V>(), flags, entries }
}

const SPECS: [Spec; 7] = [
    spec::<u32, RawConf>("conf", ARRAY, Some(CONF_ENTRIES)),
    spec::<RawTunKey, RawSlotRef>("tunkey2if", HASH, None),
    spec::<u32, RawIfEntry>("if2tunkey", HASH, None),
    spec::<u32, RawDev>("devs", DEVMAP, None),
    spec::<u32, RawCounters>("counters", PERCPU_ARRAY, None),
    spec::<RawTunKey, RawUnknown>("unknown", LRU_HASH, Some(UNKNOWN_ENTRIES)),
    spec::<u32, RawMeta>("meta", ARRAY, Some(META_NAMESPACE + 1)),
];

/// The names of all maps.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SPECS.iter().map(|spec| spec.name)
}

/// The names of the maps that are as large as the capacity says.
pub(super) fn sized_names() -> impl Iterator<Item = &'static str> {
    SPECS.iter().filter(|spec| spec.entries.is_none()).map(|spec| spec.name)
}

/// The maps, opened and checked.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) conf: Map,
    pub(super) tunkey2if: Map,
    pub(super) if2tunkey: Map,
    pub(super) devs: Map,
    pub(super) counters: Map,
    pub(super) unknown: Map,
    pub(super) meta: Map,
}

impl Maps {
    /// Opens what is pinned; `None` where maps are missing.
    ///
    /// # Errors
    /// [`LayoutMismatch`] where a pin isn't what this program would have made.
    pub(super) fn open(pins: &Pins) -> Result<Option<Self>> {
        let Some(maps) = Self::open_all(pins, ABI_VERSION)? else { return Ok(None) };
        match maps.version()? {
            // 0: made a moment ago, not yet marked.
            0 | ABI_VERSION => Ok(Some(maps)),
            other => Err(mismatch(pins, "meta", "layout version", u64::from(other), u64::from(ABI_VERSION))),
        }
    }

    /// Opens what an earlier version pinned, to be read only; `None` where it isn't known what lies in one of the maps.
    pub(super) fn open_earlier(pins: &Pins) -> Result<Option<Self>> {
        let Some(meta) = Self::open_meta(pins)? else { return Ok(None) };
        let version = meta.get::<u32, RawMeta>(0)?.unwrap_or_default().abi;
        if version == 0 || version >= ABI_VERSION {
            return Ok(None);
        }
        match Self::open_all(pins, version) {
            Err(error) if error.is::<LayoutMismatch>() => Ok(None),
            maps => maps,
        }
    }

    /// Opens maps that look as that version made them.
    fn open_all(pins: &Pins, version: u32) -> Result<Option<Self>> {
        let mut maps = Vec::with_capacity(SPECS.len());
        for spec in &SPECS {
            match open_one(pins, spec, Earlier::of(version, spec.name).filter(|_| version < ABI_VERSION))? {
                Some(map) => maps.push(map),
                None => return Ok(None),
            }
        }
        let Ok([conf, tunkey2if, if2tunkey, devs, counters, unknown, meta]) = <[Map; SPECS.len()]>::try_from(maps)
        else {
            return Ok(None);
        };
        Ok(Some(Self { conf, tunkey2if, if2tunkey, devs, counters, unknown, meta }))
    }

    /// Which version of the layouts they say they have.
    fn version(&self) -> Result<u32> {
        Ok(self.meta.get::<u32, RawMeta>(0)?.unwrap_or_default().abi)
    }

    /// `meta` alone, whose layout is the same in every version; `None` where it isn't pinned.
    pub(super) fn open_meta(pins: &Pins) -> Result<Option<Map>> {
        let spec = SPECS.iter().find(|spec| spec.name == "meta");
        spec.map_or(Ok(None), |spec| open_one(pins, spec, None))
    }

    /// Pins again what somebody unpinned while we hold it.
    pub(super) fn restore_pins(&self, pins: &Pins) -> Result<()> {
        let all = [&self.conf, &self.tunkey2if, &self.if2tunkey, &self.devs, &self.counters, &self.unknown, &self.meta];
        for map in all {
            let path = pins.map(map.name);
            if !path.exists() {
                sys::pin(map.fd.as_fd(), &path).with_context(|| format!("pin {} again", path.display()))?;
            }
        }
        Ok(())
    }

    /// Number of slots, and of entries that the hashes hold.
    pub(super) fn capacity(&self) -> u32 {
        let sized = [&self.tunkey2if, &self.if2tunkey, &self.devs, &self.counters];
        sized.iter().map(|map| map.fd.info().max_entries).min().unwrap_or_default()
    }
}

fn open_one(pins: &Pins, spec: &Spec, earlier: Option<Earlier>) -> Result<Option<Map>> {
    let path = pins.map(spec.name);
    let fd = match sys::open_pin(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        fd => fd.with_context(|| format!("open the pinned map {}", path.display()))?,
    };
    let copies = if spec.kind == PERCPU_ARRAY { possible_cpus()? } else { 1 };
    let fd = MapFd::new(fd, copies).with_context(|| format!("ask for the layout of {}", path.display()))?;
    check(pins, spec, earlier.map_or(spec.value_size, |earlier| earlier.from), fd.info())?;
    Ok(Some(Map { name: spec.name, fd, earlier }))
}

fn check(pins: &Pins, spec: &Spec, value_size: usize, info: &MapInfo) -> Result<()> {
    let compared = [
        ("map type", info.kind, spec.kind),
        ("key size", info.key_size, spec.key_size as u32),
        ("value size", info.value_size, value_size as u32),
        ("flags", info.flags, spec.flags),
        ("number of entries", info.max_entries, spec.entries.unwrap_or(info.max_entries)),
    ];
    match compared.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((what, found, expected)) => Err(mismatch(pins, spec.name, what, u64::from(found), u64::from(expected))),
    }
}

fn mismatch(pins: &Pins, map: &str, what: &'static str, found: u64, expected: u64) -> anyhow::Error {
    LayoutMismatch { path: pins.map(map), what, found, expected }.into()
}

/// Number of CPUs that could ever come online, as many as a per-CPU map has values.
pub(super) fn possible_cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(path, error)| anyhow!(error).context(format!("read {path}")))
}
