//! What a pass means for the next one and for `status`: when to try again, and what to tell meanwhile. Pure.

use super::Report;
use crate::plan::{Change, Reason};
use anyhow::Result;
use std::time::Duration;

/// First pause before a failed pass is tried again; doubles up to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a failed pass is tried again.
pub const RETRY_MAX: Duration = Duration::from_secs(30);

/// How the passes go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Passes so far.
    pub passes: u64,
    /// Passes that didn't reach the desired state.
    pub failed_passes: u64,
    /// Operations carried out.
    pub operations: u64,
    /// Changes that put right what others had altered.
    pub drift_repaired: u64,
    /// What failed in the last pass.
    pub errors: Vec<String>,
    /// Failed passes since the last good one.
    failures: u32,
}

impl Progress {
    /// Takes note of a pass. Returns the pause until the next one; `None` where it was good, and nothing but the usual
    /// interval asks for another.
    pub fn note(&mut self, result: &Result<Report>) -> Option<Duration> {
        self.passes += 1;
        let good = match result {
            Ok(report) => {
                self.operations += report.operations as u64;
                let failed = |c: &Change| report.failures.iter().any(|(change, _)| *change == c.address);
                let drifted = report.plan.changes.iter().filter(|c| c.reason == Reason::Drift && !failed(c));
                self.drift_repaired += if report.changed { drifted.count() as u64 } else { 0 };
                self.errors = report.failures.iter().map(|(change, error)| format!("{change}: {error}")).collect();
                if self.errors.is_empty() && report.left > 0 {
                    self.errors = vec![format!("{} operations are left over; the next pass retries", report.left)];
                }
                report.converged()
            }
            Err(error) => {
                self.errors = vec![format!("{error:#}")];
                false
            }
        };
        if good {
            self.failures = 0;
            return None;
        }
        self.failed_passes += 1;
        let pause = RETRY_MIN.saturating_mul(2u32.saturating_pow(self.failures)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_their_limit_and_start_over_after_a_good_pass() {
        let mut progress = Progress::default();
        let failed = || Err(anyhow::anyhow!("read the live state").context("pass"));
        let pauses: Vec<u64> =
            (0..40).filter_map(|_| progress.note(&failed())).map(|pause| pause.as_millis() as u64).collect();
        assert_eq!(pauses[..9], [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600]);
        assert!(pauses[9..].iter().all(|pause| *pause == 30_000));
        assert_eq!(progress.errors, ["pass: read the live state"]);

        assert_eq!(progress.note(&Ok(Report { operations: 3, ..Report::default() })), None);
        assert_eq!((progress.errors.len(), progress.passes, progress.failed_passes), (0, 41, 40));
        assert_eq!(progress.operations, 3);

        let partly = Report { operations: 1, left: 2, ..Report::default() };
        assert_eq!(progress.note(&Ok(partly)), Some(RETRY_MIN));
        assert_eq!(progress.errors, ["2 operations are left over; the next pass retries"]);
    }
}
