//! Raw `bpf(2)`: what `aya` has no call for, each as a safe function over descriptors and byte slices.
//!
//! Every function makes one system call. Lengths of keys and values are checked against what the kernel says of the
//! map, so that it never reads or writes past a slice.
#![allow(unsafe_code)]

use super::batch::RawMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) const MAP_LOOKUP_ELEM: libc::c_int = 1;
pub(super) const MAP_UPDATE_ELEM: libc::c_int = 2;
pub(super) const MAP_DELETE_ELEM: libc::c_int = 3;
pub(super) const MAP_GET_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
pub(super) const MAP_LOOKUP_BATCH: libc::c_int = 24;
pub(super) const MAP_UPDATE_BATCH: libc::c_int = 26;
pub(super) const MAP_DELETE_BATCH: libc::c_int = 27;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_DETACH: libc::c_int = 34;

/// Commands that change something which outlives the process.
const CHANGES: [libc::c_int; 8] = [
    MAP_UPDATE_ELEM,
    MAP_DELETE_ELEM,
    OBJ_PIN,
    MAP_UPDATE_BATCH,
    MAP_DELETE_BATCH,
    LINK_CREATE,
    LINK_UPDATE,
    LINK_DETACH,
];

/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;
/// `BPF_LINK_TYPE_TCX`.
pub(super) const LINK_TYPE_TCX: u32 = 11;
/// `BPF_F_BEFORE`: without a relative, the head of the chain.
const F_BEFORE: u32 = 1 << 3;
/// `BPF_F_LOCK` and the like are never set: plain update, existing or not.
const UPDATE_ANY: u64 = 0;
/// The kernel's internal ENOTSUPP, which it lets out where a map has no batch operations.
pub(super) const ENOTSUPP: i32 = 524;

/// Calls bpf(2). `attr` must be laid out as `union bpf_attr` for the command.
///
/// # Safety
/// Every pointer in `attr` must be valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    if CHANGES.contains(&command) {
        crate::fault_point::reach();
    }
    super::calls::count(command);
    // SAFETY: attr is live and as long as said; its pointers are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Calls bpf(2) with a command that returns a descriptor.
///
/// # Safety
/// As for [`bpf`]; and the command must return a new descriptor.
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new and so owned by nobody else.
    unsafe { bpf(command, attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

fn fd_of(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn invalid_length() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Start of the attributes of BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// What the kernel says of a map (start of `struct bpf_map_info`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// Start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// What the kernel says of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    /// Id.
    pub(super) id: u32,
    /// Ids of the maps it uses.
    pub(super) maps: Vec<u32>,
}

/// What the kernel says of a TCX bpf_link (`struct bpf_link_info`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    pad: u32,
    /// 0 where the interface is gone.
    pub(super) ifindex: u32,
    pub(super) attach_type: u32,
}

fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let length = size_of::<T>() as u32;
    let mut attr = InfoAttr { fd: fd_of(fd), length, info: std::ptr::from_mut(info) as u64 };
    // SAFETY: info is live and `length` bytes long; the kernel writes no more than that.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop) }
}

/// The map behind a descriptor.
pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    object_info(fd, &mut info)?;
    Ok(info)
}

/// The program behind a descriptor.
pub(super) fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut maps = vec![0u32; 64];
    let mut info =
        RawProgramInfo { map_count: maps.len() as u32, map_ids: maps.as_mut_ptr() as u64, ..RawProgramInfo::default() };
    object_info(fd, &mut info)?;
    maps.truncate(info.map_count as usize);
    Ok(ProgramInfo { id: info.id, maps })
}

/// Name and instructions of a program, as the kernel runs them before they are compiled: 8 bytes each. No instructions
/// where the kernel doesn't give them out.
pub(super) fn program_text(fd: BorrowedFd<'_>) -> io::Result<(String, Vec<[u8; 8]>)> {
    let mut info = RawProgramInfo::default();
    object_info(fd, &mut info)?;
    let mut text = vec![[0u8; 8]; info.xlated_len as usize / 8];
    let name = info.name;
    if !text.is_empty() {
        let length = (text.len() * 8) as u32;
        info = RawProgramInfo { xlated_len: length, xlated: text.as_mut_ptr() as u64, ..RawProgramInfo::default() };
        object_info(fd, &mut info)?;
        text.truncate(if info.xlated == 0 { 0 } else { info.xlated_len as usize / 8 });
    }
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok((String::from_utf8_lossy(&name[..end]).into_owned(), text))
}

/// Opens a program by its id, which takes CAP_SYS_ADMIN.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    // SAFETY: no pointers; PROG_GET_FD_BY_ID returns a new descriptor.
    unsafe { bpf_fd(PROG_GET_FD_BY_ID, &mut attr) }
}

/// Loads a TC program from its instructions. It goes when the descriptor is closed.
pub(super) fn load_classifier(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const SCHED_CLS: u32 = 3;
    let mut attr = ProgLoadAttr {
        kind: SCHED_CLS,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| invalid_length())?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgLoadAttr::default()
    };
    // SAFETY: the instructions are as many as said, the licence is a C string; PROG_LOAD returns a new descriptor.
    unsafe { bpf_fd(PROG_LOAD, &mut attr) }
}

/// The bpf_link behind a descriptor.
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    object_info(fd, &mut info)?;
    Ok(info)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid_length())
}

/// Pins an object.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, fd: fd_of(fd), file_flags: 0 };
    // SAFETY: the path is a live C string.
    unsafe { bpf(OBJ_PIN, &mut attr).map(drop) }
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: the path is a live C string, and OBJ_GET returns a new descriptor.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

/// A map, with the sizes of its keys and values as user space sees them.
#[derive(Debug)]
pub(super) struct MapFd {
    fd: OwnedFd,
    info: MapInfo,
    value_len: usize,
}

impl MapFd {
    /// `copies`: number of possible CPUs for a per-CPU map, otherwise 1.
    pub(super) fn new(fd: OwnedFd, copies: usize) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        let size = info.value_size as usize;
        let value_len = if copies == 1 { size } else { size.next_multiple_of(8) * copies };
        Ok(Self { fd, info, value_len })
    }

    /// The descriptor.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn element(&self, key: Option<&[u8]>) -> io::Result<ElementAttr> {
        match key {
            Some(key) if key.len() != self.key_len() => Err(invalid_length()),
            key => Ok(ElementAttr {
                map_fd: fd_of(self.fd.as_fd()),
                key: key.map_or(0, |k| k.as_ptr() as u64),
                ..ElementAttr::default()
            }),
        }
    }

    fn batch(&self, keys: &[u8], values: Option<&[u8]>) -> io::Result<BatchAttr> {
        let count = keys.len() / self.key_len().max(1);
        let whole = keys.len() == count * self.key_len();
        if !whole || values.is_some_and(|v| v.len() != count * self.value_len) {
            return Err(invalid_length());
        }
        Ok(BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.map_or(0, |v| v.as_ptr() as u64),
            count: u32::try_from(count).map_err(|_| invalid_length())?,
            map_fd: fd_of(self.fd.as_fd()),
            element_flags: UPDATE_ANY,
            ..BatchAttr::default()
        })
    }
}

impl RawMap for MapFd {
    /// What the kernel says of it.
    fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of a key.
    fn key_len(&self) -> usize {
        self.info.key_size as usize
    }

    /// Bytes of a value; of all CPUs' values in a per-CPU map.
    fn value_len(&self) -> usize {
        self.value_len
    }

    /// Reads one value; false where the key is absent.
    fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        let mut attr = self.element(Some(key))?;
        if value.len() != self.value_len {
            return Err(invalid_length());
        }
        attr.value = value.as_mut_ptr() as u64;
        // SAFETY: key and value are as long as the kernel thinks.
        absent_is_false(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) })
    }

    /// Writes one value, whether the key exists or not.
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut attr = self.element(Some(key))?;
        if value.len() != self.value_len {
            return Err(invalid_length());
        }
        attr.value = value.as_ptr() as u64;
        attr.flags = UPDATE_ANY;
        // SAFETY: key and value are as long as the kernel thinks.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr).map(drop) }
    }

    /// Deletes one key; false where it is absent.
    fn delete(&self, key: &[u8]) -> io::Result<bool> {
        let mut attr = self.element(Some(key))?;
        // SAFETY: the key is as long as the kernel thinks.
        absent_is_false(unsafe { bpf(MAP_DELETE_ELEM, &mut attr) })
    }

    /// Writes the key after `key` (the first one after none) into `next`; false at the end.
    fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        let mut attr = self.element(key)?;
        if next.len() != self.key_len() {
            return Err(invalid_length());
        }
        attr.value = next.as_mut_ptr() as u64;
        // SAFETY: both keys are as long as the kernel thinks.
        absent_is_false(unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) })
    }

    /// Writes many. Also returns the kernel's count, which on errors from within the batch says how many were written.
    fn update_batch(&self, keys: &[u8], values: &[u8]) -> (io::Result<()>, u32) {
        match self.batch(keys, Some(values)) {
            Err(error) => (Err(error), 0),
            // SAFETY: keys and values are `count` times as long as the kernel thinks.
            Ok(mut attr) => (unsafe { bpf(MAP_UPDATE_BATCH, &mut attr).map(drop) }, attr.count),
        }
    }

    /// Deletes many. Also returns the kernel's count, as [`Self::update_batch`] does.
    fn delete_batch(&self, keys: &[u8]) -> (io::Result<()>, u32) {
        match self.batch(keys, None) {
            Err(error) => (Err(error), 0),
            // SAFETY: the keys are `count` times as long as the kernel thinks.
            Ok(mut attr) => (unsafe { bpf(MAP_DELETE_BATCH, &mut attr).map(drop) }, attr.count),
        }
    }

    /// Reads as many as fit into `keys` and `values`, going on from `cursor` (from the start without one) and leaving
    /// it where to go on from. Also returns the kernel's count; ENOENT means the end, and comes with valid data.
    fn lookup_batch(&self, cursor: &mut Option<Vec<u8>>, keys: &mut [u8], values: &mut [u8]) -> (io::Result<()>, u32) {
        let mut attr = match self.batch(keys, Some(values)) {
            Ok(attr) => attr,
            Err(error) => return (Err(error), 0),
        };
        // A hash's cursor is a bucket (4 bytes), an array's a key.
        let length = self.key_len().max(4);
        let mut next = vec![0; length];
        attr.keys = keys.as_mut_ptr() as u64;
        attr.values = values.as_mut_ptr() as u64;
        attr.in_batch = match cursor {
            Some(from) if from.len() != length => return (Err(invalid_length()), 0),
            Some(from) => from.as_ptr() as u64,
            None => 0,
        };
        attr.out_batch = next.as_mut_ptr() as u64;
        // SAFETY: keys and values are `count` times, the cursors at least as long as the kernel thinks.
        let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr).map(drop) };
        if result.is_ok() {
            *cursor = Some(next);
        }
        (result, attr.count)
    }
}

fn absent_is_false(result: io::Result<libc::c_int>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Attaches a program at the head of a TCX chain. The interface is looked for in this thread's network namespace.
pub(super) fn link_create_tcx(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr =
        LinkCreateAttr { prog_fd: fd_of(program), ifindex, attach_type, flags: F_BEFORE, ..LinkCreateAttr::default() };
    // SAFETY: no pointers; LINK_CREATE returns a new descriptor.
    unsafe { bpf_fd(LINK_CREATE, &mut attr) }
}

/// Replaces the program of a bpf_link in place.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: fd_of(link), prog_fd: fd_of(program), ..LinkUpdateAttr::default() };
    // SAFETY: no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr).map(drop) }
}

/// Opens a bpf_link by its id, which takes CAP_SYS_ADMIN.
pub(super) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = id;
    // SAFETY: no pointers; LINK_GET_FD_BY_ID returns a new descriptor.
    unsafe { bpf_fd(LINK_GET_FD_BY_ID, &mut attr) }
}

/// Detaches a bpf_link from its interface, whoever else holds it.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = fd_of(link);
    // SAFETY: no pointers.
    unsafe { bpf(LINK_DETACH, &mut attr).map(drop) }
}

/// The chain of a TCX hook, in order: program id and link id (0 where a program isn't held by a link).
pub(super) fn tcx_chain(ifindex: u32, attach_type: u32) -> io::Result<Vec<(u32, u32)>> {
    // The kernel allows 64 programs on a hook.
    let mut programs = [0u32; 64];
    let mut links = [0u32; 64];
    let mut attr = QueryAttr {
        ifindex,
        attach_type,
        prog_ids: programs.as_mut_ptr() as u64,
        count: 64,
        link_ids: links.as_mut_ptr() as u64,
        ..QueryAttr::default()
    };
    // SAFETY: both arrays have the 64 entries that `count` says.
    match unsafe { bpf(PROG_QUERY, &mut attr) } {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let count = attr.count.min(64) as usize;
    Ok(programs.into_iter().zip(links).take(count).collect())
}

/// Gives memory back to the kernel that a pass needed for a moment.
pub(super) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of `bpf_ktime_get_ns`.
pub(super) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: now is live and of the right type. The call can't fail for this clock; 0 would only make ages 0.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec.cast_unsigned())
}

/// Cookie of this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    use rustix::net::{AddressFamily, SocketType, socket};
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    let target = std::ptr::from_mut(&mut cookie).cast();
    // SAFETY: the option is a u64, and so is what the pointer leads to, which outlives the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, target, &raw mut size) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
