//! Many elements at once: batches with a fallback to single elements.
//!
//! The rule: an element that is gone already is deleted; anything else that fails ends the batch with the error of the
//! element where it failed. What a batch call leaves undone is never guessed: the kernel's count says it.

use super::abi::Plain;
use super::sys;
use std::io;
use std::os::fd::BorrowedFd;

/// Elements of one call.
const CHUNK: usize = 4096;

/// Calls of bpf(2) that were made.
pub(super) type Calls = usize;

fn unsupported(error: &io::Error) -> bool {
    // 524 is the kernel's internal ENOTSUPP, which maps without batch calls return.
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | 524))
}

/// Writes elements, inserting or overwriting.
///
/// # Errors
///
/// E2BIG when the map is full; what was written until then stays.
pub(super) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<Calls> {
    let per_key = values.len().checked_div(keys.len()).unwrap_or(0);
    let mut calls = 0;
    let mut done = 0;
    while done < keys.len() {
        let end = (done + CHUNK).min(keys.len());
        let (count, result) = sys::update_batch(map, &keys[done..end], &values[done * per_key..end * per_key]);
        calls += 1;
        match result {
            Ok(()) => done = end,
            Err(error) if unsupported(&error) => {
                for n in done..keys.len() {
                    sys::update(map, &keys[n], &values[n * per_key..(n + 1) * per_key])?;
                    calls += 1;
                }
                return Ok(calls);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => done += count.min(end - done),
            Err(error) => return Err(error),
        }
    }
    Ok(calls)
}

/// Deletes elements; those that are gone already count as deleted.
///
/// # Errors
///
/// What the kernel said of the first element that could not be deleted.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<Calls> {
    let mut calls = 0;
    let mut done = 0;
    while done < keys.len() {
        let end = (done + CHUNK).min(keys.len());
        let (count, result) = sys::delete_batch(map, &keys[done..end]);
        calls += 1;
        match result {
            Ok(()) => done = end,
            // The element at `count` was gone: go on behind it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => done += count.min(end - done - 1) + 1,
            Err(error) if unsupported(&error) => {
                for key in &keys[done..] {
                    calls += 1;
                    match sys::delete(map, key) {
                        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                        _ => {}
                    }
                }
                return Ok(calls);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(calls)
}

/// Reads a whole map; `per_key` is the number of `V` that make up one value.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn read<K: Plain, V: Plain>(map: BorrowedFd<'_>, max: u32, per_key: usize) -> io::Result<(Vec<K>, Vec<V>)> {
    let mut chunk = CHUNK.min(max as usize).max(1);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut cursor = [0u64; 4];
    let mut first = true;
    loop {
        let start = keys.len();
        keys.resize(start + chunk, K::default());
        values.resize((start + chunk) * per_key, V::default());
        let before = cursor;
        let (count, result) =
            sys::lookup_batch(map, &mut cursor, first, &mut keys[start..], &mut values[start * per_key..]);
        let ended = match result {
            Ok(()) => false,
            // The end of the map; what was read with it is valid.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket is larger than the buffer: once more from the same place.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && chunk < 1 << 24 => {
                keys.truncate(start);
                values.truncate(start * per_key);
                cursor = before;
                chunk *= 2;
                continue;
            }
            Err(error) if unsupported(&error) && first => return read_singly(map, per_key),
            Err(error) => return Err(error),
        };
        keys.truncate(start + count);
        values.truncate((start + count) * per_key);
        first = false;
        if ended {
            return Ok((keys, values));
        }
    }
}

fn read_singly<K: Plain, V: Plain>(map: BorrowedFd<'_>, per_key: usize) -> io::Result<(Vec<K>, Vec<V>)> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut last: Option<K> = None;
    loop {
        let key = match sys::next_key(map, last.as_ref()) {
            Ok(key) => key,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok((keys, values)),
            Err(error) => return Err(error),
        };
        let mut value = vec![V::default(); per_key];
        match sys::lookup(map, &key, &mut value) {
            Ok(()) => {
                keys.push(key);
                values.extend(value);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        last = Some(key);
    }
}
