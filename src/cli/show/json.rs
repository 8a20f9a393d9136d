//! A plan as JSON.

use super::{Guard, Shown, Summary, warnings};
use crate::cli::lanes;
use crate::model::Throughput;
use crate::plan::room::TooLarge;
use crate::plan::{Change, FORMAT_VERSION, Operation, Pending, Problem, fingerprint};
use serde::Serialize;

/// The plan's JSON.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Document<'a> {
    pub(in crate::cli) format_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    /// Hash of the content of the topology files.
    revision: &'a str,
    /// Fingerprint of the live state that the plan was made from; absent where none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    changes: Vec<Told<'a>>,
    operations: &'a [Operation],
    pending: &'a [Pending],
    problems: &'a [Problem],
    /// The lane of every mapping, and why; absent where no live state is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    lanes: Option<Vec<lanes::Told>>,
    /// What tenants send and their tunnels have no room for.
    warnings: Vec<TooLarge>,
    summary: Summary,
    guard: &'a Guard,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    change: &'a Change,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic: Option<&'a Throughput>,
}

/// Puts the document together.
pub(in crate::cli) fn document<'a>(shown: &'a Shown<'a>) -> Document<'a> {
    let told = |change: &'a Change| Told { change, traffic: shown.flows.get(&change.address) };
    Document {
        format_version: FORMAT_VERSION,
        node: shown.node,
        revision: &shown.desired.revision,
        fingerprint: shown.observed.map(|observed| fingerprint(shown.desired, observed)),
        changes: shown.plan.changes.iter().map(told).collect(),
        operations: &shown.plan.operations,
        pending: &shown.plan.pending,
        problems: &shown.plan.problems,
        lanes: shown.observed.map(|observed| lanes::told(shown.desired, observed)),
        warnings: warnings(shown),
        summary: Summary::of(shown.plan),
        guard: shown.guard,
    }
}
