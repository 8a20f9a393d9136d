//! When each mapping was changed last, and why: for `status`, across restarts too.
//!
//! It is a record for people. Losing it costs nothing but that; so it is written after the change, at most once a second,
//! and never waited for.

use super::Report;
use crate::files::record;
use crate::model::{Desired, Moment, Name, share};
use crate::plan::{ChangeAction, Object, Reason};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMAT_VERSION: u32 = 1;

/// The last change of a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastChange {
    /// When the pass that did it ended.
    pub at: Moment,
    /// What happened.
    pub action: ChangeAction,
    /// Why.
    pub reason: Reason,
    /// Revision that was being brought into force; the changes of one pass share it.
    pub revision: Name,
}

/// The last changes of all mappings, by address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    format_version: u32,
    /// Shared with the copy that is being stored.
    mappings: Arc<BTreeMap<String, LastChange>>,
    #[serde(skip)]
    unsaved: bool,
}

fn path(state: &Path) -> PathBuf {
    state.join("history.json")
}

impl History {
    /// Reads it; empty where there is none, or it can't be read.
    pub fn load(state: &Path) -> Self {
        match record::read::<Self>(&path(state)) {
            Ok(Some(mut history)) if history.format_version == FORMAT_VERSION => {
                share(Arc::make_mut(&mut history.mappings).values_mut().map(|change| &mut change.revision));
                history
            }
            Ok(_) => Self::default(),
            Err(error) => {
                tracing::warn!("{error:#}: when mappings were changed before isn't known");
                Self::default()
            }
        }
    }

    /// The last change of the mapping with that address.
    pub fn of(&self, address: &str) -> Option<&LastChange> {
        self.mappings.get(address)
    }

    /// Takes note of what a pass did.
    pub fn note(&mut self, report: &Report, desired: &Desired, at: Moment) {
        if !report.changed {
            return;
        }
        let revision = Name::from(desired.revision.as_str());
        let failed: BTreeSet<&str> = report.failures.iter().map(|(change, _)| change.as_str()).collect();
        let mappings = Arc::make_mut(&mut self.mappings);
        for change in report.plan.changes.iter().filter(|c| c.object == Object::Mapping) {
            if !failed.contains(change.address.as_str()) {
                let (action, reason, revision) = (change.action, change.reason, revision.clone());
                mappings.insert(change.address.clone(), LastChange { at, action, reason, revision });
                self.unsaved = true;
            }
        }
        // What is gone is only let go where it makes a difference: looking takes longer than most changes.
        if mappings.len() > desired.mappings.len() {
            let known: BTreeSet<String> = desired.mappings.values().map(crate::model::Mapping::address).collect();
            mappings.retain(|address, _| known.contains(address));
        }
    }

    /// A copy to be stored, where something is new since the last one.
    pub fn unsaved(&mut self) -> Option<Self> {
        std::mem::take(&mut self.unsaved).then(|| Self { format_version: FORMAT_VERSION, ..self.clone() })
    }

    /// Stores it.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn store(&self, state: &Path) -> Result<()> {
        record::replace(&path(state), self)
    }

    /// Removes what is stored.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn forget(state: &Path) -> Result<()> {
        record::remove(&path(state))
    }
}
