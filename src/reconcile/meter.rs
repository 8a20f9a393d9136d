//! How far a pass is, for somebody who watches.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts operations. Copies share one count.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicUsize,
    of: AtomicUsize,
    at: Mutex<&'static str>,
}

impl Meter {
    /// A plan of so many operations begins.
    pub fn begin(&self, of: usize) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.of.store(of, Ordering::Relaxed);
    }

    /// So many are behind us; what is next.
    pub fn reach(&self, done: usize, next: &'static str) {
        self.0.done.store(done, Ordering::Relaxed);
        *self.0.at.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// One more of those that take long.
    pub fn step(&self) {
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Done, of how many, and what is under way.
    pub fn read(&self) -> (usize, usize, &'static str) {
        let at = *self.0.at.lock().unwrap_or_else(PoisonError::into_inner);
        (self.0.done.load(Ordering::Relaxed), self.0.of.load(Ordering::Relaxed), at)
    }
}
