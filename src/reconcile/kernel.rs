//! What the reconciler needs of a kernel: to look, and to carry out batches.
//!
//! The real one is [`super::live::LiveKernel`]; tests use one in memory.

use crate::model::*;
use crate::plan::LinkRef;

/// Several operations of one kind with every link resolved to its index: one kernel call or a few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// Creates and pins the maps.
    CreateMaps(u32),
    /// Moves the live contents into maps of that capacity.
    GrowMaps(u32),
    /// Loads and pins a program.
    LoadProgram(Program),
    /// Unpins a program.
    UnloadProgram(Program),
    /// Makes a device.
    CreateLink(NewLink),
    /// Changes a device.
    ChangeLink(u32, LinkChange),
    /// Deletes devices.
    DeleteLinks(Vec<u32>),
    /// Zeroes counters of slots.
    ResetCounters(Vec<u32>),
    /// Writes entries of `conf`.
    SetConf(Vec<(u32, Conf)>),
    /// Zeroes entries of `conf`.
    ClearConf(Vec<u32>),
    /// Writes entries of `devs`: slot and ifindex.
    SetDevs(Vec<(u32, u32)>),
    /// Deletes entries of `devs`.
    ClearDevs(Vec<u32>),
    /// Writes entries of `tunkey2if`.
    SetTunkeys(Vec<(TunKey, SlotRef)>),
    /// Deletes entries of `tunkey2if`.
    DeleteTunkeys(Vec<TunKey>),
    /// Writes entries of `if2tunkey`.
    SetIfs(Vec<(u32, IfEntry)>),
    /// Deletes entries of `if2tunkey`.
    DeleteIfs(Vec<u32>),
    /// Attaches or replaces programs, each by itself.
    Attach(Vec<Hook>),
    /// Detaches our program.
    Detach {
        /// Index of the link.
        ifindex: u32,
        /// Hook.
        direction: Direction,
        /// TCX or clsact.
        kind: HookKind,
    },
}

/// A program and the hook that it belongs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Which.
    pub program: Program,
    /// Index of the link.
    pub ifindex: u32,
    /// Hook.
    pub direction: Direction,
    /// TCX or clsact.
    pub kind: HookKind,
    /// Whether an attachment of ours is there already: replacing it takes no grace period.
    pub replace: bool,
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Index of the device that was made.
    pub ifindex: Option<u32>,
    /// Elements that failed by themselves, by their place in the batch, because their link is gone. The others are done.
    pub gone: Vec<(usize, anyhow::Error)>,
    /// Elements that failed by themselves for another reason.
    pub failed: Vec<(usize, anyhow::Error)>,
}

/// A kernel, real or in memory. One task uses it; nothing needs to be `Send`.
#[allow(async_fn_in_trait)]
pub trait Kernel {
    /// Reads the live state. `ports` says whether ports are to be generated, so that it matters what they can be made of:
    /// asking that may load kernel modules.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or when the pins belong to another network namespace or layout.
    async fn observe(&mut self, ports: bool) -> anyhow::Result<Observed>;

    /// Carries out one batch.
    ///
    /// # Errors
    ///
    /// When the batch as a whole failed. A batch that failed may have been carried out in part: the next look tells.
    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<Outcome>;

    /// Takes a live state back that nobody needs any more: parts of it may save the next look.
    fn done_with(&mut self, observed: Observed) {
        drop(observed);
    }

    /// Waits until no packet is under way that saw the maps as they were (an RCU grace period).
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    async fn grace_period(&mut self) -> anyhow::Result<()>;
}

impl LinkRef {
    /// The index, known or made meanwhile.
    pub(super) fn resolve(&self, made: &std::collections::BTreeMap<String, u32>) -> Option<u32> {
        self.ifindex.or_else(|| made.get(&self.name).copied())
    }
}
