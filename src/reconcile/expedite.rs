//! Short RCU grace periods while many programs are attached for the first time, or all detached, where the operator asked
//! for them.
//!
//! A first attach, and a detachment, wait for a grace period of some 10 ms; `/sys/kernel/rcu_expedited` makes that a fraction of one. It
//! is a switch of the whole machine, so the value it had is written to a journal in the state directory *before* it is
//! changed, and is restored from there: at the end, or at the next start of whoever was killed meanwhile.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The kernel's switch.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// Attaches and detachments in one batch from which on it pays.
const MANY: usize = 16;

/// The switch, and where its old value is noted.
#[derive(Debug)]
pub struct Expedite {
    switch: PathBuf,
    journal: PathBuf,
    asked: bool,
    warned: bool,
}

/// Short grace periods until dropped.
#[derive(Debug)]
#[must_use]
pub struct Expedited {
    switch: PathBuf,
    journal: PathBuf,
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Err(error) = restore(&self.switch, &self.journal) {
            tracing::error!("{error:#}; the next start tries again");
        }
    }
}

impl Expedite {
    /// With the journal in that directory. `asked`: whether it may be used at all.
    pub fn new(state: &Path, asked: bool) -> Self {
        Self { switch: SWITCH.into(), journal: state.join("rcu_expedited"), asked, warned: false }
    }

    /// Restores what a killed process left behind. Only the holder of the writer's lock may.
    ///
    /// # Errors
    ///
    /// When the journal can't be read or the switch not written.
    pub fn recover(&self) -> Result<()> {
        restore(&self.switch, &self.journal)
    }

    /// Turns it on for a batch of that many first attaches or detachments; `None` where it isn't worth it, wanted or possible.
    pub fn begin(&mut self, count: usize) -> Option<Expedited> {
        if !self.asked || count < MANY {
            return None;
        }
        match self.turn_on() {
            Ok(expedited) => expedited,
            Err(error) => {
                if !self.warned {
                    tracing::warn!("{error:#}; it goes on slowly");
                    self.warned = true;
                }
                None
            }
        }
    }

    fn turn_on(&self) -> Result<Option<Expedited>> {
        let old = std::fs::read_to_string(&self.switch).with_context(|| format!("read {}", self.switch.display()))?;
        if old.trim() != "0" {
            return Ok(None); // somebody else's doing, and theirs to undo
        }
        let note = || format!("note the value of {} in {}", self.switch.display(), self.journal.display());
        if let Some(directory) = self.journal.parent() {
            crate::private::make(directory)?;
        }
        let mut file = std::fs::File::create(&self.journal).with_context(note)?;
        file.write_all(old.as_bytes()).with_context(note)?;
        file.sync_all().with_context(note)?;
        let expedited = Expedited { switch: self.switch.clone(), journal: self.journal.clone() };
        if let Err(error) = std::fs::write(&self.switch, "1") {
            // Nothing was changed, so there is nothing to restore.
            std::mem::forget(expedited);
            std::fs::remove_file(&self.journal).with_context(note)?;
            return Err(error).with_context(|| format!("write to {} (--rcu-expedited)", self.switch.display()));
        }
        Ok(Some(expedited))
    }
}

fn restore(switch: &Path, journal: &Path) -> Result<()> {
    let old = match std::fs::read_to_string(journal) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        old => old.with_context(|| format!("read {}", journal.display()))?,
    };
    // An empty journal is from a crash before it was written, and so before anything was changed.
    if !old.trim().is_empty() {
        std::fs::write(switch, old.trim())
            .with_context(|| format!("restore {} to {}", switch.display(), old.trim()))?;
    }
    std::fs::remove_file(journal).with_context(|| format!("remove {}", journal.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stage(value: &str, asked: bool) -> (tempfile::TempDir, Expedite) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("switch"), value).unwrap();
        let mut expedite = Expedite::new(&directory.path().join("state"), asked);
        expedite.switch = directory.path().join("switch");
        (directory, expedite)
    }

    fn value(expedite: &Expedite) -> String {
        std::fs::read_to_string(&expedite.switch).unwrap().trim().to_owned()
    }

    #[test]
    fn the_old_value_is_noted_before_and_restored_after() {
        let (_directory, mut expedite) = stage("0\n", true);
        assert!(expedite.begin(MANY - 1).is_none());
        let expedited = expedite.begin(MANY).unwrap();
        assert_eq!((value(&expedite).as_str(), expedite.journal.exists()), ("1", true));
        drop(expedited);
        assert_eq!((value(&expedite).as_str(), expedite.journal.exists()), ("0", false));
    }

    #[test]
    fn what_a_killed_process_left_is_restored_at_the_next_start() {
        let (directory, mut expedite) = stage("0\n", true);
        std::mem::forget(expedite.begin(MANY).unwrap());
        // The next start needn't ask for it.
        let mut next = Expedite::new(&directory.path().join("state"), false);
        next.switch.clone_from(&expedite.switch);
        next.recover().unwrap();
        assert_eq!((value(&next).as_str(), next.journal.exists()), ("0", false));
        next.recover().unwrap();
        // Killed while noting: nothing was changed yet.
        std::fs::write(&next.journal, "").unwrap();
        std::fs::write(&next.switch, "1").unwrap();
        next.recover().unwrap();
        assert_eq!((value(&next).as_str(), next.journal.exists()), ("1", false));
    }

    #[test]
    fn it_is_left_alone_where_nobody_asked_or_somebody_else_turned_it_on() {
        let (_directory, mut expedite) = stage("0", false);
        assert!(expedite.begin(1000).is_none());
        let (_directory, mut expedite) = stage("1", true);
        assert!(expedite.begin(1000).is_none());
        assert_eq!((value(&expedite).as_str(), expedite.journal.exists()), ("1", false));
    }

    #[test]
    fn a_switch_that_cannot_be_written_is_told_once() {
        let (directory, mut expedite) = stage("0", true);
        std::fs::remove_file(&expedite.switch).unwrap();
        expedite.switch = directory.path().join("nowhere/switch");
        assert!(expedite.begin(1000).is_none());
        assert!(expedite.warned && !expedite.journal.exists());
    }
}
