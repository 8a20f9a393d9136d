//! Edge: maps, programs, pins and TCX attachments. The only user of `aya` and of raw bpf(2).
//!
//! A *pin directory* holds what belongs together: the maps under their own names, `programs/`, `links/` and, while maps
//! grow, `next/` or `switch/`. The rule: whatever a process leaves behind there when it is killed, the next one can go on
//! from.

pub mod abi;

mod attach;
mod batch;
mod dataplane;
mod maps;
mod sys;

pub use dataplane::Dataplane;
pub use maps::LayoutMismatch;

use anyhow::{Context, Result};

/// Version of the embedded data plane: a hash of the compiled object.
pub const BUILD: &str = env!("TUNNEL_MESH_BPF_BUILD");

/// Cookie of the calling thread's network namespace.
///
/// # Errors
///
/// What the kernel said.
pub fn netns_cookie() -> Result<u64> {
    sys::netns_cookie().context("ask for the cookie of the network namespace")
}

/// Waits until every packet that was under way has left the programs.
///
/// # Errors
///
/// What the kernel said.
pub fn grace_period() -> Result<()> {
    sys::grace_period().context("wait for an RCU grace period (membarrier)")
}

/// Whether the kernel said that the device of a `devs` entry or an attachment doesn't exist.
pub fn is_no_device(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)))
    })
}
