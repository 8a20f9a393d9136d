//! Observe, plan, apply, observe again: one pass, and the daemon that runs passes for good.
//!
//! A *pass* makes the live state equal to the accepted one and verifies it. The rule: everything that happens (a link
//! event, a file event, the clock, a signal, a request on the socket) leads to the same pass, never to a path of its own.

pub mod acceptance;
pub mod apply;
pub mod baseline;
pub mod board;
pub mod chains;
pub mod control;
pub mod daemon;
mod doors;
pub mod expedite;
pub mod flow;
pub mod history;
pub mod hold;
pub mod instance;
pub mod intent;
pub mod kernel;
pub mod live;
pub mod loader;
pub mod meter;
pub mod progress;
pub mod rates;
pub mod saved;
mod serve;
pub mod status;
pub mod tell;
mod unknown;

use crate::model::{Desired, Intent, Observed};
use crate::plan::{self, Input, Plan};
use anyhow::{Context, Result};
use kernel::Kernel;
use meter::Meter;
use serde::{Deserialize, Serialize};
use status::State;
use std::collections::{BTreeMap, BTreeSet};

/// Rounds of plan and apply before a pass gives up for now: devices made in one round show what the next needs.
const ROUNDS: usize = 4;

/// What a pass did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Whether anything was changed.
    pub changed: bool,
    /// Operations carried out.
    pub operations: usize,
    /// The plan of the first round.
    pub plan: Plan,
    /// What failed in the last round: change and error.
    pub failures: Vec<(String, String)>,
    /// Operations that are still needed.
    pub left: usize,
}

impl Report {
    /// Whether the live state is now as desired.
    pub fn converged(&self) -> bool {
        self.left == 0 && self.failures.is_empty()
    }
}

/// Keeps one kernel equal to one desired state.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    was_pending: BTreeSet<String>,
    problems: BTreeSet<String>,
    /// Whether slots may have been released since the last grace period; true at first, for what ran before us.
    released: bool,
    meter: Meter,
}

impl<K: Kernel> Reconciler<K> {
    /// Takes a kernel over.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            was_pending: BTreeSet::new(),
            problems: BTreeSet::new(),
            released: true,
            meter: Meter::default(),
        }
    }

    /// Tells that meter how far a pass is.
    pub fn measure(&mut self, meter: Meter) {
        self.meter = meter;
    }

    /// The kernel.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// States of the mappings as the last pass left them.
    pub fn states(&self, intent: &Intent, report: &Report) -> BTreeMap<State, u64> {
        let failed: BTreeSet<&str> = report.failures.iter().map(|(change, _)| change.as_str()).collect();
        let mut states = BTreeMap::new();
        for mapping in intent.desired.mappings.values() {
            let state = if self.was_pending.contains(mapping.interface.as_str())
                || self.problems.contains(mapping.key.tunnel.as_str())
            {
                State::Pending
            } else if !failed.is_empty() && failed.contains(mapping.address().as_str()) {
                State::Drifted
            } else if intent.held.contains(mapping.interface.as_str()) {
                State::Held
            } else {
                State::Active
            };
            *states.entry(state).or_default() += 1;
        }
        states
    }

    /// What a pass would do now. `before` is the state accepted before `desired`: it tells changes from drift.
    ///
    /// # Errors
    ///
    /// When the live state can't be read.
    pub async fn plan(&mut self, desired: &Desired, before: Option<&Desired>) -> Result<(Observed, Plan)> {
        let ports = desired.mappings.values().any(|m| m.generated.is_some());
        let observed = self.kernel.observe(ports).await.context("read the live state")?;
        let input = Input { desired, observed: &observed, accepted: before, was_pending: &self.was_pending };
        let plan = plan::plan(input);
        Ok((observed, plan))
    }

    /// One pass: plan, apply and verify, until nothing is left to do or nothing moves any more.
    ///
    /// # Errors
    ///
    /// When the live state can't be read; what failed while applying is in the report.
    pub async fn pass(&mut self, desired: &Desired, before: Option<&Desired>) -> Result<Report> {
        self.pass_from(None, desired, before).await
    }

    /// The plan of a pass that is about to come. It holds as long as nothing else is done.
    ///
    /// # Errors
    ///
    /// When the live state can't be read.
    pub async fn plan_ahead(&mut self, desired: &Desired, before: Option<&Desired>) -> Result<Plan> {
        let (observed, plan) = self.plan(desired, before).await?;
        self.kernel.done_with(observed);
        Ok(plan)
    }

    /// As [`Self::pass`], with its first plan made ahead: what is verified in the end is read anew.
    ///
    /// # Errors
    ///
    /// As [`Self::pass`].
    pub async fn pass_from(
        &mut self,
        mut ahead: Option<Plan>,
        desired: &Desired,
        before: Option<&Desired>,
    ) -> Result<Report> {
        let mut report = Report::default();
        let mut before = before;
        for round in 0..ROUNDS {
            let plan = match ahead.take() {
                Some(plan) => plan,
                None => self.plan_ahead(desired, before).await?,
            };
            self.was_pending = plan.pending.iter().map(|p| p.interface.clone()).collect();
            self.problems = plan.problems.iter().map(|p| p.address.clone()).collect();
            report.left = plan.operations.len();
            if round == 0 {
                report.plan = plan.clone();
            }
            if plan.is_empty() {
                report.failures.clear();
                break;
            }
            if self.released && apply::claims(&plan) {
                self.kernel.grace_period().await.context("wait for an RCU grace period")?;
                self.released = false;
            }
            let applied = apply::apply_measured(&mut self.kernel, &plan, &self.meter).await;
            self.released |= applied.released;
            report.operations += applied.done;
            report.changed |= applied.done > 0;
            report.failures = applied.failures.iter().map(|f| (f.change.clone(), format!("{:#}", f.error))).collect();
            let denied = applied.failures.iter().any(|f| is_denied(&f.error));
            if denied || (applied.done == 0 && !applied.failures.iter().any(|f| f.vanished)) {
                break;
            }
            before = Some(desired);
        }
        Ok(report)
    }
}

/// Whether an error means that a link isn't there any more.
pub fn is_gone(error: &anyhow::Error) -> bool {
    crate::netlink::is_gone(error) || error.is::<crate::bpf::DeviceGone>()
}

/// Whether the kernel refused for want of privilege.
pub fn is_denied(error: &anyhow::Error) -> bool {
    crate::netlink::is_denied(error) || crate::bpf::is_privilege_missing(error)
}
