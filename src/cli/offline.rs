//! What is read without a kernel: topologies for any node, and snapshots of hosts.

use crate::files::read;
use crate::model::{Desired, Snapshot};
use crate::reconcile::loader::Rejected;
use crate::topology::{NodeChoice, ParsedFile, SourceFile, Topology, merge, parse};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeSet;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Largest snapshot or saved plan, in bytes.
const SIZE_MAX: u64 = 1 << 30;

/// A topology that was read, of no node yet.
pub(super) struct Declared {
    topology: Topology,
    sources: Vec<SourceFile>,
}

impl Declared {
    /// Reads and merges these directories.
    pub(super) fn of(paths: &[PathBuf]) -> Result<Self, Rejected> {
        let listing = read::list(paths).map_err(Rejected::Unreadable)?;
        let mut sources = Vec::with_capacity(listing.len());
        for (path, _) in &listing {
            sources.push(read::read(path).map_err(Rejected::Unreadable)?.0);
        }
        let parsed: Vec<ParsedFile> = sources.iter().map(parse).collect();
        match merge(&parsed) {
            Ok(topology) => Ok(Self { topology, sources }),
            Err(diagnostics) => Err(Rejected::Invalid { diagnostics, sources }),
        }
    }

    /// The desired state of one node.
    pub(super) fn compile(&self, node: &NodeChoice) -> Result<Desired, Rejected> {
        self.topology
            .compile(node)
            .map_err(|diagnostics| Rejected::Invalid { diagnostics, sources: self.sources.clone() })
    }

    /// The node that this choice means, if it means one.
    pub(super) fn here(&self, choice: &NodeChoice) -> Option<String> {
        self.topology.choose(choice).ok().flatten()
    }

    /// Whether it matters which node a host is.
    pub(super) fn needs_node(&self) -> bool {
        self.topology.needs_node()
    }

    /// The nodes with their underlay addresses.
    pub(super) fn addresses(&self) -> Vec<(String, Vec<IpAddr>)> {
        self.topology.addresses()
    }

    /// Interfaces that low-level mappings name: one host's own.
    pub(super) fn own_interfaces(&self) -> BTreeSet<String> {
        self.topology.own_interfaces()
    }

    /// Names of the nodes.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.topology.nodes()
    }

    /// Whether a desired state can be compiled for that node.
    pub(super) fn knows(&self, node: &str) -> bool {
        !self.topology.needs_node() || self.topology.nodes().iter().any(|n| n == node)
    }

    /// Hash of what is said.
    pub(super) fn revision(&self) -> &str {
        self.topology.revision()
    }
}

/// A snapshot and where it was found.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) snapshot: Snapshot,
}

impl Found {
    /// The node that it is of: that it was taken for, else the host's name.
    pub(super) fn node(&self) -> &str {
        self.snapshot.node.as_deref().unwrap_or(&self.snapshot.host)
    }
}

/// Reads snapshots: files, `-` for standard input, and the `*.json` of directories.
pub(super) fn snapshots(paths: &[PathBuf]) -> Result<Vec<Found>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let what = || format!("list the snapshots in {}", path.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).with_context(what)? {
            let file = entry.with_context(what)?.path();
            if file.extension().is_some_and(|e| e == "json") && file.is_file() {
                found.push(file);
            }
        }
        if found.is_empty() {
            bail!("no *.json in {}: put the output of `tunnel-mesh snapshot` of each host there", path.display());
        }
        found.sort();
        files.extend(found);
    }
    let read = |path: PathBuf| {
        let text = bytes(&path)?;
        let snapshot = Snapshot::parse(&text).map_err(|why| anyhow!("{}: {why}", path.display()))?;
        Ok(Found { path, snapshot })
    };
    files.into_iter().map(read).collect()
}

/// A file's bytes; `-` is standard input.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let what = || format!("read {}", path.display());
    if path == Path::new("-") {
        std::io::stdin().lock().take(SIZE_MAX + 1).read_to_end(&mut text).context("read standard input")?;
    } else {
        std::fs::File::open(path).and_then(|f| f.take(SIZE_MAX + 1).read_to_end(&mut text)).with_context(what)?;
    }
    if text.len() as u64 > SIZE_MAX {
        bail!("{} is larger than {SIZE_MAX} bytes", path.display());
    }
    Ok(text)
}
