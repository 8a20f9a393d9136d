//! What a change costs: calls of bpf(2) that read or write maps, counted by thread. For diagnosis and for tests.

use super::sys::{
    MAP_DELETE_BATCH, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, MAP_LOOKUP_BATCH, MAP_LOOKUP_ELEM, MAP_UPDATE_BATCH,
    MAP_UPDATE_ELEM,
};
use std::cell::Cell;

/// Calls of bpf(2) that read or write maps, by kind: what a change costs. `aya`'s own calls aren't counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_GET_NEXT_KEY`: one entry each.
    pub lookups: u64,
    /// `BPF_MAP_UPDATE_ELEM`.
    pub updates: u64,
    /// `BPF_MAP_DELETE_ELEM`.
    pub deletes: u64,
    /// `BPF_MAP_LOOKUP_BATCH`: many entries each.
    pub lookup_batches: u64,
    /// `BPF_MAP_UPDATE_BATCH`.
    pub update_batches: u64,
    /// `BPF_MAP_DELETE_BATCH`.
    pub delete_batches: u64,
}

thread_local! {
    static CALLS: Cell<Calls> = const {
        Cell::new(Calls {
            lookups: 0,
            updates: 0,
            deletes: 0,
            lookup_batches: 0,
            update_batches: 0,
            delete_batches: 0,
        })
    };
}

/// The calls that this thread has made since it started, failed ones too.
pub fn calls() -> Calls {
    CALLS.get()
}

impl Calls {
    /// The calls since an earlier count.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            lookups: self.lookups - earlier.lookups,
            updates: self.updates - earlier.updates,
            deletes: self.deletes - earlier.deletes,
            lookup_batches: self.lookup_batches - earlier.lookup_batches,
            update_batches: self.update_batches - earlier.update_batches,
            delete_batches: self.delete_batches - earlier.delete_batches,
        }
    }

    fn count(&mut self, command: libc::c_int) {
        *match command {
            MAP_LOOKUP_ELEM | MAP_GET_NEXT_KEY => &mut self.lookups,
            MAP_UPDATE_ELEM => &mut self.updates,
            MAP_DELETE_ELEM => &mut self.deletes,
            MAP_LOOKUP_BATCH => &mut self.lookup_batches,
            MAP_UPDATE_BATCH => &mut self.update_batches,
            MAP_DELETE_BATCH => &mut self.delete_batches,
            _ => return,
        } += 1;
    }
}

/// Counts a call.
pub(super) fn count(command: libc::c_int) {
    let mut calls = CALLS.get();
    calls.count(command);
    CALLS.set(calls);
}
