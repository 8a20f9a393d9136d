//! From the files to what is to be in force: read, guarded, and kept on disk.
//!
//! The rule: what the files say is taken over as a whole or not at all. Whatever keeps it from being read, or from being
//! kept, is told as long as it lasts, and changes nothing of what is in force.

use super::intent::{Cause, intend, same_node};
use super::loader::Loader;
use crate::files::accepted::Accepted;
use crate::files::read::{Disk, Files};
use crate::model::Intent;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// What is to be in force next, worked out before it is certain that nobody is still writing.
#[derive(Debug)]
pub struct Prepared {
    /// What was in force then.
    pub before: Option<Arc<Intent>>,
    /// What is to be in force: the same where nothing changes.
    pub intent: Arc<Intent>,
}

/// What is accepted, and why not more.
#[derive(Debug)]
pub struct Acceptance<D = Files> {
    loader: Loader<D>,
    state: PathBuf,
    intent: Option<Arc<Intent>>,
    config_error: Option<String>,
    unsaved: Option<String>,
    /// Whether a change was read that is yet to be accepted.
    read_ahead: bool,
    /// Whether what is in force comes from the record: the files' own state shares its names with what was parsed.
    recorded: bool,
}

impl<D: Disk> Acceptance<D> {
    /// Goes on from what is in force, if anything is.
    pub fn open(mut loader: Loader<D>, state: PathBuf, before: Option<Intent>) -> Self {
        // A record that can't be read is told until another one is written.
        let unsaved = Accepted::load(&state).err().map(|error| format!("{error:#}"));
        before.iter().for_each(|before| loader.remember(&before.desired));
        Self {
            loader,
            state,
            intent: before.map(Arc::new),
            config_error: None,
            unsaved,
            read_ahead: false,
            recorded: true,
        }
    }

    /// What is in force, or to be.
    pub fn intent(&self) -> Option<&Intent> {
        self.intent.as_deref()
    }

    /// As [`Self::intent`], to be kept.
    pub fn shared_intent(&self) -> Option<Arc<Intent>> {
        self.intent.clone()
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

    /// Whether the directories look as they did when they were read and accepted, or refused.
    pub fn unchanged(&self) -> bool {
        !self.read_ahead && self.loader.unchanged()
    }

    /// Works out what the directories mean, if they changed. Nothing comes of it unless it is followed by
    /// [`Self::accept_prepared`]; `None` also where there is something to be said of the files, which is for
    /// [`Self::accept`].
    pub fn prepare(&mut self) -> Option<Prepared> {
        let loaded = self.loader.load_changed()?;
        self.read_ahead = true;
        let new = loaded.ok().filter(|new| same_node(self.intent.as_deref(), new, false).is_ok())?;
        let intent = intend(self.intent.as_deref(), new, Cause::Changed.removals(false));
        Some(Prepared { before: self.intent.clone(), intent: self.known(intent) })
    }

    /// Works out what the directories mean for somebody who asked, whether they changed or not. To be followed by
    /// [`Self::accept_prepared`] or [`Self::let_be`].
    ///
    /// # Errors
    ///
    /// Why it can't be accepted; the next look at the directories finds the same.
    pub fn prepare_asked(&mut self, allow_deletes: bool) -> Result<Prepared, String> {
        self.read_ahead = true;
        let loaded = self.loader.load().map_err(|rejected| rejected.to_string());
        let new = loaded.and_then(|new| same_node(self.intent.as_deref(), &new, allow_deletes).map(|()| new));
        match new {
            Ok(new) => {
                let removals = Cause::Asked { allow_deletes }.removals(true);
                let intent = intend(self.intent.as_deref(), new, removals);
                Ok(Prepared { before: self.intent.clone(), intent: self.known(intent) })
            }
            Err(why) => {
                self.let_be();
                Err(why)
            }
        }
    }

    /// Nothing comes of what was prepared: the directories are read anew when they are next looked at.
    pub fn let_be(&mut self) {
        self.read_ahead = false;
        self.loader.look_anew();
    }

    /// Takes over what was prepared, if the files and what is in force are still what they were. Returns whether it did.
    pub fn accept_prepared(&mut self, prepared: &Prepared) -> bool {
        let same = match (&self.intent, &prepared.before) {
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (now, then) => now.is_none() && then.is_none(),
        };
        if !same || !self.read_ahead || !self.loader.confirm() {
            return false;
        }
        self.read_ahead = false;
        self.take_over(Arc::clone(&prepared.intent));
        true
    }

    /// What a look at the directories from time to time asks for: reading, where they changed or a removal waits for
    /// confirmation. Saves what could not be saved before.
    pub fn due(&mut self) -> Option<Cause> {
        if self.unsaved.is_some() {
            self.save();
        }
        // What was read ahead is about to be accepted.
        if self.read_ahead {
            return None;
        }
        if !self.unchanged() {
            return Some(Cause::Changed);
        }
        self.intent.as_ref().is_some_and(|i| !i.delayed.is_empty()).then_some(Cause::Confirm)
    }

    /// Whether nothing waits for the next look at the directories: what they said is accepted, wholly, and saved.
    pub fn is_at_rest(&self) -> bool {
        let wholly = self.intent.as_ref().is_some_and(|intent| intent.delayed.is_empty());
        wholly && self.config_error.is_none() && self.unsaved.is_none() && !self.read_ahead
    }

    /// Takes the files' state over, if it is valid, and puts it on disk. Returns whether it was.
    pub fn read(&mut self, cause: Cause) -> bool {
        let before = self.intent.clone();
        let accepted = self.accept(cause);
        if self.intent != before {
            self.save();
        }
        accepted
    }

    /// Takes the files' state over, if it is valid; the caller sees to it that it gets on disk. Returns whether it was.
    pub fn accept(&mut self, cause: Cause) -> bool {
        // What was read ahead nobody has confirmed.
        let read_ahead = std::mem::take(&mut self.read_ahead);
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
        if let Err(text) = same_node(self.intent.as_deref(), &new, allow) {
            if self.config_error.as_deref() != Some(text.as_str()) {
                tracing::error!("{text}");
            }
            self.config_error = Some(text);
            return false;
        }
        let steady = self.loader.steady() && !read_ahead;
        let intent = intend(self.intent.as_deref(), new, cause.removals(steady));
        let intent = self.known(intent);
        self.take_over(intent);
        true
    }

    /// The same one where nothing changes.
    fn known(&self, intent: Intent) -> Arc<Intent> {
        let now = self.intent.clone().filter(|now| !self.recorded && **now == intent);
        now.unwrap_or_else(|| Arc::new(intent))
    }

    fn take_over(&mut self, intent: Arc<Intent>) {
        self.config_error = None;
        let recorded = std::mem::take(&mut self.recorded);
        if self.intent.as_ref().is_some_and(|now| Arc::ptr_eq(now, &intent)) {
            return;
        }
        if recorded && self.intent.as_ref() == Some(&intent) {
            self.intent = Some(intent);
            return;
        }
        if !intent.held.is_empty() && self.intent.as_ref().is_none_or(|i| i.held != intent.held) {
            tracing::warn!(
                count = intent.held.len(),
                "deletions held: the files remove too many mappings at once; `tunnel-mesh apply --allow-deletes` releases them"
            );
        }
        tracing::info!(revision = %intent.desired.revision, mappings = intent.desired.mappings.len(), "topology accepted");
        self.intent = Some(intent);
    }

    /// Puts the accepted state on disk. Until that succeeds, a restart with broken files would bring back what was
    /// accepted before.
    pub fn save(&mut self) {
        let Some(intent) = &self.intent else { return };
        let stored = Accepted::store(&self.state, intent);
        self.note_saved(stored);
    }

    /// Begins to put the accepted state on disk, on another thread; `end_save` is to follow.
    pub fn begin_save(&self) -> Option<JoinHandle<Result<()>>> {
        let (intent, state) = (self.intent.clone()?, self.state.clone());
        Some(spawn_blocking(move || Accepted::store(&state, &intent)))
    }

    /// Takes note of how that went.
    pub fn end_save(&mut self, stored: Result<Result<()>, JoinError>) {
        self.note_saved(stored.context("store the accepted state").and_then(|stored| stored));
    }

    fn note_saved(&mut self, stored: Result<()>) {
        let failure = stored.err().map(|error| format!("{error:#}"));
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
        Accepted::forget(&self.state)?;
        super::history::History::forget(&self.state)
    }
}
