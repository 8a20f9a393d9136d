//! From the topology directory to the desired state, with what is unchanged read and parsed only once.

use crate::files::read::{self, Listing, Stamp};
use crate::model::Desired;
use crate::topology::render::{Form, render};
use crate::topology::{Diagnostic, NodeChoice, ParsedFile, SourceFile, merge, parse};
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

/// Reads the topology for one node.
#[derive(Debug)]
pub struct Loader {
    paths: Vec<PathBuf>,
    node: NodeChoice,
    cache: HashMap<PathBuf, (Stamp, ParsedFile)>,
    /// What the last look found: files, or why there are none.
    seen: Option<Result<Listing, String>>,
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
                f.write_str(render(diagnostics, sources, Form::Short, false).trim_end())
            }
        }
    }
}

impl Rejected {
    /// As a person wants to read it: with source lines.
    pub fn text(&self, color: bool) -> String {
        match self {
            Self::Unreadable(error) => format!("error: {error:#}\n"),
            Self::Invalid { diagnostics, sources } => {
                let count = diagnostics.len();
                let noun = if count == 1 { "error" } else { "errors" };
                render(diagnostics, sources, Form::Text, color) + &format!("{count} {noun} in the topology.\n")
            }
        }
    }
}

impl Loader {
    /// A loader for these directories; without a node's name the host name decides.
    pub fn new(paths: Vec<PathBuf>, node: Option<&str>) -> Self {
        let node = match node {
            Some(name) => NodeChoice::Named(name.to_owned()),
            None => NodeChoice::Host(rustix::system::uname().nodename().to_string_lossy().into_owned()),
        };
        Self { paths, node, cache: HashMap::new(), seen: None }
    }

    /// The directories.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether the directories look as they did at the last [`Loader::load`], errors included.
    pub fn unchanged(&self) -> bool {
        self.seen.as_ref() == Some(&read::list(&self.paths).map_err(|e| format!("{e:#}")))
    }

    /// Reads, parses what changed, merges and compiles.
    ///
    /// # Errors
    ///
    /// [`Rejected`]: nothing of a topology with an error is taken over.
    pub fn load(&mut self) -> Result<Desired, Rejected> {
        let listing = read::list(&self.paths);
        self.seen = Some(match &listing {
            Ok(files) => Ok(files.clone()),
            Err(error) => Err(format!("{error:#}")),
        });
        let listing = listing.map_err(Rejected::Unreadable)?;
        let known: std::collections::HashSet<&PathBuf> = listing.iter().map(|(p, _)| p).collect();
        self.cache.retain(|path, _| known.contains(path));
        for (path, stamp) in &listing {
            if self.cache.get(path).is_some_and(|(cached, _)| cached == stamp) {
                continue;
            }
            let (file, stamp) = read::read(path).map_err(|error| {
                self.seen = None;
                Rejected::Unreadable(error)
            })?;
            self.cache.insert(path.clone(), (stamp, parse(&file).slim()));
        }
        let files = listing.iter().filter_map(|(path, _)| self.cache.get(path)).map(|(_, parsed)| parsed);
        let compiled = merge(files).and_then(|topology| topology.compile(&self.node));
        compiled.map_err(|diagnostics| {
            // The cache has lost the places of fields: the errors are found again with all of them.
            let sources: Vec<SourceFile> =
                listing.iter().filter_map(|(path, _)| read::read(path).ok()).map(|(file, _)| file).collect();
            let parsed: Vec<ParsedFile> = sources.iter().map(parse).collect();
            let again = merge(&parsed).and_then(|topology| topology.compile(&self.node));
            Rejected::Invalid { diagnostics: again.err().unwrap_or(diagnostics), sources }
        })
    }
}
