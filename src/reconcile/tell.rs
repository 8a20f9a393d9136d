//! The status as it is told: the live state beside the accepted one, and the daemon's health.

use super::Reconciler;
use super::acceptance::Acceptance;
use super::control::Answer;
use super::history::History;
use super::live::LiveKernel;
use super::progress::Progress;
use super::rates::Looks;
use super::status::{Daemon as Health, Sources, Status};
use crate::model::{Desired, HookKind, Intent};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is remembered from one status to the next.
#[derive(Debug)]
pub struct Memory {
    /// Earlier looks at the counters.
    pub looks: Looks,
    /// When mappings were changed.
    pub history: History,
    start: Instant,
}

impl Memory {
    /// Remembers no looks yet, and of changes what was stored in the state directory.
    pub fn open(state: &Path) -> Self {
        Self { looks: Looks::default(), history: History::load(state), start: Instant::now() }
    }

    /// The time on the looks' clock.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Adds what only the daemon knows.
pub(super) fn with_health(mut status: Status, health: &Health, progress: &Progress, from: &Acceptance) -> Status {
    let Progress { passes, failed_passes, operations, drift_repaired, .. } = *progress;
    status.daemon = Health { passes, failed_passes, operations, drift_repaired, ..health.clone() };
    status.config_error = from.config_error().map(str::to_owned);
    let unsaved = from.unsaved().map(str::to_owned);
    status.errors = unsaved.into_iter().chain(progress.errors.iter().cloned()).collect();
    status.in_force &= status.config_error.is_none() && status.errors.is_empty();
    status
}

/// The answer to a request for the status.
pub(super) fn status_answer(status: Result<Status>) -> Answer {
    match status {
        Ok(status) => Answer { status: Some(Box::new(status)), ..Answer::default() },
        Err(error) => Answer { error: Some(format!("{error:#}")), ..Answer::default() },
    }
}

/// The status while a pass is under way, read through a kernel of its own.
pub(super) async fn status_meanwhile(
    pins: &Path,
    hook: Option<HookKind>,
    intent: &Intent,
    memory: &mut Memory,
) -> Result<Status> {
    let mut reader = Reconciler::new(LiveKernel::open(pins, hook).await?);
    read_status(&mut reader, Some(intent), memory).await
}

/// Reads the live state and counters and puts the status together.
///
/// # Errors
///
/// When the live state can't be read.
pub async fn read_status(
    reconciler: &mut Reconciler<LiveKernel>,
    intent: Option<&Intent>,
    memory: &mut Memory,
) -> Result<Status> {
    let empty = Desired::default();
    let desired = intent.map_or(&empty, |i| &i.desired);
    reconciler.kernel().count_drops(true);
    let planned = reconciler.plan(desired, Some(desired)).await;
    reconciler.kernel().count_drops(false);
    let (observed, plan) = planned?;
    let (traffic, unknown) = reconciler.kernel().counters(&observed)?;
    let rates = memory.looks.look(memory.now(), &traffic);
    let hooks: Vec<_> = observed.attachments.iter().map(|a| (a.ifindex, a.direction)).collect();
    let chains = reconciler.kernel().chains(&hooks, &observed).await?;
    let nothing = BTreeSet::new();
    Ok(Status::of(Sources {
        accepted: intent.map(|i| &i.desired),
        held: intent.map_or(&nothing, |i| &i.held),
        delayed: intent.map_or(&nothing, |i| &i.delayed),
        observed: &observed,
        plan: intent.is_some().then_some(&plan),
        traffic: &traffic,
        rates: &rates,
        unknown,
        chains: &chains,
        history: &memory.history,
    }))
}
