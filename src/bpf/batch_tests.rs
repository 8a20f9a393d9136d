//! Many entries a call, on a map in memory that answers as the kernel does and fails when it is told to.

#![allow(clippy::unwrap_used)]
use super::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// A hash of u32 to u32. Keys that are the same modulo `buckets` share a bucket.
struct Fake {
    info: MapInfo,
    entries: RefCell<BTreeMap<u32, u32>>,
    buckets: u32,
    has_batch: bool,
    /// Calls until the one that fails, and how; none before it fails.
    fault: Cell<Option<(u32, i32)>>,
    /// Whether it goes on failing.
    for_good: bool,
    calls: Cell<u32>,
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_bytes(bytes)
}

impl Fake {
    fn call(&self) -> io::Result<()> {
        self.calls.set(self.calls.get() + 1);
        match self.fault.get() {
            Some((0, code)) => {
                self.fault.set(self.for_good.then_some((0, code)));
                Err(errno(code))
            }
            Some((left, code)) => {
                self.fault.set(Some((left - 1, code)));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn put(&self, key: u32, value: u32) -> io::Result<()> {
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= self.info.max_entries as usize && !entries.contains_key(&key) {
            return Err(errno(libc::E2BIG));
        }
        entries.insert(key, value);
        Ok(())
    }
}

impl RawMap for Fake {
    fn info(&self) -> &MapInfo {
        &self.info
    }
    fn key_len(&self) -> usize {
        4
    }
    fn value_len(&self) -> usize {
        4
    }
    fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.call()?;
        let found = self.entries.borrow().get(&number(key)).copied();
        value.copy_from_slice(&found.unwrap_or_default().to_ne_bytes());
        Ok(found.is_some())
    }
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.call()?;
        self.put(number(key), number(value))
    }
    fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.call()?;
        Ok(self.entries.borrow_mut().remove(&number(key)).is_some())
    }
    fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        self.call()?;
        let from = key.map_or(0, |k| number(k) + 1);
        let found = self.entries.borrow().range(from..).next().map(|(k, _)| *k);
        next.copy_from_slice(&found.unwrap_or_default().to_ne_bytes());
        Ok(found.is_some())
    }
    fn update_batch(&self, keys: &[u8], values: &[u8]) -> (io::Result<()>, u32) {
        if !self.has_batch {
            self.calls.set(self.calls.get() + 1);
            return (Err(errno(ENOTSUPP)), 7);
        }
        // A fault strikes in the middle.
        let fault = self.call();
        let all = (keys.len() / 4) as u32;
        let limit = if fault.is_ok() { all } else { all / 2 };
        let mut done = 0;
        for (key, value) in keys.chunks_exact(4).zip(values.chunks_exact(4)).take(limit as usize) {
            if let Err(error) = self.put(number(key), number(value)) {
                return (Err(error), done);
            }
            done += 1;
        }
        (fault, done)
    }
    fn delete_batch(&self, keys: &[u8]) -> (io::Result<()>, u32) {
        if !self.has_batch {
            self.calls.set(self.calls.get() + 1);
            return (Err(errno(ENOTSUPP)), 7);
        }
        if let Err(error) = self.call() {
            return (Err(error), 0);
        }
        for (done, key) in keys.chunks_exact(4).enumerate() {
            if self.entries.borrow_mut().remove(&number(key)).is_none() {
                return (Err(errno(libc::ENOENT)), done as u32);
            }
        }
        (Ok(()), (keys.len() / 4) as u32)
    }
    fn lookup_batch(&self, cursor: &mut Option<Vec<u8>>, keys: &mut [u8], values: &mut [u8]) -> (io::Result<()>, u32) {
        if !self.has_batch {
            self.calls.set(self.calls.get() + 1);
            return (Err(errno(ENOTSUPP)), 7);
        }
        if let Err(error) = self.call() {
            return (Err(error), 0);
        }
        let room = keys.len() / 4;
        let mut found: Vec<(u32, u32)> = Vec::new();
        let start = cursor.as_ref().map_or(0, |bytes| number(bytes));
        let mut end = Err(errno(libc::ENOENT));
        let mut buckets: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
        for (key, value) in self.entries.borrow().iter() {
            buckets.entry(key % self.buckets).or_default().push((*key, *value));
        }
        for (bucket, here) in buckets.range(start..) {
            if found.len() + here.len() > room {
                if found.is_empty() {
                    return (Err(errno(libc::ENOSPC)), 0);
                }
                *cursor = Some(bucket.to_ne_bytes().to_vec());
                end = Ok(());
                break;
            }
            found.extend(here);
        }
        for (place, (key, value)) in found.iter().enumerate() {
            keys[place * 4..][..4].copy_from_slice(&key.to_ne_bytes());
            values[place * 4..][..4].copy_from_slice(&value.to_ne_bytes());
        }
        (end, found.len() as u32)
    }
}

fn map(max_entries: u32, buckets: u32) -> Map<Fake> {
    let fd = Fake {
        info: MapInfo { max_entries, ..MapInfo::default() },
        entries: RefCell::default(),
        buckets,
        has_batch: true,
        fault: Cell::new(None),
        for_good: false,
        calls: Cell::new(0),
    };
    Map { name: "fake", fd, earlier: None }
}

fn full(max_entries: u32, buckets: u32) -> Map<Fake> {
    let map = map(max_entries, buckets);
    map.fd.entries.borrow_mut().extend((0..max_entries).map(|n| (n, n + 1)));
    map
}

fn code(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error)
}

fn read(map: &Map<Fake>) -> Result<Vec<(u32, u32)>> {
    let mut entries = map.read_all::<u32, u32>()?;
    entries.sort_unstable();
    Ok(entries)
}

#[test]
fn many_entries_take_one_call_a_chunk() {
    let map = map(20_000, 1 << 14);
    let keys: Vec<u32> = (0..10_000).collect();
    assert_eq!(map.update_all(&keys, &keys).unwrap(), 3);
    assert_eq!(read(&map).unwrap().len(), 10_000);
    assert_eq!(map.delete_all(&keys).unwrap(), 3);
    assert_eq!((read(&map).unwrap().len(), map.delete_all::<u32>(&[]).unwrap()), (0, 0));
}

#[test]
fn absent_keys_are_skipped_at_one_call_each() {
    let map = map(100, 64);
    map.update_all(&[1u32, 3, 5, 7], &[0u32; 4]).unwrap();
    assert_eq!(map.delete_all(&[1u32, 2, 3, 5, 6, 7]).unwrap(), 3);
    assert_eq!(map.delete_all(&[1u32, 2]).unwrap(), 2);
    assert!(read(&map).unwrap().is_empty());
}

#[test]
fn a_map_without_batch_calls_is_served_one_by_one() {
    let mut map = map(100, 64);
    map.fd.has_batch = false;
    assert_eq!(map.update_all(&[1u32, 2, 3], &[4u32, 5, 6]).unwrap(), 4);
    assert_eq!(read(&map).unwrap(), [(1, 4), (2, 5), (3, 6)]);
    assert_eq!(map.delete_all(&[1u32, 9, 3]).unwrap(), 4);
    assert_eq!(read(&map).unwrap(), [(2, 5)]);
    // A fault in the middle leaves what came before it.
    map.fd.fault.set(Some((1, libc::ENOMEM)));
    let error = map.update_all(&[7u32, 8], &[0u32, 0]).unwrap_err();
    assert_eq!((code(&error), read(&map).unwrap().len()), (Some(libc::ENOMEM), 2));
}

#[test]
fn a_full_map_says_so_and_keeps_what_came_before() {
    let map = full(16, 64);
    let error = map.update_all(&[3u32, 99, 4], &[50u32; 3]).unwrap_err();
    assert_eq!(error.downcast_ref::<MapFull>().unwrap().capacity, 16);
    let entries = read(&map).unwrap();
    assert_eq!((entries[3], entries[4], entries.len()), ((3, 50), (4, 5), 16));
}

#[test]
fn faults_of_a_write_are_told_with_the_map_and_leave_the_first_part() {
    for fault in [libc::ENOMEM, libc::EBUSY, libc::ENOSPC, libc::EPERM] {
        let map = map(100, 64);
        map.fd.fault.set(Some((0, fault)));
        let error = map.update_all(&[1u32, 2, 3, 4], &[0u32; 4]).unwrap_err();
        assert_eq!((code(&error), format!("{error}").contains("fake")), (Some(fault), true), "{error:#}");
        assert_eq!(read(&map).unwrap().len(), 2);
        map.fd.fault.set(Some((0, fault)));
        let error = map.delete_all(&[1u32]).unwrap_err();
        assert_eq!((code(&error), read(&map).unwrap().len()), (Some(fault), 2));
    }
}

#[test]
fn a_bucket_larger_than_the_buffer_is_read_with_a_larger_one() {
    // All keys in one bucket of a map larger than a chunk.
    let map = full(10_000, 1);
    assert_eq!(read(&map).unwrap().len(), 10_000);
    assert_eq!(map.fd.calls.get(), 3, "4096, 8192 and 10,001");
}

#[test]
fn a_kernel_that_never_has_enough_room_is_an_error_and_not_the_end_of_memory() {
    let mut map = full(10_000, 64);
    map.fd.for_good = true;
    map.fd.fault.set(Some((0, libc::ENOSPC)));
    let error = read(&map).unwrap_err();
    assert_eq!((code(&error), map.fd.calls.get()), (Some(libc::ENOSPC), 3));
}

#[test]
fn a_fault_while_reading_is_never_taken_for_an_end() {
    for fault in [libc::ENOMEM, libc::EBUSY, libc::EFAULT, libc::EINTR] {
        for call in 0..3 {
            let map = full(10_000, 1 << 13);
            map.fd.fault.set(Some((call, fault)));
            assert_eq!(code(&read(&map).unwrap_err()), Some(fault), "call {call}");
        }
    }
}
