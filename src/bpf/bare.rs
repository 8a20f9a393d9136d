//! The system calls themselves, without the engine around them: what the benchmark measures the engine against.

use super::abi::{Plain, RawIfEntry, RawSlotRef, RawTunKey};
use super::batch::{Map, RawMap};
use super::dataplane::Dataplane;
use super::maps::Maps;
use crate::model::{IfEntry, SlotRef, TunKey};
use anyhow::{Context, Result};

/// Entries that one bare look-up call asks for.
const SCAN: usize = 4096;

/// Entries of both hashes as the kernel reads them: keys and values of `tunkey2if`, then of `if2tunkey`.
#[derive(Debug, Default, Clone)]
pub struct Encoded {
    maps: [(Vec<u8>, Vec<u8>); 2],
}

impl Encoded {
    /// Translates entries.
    pub fn of(keys: &[(TunKey, SlotRef)], ifs: &[(u32, IfEntry)]) -> Self {
        let mut out = Self::default();
        for (key, value) in keys {
            let key = RawTunKey::from(key);
            out.maps[0].0.extend_from_slice(Plain::bytes_of(&[key]));
            out.maps[0].1.extend_from_slice(Plain::bytes_of(&[RawSlotRef::encode(&key, value)]));
        }
        for (ifindex, entry) in ifs {
            out.maps[1].0.extend_from_slice(Plain::bytes_of(&[*ifindex]));
            out.maps[1].1.extend_from_slice(Plain::bytes_of(&[RawIfEntry::encode(*ifindex, entry)]));
        }
        out
    }

    /// Keys and values as hexadecimal words, by map: for bpftool and for Python.
    pub fn rows(&self) -> [Vec<(&[u8], &[u8])>; 2] {
        let widths = [(size_of::<RawTunKey>(), size_of::<RawSlotRef>()), (4, size_of::<RawIfEntry>())];
        [0, 1].map(|n| {
            let (keys, values) = &self.maps[n];
            keys.chunks_exact(widths[n].0).zip(values.chunks_exact(widths[n].1)).collect()
        })
    }
}

/// Both hashes, bare.
#[derive(Debug)]
pub struct Bare<'a> {
    maps: [&'a Map; 2],
}

impl Dataplane {
    /// Both hashes, bare.
    ///
    /// # Errors
    /// Where no maps are pinned.
    #[doc(hidden)]
    pub fn bare(&self) -> Result<Bare<'_>> {
        let Maps { tunkey2if, if2tunkey, .. } = self.maps()?;
        Ok(Bare { maps: [tunkey2if, if2tunkey] })
    }
}

impl Bare<'_> {
    /// Writes everything with one call a map.
    pub fn update_batch(&self, entries: &Encoded) -> Result<()> {
        for (map, (keys, values)) in self.maps.iter().zip(&entries.maps) {
            map.fd.update_batch(keys, values).0.context("bare UPDATE_BATCH")?;
        }
        Ok(())
    }

    /// Writes everything with one call an entry.
    pub fn update_each(&self, entries: &Encoded) -> Result<()> {
        for (map, rows) in self.maps.iter().zip(entries.rows()) {
            for (key, value) in rows {
                map.fd.update(key, value).context("bare UPDATE_ELEM")?;
            }
        }
        Ok(())
    }

    /// Reads both maps with LOOKUP_BATCH and returns how many entries there were.
    pub fn scan(&self) -> Result<usize> {
        let mut total = 0;
        for map in self.maps {
            let mut capacity = SCAN;
            let mut keys = vec![0; capacity * map.fd.key_len()];
            let mut values = vec![0; capacity * map.fd.value_len()];
            let mut cursor = None;
            loop {
                let (result, count) = map.fd.lookup_batch(&mut cursor, &mut keys, &mut values);
                match result.map_err(|e| (e.raw_os_error(), e)) {
                    Ok(()) => total += count as usize,
                    Err((Some(libc::ENOENT), _)) => {
                        total += count as usize;
                        break;
                    }
                    Err((Some(libc::ENOSPC), _)) => {
                        capacity *= 2;
                        keys.resize(capacity * map.fd.key_len(), 0);
                        values.resize(capacity * map.fd.value_len(), 0);
                    }
                    Err((_, error)) => return Err(error).context("bare LOOKUP_BATCH"),
                }
            }
        }
        Ok(total)
    }

    /// Reads both maps key by key and returns how many entries there were.
    pub fn scan_each(&self) -> Result<usize> {
        let mut total = 0;
        for map in self.maps {
            let (mut key, mut next) = (None::<Vec<u8>>, vec![0; map.fd.key_len()]);
            let mut value = vec![0; map.fd.value_len()];
            while map.fd.next_key(key.as_deref(), &mut next).context("bare GET_NEXT_KEY")? {
                total += usize::from(map.fd.lookup(&next, &mut value).context("bare LOOKUP_ELEM")?);
                key.get_or_insert_with(|| next.clone()).copy_from_slice(&next);
            }
        }
        Ok(total)
    }

    /// Empties both maps.
    pub fn clear(&self, entries: &Encoded) -> Result<()> {
        for (map, (keys, _)) in self.maps.iter().zip(&entries.maps) {
            map.fd.delete_batch(keys).0.context("bare DELETE_BATCH")?;
        }
        Ok(())
    }

    /// The tunnel id that an interface sends with.
    pub fn id_of(&self, ifindex: u32) -> Result<Option<u32>> {
        Ok(self.maps[1].get::<u32, RawIfEntry>(ifindex)?.map(|entry| entry.id))
    }
}
