//! A YAML document as a tree of places: where every key and value stands.
//!
//! serde_yaml gives values; this gives positions for everything that is said about them. Both read the same text.

use super::diagnostic::{Diagnostic, Place};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use std::collections::HashMap;
use std::rc::Rc;

/// Largest file, in bytes.
pub(crate) const SIZE_MAX: usize = 16 << 20;
/// Deepest nesting. libyaml's time is quadratic in nested flow sequences, so it is counted before parsing.
const DEPTH_MAX: usize = 64;
/// Most nodes that a document may have once its aliases are followed.
const NODES_MAX: u64 = 4_000_000;

const TOO_DEEP: &str = "a topology is never nested that deep: look for brackets that aren't closed";
const NO_ALIASES: &str = "write out what the aliases stand for";

/// Position in a file: line from 1, column and length in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) length: u32,
}

impl At {
    pub(super) fn in_file(self, file: &str) -> Place {
        Place { file: file.to_owned(), line: self.line, column: self.column, length: self.length }
    }

    fn of(span: Span) -> Self {
        let length =
            if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 1 };
        Self { line: span.start.line() as u32, column: span.start.col() as u32 + 1, length: length.max(1) as u32 }
    }
}

/// One value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) kind: Kind,
    size: u64,
    /// Where its items stand, of a sequence that was cut.
    cut: Vec<At>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Scalar { text: String, plain: bool },
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<(Key, Rc<Node>)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) at: At,
}

impl Node {
    /// One that stands in for what a file says, repaired.
    pub(super) fn made(at: At, kind: Kind) -> Self {
        Self { at, kind, size: 1, cut: Vec::new() }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Rc<Node>> {
        self.entry(key).map(|(_, node)| node)
    }

    /// A key and its value.
    pub(super) fn entry(&self, key: &str) -> Option<&(Key, Rc<Node>)> {
        match &self.kind {
            Kind::Mapping(entries) => entries.iter().find(|(k, _)| k.text == key),
            _ => None,
        }
    }

    pub(super) fn item(&self, n: usize) -> Option<&Rc<Node>> {
        match &self.kind {
            Kind::Sequence(items) => items.get(n),
            _ => None,
        }
    }

    /// Where an item of a sequence stands, and what it says, if that is kept.
    pub(super) fn place(&self, n: usize) -> Option<(At, Option<Rc<Self>>)> {
        let kept = || self.item(n).map(|item| (item.at, Some(Rc::clone(item))));
        self.cut.get(n).map(|at| (*at, None)).or_else(kept)
    }

    /// The same places down to that depth, without what lies below.
    pub(super) fn cut(&self, depth: usize) -> Rc<Self> {
        let kind = match &self.kind {
            Kind::Mapping(entries) if depth > 0 => {
                Kind::Mapping(entries.iter().map(|(key, node)| (key.clone(), node.cut(depth - 1))).collect())
            }
            _ => Kind::Sequence(Vec::new()),
        };
        let cut = match &self.kind {
            Kind::Sequence(items) => items.iter().map(|item| item.at).collect(),
            _ => Vec::new(),
        };
        Rc::new(Self { at: self.at, kind, size: self.size, cut })
    }

    /// Whether nothing is said here: `key:` with nothing behind it, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// Refuses what would take a parser too long, before any parser sees it.
pub(super) fn precheck(file: &str, text: &str) -> Result<(), Box<Diagnostic>> {
    let start = At { line: 1, column: 1, length: 1 };
    if text.len() > SIZE_MAX {
        let message = format!("the file has {} bytes; at most {SIZE_MAX} are read", text.len());
        return Err(Box::new(
            Diagnostic::new("TM0002", start.in_file(file), message).help("split it: files of a directory merge"),
        ));
    }
    // Brackets in strings and comments count, too: nobody nests 64 of them.
    let (mut depth, mut line, mut column) = (0usize, 1u32, 0u32);
    for c in text.chars() {
        column += 1;
        // YAML 1.1 ends a line, and so a comment, where YAML 1.2 doesn't; a byte order mark is none but at the beginning.
        if matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}') {
            let at = At { line, column, length: 1 };
            let message = format!(
                "the invisible character {} means one thing to some readers of YAML and another to others",
                c.escape_unicode()
            );
            let diagnostic = Diagnostic::new("TM0005", at.in_file(file), message);
            return Err(Box::new(diagnostic.help("delete it; end lines with a newline")));
        }
        match c {
            '\n' => (line, column) = (line + 1, 0),
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            let at = At { line, column, length: 1 };
            let message = format!("brackets are nested more than {DEPTH_MAX} deep");
            return Err(Box::new(Diagnostic::new("TM0003", at.in_file(file), message).help(TOO_DEEP)));
        }
    }
    Ok(())
}

/// The documents of a file.
pub(super) fn documents(file: &str, text: &str) -> Result<Vec<Rc<Node>>, Box<Diagnostic>> {
    let mut builder = Builder { file, stack: Vec::new(), anchors: HashMap::new(), documents: Vec::new() };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => return Err(Box::new(builder.broken(text, error.marker(), error.info()))),
        }
    }
    Ok(builder.documents)
}

enum Open {
    Sequence { at: At, anchor: usize, items: Vec<Rc<Node>> },
    Mapping { at: At, anchor: usize, entries: Vec<(Key, Rc<Node>)>, key: Option<Key> },
}

struct Builder<'a> {
    file: &'a str,
    stack: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    documents: Vec<Rc<Node>>,
}

impl Builder<'_> {
    /// The text is no YAML from here on.
    fn broken(&self, text: &str, marker: &Marker, info: &str) -> Diagnostic {
        let mut at = At { line: marker.line() as u32, column: marker.col() as u32 + 1, length: 1 };
        // What is missing at the end of the text is shown at the end of what is there.
        let lines: Vec<&str> = text.trim_end().split('\n').collect();
        if at.line as usize > lines.len() {
            let last = lines.last().map_or(0, |line| line.chars().count());
            at = At { line: lines.len() as u32, column: (last as u32).max(1), length: 1 };
        }
        let diagnostic = Diagnostic::new("TM0005", at.in_file(self.file), format!("not YAML: {info}"));
        let diagnostic = diagnostic.help(if info.contains("tab") {
            "indent with spaces"
        } else {
            "look for a quote, a bracket or an indentation that isn't right, here or above"
        });
        let open = self.stack.iter().rev().map(|(Open::Sequence { at, .. } | Open::Mapping { at, .. })| *at);
        let bracket = |at: &At| {
            let line = lines.get(at.line.saturating_sub(1) as usize);
            matches!(line.and_then(|l| l.chars().nth(at.column.saturating_sub(1) as usize)), Some('[' | '{'))
        };
        match open.into_iter().find(bracket) {
            Some(bracket) if bracket != at => diagnostic.related(bracket.in_file(self.file), "opened here"),
            _ => diagnostic,
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Diagnostic>> {
        let at = At::of(span);
        if let Event::Scalar(.., Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) = &event
        {
            let diagnostic = Diagnostic::new("TM0105", at.in_file(self.file), "a tag (`!…`) has no meaning here");
            return Err(Box::new(diagnostic.help("remove it; text that looks like a number goes between quotes")));
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let kind = Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                self.add(Node { at, kind, size: 1, cut: Vec::new() }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(Open::Sequence { at, anchor, items: Vec::new() }),
            Event::MappingStart(anchor, _) => self.open(Open::Mapping { at, anchor, entries: Vec::new(), key: None }),
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Open::Sequence { at, anchor, items }) => {
                    let size = 1 + items.iter().map(|n| n.size).sum::<u64>();
                    self.add(Node { at, kind: Kind::Sequence(items), size, cut: Vec::new() }, anchor)
                }
                Some(Open::Mapping { at, anchor, entries, .. }) => {
                    let size = 1 + entries.iter().map(|(_, n)| n.size).sum::<u64>();
                    self.add(Node { at, kind: Kind::Mapping(entries), size, cut: Vec::new() }, anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.push(node, at),
                None => {
                    let diagnostic =
                        Diagnostic::new("TM0004", at.in_file(self.file), "an alias to itself can't be followed");
                    Err(Box::new(diagnostic.help(NO_ALIASES)))
                }
            },
            _ => Ok(()),
        }
    }

    fn open(&mut self, open: Open) -> Result<(), Box<Diagnostic>> {
        if self.stack.len() >= DEPTH_MAX {
            let (Open::Sequence { at, .. } | Open::Mapping { at, .. }) = open;
            let message = format!("nested more than {DEPTH_MAX} deep");
            return Err(Box::new(Diagnostic::new("TM0003", at.in_file(self.file), message).help(TOO_DEEP)));
        }
        self.stack.push(open);
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Box<Diagnostic>> {
        let at = node.at;
        let node = Rc::new(node);
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.push(node, at)
    }

    fn push(&mut self, node: Rc<Node>, at: At) -> Result<(), Box<Diagnostic>> {
        if node.size > NODES_MAX {
            let message = format!("aliases make this document larger than {NODES_MAX} values");
            return Err(Box::new(Diagnostic::new("TM0004", at.in_file(self.file), message).help(NO_ALIASES)));
        }
        match self.stack.last_mut() {
            None => self.documents.push(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let Kind::Scalar { text, .. } = &node.kind else {
                        let diagnostic = Diagnostic::new("TM0105", at.in_file(self.file), "a key must be a plain word");
                        return Err(Box::new(diagnostic.help("write `key: value`")));
                    };
                    *key = Some(Key { text: text.clone(), at });
                }
            },
        }
        Ok(())
    }
}
