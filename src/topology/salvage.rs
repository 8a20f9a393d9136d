//! A document that isn't right: everything that is wrong with its form, and what can be used of it all the same.
//!
//! What is expected is read from the JSON Schema, which is made from the types that read right documents. An entry that
//! is wrong in itself is left out and its name noted as doubtful, so that the rest can be checked for its meaning. A
//! misspelt field counts as the one that was meant.

use super::diagnostic::{Diagnostic, nearest};
use super::document::{Document, VERSION};
use super::doubt::Doubt;
use super::expect::{Expected, Shape};
use super::tree::{At, Key, Kind, Node};
use serde::Deserialize;
use serde_yaml::{Mapping, Value};
use std::collections::HashMap;
use std::rc::Rc;

/// Longest piece of a file that a message repeats, in characters.
const SHOWN: usize = 40;

/// What is left of a document.
pub(super) struct Salvaged {
    /// What can be used, with its places.
    pub(super) document: Option<(Document, Rc<Node>)>,
    /// Everything that is wrong.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// What isn't known.
    pub(super) doubt: Doubt,
}

/// Looks a document through.
pub(super) fn salvage(file: &str, node: &Rc<Node>) -> Salvaged {
    let mut work = Work { file, diagnostics: Vec::new(), doubt: Doubt::default() };
    let document = work.document(node, &Expected::document());
    Salvaged { document, diagnostics: work.diagnostics, doubt: work.doubt }
}

struct Work<'a> {
    file: &'a str,
    diagnostics: Vec<Diagnostic>,
    doubt: Doubt,
}

/// What was usable: the places, repaired, and the value.
type Usable = (Rc<Node>, Value);

impl Work<'_> {
    fn error(&mut self, code: &str, at: At, message: String, help: String) {
        self.diagnostics.push(Diagnostic::new(code, at.in_file(self.file), message).help(help));
    }

    fn document(&mut self, node: &Rc<Node>, expected: &Expected) -> Option<(Document, Rc<Node>)> {
        let Kind::Mapping(_) = &node.kind else {
            self.doubt.everything = true;
            let message = format!("a document must be a mapping with `version: {VERSION}`, not {}", found(node));
            self.error("TM0105", node.at, message, format!("start with `version: {VERSION}`"));
            return None;
        };
        let (entries, whole) = self.fields(node, node.at, expected, "a document");
        self.doubt.everything |= !whole;
        self.version(node);
        let (mut kept, mut value) = (Vec::new(), Mapping::new());
        value.insert("version".into(), VERSION.into());
        for (key, section) in entries.into_iter().filter(|(key, _)| key.text != "version") {
            let Some(expected) = expected.field(&key.text) else { continue };
            let Some((section, usable)) = self.section(&key, &section, &expected) else { continue };
            value.insert(key.text.as_str().into(), usable);
            kept.push((key, section));
        }
        let document = Document::deserialize(Value::Mapping(value)).ok()?;
        Some((document, Rc::new(Node::made(node.at, Kind::Mapping(kept)))))
    }

    fn version(&mut self, node: &Node) {
        let help = format!("this tunnel-mesh reads `version: {VERSION}`");
        match node.entry("version") {
            None => self.error("TM0106", node.at, "a document needs `version`".to_owned(), help),
            Some((key, version)) => {
                let Kind::Scalar { text, .. } = &version.kind else {
                    let message = format!("`version` must be a number, not {}", found(version));
                    return self.error("TM0106", key.at, message, help);
                };
                if Expected::resolve(version) != VERSION {
                    let at = if version.is_null() { key.at } else { version.at };
                    self.error("TM0106", at, format!("version `{text}` isn't known"), help);
                }
            }
        }
    }

    /// A section: its entries that are right. The names of the others are noted.
    fn section(&mut self, key: &Key, node: &Rc<Node>, expected: &Expected) -> Option<Usable> {
        let section = key.text.as_str();
        let empty = match &node.kind {
            Kind::Sequence(items) => items.is_empty(),
            Kind::Mapping(entries) => entries.is_empty(),
            Kind::Scalar { .. } => node.is_null(),
        };
        if empty {
            let help =
                format!("remove the line, or say what belongs there; an empty `{section}` never means \"delete all\"");
            self.error("TM0104", key.at, format!("`{section}:` has nothing in it"), help);
            return None;
        }
        match (&node.kind, expected.items(), expected.values()) {
            (Kind::Sequence(items), Some(inner), _) => {
                let usable = items
                    .iter()
                    .filter_map(|item| self.value(item, item.at, &inner, &format!("an item of `{section}`")));
                let (nodes, values) = usable.unzip();
                Some((Rc::new(Node::made(node.at, Kind::Sequence(nodes))), Value::Sequence(values)))
            }
            (Kind::Mapping(entries), _, Some(inner)) => {
                self.unique(entries);
                let mut times: HashMap<&str, usize> = HashMap::new();
                entries.iter().for_each(|(name, _)| *times.entry(&name.text).or_default() += 1);
                let (mut kept, mut values) = (Vec::new(), Mapping::new());
                for (name, entry) in entries {
                    let twice = times.get(name.text.as_str()).is_some_and(|n| *n > 1);
                    let what = format!("{} `{}`", section.trim_end_matches('s'), name.text);
                    let usable = self.value(entry, name.at, &inner, &what);
                    if let Some((entry, value)) = usable.filter(|_| !twice) {
                        values.insert(name.text.as_str().into(), value);
                        kept.push((name.clone(), entry));
                    } else if let Some(names) = self.doubt.section(section) {
                        names.insert(name.text.clone());
                    }
                }
                Some((Rc::new(Node::made(node.at, Kind::Mapping(kept))), Value::Mapping(values)))
            }
            _ => {
                self.doubt.everything = true;
                self.unfit(node, key.at, expected, &format!("`{section}`"));
                None
            }
        }
    }

    /// A value, if it is wholly right.
    fn value(&mut self, node: &Rc<Node>, at: At, expected: &Expected, what: &str) -> Option<Usable> {
        let Some(fitting) = expected.fitting(node) else {
            self.unfit(node, at, expected, what);
            return None;
        };
        match &node.kind {
            Kind::Scalar { .. } => match fitting.scalar(node) {
                Some(value) => Some((Rc::clone(node), value)),
                None => {
                    self.unfit(node, at, expected, what);
                    None
                }
            },
            Kind::Sequence(items) => {
                let inner = fitting.items()?;
                let usable: Vec<Option<Usable>> =
                    items.iter().map(|item| self.value(item, item.at, &inner, &format!("an item of {what}"))).collect();
                let (nodes, values) = usable.into_iter().collect::<Option<Vec<Usable>>>()?.into_iter().unzip();
                Some((Rc::new(Node::made(node.at, Kind::Sequence(nodes))), Value::Sequence(values)))
            }
            Kind::Mapping(entries) => {
                let (entries, mut whole) = match (fitting.values(), fitting.title()) {
                    (None, title) => self.fields(node, at, &fitting, &format!("a {title}")),
                    (Some(_), _) => (entries.clone(), self.unique(entries)),
                };
                let (mut kept, mut values) = (Vec::new(), Mapping::new());
                for (key, field) in entries {
                    let Some(inner) = fitting.values().or_else(|| fitting.field(&key.text)) else { continue };
                    let at = if field.is_null() { key.at } else { field.at };
                    match self.value(&field, at, &inner, &format!("`{}`", key.text)) {
                        Some((field, value)) => {
                            values.insert(key.text.as_str().into(), value);
                            kept.push((key, field));
                        }
                        None => whole = false,
                    }
                }
                whole.then(|| (Rc::new(Node::made(node.at, Kind::Mapping(kept))), Value::Mapping(values)))
            }
        }
    }

    /// The fields of a mapping, misspelt ones under the names that were meant; and whether they are all there and known.
    fn fields(&mut self, node: &Node, at: At, expected: &Expected, what: &str) -> (Vec<(Key, Rc<Node>)>, bool) {
        let Kind::Mapping(entries) = &node.kind else { return (Vec::new(), false) };
        let mut whole = self.unique(entries);
        let known = expected.fields();
        let mut out: Vec<(Key, Rc<Node>)> = Vec::new();
        for word in &known {
            if let Some((key, value)) = node.entry(word) {
                out.push((key.clone(), Rc::clone(value)));
            }
        }
        for (key, value) in entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            let near = nearest(&key.text, known.iter().copied());
            let help = match near {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("the fields are {}", known.join(", ")),
            };
            let message = format!("{what} has no field `{}`", cut(&key.text));
            let diagnostic = Diagnostic::new("TM0103", key.at.in_file(self.file), message);
            self.diagnostics.push(diagnostic.label("unknown field").help(help));
            match near.filter(|word| !out.iter().any(|(k, _)| k.text == *word)) {
                Some(word) => out.push((Key { text: word.to_owned(), at: key.at }, Rc::clone(value))),
                None => whole = false,
            }
        }
        for missing in expected.required().into_iter().filter(|f| *f != "version") {
            if !out.iter().any(|(key, _)| key.text == missing) {
                let help =
                    format!("add `{missing}:`, {}", expected.field(missing).map_or_else(String::new, |e| e.phrase()));
                self.error("TM0107", at, format!("{what} needs `{missing}`"), help);
                whole = false;
            }
        }
        (out, whole)
    }

    /// Whether no key is given twice.
    fn unique(&mut self, entries: &[(Key, Rc<Node>)]) -> bool {
        let mut seen: HashMap<&str, At> = HashMap::new();
        let before = self.diagnostics.len();
        for (key, _) in entries {
            if let Some(first) = seen.get(key.text.as_str()) {
                let message = format!("`{}` is given twice", cut(&key.text));
                let diagnostic = Diagnostic::new("TM0102", key.at.in_file(self.file), message).label("again here");
                let diagnostic = diagnostic.related(first.in_file(self.file), "first given here");
                self.diagnostics.push(diagnostic.help("keep one of them"));
            } else {
                seen.insert(&key.text, key.at);
            }
        }
        self.diagnostics.len() == before
    }

    /// Says that a value is none of what it could be.
    fn unfit(&mut self, node: &Node, at: At, expected: &Expected, what: &str) {
        let at = if node.is_null() { at } else { node.at };
        let message = format!("{what} must be {}, not {}", expected.phrase(), found(node));
        self.error("TM0105", at, message, help(node, expected));
    }
}

/// What stands there.
fn found(node: &Node) -> String {
    match &node.kind {
        Kind::Sequence(_) => "a list".to_owned(),
        Kind::Mapping(_) => "a mapping".to_owned(),
        Kind::Scalar { .. } if node.is_null() => "nothing".to_owned(),
        Kind::Scalar { text, plain: true } => format!("`{}`", cut(text)),
        Kind::Scalar { text, plain: false } => format!("the text `{}`", cut(text)),
    }
}

fn help(node: &Node, expected: &Expected) -> String {
    let words = expected.words();
    if let Kind::Scalar { text, .. } = &node.kind
        && let Some(word) = nearest(text, words.iter().copied())
    {
        return format!("did you mean `{word}`?");
    }
    match expected.shape() {
        Shape::Number if matches!(Expected::resolve(node), serde_yaml::Value::Number(_)) => {
            format!("write {}", expected.phrase())
        }
        Shape::Number => "write a whole number, without quotes".to_owned(),
        Shape::Truth => "write `true` or `false`, without quotes".to_owned(),
        Shape::Address => "write it as 10.0.0.3 or fd00::3, without a prefix length or a port".to_owned(),
        Shape::Name => "write one word".to_owned(),
        Shape::Word => format!("write {}", expected.phrase()),
        Shape::List => "write a list: [a, b], or `- a` on lines of their own".to_owned(),
        Shape::Mapping => format!("write `key: value` pairs{}", fields(expected)),
    }
}

fn fields(expected: &Expected) -> String {
    let fields = expected.fields();
    if fields.is_empty() { String::new() } else { format!("; the fields are {}", fields.join(", ")) }
}

/// The beginning of a text, on one line.
fn cut(text: &str) -> String {
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}
