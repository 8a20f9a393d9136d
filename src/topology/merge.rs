//! Many files to one topology: the same thing said twice is fine, two things said of one name are an error.

use super::compile::NodeChoice;
use super::diagnostic::{Diagnostic, Place};
use super::document::{Addresses, MappingDoc, TenantDoc, TunnelDoc};
use super::doubt::{Doubt, in_order};
use super::parse::ParsedFile;
use super::tree::{At, Kind, Node};
use crate::model::{Name, Origin};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::rc::Rc;

/// Something of a file, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    file: Name,
    at: At,
    node: Rc<Node>,
}

impl<T> Placed<T> {
    /// What orders places, without making one.
    fn order(&self) -> (&str, u32, u32, u32) {
        (&self.file, self.at.line, self.at.column, self.at.length)
    }

    /// Where it starts, as the model has it.
    pub(super) fn origin(&self) -> Origin {
        Origin { file: self.file.clone(), line: self.at.line, column: self.at.column }
    }

    /// Where it starts: its name, or its first line.
    pub(super) fn place(&self) -> Place {
        self.at.in_file(&self.file)
    }

    /// Where the value of one of its fields stands; its own place where the field isn't given.
    pub(super) fn field(&self, path: &[&str]) -> Place {
        let mut at = self.at;
        let mut node = &self.node;
        for key in path {
            let found = match key.parse::<usize>() {
                Ok(n) if node.item(n).is_some() => node.item(n).map(|item| (item.at, item)),
                _ => node.entry(key).map(|(k, value)| (if value.is_null() { k.at } else { value.at }, value)),
            };
            let Some((place, next)) = found else { break };
            (at, node) = (place, next);
        }
        at.in_file(&self.file)
    }

    /// Where the key itself of a nested entry stands.
    pub(super) fn key(&self, path: &[&str]) -> Place {
        let Some((last, parents)) = path.split_last() else { return self.place() };
        let mut node = &self.node;
        for key in parents {
            let Some(next) = node.get(key) else { return self.place() };
            node = next;
        }
        node.entry(last).map_or_else(|| self.field(parents), |(key, _)| key.at.in_file(&self.file))
    }
}

impl<T> Placed<T> {
    /// Where each name of a nested list, or each key of a nested mapping, stands first.
    pub(super) fn names(&self, path: &[&str]) -> HashMap<&str, Place> {
        let mut node = &self.node;
        for key in path {
            let Some(next) = node.get(key) else { return HashMap::new() };
            node = next;
        }
        let mut out = HashMap::new();
        let mut put = |name, at: At| {
            out.entry(name).or_insert_with(|| at.in_file(&self.file));
        };
        match &node.kind {
            Kind::Mapping(entries) => entries.iter().for_each(|(key, _)| put(key.text.as_str(), key.at)),
            Kind::Sequence(items) => items.iter().for_each(|item| {
                if let Kind::Scalar { text, .. } = &item.kind {
                    put(text.as_str(), item.at);
                }
            }),
            Kind::Scalar { .. } => {}
        }
        out
    }
}

/// The whole topology, of all files.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    pub(super) nodes: BTreeMap<String, Placed<Addresses>>,
    pub(super) tunnels: BTreeMap<String, Placed<TunnelDoc>>,
    pub(super) tenants: BTreeMap<String, Placed<TenantDoc>>,
    pub(super) mappings: Vec<Placed<MappingDoc>>,
    pub(super) revision: String,
    pub(super) doubt: Doubt,
}

impl Topology {
    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// The nodes with their underlay addresses.
    pub fn addresses(&self) -> Vec<(String, Vec<IpAddr>)> {
        self.nodes.iter().map(|(name, node)| (name.clone(), node.value.as_slice().to_vec())).collect()
    }

    /// Interfaces that low-level mappings name.
    pub fn own_interfaces(&self) -> BTreeSet<String> {
        self.mappings.iter().map(|mapping| mapping.value.interface.to_string()).collect()
    }

    /// Whether tenants are declared, so that it matters which node this is.
    pub fn needs_node(&self) -> bool {
        !self.tenants.is_empty()
    }

    /// Hash of what is said, whatever the files' names, order and layout: the first 16 hex digits of a SHA-256.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

/// Merges files. The order of the files has no meaning.
///
/// # Errors
///
/// Every error of form of every file, and every conflict. [`diagnose`] finds those of meaning, too.
pub fn merge<'a>(files: impl IntoIterator<Item = &'a ParsedFile>) -> Result<Topology, Vec<Diagnostic>> {
    let (topology, errors) = gather(files);
    if errors.is_empty() { Ok(topology) } else { Err(in_order(errors)) }
}

/// Everything that is wrong with these files: with their form, and with the meaning of what is right in form. Without a
/// choice, for every node.
pub fn diagnose<'a>(files: impl IntoIterator<Item = &'a ParsedFile>, choice: Option<&NodeChoice>) -> Vec<Diagnostic> {
    let (topology, mut errors) = gather(files);
    let compiled = match choice {
        Some(choice) => topology.compile(choice).map(drop),
        None => topology.check(),
    };
    errors.extend(compiled.err().unwrap_or_default());
    in_order(errors)
}

/// What can be used of the files, and what is wrong with them.
fn gather<'a>(files: impl IntoIterator<Item = &'a ParsedFile>) -> (Topology, Vec<Diagnostic>) {
    let mut out = Topology::default();
    let mut errors = Vec::new();
    for file in files {
        errors.extend(file.diagnostics.iter().cloned());
        out.doubt.extend(&file.doubt);
        for (document, node) in &file.documents {
            add(&mut out.nodes, "node", &document.nodes, "nodes", file, node, &mut errors);
            add(&mut out.tunnels, "tunnel", &document.tunnels, "tunnels", file, node, &mut errors);
            add(&mut out.tenants, "tenant", &document.tenants, "tenants", file, node, &mut errors);
            out.mappings.reserve(document.mappings.len());
            for (n, mapping) in document.mappings.iter().enumerate() {
                let Some(item) = node.get("mappings").and_then(|m| m.item(n)) else { continue };
                let placed =
                    Placed { value: mapping.clone(), file: file.name.clone(), at: item.at, node: Rc::clone(item) };
                out.mappings.push(placed);
            }
        }
    }
    let Topology { nodes, tunnels, tenants, doubt, .. } = &mut out;
    nodes.retain(|name, _| !doubt.nodes.contains(name));
    tunnels.retain(|name, _| !doubt.tunnels.contains(name));
    tenants.retain(|name, _| !doubt.tenants.contains(name));
    // The same mapping said twice is said once; the first place in the order of files counts.
    out.mappings.sort_by(|a, b| (&a.value.interface, a.order()).cmp(&(&b.value.interface, b.order())));
    out.mappings.dedup_by(|later, first| later.value == first.value);
    if errors.is_empty() {
        out.revision = revision(&out);
    }
    (out, errors)
}

fn add<T: Clone + PartialEq>(
    all: &mut BTreeMap<String, Placed<T>>,
    what: &str,
    given: &BTreeMap<String, T>,
    section: &str,
    file: &ParsedFile,
    node: &Rc<Node>,
    errors: &mut Vec<Diagnostic>,
) {
    for (name, value) in given {
        let Some((key, place)) = node.get(section).and_then(|s| s.entry(name)) else { continue };
        let placed = Placed { value: value.clone(), file: file.name.clone(), at: key.at, node: Rc::clone(place) };
        match all.get(name) {
            None => drop(all.insert(name.clone(), placed)),
            Some(first) if first.value == placed.value => {
                // Whichever file comes first in order, so that the order of reading has no meaning.
                if placed.place() < first.place() {
                    all.insert(name.clone(), placed);
                }
            }
            Some(first) => {
                let message = format!("{what} `{name}` is said to be two different things");
                let (one, two) = if first.place() <= placed.place() {
                    (first.place(), placed.place())
                } else {
                    (placed.place(), first.place())
                };
                let diagnostic = Diagnostic::new("TM0201", two, message).label("here it is another");
                errors.push(diagnostic.related(one, "first said here").help("make both the same, or rename one"));
            }
        }
    }
}

fn revision(topology: &Topology) -> String {
    #[derive(Serialize)]
    struct Content<'a> {
        nodes: BTreeMap<&'a str, &'a [std::net::IpAddr]>,
        tunnels: BTreeMap<&'a str, &'a TunnelDoc>,
        tenants: BTreeMap<&'a str, &'a TenantDoc>,
        mappings: Vec<&'a MappingDoc>,
    }
    let content = Content {
        nodes: topology.nodes.iter().map(|(n, p)| (n.as_str(), p.value.as_slice())).collect(),
        tunnels: topology.tunnels.iter().map(|(n, p)| (n.as_str(), &p.value)).collect(),
        tenants: topology.tenants.iter().map(|(n, p)| (n.as_str(), &p.value)).collect(),
        mappings: {
            let mut all: Vec<&MappingDoc> = topology.mappings.iter().map(|p| &p.value).collect();
            all.sort_by_key(|m| (&m.interface, m.id, m.remote));
            all
        },
    };
    let mut writer = BufWriter::with_capacity(1 << 14, Hashed(Sha256::new()));
    // Neither plain data nor a hash can fail.
    let written = serde_json::to_writer(&mut writer, &content).is_ok();
    let digest = writer.into_inner().ok().filter(|_| written).map(|hashed| hashed.0.finalize());
    hex(digest.as_deref().unwrap_or_default(), 8)
}

/// Hashes what is written.
struct Hashed(Sha256);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The first `bytes` bytes in hexadecimal.
pub(super) fn hex(digest: &[u8], bytes: usize) -> String {
    digest.iter().take(bytes).map(|b| format!("{b:02x}")).collect()
}
