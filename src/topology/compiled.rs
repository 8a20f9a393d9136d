//! What the files mean, kept so that a change of a few of them can be followed.
//!
//! Rule: what follows is what a compilation of all files would give, or nothing. Only mappings that come, go or change are
//! followed; whatever else a changed file says or takes away, and whatever is wrong, is left to the compilation of all.

use super::compile::NodeChoice;
use super::diagnostic::Diagnostic;
use super::merge::{Content, Topology, mappings, merge, sections};
use super::parse::ParsedFile;
use crate::model::{Desired, TunnelKey};
use std::collections::HashSet;
use std::sync::Arc;

/// A file that changed: as it was and as it is; `None` where there was none, or is none any more.
#[derive(Debug, Clone, Copy)]
pub struct Changed<'a> {
    /// Before.
    pub before: Option<&'a ParsedFile>,
    /// Now.
    pub after: Option<&'a ParsedFile>,
}

/// The desired state of one node, and what it takes to follow a change of the files that it comes from.
#[derive(Debug, Clone)]
pub struct Compiled {
    desired: Arc<Desired>,
    content: Content,
    /// Whether every mapping is said once: one that goes from a file is then gone.
    said_once: bool,
}

impl Compiled {
    /// Merges and compiles all files.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn all<'a>(
        files: impl IntoIterator<Item = &'a ParsedFile> + Clone,
        choice: &NodeChoice,
    ) -> Result<Self, Vec<Diagnostic>> {
        let said = files.clone().into_iter().flat_map(ParsedFile::mappings).count();
        let topology = merge(files)?;
        let desired = Arc::new(topology.compile(choice)?);
        let said_once = said == topology.mappings.len();
        Ok(Self { desired, content: topology.content, said_once })
    }

    /// The desired state.
    pub fn desired(&self) -> &Arc<Desired> {
        &self.desired
    }

    /// The state after some files changed, where `files` are all of them as they are now.
    ///
    /// `None` where it takes the compilation of all to tell.
    pub fn follow<'a>(&self, files: impl IntoIterator<Item = &'a ParsedFile>, changed: &[Changed<'a>]) -> Option<Self> {
        let plain = |file: &&ParsedFile| file.says_mappings_only();
        if !self.said_once || !changed.iter().flat_map(|c| [c.before, c.after]).flatten().all(|file| plain(&file)) {
            return None;
        }
        let mut desired = Desired::clone(&self.desired);
        let mut content = self.content.clone();
        for gone in changed.iter().filter_map(|c| c.before).flat_map(ParsedFile::mappings) {
            desired.mappings.remove(gone.interface.as_str())?;
            content.remove(gone);
        }
        // Checked as in any compilation, beside what stays.
        let (sections, wrong) = sections(files);
        if !wrong.is_empty() {
            return None;
        }
        let topology = Topology { mappings: mappings(changed.iter().filter_map(|c| c.after)), ..sections };
        topology.place_mappings(&mut desired)?;
        let come = &topology.mappings;
        come.iter().for_each(|placed| content.add(&placed.value));
        let claimed: HashSet<&TunnelKey> = come
            .iter()
            .filter_map(|placed| Some(&desired.mappings.get(placed.value.interface.as_str())?.key))
            .collect();
        // Each of them once: by the mapping that came.
        if desired.mappings.values().filter(|m| claimed.contains(&m.key)).count() != come.len() {
            return None;
        }
        desired.revision = topology.revision_with(&content);
        // The very same one where a file was written anew and says what it said.
        let desired = if desired == *self.desired { Arc::clone(&self.desired) } else { Arc::new(desired) };
        Some(Self { desired, content, said_once: true })
    }
}
