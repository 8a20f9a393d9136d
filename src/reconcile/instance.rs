//! One instance: its directories, its lock and the network namespace it belongs to.

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where an instance keeps what it keeps.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Pins, on bpffs.
    pub pins: PathBuf,
    /// Control socket.
    pub run: PathBuf,
    /// Accepted state.
    pub state: PathBuf,
}

impl Paths {
    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// Checks that pins can be where they are to be. Elsewhere nothing would be seen of what is live, as inside `ip netns
    /// exec`, which hides them.
    ///
    /// # Errors
    ///
    /// Where that isn't a BPF file system, with what to do about it.
    pub fn check_pins(&self) -> Result<()> {
        crate::bpf::check_place(&self.pins)
    }
}

/// The writer's lock on a pin directory, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _directory: OwnedFd,
}

/// Another writer holds the lock.
#[derive(Debug, thiserror::Error)]
#[error("another tunnel-mesh writes to {0}: wait for it, or ask the daemon through its socket (--run-dir)")]
pub struct LockHeld(pub PathBuf);

impl Lock {
    /// Takes the lock, making the directory (mode 0700) if it is missing.
    ///
    /// # Errors
    ///
    /// [`LockHeld`] when another process has it; else what the kernel said.
    pub fn take(pins: &Path) -> Result<Self> {
        crate::private::make(pins)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(pins, flags, Mode::empty())
            .with_context(|| format!("open the pin directory {}", pins.display()))?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _directory: directory }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockHeld(pins.to_owned()).into()),
            Err(e) => Err(e).with_context(|| format!("lock the pin directory {}", pins.display())),
        }
    }
}
