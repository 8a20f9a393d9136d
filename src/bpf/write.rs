//! Writing map entries: each call is one operation of a plan and says how many system calls it made.
//!
//! Single entries change atomically for the programs, in the order in which they are given. An entry that exists is
//! overwritten in place.

use super::DeviceGone;
use super::abi::{Plain, RawConf, RawDev, RawIfEntry, RawSlotRef, RawTunKey};
use super::batch::{CHUNK, RawMap};
use super::dataplane::Dataplane;
use crate::model::{Conf, IfEntry, SlotRef, TunKey};
use anyhow::{Context, Result};
use rustix::thread::{MembarrierCommand, membarrier};
use std::thread::sleep;
use std::time::Duration;

impl Dataplane {
    /// Sets tunnels, by tunnel index.
    pub fn write_conf(&self, entries: &[(u32, Conf)]) -> Result<u32> {
        let (keys, values): (Vec<_>, Vec<_>) =
            entries.iter().map(|(index, conf)| (*index, RawConf::from(conf))).unzip();
        self.writable_maps()?.conf.update_all(&keys, &values)
    }

    /// Clears tunnels, by tunnel index. Their packets are dropped from then on.
    pub fn clear_conf(&self, indexes: &[u32]) -> Result<u32> {
        self.writable_maps()?.conf.update_all(indexes, &vec![RawConf::default(); indexes.len()])
    }

    /// Sets devices, by slot; one call for each. They are looked for in this thread's network namespace.
    ///
    /// # Errors
    /// [`DeviceGone`] where an interface doesn't exist. Those before it were written.
    pub fn write_devs(&self, entries: &[(u32, u32)]) -> Result<u32> {
        let devs = &self.writable_maps()?.devs;
        for (slot, ifindex) in entries {
            let written = devs.update_each(&[(*slot, RawDev { ifindex: *ifindex, program: 0 })]);
            written.map_err(|error| {
                let refused = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
                match refused.and_then(std::io::Error::raw_os_error) {
                    Some(libc::EINVAL) => error.context(DeviceGone { ifindex: *ifindex }),
                    _ => error,
                }
            })?;
        }
        Ok(entries.len() as u32)
    }

    /// Empties slots of `devs`, with one call for each.
    pub fn clear_devs(&self, slots: &[u32]) -> Result<u32> {
        let devs = &self.writable_maps()?.devs;
        for slot in slots {
            devs.fd.delete(u32::bytes_of(&[*slot])).with_context(|| format!("delete devs[{slot}]"))?;
        }
        Ok(slots.len() as u32)
    }

    /// Inserts or updates entries of `tunkey2if`.
    ///
    /// # Errors
    /// [`super::MapFull`]; the entries before were written.
    pub fn write_tunkey2if(&self, entries: &[(TunKey, SlotRef)]) -> Result<u32> {
        let map = &self.writable_maps()?.tunkey2if;
        let (mut keys, mut values, mut calls) = (Vec::new(), Vec::new(), 0);
        // As many at a time as one call takes, so that what is encoded is still in the cache when the kernel reads it.
        for chunk in entries.chunks(CHUNK) {
            keys.clear();
            keys.extend(chunk.iter().map(|(key, _)| RawTunKey::from(key)));
            values.clear();
            values.extend(chunk.iter().zip(&keys).map(|((_, value), key)| RawSlotRef::encode(key, value)));
            calls += map.update_all(&keys, &values)?;
        }
        Ok(calls)
    }

    /// Deletes entries of `tunkey2if`; those that are absent are skipped.
    pub fn delete_tunkey2if(&self, keys: &[TunKey]) -> Result<u32> {
        let keys: Vec<_> = keys.iter().map(RawTunKey::from).collect();
        self.writable_maps()?.tunkey2if.delete_all(&keys)
    }

    /// Inserts or updates entries of `if2tunkey`, by ifindex.
    ///
    /// # Errors
    /// [`super::MapFull`]; the entries before were written.
    pub fn write_if2tunkey(&self, entries: &[(u32, IfEntry)]) -> Result<u32> {
        let map = &self.writable_maps()?.if2tunkey;
        let (mut keys, mut values, mut calls) = (Vec::new(), Vec::new(), 0);
        for chunk in entries.chunks(CHUNK) {
            keys.clear();
            keys.extend(chunk.iter().map(|(ifindex, _)| *ifindex));
            values.clear();
            values.extend(chunk.iter().map(|(ifindex, entry)| RawIfEntry::encode(*ifindex, entry)));
            calls += map.update_all(&keys, &values)?;
        }
        Ok(calls)
    }

    /// Deletes entries of `if2tunkey`; those that are absent are skipped.
    pub fn delete_if2tunkey(&self, ifindexes: &[u32]) -> Result<u32> {
        self.writable_maps()?.if2tunkey.delete_all(ifindexes)
    }

    /// Sets the counters of slots to zero: before a slot gets another mapping.
    pub fn reset_counters(&self, slots: &[u32]) -> Result<u32> {
        let counters = &self.writable_maps()?.counters;
        counters.update_bytes(u32::bytes_of(slots), &vec![0; slots.len() * counters.fd.value_len()])
    }

    /// Forgets keys of `unknown`: they are mapped now.
    pub fn forget_unknown(&self, keys: &[TunKey]) -> Result<u32> {
        let keys: Vec<_> = keys.iter().map(RawTunKey::from).collect();
        self.writable_maps()?.unknown.delete_all(&keys)
    }
}

/// Waits until no program can still see what was in a map before: then a slot may be used again.
pub fn grace_period() {
    // MEMBARRIER_CMD_GLOBAL is synchronize_rcu() in the kernel. Kernels with nohz_full refuse it; programs run with
    // softirqs off and are done within microseconds, so a second is ample there.
    if membarrier(MembarrierCommand::Global).is_err() {
        sleep(Duration::from_secs(1));
    }
}
