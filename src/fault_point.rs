//! Places where a test can end the process as SIGKILL would: before every call that changes the kernel or a file.
//!
//! `TUNNEL_MESH_DIE_AT=n` ends it at the n-th one it comes to, counted from 0. Builds without debug assertions have none.

/// One such place.
pub(crate) fn reach() {
    #[cfg(debug_assertions)]
    debug::reach();
}

#[cfg(debug_assertions)]
mod debug {
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static REACHED: AtomicU64 = AtomicU64::new(0);
    static LAST: LazyLock<Option<u64>> = LazyLock::new(|| std::env::var("TUNNEL_MESH_DIE_AT").ok()?.parse().ok());

    pub(super) fn reach() {
        if let Some(last) = *LAST
            && REACHED.fetch_add(1, Ordering::Relaxed) == last
            && kill_process(getpid(), Signal::KILL).is_err()
        {
            std::process::abort();
        }
    }
}
