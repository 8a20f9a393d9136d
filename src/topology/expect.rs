//! What the schema expects at a place, in words and for comparing.

use super::schema::schema;
use super::tree::{Kind, Node};
use serde_json::Value as Schema;
use serde_yaml::Value;
use std::net::IpAddr;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Schema> = LazyLock::new(schema);

/// A part of the schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected(&'static Schema);

/// Kinds of values, for advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Number,
    Truth,
    Address,
    Name,
    Word,
    List,
    Mapping,
}

impl Expected {
    /// A document.
    pub(super) fn document() -> Self {
        Self::of(&SCHEMA)
    }

    /// Follows references.
    fn of(schema: &'static Schema) -> Self {
        let one_of_all = schema["allOf"].as_array().filter(|all| all.len() == 1).map(|all| &all[0]);
        let to = schema["$ref"].as_str().and_then(|path| SCHEMA.pointer(path.trim_start_matches('#')));
        match one_of_all.or(to) {
            Some(next) => Self::of(next),
            None => Self(schema),
        }
    }

    /// What it may be, one by one.
    fn branches(self) -> Vec<Self> {
        if self.is_address() {
            return vec![self];
        }
        match self.0["anyOf"].as_array() {
            Some(branches) => branches.iter().flat_map(|b| Self::of(b).branches()).collect(),
            None => vec![self],
        }
    }

    fn is(self, kind: &str) -> bool {
        match &self.0["type"] {
            Schema::String(one) => one == kind,
            Schema::Array(several) => several.iter().any(|one| one == kind),
            _ => false,
        }
    }

    fn is_address(self) -> bool {
        self.0["anyOf"][0]["format"] == "ipv4"
    }

    fn is_name(self) -> bool {
        self.is("string") && self.is("number")
    }

    /// The branch that a value of that kind could be.
    pub(super) fn fitting(self, node: &Node) -> Option<Self> {
        let branches = self.branches();
        let fits = |branch: &&Self| match &node.kind {
            Kind::Sequence(_) => branch.is("array"),
            Kind::Mapping(_) => branch.is("object"),
            Kind::Scalar { .. } => branch.scalar(node).is_some(),
        };
        branches.iter().find(fits).copied()
    }

    /// What a scalar says, if that is expected here.
    pub(super) fn scalar(self, node: &Node) -> Option<Value> {
        let Kind::Scalar { text, .. } = &node.kind else { return None };
        if self.is("null") && node.is_null() {
            return Some(Value::Null);
        }
        if self.is_name() {
            return Some(Value::String(text.clone()));
        }
        if self.is_address() {
            return text.parse::<IpAddr>().is_ok().then(|| Value::String(text.clone()));
        }
        if let words @ [_, ..] = self.words().as_slice() {
            return words.contains(&text.as_str()).then(|| Value::String(text.clone()));
        }
        let value = Self::resolve(node);
        let fits = match &value {
            Value::Bool(_) => self.is("boolean"),
            Value::Number(number) => self.is("integer") && number.as_u64().is_some_and(|n| n <= self.range().1),
            _ => false,
        };
        fits.then_some(value)
    }

    /// A scalar as YAML means it.
    pub(super) fn resolve(node: &Node) -> Value {
        match &node.kind {
            Kind::Scalar { text, plain: true } => match serde_yaml::from_str(text) {
                Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
                _ => Value::String(text.clone()),
            },
            Kind::Scalar { text, plain: false } => Value::String(text.clone()),
            _ => Value::Null,
        }
    }

    /// What fits the type that reads it: narrower limits are a matter of meaning.
    fn range(self) -> (u64, u64) {
        match self.0["format"].as_str() {
            Some("uint8") => (0, u8::MAX.into()),
            Some("uint16") => (0, u16::MAX.into()),
            Some("uint32") => (0, u32::MAX.into()),
            _ => (0, u64::MAX),
        }
    }

    /// Words that it may be.
    pub(super) fn words(self) -> Vec<&'static str> {
        let list = self.0["oneOf"].as_array().map_or(&[][..], Vec::as_slice).iter();
        let nested = self.0["anyOf"].as_array().map_or(&[][..], Vec::as_slice).iter();
        let inner = list.chain(nested).flat_map(|inner| Self::of(inner).words());
        self.0["const"].as_str().into_iter().chain(inner).collect()
    }

    /// What the items of a list must be.
    pub(super) fn items(self) -> Option<Self> {
        self.0.get("items").map(Self::of)
    }

    /// What the values of a mapping with free keys must be.
    pub(super) fn values(self) -> Option<Self> {
        self.0.get("additionalProperties").filter(|v| v.is_object()).map(Self::of)
    }

    /// What a field must be.
    pub(super) fn field(self, name: &str) -> Option<Self> {
        self.0["properties"].get(name).map(Self::of)
    }

    /// Names of the fields.
    pub(super) fn fields(self) -> Vec<&'static str> {
        let object = |e: Self| e.0["properties"].as_object().map(|p| p.keys().map(String::as_str).collect::<Vec<_>>());
        self.branches().into_iter().find_map(object).unwrap_or_default()
    }

    /// Fields that may not be left out.
    pub(super) fn required(self) -> Vec<&'static str> {
        self.0["required"].as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(Schema::as_str).collect()
    }

    /// What an object of this kind is called.
    pub(super) fn title(self) -> &'static str {
        self.0["title"].as_str().unwrap_or("mapping")
    }

    /// The kind of value, for advice.
    pub(super) fn shape(self) -> Shape {
        let first = self.branches()[0];
        match first {
            e if e.is_address() => Shape::Address,
            e if e.is_name() => Shape::Name,
            e if !e.words().is_empty() => Shape::Word,
            e if e.is("integer") => Shape::Number,
            e if e.is("boolean") => Shape::Truth,
            e if e.is("array") => Shape::List,
            _ => Shape::Mapping,
        }
    }

    /// In words: "a number from 0 to 255", "an IP address or a list of IP addresses".
    pub(super) fn phrase(self) -> String {
        let branches = self.branches();
        let phrases: Vec<String> =
            branches.iter().filter(|b| b.0["type"] != "null").map(|b| b.one_phrase(false)).collect();
        phrases.join(" or ")
    }

    fn one_phrase(self, plural: bool) -> String {
        let words: Vec<String> = self.words().iter().map(|w| format!("`{w}`")).collect();
        match (self.shape(), plural) {
            (Shape::Address, false) => "an IP address".to_owned(),
            (Shape::Address, true) => "IP addresses".to_owned(),
            (Shape::Name, false) => "a name".to_owned(),
            (Shape::Name, true) => "names".to_owned(),
            (Shape::Number, _) => {
                let (least, most) = self.range();
                format!("a number from {least} to {most}")
            }
            (Shape::Truth, _) => "`true` or `false`".to_owned(),
            (Shape::Word, _) => match words.split_last() {
                Some((last, rest @ [_, ..])) => format!("{} or {last}", rest.join(", ")),
                Some((only, [])) => only.clone(),
                None => String::new(),
            },
            (Shape::List, _) => match self.items() {
                Some(items) => format!("a list of {}", items.one_phrase(true)),
                None => "a list".to_owned(),
            },
            (Shape::Mapping, false) => match self.values() {
                Some(_) => "a mapping from names".to_owned(),
                None => format!("a mapping with {}", list(&self.fields())),
            },
            (Shape::Mapping, true) => format!("{}s", self.title()),
        }
    }
}

fn list(fields: &[&str]) -> String {
    fields.iter().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", ")
}
