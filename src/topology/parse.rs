//! One file: text to documents, with everything that is wrong with its form.

use super::SourceFile;
use super::diagnostic::Diagnostic;
use super::document::{Document, MappingDoc, VERSION};
use super::doubt::Doubt;
use super::salvage::salvage;
use super::tree::{self, At, Kind, Node};
use crate::model::Name;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashSet;
use std::rc::Rc;

/// A file that was read: its documents, and what is wrong with them.
#[derive(Debug, Clone)]
pub struct ParsedFile {
    pub(super) name: Name,
    pub(super) documents: Vec<(Document, Rc<Node>)>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// What it may declare and doesn't say rightly.
    pub(super) doubt: Doubt,
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

    /// One that can't be read, and why: nobody knows what it would have said.
    pub fn unreadable(name: &str, why: &str) -> Self {
        let start = At { line: 1, column: 1, length: 1 };
        let diagnostic = Diagnostic::new("TM0006", start.in_file(name), why);
        Self {
            name: Name::from(name),
            documents: Vec::new(),
            diagnostics: vec![
                diagnostic.help("what can't be read changes nothing: the last accepted state stays in force"),
            ],
            doubt: Doubt { everything: true, ..Doubt::default() },
        }
    }

    /// What is wrong with its form.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

/// Reads one file. It never fails: what is wrong is in the result.
pub fn parse(file: &SourceFile) -> ParsedFile {
    let name = Name::from(file.name.as_str());
    let mut out = ParsedFile { name, documents: Vec::new(), diagnostics: Vec::new(), doubt: Doubt::default() };
    match text_of(file).and_then(|text| Ok((text, tree::documents(&out.name, text)?))) {
        Ok((text, nodes)) => read(&mut out, text, nodes),
        Err(diagnostic) => {
            out.doubt.everything = true;
            out.diagnostics.push(*diagnostic);
        }
    }
    out
}

fn text_of(file: &SourceFile) -> Result<&str, Box<Diagnostic>> {
    let content = file.content();
    let text = std::str::from_utf8(content).map_err(|error| {
        let before = String::from_utf8_lossy(&content[..error.valid_up_to()]).into_owned();
        let line = before.matches('\n').count() as u32 + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() as u32 + 1;
        let place = At { line, column, length: 1 }.in_file(&file.name);
        Box::new(Diagnostic::new("TM0001", place, "the file isn't UTF-8").help("save it as UTF-8"))
    })?;
    tree::precheck(&file.name, text)?;
    Ok(text)
}

fn read(out: &mut ParsedFile, text: &str, nodes: Vec<Rc<Node>>) {
    if nodes.iter().all(|n| n.is_null()) {
        let place = At { line: 1, column: 1, length: 1 }.in_file(&out.name);
        let diagnostic = Diagnostic::new("TM0101", place, "the file says nothing");
        out.diagnostics.push(diagnostic.help("start with `version: 1`, or remove the file"));
        return;
    }
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let last = nodes.last().map(|node| node.at);
    for (document, node) in documents.by_ref().take(nodes.len()).zip(nodes) {
        if node.is_null() {
            if !matches!(Option::<IgnoredAny>::deserialize(document), Ok(None)) {
                ambiguous(out, node.at);
            }
            continue;
        }
        let error = match Document::deserialize(document) {
            Ok(mut document) if document.version == VERSION && form(&node) => {
                share(&mut document);
                out.documents.push((document, node));
                continue;
            }
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let mut salvaged = salvage(&out.name, &node);
        if salvaged.diagnostics.is_empty() {
            // Wrong in a way that the schema doesn't know.
            salvaged.diagnostics.push(typed(&out.name, &node, error.as_ref()));
            salvaged.doubt.everything = true;
        }
        out.diagnostics.append(&mut salvaged.diagnostics);
        out.doubt.extend(&salvaged.doubt);
        out.documents.extend(salvaged.document);
    }
    // Nothing may be left: it would be said, and not be done.
    if let (Some(_), Some(at)) = (documents.next(), last) {
        ambiguous(out, at);
    }
}

/// Readers of YAML disagree on where documents end.
fn ambiguous(out: &mut ParsedFile, at: At) {
    let message = "what this document says depends on who reads it";
    let diagnostic = Diagnostic::new("TM0005", at.in_file(&out.name), message);
    let help = "look for a quote, an indentation or a character that isn't right, and begin documents with `---`";
    out.diagnostics.push(diagnostic.help(help));
    out.doubt.everything = true;
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

/// An error of a type, placed where serde says it is.
fn typed(name: &str, node: &Node, error: Option<&serde_yaml::Error>) -> Diagnostic {
    let location = error.and_then(serde_yaml::Error::location);
    let at = location.map_or(node.at, |l| At { line: l.line() as u32, column: l.column() as u32, length: 1 });
    let mut message = error.map_or_else(|| "the document can't be used".to_owned(), ToString::to_string);
    if let Some(cut) = message.rfind(" at line ") {
        message.truncate(cut);
    }
    Diagnostic::new("TM0105", at.in_file(name), message).help("see `tunnel-mesh schema` for what belongs where")
}

/// Whether what serde doesn't see is right, too: no key given twice, no section with nothing in it.
fn form(node: &Node) -> bool {
    let section = |name| node.get(name);
    let full = |node: &Rc<Node>| match &node.kind {
        Kind::Sequence(items) => !items.is_empty(),
        Kind::Mapping(entries) => !entries.is_empty(),
        Kind::Scalar { .. } => false,
    };
    let members = |tenants: &Rc<Node>| match &tenants.kind {
        Kind::Mapping(entries) => entries.iter().all(|(_, tenant)| tenant.get("members").is_none_or(|m| unique(m))),
        _ => true,
    };
    ["nodes", "tunnels", "mappings", "tenants"].into_iter().filter_map(section).all(full)
        && ["nodes", "tunnels", "tenants"].into_iter().filter_map(section).all(|section| unique(section))
        && section("tenants").is_none_or(members)
}

fn unique(node: &Node) -> bool {
    let Kind::Mapping(entries) = &node.kind else { return true };
    let mut seen: HashSet<&str> = HashSet::with_capacity(entries.len());
    entries.iter().all(|(key, _)| seen.insert(&key.text))
}
