//! One file: text to documents, with everything that is wrong with its form.

use super::SourceFile;
use super::diagnostic::{Diagnostic, nearest};
use super::document::{Document, MAPPING, MEMBER, MappingDoc, TENANT, TOP, TUNNEL, VERSION};
use super::tree::{self, At, Kind, Node};
use crate::model::Name;
use serde::Deserialize;
use std::rc::Rc;

/// A file that was read: its documents, and what is wrong with them.
#[derive(Debug, Clone)]
pub struct ParsedFile {
    pub(super) name: Name,
    pub(super) documents: Vec<(Document, Rc<Node>)>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl ParsedFile {
    /// The same without the places of fields, which only the diagnostics of a broken topology need: to be kept.
    #[must_use]
    pub fn slim(mut self) -> Self {
        // A document, its sections, their entries.
        self.documents.iter_mut().for_each(|(_, node)| *node = node.cut(2));
        self
    }

    /// The mappings that it lists.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &MappingDoc> {
        self.documents.iter().flat_map(|(document, _)| &document.mappings)
    }

    /// Whether mappings are all that it says, and nothing is wrong with its form.
    pub(super) fn says_mappings_only(&self) -> bool {
        let only = |d: &Document| d.nodes.is_empty() && d.tunnels.is_empty() && d.tenants.is_empty();
        self.diagnostics.is_empty() && self.documents.iter().all(|(document, _)| only(document))
    }

    /// What is wrong with its form.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

/// Reads one file. It never fails: what is wrong is in the result.
pub fn parse(file: &SourceFile) -> ParsedFile {
    let name = Name::from(file.name.as_str());
    let mut out = ParsedFile { name: name.clone(), documents: Vec::new(), diagnostics: Vec::new() };
    let text = match std::str::from_utf8(&file.text) {
        Ok(text) => text,
        Err(error) => {
            let before = String::from_utf8_lossy(&file.text[..error.valid_up_to()]).into_owned();
            let line = before.matches('\n').count() as u32 + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() as u32 + 1;
            let place = At { line, column, length: 1 }.in_file(&name);
            out.diagnostics.push(Diagnostic::new("TM0001", place, "the file isn't UTF-8"));
            return out;
        }
    };
    if let Err(diagnostic) = tree::precheck(&name, text) {
        out.diagnostics.push(*diagnostic);
        return out;
    }
    let nodes = match tree::documents(&name, text) {
        Ok(nodes) => nodes,
        Err(diagnostic) => {
            out.diagnostics.push(*diagnostic);
            return out;
        }
    };
    if nodes.iter().all(|n| n.is_null()) {
        let place = At { line: 1, column: 1, length: 1 }.in_file(&name);
        let diagnostic = Diagnostic::new("TM0101", place, "the file says nothing");
        out.diagnostics.push(diagnostic.help("start with `version: 1`, or remove the file"));
        return out;
    }
    for node in &nodes {
        form(&name, node, &mut out.diagnostics);
    }
    if !out.diagnostics.is_empty() {
        return out;
    }
    for (document, node) in serde_yaml::Deserializer::from_str(text).zip(nodes) {
        match Document::deserialize(document) {
            Ok(mut document) => {
                share(&mut document);
                check_version(&name, &document, &node, &mut out.diagnostics);
                out.documents.push((document, node));
            }
            Err(error) => out.diagnostics.push(typed(&name, &node, &error)),
        }
    }
    out
}

/// What mappings say in one file after the other is kept once.
fn share(document: &mut Document) {
    document.mappings.shrink_to_fit();
    let (mut tenant, mut tunnel) = (Name::default(), None);
    for mapping in &mut document.mappings {
        if mapping.tenant == tenant {
            mapping.tenant = tenant.clone();
        }
        if mapping.tunnel == tunnel {
            mapping.tunnel.clone_from(&tunnel);
        }
        (tenant, tunnel) = (mapping.tenant.clone(), mapping.tunnel.clone());
    }
}

fn check_version(name: &str, document: &Document, node: &Node, out: &mut Vec<Diagnostic>) {
    if document.version == VERSION {
        return;
    }
    let at = node.get("version").map_or(node.at, |n| n.at);
    let message = format!("version {} isn't known; this tunnel-mesh reads version {VERSION}", document.version);
    out.push(Diagnostic::new("TM0106", at.in_file(name), message));
}

/// An error of a type, placed where serde says it is.
fn typed(name: &str, node: &Node, error: &serde_yaml::Error) -> Diagnostic {
    let at = error.location().map_or(node.at, |l| At { line: l.line() as u32, column: l.column() as u32, length: 1 });
    let mut message = error.to_string();
    if let Some(cut) = message.rfind(" at line ") {
        message.truncate(cut);
    }
    let code = if message.starts_with("missing field `version`") { "TM0106" } else { "TM0105" };
    Diagnostic::new(code, at.in_file(name), message)
}

/// Unknown and duplicate keys, sections with nothing in them.
fn form(file: &str, node: &Node, out: &mut Vec<Diagnostic>) {
    let Kind::Mapping(_) = &node.kind else {
        if !node.is_null() {
            let message = "a document must be a mapping with `version: 1`";
            out.push(Diagnostic::new("TM0105", node.at.in_file(file), message));
        }
        return;
    };
    keys(file, node, &TOP, "a document", out);
    for section in ["nodes", "tunnels", "mappings", "tenants"] {
        let Some((key, value)) = node.entry(section) else { continue };
        let empty = match &value.kind {
            Kind::Sequence(items) => items.is_empty(),
            Kind::Mapping(entries) => entries.is_empty(),
            Kind::Scalar { .. } => value.is_null(),
            Kind::Places(places) => places.is_empty(),
        };
        if empty {
            let message = format!("`{section}:` has nothing in it");
            let help =
                format!("remove the line, or say what belongs there; an empty `{section}` never means \"delete all\"");
            out.push(Diagnostic::new("TM0104", key.at.in_file(file), message).help(help));
        }
    }
    each(node.get("tunnels"), |tunnel| keys(file, tunnel, &TUNNEL, "a tunnel", out));
    each(node.get("mappings"), |mapping| keys(file, mapping, &MAPPING, "a mapping", out));
    each(node.get("tenants"), |tenant| {
        keys(file, tenant, &TENANT, "a tenant", out);
        if let Some(members) = tenant.get("members") {
            unique(file, members, out);
            if let Kind::Mapping(entries) = &members.kind {
                entries.iter().for_each(|(_, member)| keys(file, member, &MEMBER, "a member", out));
            }
        }
    });
    for section in ["nodes", "tunnels", "tenants"] {
        if let Some(section) = node.get(section) {
            unique(file, section, out);
        }
    }
}

fn each(section: Option<&Rc<Node>>, mut f: impl FnMut(&Node)) {
    match section.map(|n| &n.kind) {
        Some(Kind::Mapping(entries)) => entries.iter().for_each(|(_, node)| f(node)),
        Some(Kind::Sequence(items)) => items.iter().for_each(|node| f(node)),
        _ => {}
    }
}

fn keys(file: &str, node: &Node, known: &[&str], what: &str, out: &mut Vec<Diagnostic>) {
    unique(file, node, out);
    let Kind::Mapping(entries) = &node.kind else { return };
    for (key, _) in entries.iter().filter(|(k, _)| !known.contains(&k.text.as_str())) {
        let message = format!("{what} has no field `{}`", key.text);
        let help = match nearest(&key.text, known.iter().copied()) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("the fields are {}", known.join(", ")),
        };
        out.push(Diagnostic::new("TM0103", key.at.in_file(file), message).label("unknown field").help(help));
    }
}

fn unique(file: &str, node: &Node, out: &mut Vec<Diagnostic>) {
    let Kind::Mapping(entries) = &node.kind else { return };
    let mut seen: std::collections::HashMap<&str, At> = std::collections::HashMap::new();
    for (key, _) in entries {
        if let Some(first) = seen.insert(&key.text, key.at) {
            let diagnostic = Diagnostic::new("TM0102", key.at.in_file(file), format!("`{}` is given twice", key.text));
            out.push(diagnostic.label("again here").related(first.in_file(file), "first given here"));
            seen.insert(&key.text, first);
        }
    }
}
