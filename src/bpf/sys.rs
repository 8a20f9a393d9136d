//! Raw bpf(2) and the few other system calls that have no safe wrapper.
//!
//! Layouts of `union bpf_attr` are those of include/uapi/linux/bpf.h; what a kernel doesn't know yet is zero.

#![allow(unsafe_code)]

use super::abi::{Plain, bytes_of, bytes_of_mut};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;
const F_BEFORE: u32 = 1 << 3;

/// `union bpf_attr` as bytes, zero beyond what a command uses.
#[repr(C, align(8))]
struct Attr([u8; 160]);

impl Attr {
    fn new() -> Self {
        Self([0; 160])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn read_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// # Safety
///
/// Every address in `attr` is valid for what the command reads and writes there.
unsafe fn bpf(command: u32, attr: &mut Attr, size: usize) -> io::Result<i64> {
    loop {
        // SAFETY: `attr` is valid for `size` bytes, and the caller vouches for the addresses in it.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), size) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn address<T: Plain>(values: &[T]) -> u64 {
    bytes_of(values).as_ptr() as u64
}

fn address_mut<T: Plain>(values: &mut [T]) -> u64 {
    bytes_of_mut(values).as_mut_ptr() as u64
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Opens what is pinned there.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let mut attr = Attr::new().u64(0, path.as_ptr() as u64);
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attr, 16)? };
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Pins an object there.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = Attr::new().u64(0, path.as_ptr() as u64).fd(8, fd);
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr, 16) }.map(drop)
}

/// What the kernel says of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

fn info(fd: BorrowedFd<'_>, words: &mut [u32]) -> io::Result<()> {
    let size = std::mem::size_of_val(words) as u32;
    let mut attr = Attr::new().fd(0, fd).u32(4, size).u64(8, address_mut(words));
    // SAFETY: the buffer is as long as the attribute says and outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr, 16) }.map(drop)
}

/// Reads `struct bpf_map_info`.
pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut w = [0u32; 6];
    info(fd, &mut w)?;
    Ok(MapInfo { kind: w[0], id: w[1], key_size: w[2], value_size: w[3], max_entries: w[4], flags: w[5] })
}

/// Reads id and map ids of `struct bpf_prog_info`.
pub(super) fn program_info(fd: BorrowedFd<'_>) -> io::Result<(u32, Vec<u32>)> {
    // id is word 1; nr_map_ids is word 13, the address of map_ids words 14 and 15.
    let mut maps = [0u32; 32];
    let mut w = [0u32; 16];
    let target = address_mut(&mut maps);
    w[13] = maps.len() as u32;
    w[14] = target as u32;
    w[15] = (target >> 32) as u32;
    if cfg!(target_endian = "big") {
        w.swap(14, 15);
    }
    info(fd, &mut w)?;
    let count = (w[13] as usize).min(maps.len());
    Ok((w[1], maps[..count].to_vec()))
}

/// What the kernel says of a TCX link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) id: u32,
    pub(super) program: u32,
    /// Index of the link it is attached to, 0 when that link is gone.
    pub(super) ifindex: u32,
}

/// Reads `struct bpf_link_info` of a TCX link.
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut w = [0u32; 16];
    info(fd, &mut w)?;
    Ok(LinkInfo { id: w[1], program: w[2], ifindex: w[4] })
}

/// The chain of a TCX hook: program ids and link ids in order.
pub(super) fn query(ifindex: u32, attach_type: u32) -> io::Result<(Vec<u32>, Vec<u32>)> {
    let mut length = 64usize;
    loop {
        let (mut programs, mut links) = (vec![0u32; length], vec![0u32; length]);
        let mut attr = Attr::new()
            .u32(0, ifindex)
            .u32(4, attach_type)
            .u64(16, address_mut(&mut programs))
            .u32(24, length as u32)
            .u64(40, address_mut(&mut links));
        // SAFETY: both buffers hold as many words as the attribute says and outlive the call.
        let result = unsafe { bpf(PROG_QUERY, &mut attr, 64) };
        let count = attr.read_u32(24) as usize;
        match result {
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && length < 4096 => length *= 4,
            Err(e) => return Err(e),
            Ok(_) => {
                programs.truncate(count);
                links.truncate(count);
                return Ok((programs, links));
            }
        }
    }
}

/// Attaches a program at the head of a TCX hook.
pub(super) fn tcx_create(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().fd(0, program).u32(4, ifindex).u32(8, attach_type).u32(12, F_BEFORE);
    // SAFETY: the attribute holds no addresses.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr, 64)? };
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Puts another program in the place of a link's.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link).fd(4, program);
    // SAFETY: the attribute holds no addresses.
    unsafe { bpf(LINK_UPDATE, &mut attr, 16) }.map(drop)
}

/// Reads one element; `value` is as large as the map's values (for per-CPU maps, of all possible CPUs).
pub(super) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &mut [V]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).u64(8, address(std::slice::from_ref(key))).u64(16, address_mut(value));
    // SAFETY: key and value have the map's sizes, which were checked when it was opened.
    unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr, 32) }.map(drop)
}

/// Writes one element.
pub(super) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &[V]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).u64(8, address(std::slice::from_ref(key))).u64(16, address(value));
    // SAFETY: as above.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr, 32) }.map(drop)
}

/// Deletes one element.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).u64(8, address(std::slice::from_ref(key)));
    // SAFETY: as above.
    unsafe { bpf(MAP_DELETE_ELEM, &mut attr, 32) }.map(drop)
}

/// The key after that one, or the first.
pub(super) fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<K> {
    let mut next = [K::default()];
    let from = key.map_or(0, |k| address(std::slice::from_ref(k)));
    let mut attr = Attr::new().fd(0, map).u64(8, from).u64(16, address_mut(&mut next));
    // SAFETY: as above.
    unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr, 32) }?;
    Ok(next[0])
}

/// Outcome of a batch call: how many elements were treated, and what ended it.
pub(super) type Batched = (usize, io::Result<()>);

const BATCH: usize = 56;

/// Writes many elements; a per-CPU value is as many `V` as there are possible CPUs, one after the other.
pub(super) fn update_batch<K: Plain, V: Plain>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Batched {
    let mut attr = Attr::new().u64(16, address(keys)).u64(24, address(values)).u32(32, keys.len() as u32).fd(36, map);
    // SAFETY: keys and values have the map's sizes; the kernel reads as many as there are keys.
    let result = unsafe { bpf(MAP_UPDATE_BATCH, &mut attr, BATCH) };
    (attr.read_u32(32) as usize, result.map(drop))
}

/// Deletes many elements.
pub(super) fn delete_batch<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> Batched {
    let mut attr = Attr::new().u64(16, address(keys)).u32(32, keys.len() as u32).fd(36, map);
    // SAFETY: as above.
    let result = unsafe { bpf(MAP_DELETE_BATCH, &mut attr, BATCH) };
    (attr.read_u32(32) as usize, result.map(drop))
}

/// Reads many elements from a cursor on; the cursor of the next call is written to `cursor`.
pub(super) fn lookup_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    cursor: &mut [u64; 4],
    first: bool,
    keys: &mut [K],
    values: &mut [V],
) -> Batched {
    let mut next = *cursor;
    let from = if first { 0 } else { address(&cursor[..]) };
    let mut attr = Attr::new()
        .u64(0, from)
        .u64(8, address_mut(&mut next))
        .u64(16, address_mut(keys))
        .u64(24, address_mut(values))
        .u32(32, keys.len() as u32)
        .fd(36, map);
    // SAFETY: the buffers hold as many elements as the attribute says; a cursor has at most the size of a key or 4.
    let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr, BATCH) };
    *cursor = next;
    (attr.read_u32(32) as usize, result.map(drop))
}

/// Cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    use rustix::net::{AddressFamily, SocketType, socket};
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut size = std::mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option is a u64, and the buffer is one.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Waits for an RCU grace period (`MEMBARRIER_CMD_GLOBAL`).
pub(super) fn grace_period() -> io::Result<()> {
    const CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no addresses.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
