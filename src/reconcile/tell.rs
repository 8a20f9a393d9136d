//! The status as it is told: the live state beside the accepted one, and the daemon's health.

use super::Reconciler;
use super::acceptance::Acceptance;
use super::control::Answer;
use super::live::LiveKernel;
use super::progress::Progress;
use super::status::{Daemon as Health, Status};
use crate::model::{Desired, HookKind, Intent};
use anyhow::Result;
use std::path::Path;

/// Adds what only the daemon knows.
pub(super) fn with_health(mut status: Status, health: &Health, progress: &Progress, from: &Acceptance) -> Status {
    let Progress { passes, failed_passes, operations, .. } = *progress;
    status.daemon = Health { passes, failed_passes, operations, ..health.clone() };
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
pub(super) async fn status_meanwhile(pins: &Path, hook: Option<HookKind>, intent: &Intent) -> Result<Status> {
    let mut reader = Reconciler::new(LiveKernel::open(pins, hook).await?);
    read_status(&mut reader, Some(intent)).await
}

/// Reads the live state and counters and puts the status together.
///
/// # Errors
///
/// When the live state can't be read.
pub async fn read_status(reconciler: &mut Reconciler<LiveKernel>, intent: Option<&Intent>) -> Result<Status> {
    let empty = Desired::default();
    let desired = intent.map_or(&empty, |i| &*i.desired);
    reconciler.kernel().count_drops(true);
    let planned = reconciler.plan(desired, Some(desired)).await;
    reconciler.kernel().count_drops(false);
    let (observed, plan) = planned?;
    let (traffic, unknown) = reconciler.kernel().counters(&observed)?;
    let nothing = std::collections::BTreeSet::new();
    Ok(Status::of(super::status::Sources {
        accepted: intent.map(|i| &*i.desired),
        held: intent.map_or(&nothing, |i| &i.held),
        delayed: intent.map_or(&nothing, |i| &i.delayed),
        observed: &observed,
        plan: intent.is_some().then_some(&plan),
        traffic: &traffic,
        unknown,
    }))
}
