//! From the files to what is to be in force: read, guarded, and kept on disk.
//!
//! The rule: what the files say is taken over as a whole or not at all. Whatever keeps it from being read, or from being
//! kept, is told as long as it lasts, and changes nothing of what is in force.

use super::intent::{Cause, intend, same_node};
use super::loader::Loader;
use crate::files::accepted::Accepted;
use crate::files::read::{Disk, Files};
use crate::model::Intent;
use anyhow::Result;
use std::path::PathBuf;

/// What is accepted, and why not more.
#[derive(Debug)]
pub struct Acceptance<D = Files> {
    loader: Loader<D>,
    state: PathBuf,
    intent: Option<Intent>,
    config_error: Option<String>,
    unsaved: Option<String>,
}

impl<D: Disk> Acceptance<D> {
    /// Goes on from what is in force, if anything is.
    pub fn open(mut loader: Loader<D>, state: PathBuf, before: Option<Intent>) -> Self {
        // A record that can't be read is told until another one is written.
        let unsaved = Accepted::load(&state).err().map(|error| format!("{error:#}"));
        before.iter().for_each(|before| loader.remember(&before.desired));
        Self { loader, state, intent: before, config_error: None, unsaved }
    }

    /// What is in force, or to be.
    pub fn intent(&self) -> Option<&Intent> {
        self.intent.as_ref()
    }

    /// Where the files are read from.
    pub fn loader(&self) -> &Loader<D> {
        &self.loader
    }

    /// Why the files were not accepted.
    pub fn config_error(&self) -> Option<&str> {
        self.config_error.as_deref()
    }

    /// Why the accepted state is not on disk, where it should be.
    pub fn unsaved(&self) -> Option<&str> {
        self.unsaved.as_deref()
    }

    /// Whether the directories look as they did when they were read.
    pub fn unchanged(&self) -> bool {
        self.loader.unchanged()
    }

    /// What a look at the directories from time to time asks for: reading, where they changed or a removal waits for
    /// confirmation. Saves what could not be saved before.
    pub fn due(&mut self) -> Option<Cause> {
        if self.unsaved.is_some() {
            self.save();
        }
        if !self.unchanged() {
            return Some(Cause::Changed);
        }
        self.intent.as_ref().is_some_and(|i| !i.delayed.is_empty()).then_some(Cause::Confirm)
    }

    /// Takes the files' state over, if it is valid. Returns whether it was.
    pub fn read(&mut self, cause: Cause) -> bool {
        let new = match self.loader.load() {
            Ok(new) => new,
            Err(rejected) => {
                let text = rejected.to_string();
                if self.config_error.as_deref() != Some(text.as_str()) {
                    tracing::error!("topology not accepted, the last accepted one stays in force:\n{text}");
                }
                self.config_error = Some(text);
                return false;
            }
        };
        let allow = matches!(cause, Cause::Asked { allow_deletes: true });
        if let Err(text) = same_node(self.intent.as_ref(), &new, allow) {
            if self.config_error.as_deref() != Some(text.as_str()) {
                tracing::error!("{text}");
            }
            self.config_error = Some(text);
            return false;
        }
        self.config_error = None;
        let intent = intend(self.intent.as_ref(), new, cause.removals(self.loader.steady()));
        if self.intent.as_ref() == Some(&intent) {
            return true;
        }
        if !intent.held.is_empty() && self.intent.as_ref().is_none_or(|i| i.held != intent.held) {
            tracing::warn!(
                count = intent.held.len(),
                "deletions held: the files remove too many mappings at once; `tunnel-mesh apply --allow-deletes` releases them"
            );
        }
        tracing::info!(revision = %intent.desired.revision, mappings = intent.desired.mappings.len(), "topology accepted");
        self.intent = Some(intent);
        self.save();
        true
    }

    /// Puts the accepted state on disk. Until that succeeds, a restart with broken files would bring back what was
    /// accepted before.
    fn save(&mut self) {
        let Some(intent) = &self.intent else { return };
        let failure = Accepted::store(&self.state, intent).err().map(|error| format!("{error:#}"));
        if let Some(text) = failure.as_ref().filter(|text| self.unsaved.as_ref() != Some(text)) {
            tracing::error!("{text}");
        }
        self.unsaved = failure;
    }

    /// Forgets what was accepted: everything is taken down.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn forget(&self) -> Result<()> {
        Accepted::forget(&self.state)
    }
}
