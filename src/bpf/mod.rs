//! Maps, programs, pins and attachments: the only user of `aya` and of raw `bpf(2)`.
//!
//! [`Dataplane`] is the pinned data plane of one pin directory. It keeps no copy of what the kernel has: every reading
//! reads the kernel, every writing is one operation of a plan.
//!
//! - `abi`: layouts shared with the programs, translated from and to the model.
//! - `sys`: raw system calls. `calls`: how many those were. `batch`: many entries a call. `maps`: the set of maps, checked.
//! - `bare`: the calls without the engine, for the benchmark.
//! - `earlier`: the layouts of earlier versions.
//! - `object`: the embedded eBPF object. `pins`: where things are pinned.
//! - `dataplane`: opening, observing, programs, taking everything down. `write`: writing maps. `grow`: larger maps
//!   under traffic. `tcx`: attachments. `foreign`: what others run beside us.
//!
//! No other file than `abi` and `sys` has `unsafe` code.

mod abi;
#[doc(hidden)]
pub mod bare;
mod batch;
mod calls;
mod dataplane;
mod earlier;
mod foreign;
mod grow;
mod maps;
mod object;
mod pins;
mod sys;
mod tcx;
mod write;

pub use calls::{Calls, calls};
pub use dataplane::{Dataplane, SLOTS_READ};
pub use foreign::{ForeignProgram, ForeignPrograms, tcx_programs};
pub use grow::Growth;
pub use pins::check_place;
pub use tcx::{Attacher, probe_tcx};
pub use write::grace_period;

use anyhow::Context;
use std::io;
use std::path::PathBuf;

/// A pinned map isn't what this program would have made: another version made it, or somebody else.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} has another layout ({what} {found}, not {expected})",
    path.display()
)]
pub struct LayoutMismatch {
    /// The pin.
    pub path: PathBuf,
    /// What differs.
    pub what: &'static str,
    /// As it is.
    pub found: u64,
    /// As it should be.
    pub expected: u64,
}

/// An entry doesn't fit into a map. Those before it were written.
#[derive(Debug, thiserror::Error)]
#[error("{map} is full with {capacity} entries")]
pub struct MapFull {
    /// The map.
    pub map: &'static str,
    /// Entries that it holds.
    pub capacity: u32,
}

/// An interface doesn't exist (any more) in the network namespace of the thread that asked.
#[derive(Debug, thiserror::Error)]
#[error("there is no interface with ifindex {ifindex} in this network namespace")]
pub struct DeviceGone {
    /// The interface's index.
    pub ifindex: u32,
}

/// There are no pinned maps to work on.
#[derive(Debug, thiserror::Error)]
#[error("no maps are pinned in {}", dir.display())]
pub struct NoMaps {
    /// The pin directory.
    pub dir: PathBuf,
}

/// Cookie of this thread's network namespace, which no other has as long as the kernel runs.
///
/// # Errors
/// What the kernel said.
pub fn netns_cookie() -> anyhow::Result<u64> {
    sys::netns_cookie().context("ask for the cookie of the network namespace")
}

/// Gives memory back to the kernel that was needed for a moment. Here because it is a raw call.
pub fn trim_heap() {
    sys::trim_heap();
}

/// Whether an error is at bottom a missing privilege (CAP_BPF, CAP_NET_ADMIN, or access to the pin directory).
pub fn is_privilege_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        // rustix has its own errno type.
        let io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        let errno = io.or_else(|| cause.downcast_ref::<rustix::io::Errno>().map(|e| e.raw_os_error()));
        matches!(errno, Some(libc::EPERM | libc::EACCES))
    })
}
