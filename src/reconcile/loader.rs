//! From the topology directory to the desired state, with what is unchanged read and parsed only once.

use crate::files::read::{Disk, Files, Listing, Stamp};
use crate::model::Desired;
use crate::topology::render::{Form, Look, render};
use crate::topology::{Diagnostic, NodeChoice, ParsedFile, SourceFile, diagnose, merge, parse};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Reads the topology for one node.
#[derive(Debug)]
pub struct Loader<D = Files> {
    disk: D,
    paths: Vec<PathBuf>,
    node: NodeChoice,
    /// In the order of the last listing.
    cache: Vec<Cached>,
    /// What the last look found: files, or why there are none.
    seen: Option<Result<Listing, String>>,
    /// Files that were written in the same tick of their clock in which they were read, with their text: they may have
    /// changed since without showing it.
    fresh: Vec<(PathBuf, Vec<u8>)>,
    /// Whether the last load found what the one before it had found.
    steady: bool,
    /// Directories of which something was accepted.
    had: BTreeSet<PathBuf>,
}

/// A file that was read.
#[derive(Debug)]
struct Cached {
    path: PathBuf,
    /// Without one it must be read again.
    stamp: Option<Stamp>,
    parsed: ParsedFile,
}

/// Why the topology was not accepted.
#[derive(Debug)]
pub enum Rejected {
    /// The files could not be read.
    Unreadable(anyhow::Error),
    /// What they say is wrong.
    Invalid {
        /// Every error.
        diagnostics: Vec<Diagnostic>,
        /// The files, for the source lines.
        sources: Vec<SourceFile>,
    },
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "{error:#}"),
            Self::Invalid { diagnostics, sources } => {
                f.write_str(render(diagnostics, sources, Form::Short, Look::default()).trim_end())
            }
        }
    }
}

impl Rejected {
    /// As a person wants to read it: with source lines.
    pub fn text(&self, look: Look) -> String {
        match self {
            Self::Unreadable(error) => format!("error: {error:#}\n"),
            Self::Invalid { diagnostics, sources } => {
                let count = diagnostics.len();
                let noun = if count == 1 { "error" } else { "errors" };
                render(diagnostics, sources, Form::Text, look) + &format!("{count} {noun} in the topology.\n")
            }
        }
    }
}

/// Which node this host is: the one named or, without a name, the one that the host name says.
pub fn this_node(named: Option<&str>) -> NodeChoice {
    match named {
        Some(name) => NodeChoice::Named(name.to_owned()),
        None => NodeChoice::Host(rustix::system::uname().nodename().to_string_lossy().into_owned()),
    }
}

impl Loader {
    /// A loader for these directories; without a node's name the host name decides.
    pub fn new(paths: Vec<PathBuf>, node: Option<&str>) -> Self {
        Self::with_disk(Files, paths, node)
    }
}

impl<D: Disk> Loader<D> {
    /// As [`Loader::new`], from somewhere else.
    pub fn with_disk(disk: D, paths: Vec<PathBuf>, node: Option<&str>) -> Self {
        Self {
            disk,
            paths,
            node: this_node(node),
            cache: Vec::new(),
            seen: None,
            fresh: Vec::new(),
            steady: false,
            had: BTreeSet::new(),
        }
    }

    /// Where it reads from.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The directories.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// How many files were read.
    pub fn files(&self) -> usize {
        self.cache.len()
    }

    /// Whether the directories look as they did at the last [`Loader::load`], errors included.
    pub fn unchanged(&self) -> bool {
        self.fresh.is_empty() && self.lists(&self.disk.list(&self.paths))
    }

    /// Whether the directories are as they were at the last [`Loader::load`]. Files of which nobody can tell by their
    /// stamps are compared.
    pub fn confirm(&mut self) -> bool {
        if !self.lists(&self.disk.list(&self.paths)) {
            return false;
        }
        let fresh = std::mem::take(&mut self.fresh);
        for (path, text) in &fresh {
            let Some((file, stamp)) = self.disk.read(path).ok().filter(|(file, _)| file.text == *text) else {
                self.fresh = fresh;
                return false;
            };
            if stamp.is_fresh(self.disk.now()) {
                self.fresh.push((path.clone(), file.text));
            } else if let Some(cached) = self.cache.iter_mut().find(|cached| cached.path == *path) {
                cached.stamp = Some(stamp);
            }
        }
        true
    }

    /// Forgets what the last look found: the next one finds a change.
    pub fn look_anew(&mut self) {
        self.seen = None;
    }

    /// Whether that is what the last look found.
    fn lists(&self, listing: &anyhow::Result<Listing>) -> bool {
        match (&self.seen, listing) {
            (Some(Ok(seen)), Ok(now)) => seen == now,
            (Some(Err(seen)), Err(now)) => *seen == format!("{now:#}"),
            _ => false,
        }
    }

    /// Whether the last [`Loader::load`] found what the one before it had found, and read nothing anew.
    pub fn steady(&self) -> bool {
        self.steady
    }

    /// Takes note of the directories that an accepted state came from: one of several that is empty all at once, because it
    /// isn't mounted yet, say, doesn't mean that what it had is to be deleted.
    pub fn remember(&mut self, accepted: &Desired) {
        if self.had.len() == self.paths.len() {
            return;
        }
        let mappings = accepted.mappings.values().map(|m| &m.origin);
        let tunnels = accepted.tunnels.values().map(|t| &t.origin);
        for origin in mappings.chain(tunnels) {
            let from = |path: &&PathBuf| Path::new(origin.file.as_str()).starts_with(path);
            self.had.extend(self.paths.iter().find(from).cloned());
        }
    }

    /// Reads, parses what changed, merges and compiles.
    ///
    /// # Errors
    ///
    /// [`Rejected`]: nothing of a topology with an error is taken over.
    pub fn load(&mut self) -> Result<Desired, Rejected> {
        let listing = self.disk.list(&self.paths);
        self.load_listed(listing)
    }

    /// As [`Loader::load`]; `None` where the directories look as they did at the last one.
    pub fn load_changed(&mut self) -> Option<Result<Desired, Rejected>> {
        let listing = self.disk.list(&self.paths);
        if self.fresh.is_empty() && self.lists(&listing) {
            return None;
        }
        Some(self.load_listed(listing))
    }

    fn load_listed(&mut self, listing: anyhow::Result<Listing>) -> Result<Desired, Rejected> {
        self.steady = self.fresh.is_empty() && self.lists(&listing);
        self.fresh.clear();
        self.seen = Some(match &listing {
            Ok(files) => Ok(files.clone()),
            Err(error) => Err(format!("{error:#}")),
        });
        let listing = listing.map_err(Rejected::Unreadable)?;
        let gone = |had: &&PathBuf| !listing.iter().any(|(file, _)| file.starts_with(had));
        if let Some(path) = self.had.iter().find(gone) {
            return Err(Rejected::Unreadable(anyhow::anyhow!(
                "no *.yaml or *.yml in {} any more: an empty directory never means \"delete all\"; put a file there that \
                 says `version: 1` if it is meant",
                path.display()
            )));
        }
        self.refresh(&listing)?;
        let files = self.cache.iter().map(|cached| &cached.parsed);
        let compiled = merge(files).and_then(|topology| topology.compile(&self.node));
        let accepted = compiled.map_err(|diagnostics| {
            // The cache has lost the places of fields: the errors are found again with all of them.
            let sources: Vec<SourceFile> =
                listing.iter().filter_map(|(path, _)| self.disk.read(path).ok()).map(|(file, _)| file).collect();
            let parsed: Vec<ParsedFile> = sources.iter().map(parse).collect();
            let again = diagnose(&parsed, Some(&self.node));
            Rejected::Invalid { diagnostics: if again.is_empty() { diagnostics } else { again }, sources }
        })?;
        self.remember(&accepted);
        Ok(accepted)
    }

    /// Reads and parses what changed.
    fn refresh(&mut self, listing: &Listing) -> Result<(), Rejected> {
        let mut known = std::mem::take(&mut self.cache).into_iter().peekable();
        self.cache.reserve_exact(listing.len());
        for (path, stamp) in listing {
            let bytes = path.as_os_str();
            while known.next_if(|cached| cached.path.as_os_str() < bytes).is_some() {}
            let cached = known.next_if(|cached| cached.path.as_os_str() == bytes);
            if let Some(cached) = cached.filter(|cached| cached.stamp.as_ref() == Some(stamp)) {
                self.cache.push(cached);
                continue;
            }
            let (file, stamp) = match self.disk.read(path) {
                Ok(read) => read,
                Err(error) => {
                    self.seen = None;
                    self.cache.extend(known);
                    return Err(Rejected::Unreadable(error));
                }
            };
            self.steady = false;
            // It may have changed since, in the same tick of its clock: the next look reads it again.
            let settled = !stamp.is_fresh(self.disk.now());
            let parsed = parse(&file).slim();
            if !settled {
                self.fresh.push((path.clone(), file.text));
            }
            self.cache.push(Cached { path: path.clone(), stamp: settled.then_some(stamp), parsed });
        }
        Ok(())
    }
}
