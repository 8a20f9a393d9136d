//! What runs at a TC hook: our program and those of others, in order.

use super::{Direction, HookKind};
use serde::{Deserialize, Serialize};

/// The programs and filters at one TC hook, in the order in which the kernel runs them: TCX first, then clsact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Index of the link.
    pub ifindex: u32,
    /// Hook.
    pub direction: Direction,
    /// First to last.
    pub members: Vec<ChainMember>,
}

impl Chain {
    /// Place of our program, where it is there.
    pub fn ours(&self) -> Option<usize> {
        self.members.iter().position(|m| m.ours)
    }

    /// What others put there, with its place.
    pub fn foreign(&self) -> impl Iterator<Item = (usize, &ChainMember)> {
        self.members.iter().enumerate().filter(|(_, m)| !m.ours)
    }
}

/// One program or filter of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainMember {
    /// TCX or clsact.
    pub kind: HookKind,
    /// Whether this instance attached it.
    pub ours: bool,
    /// Id of the program; absent where it is a filter without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub program: Option<u32>,
    /// The program's name, or the filter's kind and priority. Absent where naming a program by its id isn't allowed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// What it does to `tc_index`, as far as its instructions tell.
    pub tc_index: TcIndex,
}

impl std::fmt::Display for ChainMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.name, self.program) {
            (Some(name), Some(id)) => write!(f, "{name} (program {id})"),
            (Some(name), None) => f.write_str(name),
            (None, Some(id)) => write!(f, "program {id}"),
            (None, None) => f.write_str("a filter"),
        }
    }
}

/// What a program does to a packet's `tc_index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcIndex {
    /// Nothing.
    Kept,
    /// It can end with TC_ACT_OK, at which the kernel itself writes the class (mostly 0) into `tc_index`.
    Reset,
    /// It has an instruction that stores there.
    Stored,
    /// Its instructions can't be read.
    Untold,
}
