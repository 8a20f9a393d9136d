//! Where the daemon puts up how it is, for whoever wants to know without asking it: the metrics server reads here, from a
//! thread of its own, and keeps nobody waiting.

use super::progress::Progress;
use super::status::{Daemon as Health, State};
use crate::model::{Intent, Moment};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the durations that passes are counted by, in seconds.
pub const PASS_SECONDS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];

/// How long passes took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Durations {
    /// Passes by [`PASS_SECONDS`], each counted once; what took longer comes last.
    pub counts: [u64; PASS_SECONDS.len() + 1],
    /// Seconds of all of them.
    pub sum: f64,
}

impl Durations {
    /// Counts a pass.
    pub fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.counts[PASS_SECONDS.iter().position(|bound| seconds <= *bound).unwrap_or(PASS_SECONDS.len())] += 1;
        self.sum += seconds;
    }
}

/// How the daemon is.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// What it says of itself.
    pub health: Health,
    /// How the passes go.
    pub progress: Progress,
    /// How long they took.
    pub durations: Durations,
    /// What is to be in force.
    pub intent: Option<Arc<Intent>>,
    /// Why the files were not accepted.
    pub config_error: Option<String>,
    /// When they were accepted last, since the daemon started.
    pub accepted_at: Option<Moment>,
    /// Files of the topology.
    pub files: usize,
    /// Whether what was accepted is not on disk.
    pub unsaved: bool,
    /// Mappings by state, as the last pass left them.
    pub states: BTreeMap<State, u64>,
}

impl News {
    /// Whether a topology was accepted and the last pass brought it into force.
    pub fn ready(&self) -> Result<(), &'static str> {
        match (&self.intent, &self.health.last_pass) {
            (None, _) => Err("no topology was accepted yet"),
            (Some(_), None) => Err("no pass was made yet"),
            (Some(_), Some(pass)) if !pass.good => Err("the last pass did not reach the accepted topology"),
            _ => Ok(()),
        }
    }
}

/// The board: one writer, any number of readers.
#[derive(Debug)]
pub struct Board {
    news: Mutex<Arc<News>>,
    start: Instant,
    /// Milliseconds from the start to the last sign of life.
    beat: AtomicU64,
}

impl Default for Board {
    fn default() -> Self {
        Self { news: Mutex::default(), start: Instant::now(), beat: AtomicU64::new(0) }
    }
}

impl Board {
    /// Puts news up.
    pub fn put(&self, news: News) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(news);
    }

    /// The latest news.
    pub fn read(&self) -> Arc<News> {
        Arc::clone(&self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A sign of life.
    pub fn beat(&self) {
        self.beat.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Time since the last sign of life.
    pub fn silence(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.beat.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::status::LastPass;

    #[test]
    fn ready_is_who_has_a_topology_and_reached_it() {
        let mut news = News::default();
        assert!(news.ready().is_err());
        news.intent = Some(Arc::default());
        assert!(news.ready().is_err());
        let pass = |good| Some(LastPass { at: Moment::default(), milliseconds: 1, operations: 0, good });
        news.health.last_pass = pass(false);
        assert!(news.ready().is_err());
        news.health.last_pass = pass(true);
        // A broken edit leaves what was accepted in force.
        news.config_error = Some("a.yaml:1:1".to_owned());
        assert_eq!(news.ready(), Ok(()));
    }

    #[test]
    fn every_pass_is_counted_once() {
        let mut durations = Durations::default();
        for millis in [0, 1, 2, 20, 21, 400_000] {
            durations.note(Duration::from_millis(millis));
        }
        assert_eq!(durations.counts, [2, 1, 1, 1, 0, 0, 0, 0, 0, 1]);
        assert!((durations.sum - 400.044).abs() < 1e-9);
    }
}
