//! Topology files' text to the desired state of one node, and everything that can be wrong on the way.
//!
//! `parse` reads one file, `merge` makes one topology of many, `Topology::compile` derives one node's state; `Compiled`
//! follows changes of single files. The rule:
//! pure code only, and every error at once, each at its file, line and column.

pub mod adopt;
mod check;
mod compile;
mod compiled;
mod diagnostic;
mod document;
mod doubt;
mod expect;
pub mod guard;
mod merge;
mod parse;
pub mod render;
mod salvage;
mod schema;
mod tree;
pub mod write;

pub use compile::{NodeChoice, port_name};
pub use compiled::{Changed, Compiled};
pub use diagnostic::{Diagnostic, Place, Related, nearest};
pub use merge::{Topology, diagnose, merge};
pub use parse::{ParsedFile, parse};
pub use schema::schema;
pub(crate) use tree::SIZE_MAX;

/// A file's name, as it is to be shown, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name.
    pub name: String,
    /// Content.
    pub text: Vec<u8>,
}

impl SourceFile {
    /// The content without the byte order mark that some editors put before it.
    pub fn content(&self) -> &[u8] {
        self.text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.text)
    }
}
