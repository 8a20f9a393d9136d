//! The pinned maps: opened with their layout checked, read whole, written in batches.

use super::abi::*;
use super::batch::{self, Calls};
use super::sys;
use crate::model::*;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Names of the maps, which are their pins' names, too.
pub(super) const NAMES: [&str; 7] = ["conf", "tunkey2if", "if2tunkey", "devs", "counters", "unknown", "meta"];
/// Those whose size is the capacity.
pub(super) const SIZED: [&str; 4] = ["tunkey2if", "if2tunkey", "devs", "counters"];

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const DEVMAP: u32 = 14;

/// A pinned map isn't what this version makes.
#[derive(Debug, thiserror::Error)]
#[error("the pinned map {path} has another layout ({found}; this version wants {wanted})")]
pub struct LayoutMismatch {
    path: PathBuf,
    found: String,
    wanted: String,
}

/// The maps, opened.
#[derive(Debug)]
pub(super) struct Maps {
    conf: OwnedFd,
    tunkey2if: OwnedFd,
    if2tunkey: OwnedFd,
    devs: OwnedFd,
    counters: OwnedFd,
    unknown: OwnedFd,
    meta: OwnedFd,
    /// Id of `devs`, which every program uses, and by which a program shows that it works on these maps.
    pub(super) id: u32,
    pub(super) capacity: u32,
    /// Whether values of `devs` have 8 bytes (index and program) rather than 4.
    wide_devs: bool,
    cpus: usize,
}

/// Type, key size, value sizes, and whether the size is the capacity.
fn layout(name: &str) -> (u32, u32, &'static [u32], bool) {
    match name {
        "conf" => (ARRAY, 4, &[32], false),
        "tunkey2if" => (HASH, 24, &[8], true),
        "if2tunkey" => (HASH, 4, &[56], true),
        "devs" => (DEVMAP, 4, &[4, 8], true),
        "counters" => (PERCPU_ARRAY, 4, &[112], true),
        "unknown" => (LRU_HASH, 24, &[16], false),
        _ => (ARRAY, 4, &[16], false),
    }
}

/// Opens one pinned map and compares its layout; aya itself reuses pins unchecked.
fn open(directory: &Path, name: &str) -> Result<(OwnedFd, sys::MapInfo)> {
    let path = directory.join(name);
    let fd = sys::get(&path).with_context(|| format!("open the pinned map {}", path.display()))?;
    let info = sys::map_info(fd.as_fd()).with_context(|| format!("ask what {} is", path.display()))?;
    let (kind, key, values, _) = layout(name);
    if info.kind != kind || info.key_size != key || !values.contains(&info.value_size) {
        return Err(LayoutMismatch {
            path,
            found: format!("type {}, key {} bytes, value {} bytes", info.kind, info.key_size, info.value_size),
            wanted: format!("type {kind}, key {key} bytes, value {} bytes", values[values.len() - 1]),
        }
        .into());
    }
    Ok((fd, info))
}

impl Maps {
    /// Opens the maps pinned in that directory; `None` where there are none.
    pub(super) fn open(directory: &Path) -> Result<Option<Self>> {
        let first = directory.join(NAMES[0]);
        match std::fs::symlink_metadata(&first) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("look for {}", first.display())),
        }
        let (conf, _) = open(directory, "conf")?;
        let (tunkey2if, keys) = open(directory, "tunkey2if")?;
        let (if2tunkey, ifs) = open(directory, "if2tunkey")?;
        let (devs, dev) = open(directory, "devs")?;
        let (counters, counts) = open(directory, "counters")?;
        let (unknown, _) = open(directory, "unknown")?;
        let (meta, _) = open(directory, "meta")?;
        let capacity = keys.max_entries.min(ifs.max_entries).min(dev.max_entries).min(counts.max_entries);
        let cpus = possible_cpus()?;
        let maps = Self {
            conf,
            tunkey2if,
            if2tunkey,
            devs,
            counters,
            unknown,
            meta,
            id: dev.id,
            capacity,
            wide_devs: dev.value_size == 8,
            cpus,
        };
        let version = maps.meta()?.layout;
        if version != LAYOUT && version != 0 {
            return Err(LayoutMismatch {
                path: directory.join("meta"),
                found: format!("layout {version}"),
                wanted: format!("layout {LAYOUT}"),
            }
            .into());
        }
        Ok(Some(maps))
    }

    pub(super) fn meta(&self) -> Result<RawMeta> {
        let mut value = [RawMeta::default()];
        sys::lookup(self.meta.as_fd(), &0u32, &mut value).context("read meta")?;
        Ok(value[0])
    }

    pub(super) fn set_meta(&self, meta: RawMeta) -> Result<()> {
        sys::update(self.meta.as_fd(), &0u32, &[meta]).context("write meta")
    }

    /// Reads everything that decides where packets go.
    pub(super) fn observe(&self) -> Result<MapState> {
        let (keys, values) = self.raw_tunkey2if()?;
        let mut tunkey2if: Vec<(TunKey, SlotRef)> =
            keys.iter().zip(&values).map(|(k, v): (&RawTunKey, &RawSlot)| ((*k).into(), v.read(k))).collect();
        tunkey2if.sort_unstable_by_key(|(k, _)| *k);
        let (keys, values) = self.raw_if2tunkey()?;
        let mut if2tunkey: Vec<(u32, IfEntry)> =
            keys.iter().zip(&values).map(|(k, v): (&u32, &RawIf)| (*k, v.read(*k))).collect();
        if2tunkey.sort_unstable_by_key(|(k, _)| *k);
        let (indexes, values): (Vec<u32>, Vec<RawConf>) =
            batch::read(self.conf.as_fd(), TUNNEL_INDEXES, 1).context("read conf")?;
        let conf: BTreeMap<u32, Conf> =
            indexes.into_iter().zip(&values).filter_map(|(i, v)| Some((i, v.read()?))).collect();
        Ok(MapState { capacity: self.capacity, conf, devs: self.read_devs()?, tunkey2if, if2tunkey })
    }

    fn raw_tunkey2if(&self) -> Result<(Vec<RawTunKey>, Vec<RawSlot>)> {
        batch::read(self.tunkey2if.as_fd(), self.capacity, 1).context("read tunkey2if")
    }

    fn raw_if2tunkey(&self) -> Result<(Vec<u32>, Vec<RawIf>)> {
        batch::read(self.if2tunkey.as_fd(), self.capacity, 1).context("read if2tunkey")
    }

    /// `devs` has neither batch calls nor a way to list only what is set: one look-up a slot.
    fn read_devs(&self) -> Result<Vec<(u32, u32)>> {
        let mut out = Vec::new();
        for slot in 0..self.capacity {
            let found = if self.wide_devs {
                let mut value = [RawDev::default()];
                sys::lookup(self.devs.as_fd(), &slot, &mut value).map(|()| value[0].ifindex)
            } else {
                let mut value = [0u32];
                sys::lookup(self.devs.as_fd(), &slot, &mut value).map(|()| value[0])
            };
            match found {
                Ok(ifindex) if ifindex != 0 => out.push((slot, ifindex)),
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(e).with_context(|| format!("read slot {slot} of devs")),
            }
        }
        Ok(out)
    }

    pub(super) fn set_conf(&self, entries: &[(u32, Conf)]) -> Result<Calls> {
        let keys: Vec<u32> = entries.iter().map(|(i, _)| *i).collect();
        let values: Vec<RawConf> = entries.iter().map(|(_, c)| c.into()).collect();
        batch::update(self.conf.as_fd(), &keys, &values).context("write conf")
    }

    pub(super) fn clear_conf(&self, indexes: &[u32]) -> Result<Calls> {
        let values = vec![RawConf::default(); indexes.len()];
        batch::update(self.conf.as_fd(), indexes, &values).context("clear conf")
    }

    pub(super) fn set_devs(&self, entries: &[(u32, u32)]) -> Result<Calls> {
        for (slot, ifindex) in entries {
            let written = if self.wide_devs {
                sys::update(self.devs.as_fd(), slot, &[RawDev { ifindex: *ifindex, program: 0 }])
            } else {
                sys::update(self.devs.as_fd(), slot, &[*ifindex])
            };
            written.with_context(|| format!("set slot {slot} of devs to ifindex {ifindex}"))?;
        }
        Ok(entries.len())
    }

    pub(super) fn clear_devs(&self, slots: &[u32]) -> Result<Calls> {
        for slot in slots {
            match sys::delete(self.devs.as_fd(), slot) {
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(e).with_context(|| format!("clear slot {slot} of devs"));
                }
                _ => {}
            }
        }
        Ok(slots.len())
    }

    pub(super) fn set_tunkey2if(&self, entries: &[(TunKey, SlotRef)]) -> Result<Calls> {
        let keys: Vec<RawTunKey> = entries.iter().map(|(k, _)| (*k).into()).collect();
        let values: Vec<RawSlot> = keys.iter().zip(entries).map(|(k, (_, v))| RawSlot::new(k, *v)).collect();
        batch::update(self.tunkey2if.as_fd(), &keys, &values).context("write tunkey2if")
    }

    pub(super) fn delete_tunkey2if(&self, keys: &[TunKey]) -> Result<Calls> {
        let keys: Vec<RawTunKey> = keys.iter().map(|k| (*k).into()).collect();
        batch::delete(self.tunkey2if.as_fd(), &keys).context("delete from tunkey2if")
    }

    pub(super) fn set_if2tunkey(&self, entries: &[(u32, IfEntry)]) -> Result<Calls> {
        let keys: Vec<u32> = entries.iter().map(|(i, _)| *i).collect();
        let values: Vec<RawIf> = entries.iter().map(|(i, e)| RawIf::new(*i, e)).collect();
        batch::update(self.if2tunkey.as_fd(), &keys, &values).context("write if2tunkey")
    }

    pub(super) fn delete_if2tunkey(&self, ifindexes: &[u32]) -> Result<Calls> {
        batch::delete(self.if2tunkey.as_fd(), ifindexes).context("delete from if2tunkey")
    }

    pub(super) fn reset_counters(&self, slots: &[u32]) -> Result<Calls> {
        let values = vec![RawCounters::default(); slots.len() * self.cpus];
        batch::update(self.counters.as_fd(), slots, &values).context("reset counters")
    }

    /// Counters of the slots that counted anything, summed over all CPUs.
    pub(super) fn counters(&self) -> Result<Vec<(u32, RawCounters)>> {
        let (slots, values): (Vec<u32>, Vec<RawCounters>) =
            batch::read(self.counters.as_fd(), self.capacity, self.cpus).context("read counters")?;
        let summed = slots.into_iter().zip(values.chunks_exact(self.cpus)).map(|(slot, cpus)| {
            let mut sum = RawCounters::default();
            for one in cpus {
                sum.rx_packets += one.rx_packets;
                sum.rx_bytes += one.rx_bytes;
                sum.tx_packets += one.tx_packets;
                sum.tx_bytes += one.tx_bytes;
                for (total, drops) in sum.drops.iter_mut().zip(one.drops) {
                    *total += drops;
                }
            }
            (slot, sum)
        });
        Ok(summed.filter(|(_, sum)| *sum != RawCounters::default()).collect())
    }

    pub(super) fn unknown(&self) -> Result<Vec<(RawTunKey, RawUnknown)>> {
        let (keys, values) = batch::read(self.unknown.as_fd(), 1024, 1).context("read unknown")?;
        Ok(keys.into_iter().zip(values).collect())
    }

    /// Copies what the sized maps hold into larger ones.
    pub(super) fn copy_to(&self, new: &Self) -> Result<()> {
        let (keys, values) = self.raw_tunkey2if()?;
        batch::update(new.tunkey2if.as_fd(), &keys, &values).context("copy tunkey2if")?;
        let (keys, values) = self.raw_if2tunkey()?;
        batch::update(new.if2tunkey.as_fd(), &keys, &values).context("copy if2tunkey")?;
        let (keys, values): (Vec<u32>, Vec<RawCounters>) =
            batch::read(self.counters.as_fd(), self.capacity, self.cpus).context("read counters")?;
        batch::update(new.counters.as_fd(), &keys, &values).context("copy counters")?;
        for (slot, ifindex) in self.read_devs()? {
            // A device that vanishes meanwhile is one that the old map has lost, too.
            match new.set_devs(&[(slot, ifindex)]) {
                Err(e) if !super::is_no_device(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn possible_cpus() -> Result<usize> {
    aya::util::nr_cpus()
        .map_err(|(what, error)| anyhow::Error::new(error).context(what))
        .context("count the possible CPUs")
}
