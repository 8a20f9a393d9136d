//! Reading, writing and deleting many map entries in few system calls, one by one where a map has no batch calls.
//!
//! What the kernel does was measured: an update of a full map stops with E2BIG and says how many it wrote; a delete
//! stops at an absent key with ENOENT; a look-up ends with ENOENT *and* valid data, and says ENOSPC when a bucket
//! doesn't fit. `count` means nothing when the call was refused as a whole.

use super::MapFull;
use super::abi::Plain;
use super::earlier::Earlier;
use super::sys::{ENOTSUPP, MapFd, MapInfo};
use anyhow::{Context, Result, anyhow};
use std::borrow::Cow;
use std::io;

/// Most entries of one call.
pub(super) const CHUNK: usize = 4096;
/// Most bytes of keys and values of one call.
const CHUNK_BYTES: usize = 4 << 20;

/// What a map can be asked for: [`MapFd`], or a map in memory that fails when it is told to. Each is one system call.
pub(super) trait RawMap {
    fn info(&self) -> &MapInfo;
    fn key_len(&self) -> usize;
    fn value_len(&self) -> usize;
    fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool>;
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()>;
    fn delete(&self, key: &[u8]) -> io::Result<bool>;
    fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool>;
    fn update_batch(&self, keys: &[u8], values: &[u8]) -> (io::Result<()>, u32);
    fn delete_batch(&self, keys: &[u8]) -> (io::Result<()>, u32);
    fn lookup_batch(&self, cursor: &mut Option<Vec<u8>>, keys: &mut [u8], values: &mut [u8]) -> (io::Result<()>, u32);
}

/// A map, and the name that errors call it by.
#[derive(Debug)]
pub(super) struct Map<F = MapFd> {
    pub(super) name: &'static str,
    pub(super) fd: F,
    /// What its values look like, where an earlier version made it: it is read as if it were today's, and never written.
    pub(super) earlier: Option<Earlier>,
}

impl<F: RawMap> Map<F> {
    fn chunk(&self) -> usize {
        (CHUNK_BYTES / (self.fd.key_len() + self.fd.value_len()).max(1)).clamp(16, CHUNK)
    }

    /// Inserts or overwrites. Returns how many system calls that took.
    ///
    /// # Errors
    /// [`MapFull`] where an entry doesn't fit; those before it were written.
    pub(super) fn update_all<K: Plain, V: Plain>(&self, keys: &[K], values: &[V]) -> Result<u32> {
        self.update_bytes(K::bytes_of(keys), V::bytes_of(values))
    }

    /// [`Self::update_all`] of keys and values as the map has them.
    pub(super) fn update_bytes(&self, keys: &[u8], values: &[u8]) -> Result<u32> {
        let (key_len, value_len) = (self.fd.key_len(), self.fd.value_len());
        let chunk = self.chunk();
        let mut calls = 0;
        for (keys, values) in keys.chunks(chunk * key_len).zip(values.chunks(chunk * value_len)) {
            let (result, _) = self.fd.update_batch(keys, values);
            calls += 1;
            match result {
                Ok(()) => {}
                Err(error) if lacks_batch(&error) => {
                    for (key, value) in keys.chunks_exact(key_len).zip(values.chunks_exact(value_len)) {
                        self.fd.update(key, value).map_err(|e| self.write_error(e))?;
                        calls += 1;
                    }
                }
                Err(error) => return Err(self.write_error(error)),
            }
        }
        Ok(calls)
    }

    /// Writes one after the other, for maps that are known to lack batch calls.
    pub(super) fn update_each<V: Plain>(&self, entries: &[(u32, V)]) -> Result<u32> {
        for (key, value) in entries {
            let (key_bytes, value) =
                (u32::bytes_of(std::slice::from_ref(key)), V::bytes_of(std::slice::from_ref(value)));
            let written = self.fd.update(key_bytes, value).map_err(|e| self.write_error(e));
            written.with_context(|| format!("update {}[{key}]", self.name))?;
        }
        Ok(entries.len() as u32)
    }

    /// Deletes; keys that are absent are skipped. Returns how many system calls that took.
    pub(super) fn delete_all<K: Plain>(&self, keys: &[K]) -> Result<u32> {
        let key_len = self.fd.key_len();
        let mut calls = 0;
        for keys in K::bytes_of(keys).chunks(self.chunk() * key_len) {
            let mut rest = keys;
            while !rest.is_empty() {
                let (result, count) = self.fd.delete_batch(rest);
                calls += 1;
                match result {
                    Ok(()) => break,
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                        // `count` were deleted, the one after them is absent.
                        rest = rest.get((count as usize + 1) * key_len..).unwrap_or_default();
                    }
                    Err(error) if lacks_batch(&error) => {
                        calls += self.delete_each(rest)?;
                        break;
                    }
                    Err(error) => return Err(error).with_context(|| format!("delete from {}", self.name)),
                }
            }
        }
        Ok(calls)
    }

    fn delete_each(&self, keys: &[u8]) -> Result<u32> {
        let mut calls = 0;
        for key in keys.chunks_exact(self.fd.key_len()) {
            self.fd.delete(key).with_context(|| format!("delete from {}", self.name))?;
            calls += 1;
        }
        Ok(calls)
    }

    /// One value; `None` where the key is absent.
    pub(super) fn get<K: Plain, V: Plain>(&self, key: K) -> Result<Option<V>> {
        let mut value = vec![0; self.fd.value_len()];
        let found = self
            .fd
            .lookup(K::bytes_of(std::slice::from_ref(&key)), &mut value)
            .with_context(|| format!("look {} up", self.name))?;
        Ok(found.then(|| V::from_bytes(&self.today(&value))))
    }

    /// A value as today's layout has it.
    fn today<'v>(&self, value: &'v [u8]) -> Cow<'v, [u8]> {
        self.earlier.map_or(Cow::Borrowed(value), |earlier| Cow::Owned(earlier.translate(value)))
    }

    /// Every entry, in no order.
    pub(super) fn read_all<K: Plain, V: Plain>(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.visit(|key, value| entries.push((K::from_bytes(key), V::from_bytes(value))))?;
        Ok(entries)
    }

    /// Calls `visit` with the bytes of every key and value. A per-CPU value is all CPUs' values, one after the other.
    pub(super) fn visit(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let (key_len, value_len) = (self.fd.key_len(), self.fd.value_len());
        // One more than there can be, or an array would need a second call to say that it was all.
        let enough = self.fd.info().max_entries as usize + 1;
        let mut capacity = self.chunk().min(enough);
        let mut keys = vec![0; capacity * key_len];
        let mut values = vec![0; capacity * value_len];
        let mut cursor = None;
        loop {
            let (result, count) = self.fd.lookup_batch(&mut cursor, &mut keys, &mut values);
            let end = match result {
                Ok(()) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    Some(libc::ENOSPC) if capacity < enough => {
                        // A bucket has more entries than the buffer: a larger one, from the same place.
                        capacity = (capacity * 2).min(enough);
                        keys.resize(capacity * key_len, 0);
                        values.resize(capacity * value_len, 0);
                        continue;
                    }
                    _ if lacks_batch(&error) => return self.visit_each(visit),
                    _ => return Err(error).with_context(|| format!("read {}", self.name)),
                },
            };
            let entries = keys.chunks_exact(key_len).zip(values.chunks_exact(value_len)).take(count as usize);
            match self.earlier {
                None => entries.for_each(|(key, value)| visit(key, value)),
                Some(earlier) => entries.for_each(|(key, value)| visit(key, &earlier.translate(value))),
            }
            if end {
                return Ok(());
            }
        }
    }

    fn visit_each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let context = || format!("read {}", self.name);
        let mut next = vec![0; self.fd.key_len()];
        let mut value = vec![0; self.fd.value_len()];
        let mut key: Option<Vec<u8>> = None;
        while self.fd.next_key(key.as_deref(), &mut next).with_context(context)? {
            if self.fd.lookup(&next, &mut value).with_context(context)? {
                visit(&next, &self.today(&value));
            }
            key = Some(next.clone());
        }
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> anyhow::Error {
        let capacity = self.fd.info().max_entries;
        match error.raw_os_error() {
            Some(libc::E2BIG) => MapFull { map: self.name, capacity }.into(),
            _ => anyhow!(error).context(format!("write to {}", self.name)),
        }
    }
}

/// Whether a call was refused because this map, or this kernel, has no batch operations.
fn lacks_batch(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP))
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
