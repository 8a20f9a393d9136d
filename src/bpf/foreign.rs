//! What others run beside us: names of their programs, and what those do to `tc_index`.
//!
//! Opening somebody else's program takes CAP_SYS_ADMIN; without it a program stays a number. What is said of `tc_index`
//! is read off the program's instructions as the verifier left them, where a store to `skb->tc_index` is a 16-bit store at
//! a place in the kernel's own structure. Which place, a probe program tells that is loaded and never runs.

use super::sys;
use crate::model::{Direction, TcIndex};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;

/// Place of `tc_index` in `struct __sk_buff`, as programs see it.
const TC_INDEX_OFFSET: i16 = 44;

/// `BPF_STX | BPF_MEM | BPF_H` and `BPF_ST | BPF_MEM | BPF_H`: stores of 16 bits.
const STORES_16: [u8; 2] = [0x6b, 0x6a];
/// `BPF_STX | BPF_MEM | BPF_W`.
const STORE_32: u8 = 0x63;
/// `BPF_ALU64 | BPF_MOV | BPF_K` and `BPF_ALU | BPF_MOV | BPF_K`.
const MOVES: [u8; 2] = [0xb7, 0xb4];
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Source register of a call that leads to a function of the program itself.
const PSEUDO_CALL: u8 = 1;

/// What could be learned of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignProgram {
    /// Name; absent where the program can't be opened by its id.
    pub name: Option<String>,
    /// What it does to `tc_index`.
    pub tc_index: TcIndex,
}

/// Looks at programs by their ids, each once.
#[derive(Debug, Default)]
pub struct ForeignPrograms {
    known: HashMap<u32, ForeignProgram>,
    /// Where this kernel keeps `tc_index`; unknown before the first look.
    place: Option<Option<i16>>,
    /// Why a program could not be opened, the first time that happened.
    refused: Option<io::Error>,
}

impl ForeignPrograms {
    /// Whether a program could not be opened for want of privilege.
    pub fn refused(&self) -> bool {
        self.refused.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
    }

    /// What can be learned of the program with that id.
    pub fn look_at(&mut self, id: u32) -> ForeignProgram {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        let found = self.open(id).unwrap_or_else(|error| {
            self.refused.get_or_insert(error);
            ForeignProgram { name: None, tc_index: TcIndex::Untold }
        });
        self.known.insert(id, found.clone());
        found
    }

    fn open(&mut self, id: u32) -> io::Result<ForeignProgram> {
        let fd = sys::program_by_id(id)?;
        let (name, text) = sys::program_text(fd.as_fd())?;
        let place = *self.place.get_or_insert_with(|| probe().inspect_err(|e| tracing::debug!("{e:#}")).ok());
        Ok(ForeignProgram { name: Some(name).filter(|n| !n.is_empty()), tc_index: effect(&text, place) })
    }
}

/// Ids of the programs on a TCX hook, in order; none where the kernel has no TCX or no such link.
///
/// # Errors
/// What the kernel said.
pub fn tcx_programs(ifindex: u32, direction: Direction) -> Result<Vec<u32>> {
    let chain = super::tcx::chain(ifindex, direction)?;
    Ok(chain.into_iter().map(|(program, _)| program).collect())
}

fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let (o, i) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
    [code, registers, o[0], o[1], i[0], i[1], i[2], i[3]]
}

struct Decoded {
    code: u8,
    dst: u8,
    src: u8,
    offset: i16,
    immediate: i32,
}

impl Decoded {
    fn of(i: &[u8; 8]) -> Self {
        let (low, high) = (i[1] & 15, i[1] >> 4);
        let (dst, src) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        Self {
            code: i[0],
            dst,
            src,
            offset: i16::from_ne_bytes([i[2], i[3]]),
            immediate: i32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        }
    }
}

/// Where this kernel keeps `tc_index`: what becomes of a store to it.
fn probe() -> Result<i16> {
    // r0 = 0; skb->tc_index = r0; return r0
    let program = [
        instruction(MOVES[0], 0, 0, 0, 0),
        instruction(STORE_32, 1, 0, TC_INDEX_OFFSET, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    let fd = sys::load_classifier(&program).context("load a probe for the place of tc_index")?;
    let (_, text) = sys::program_text(fd.as_fd()).context("read the probe back")?;
    let store = text.iter().map(Decoded::of).find(|i| STORES_16.contains(&i.code) && i.dst == 1);
    store.map(|i| i.offset).context("the kernel stores tc_index in another way than this version knows")
}

/// What the instructions do to `tc_index`.
fn effect(text: &[[u8; 8]], place: Option<i16>) -> TcIndex {
    let text: Vec<Decoded> = text.iter().map(Decoded::of).collect();
    let Some(place) = place.filter(|_| !text.is_empty()) else { return TcIndex::Untold };
    const STACK: u8 = 10;
    if text.iter().any(|i| STORES_16.contains(&i.code) && i.offset == place && i.dst != STACK) {
        return TcIndex::Stored;
    }
    // Functions stand behind the program itself; what they return isn't the verdict.
    let functions = text.iter().enumerate().filter(|(_, i)| i.code == CALL && i.src == PSEUDO_CALL);
    let targets = functions.filter_map(|(at, i)| at.checked_add_signed(i.immediate as isize + 1));
    let main = targets.min().unwrap_or(text.len()).min(text.len());
    let ends = |mut at: usize| {
        // A jump or two may lie between the verdict and the end.
        for _ in 0..4 {
            match text.get(at) {
                Some(i) if i.code == EXIT => return true,
                Some(i) if i.code == JUMP => {
                    let Some(next) = at.checked_add_signed(isize::from(i.offset) + 1) else { return false };
                    at = next;
                }
                _ => return false,
            }
        }
        false
    };
    let zero = |i: &Decoded| MOVES.contains(&i.code) && i.dst == 0 && i.immediate == 0;
    if text[..main].iter().enumerate().any(|(at, i)| zero(i) && ends(at + 1)) { TcIndex::Reset } else { TcIndex::Kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: i16 = 126;

    fn exit() -> [u8; 8] {
        instruction(EXIT, 0, 0, 0, 0)
    }

    fn verdict(value: i32) -> [u8; 8] {
        instruction(MOVES[1], 0, 0, 0, value)
    }

    #[test]
    fn stores_resets_and_neither_are_told_apart() {
        let store = instruction(STORES_16[0], 6, 1, PLACE, 0);
        assert_eq!(effect(&[store, verdict(-1), exit()], Some(PLACE)), TcIndex::Stored);
        let on_stack = instruction(STORES_16[0], 10, 1, PLACE, 0);
        assert_eq!(effect(&[on_stack, verdict(-1), exit()], Some(PLACE)), TcIndex::Kept);
        assert_eq!(effect(&[verdict(0), exit()], Some(PLACE)), TcIndex::Reset);
        let jumps = [verdict(0), instruction(JUMP, 0, 0, 1, 0), verdict(-1), exit()];
        assert_eq!(effect(&jumps, Some(PLACE)), TcIndex::Reset);
        assert_eq!(effect(&[verdict(0), verdict(-1), exit()], Some(PLACE)), TcIndex::Kept);
    }

    #[test]
    fn what_a_function_returns_is_no_verdict() {
        let call = instruction(CALL, 0, PSEUDO_CALL, 0, 2);
        assert_eq!(effect(&[call, verdict(-1), exit(), verdict(0), exit()], Some(PLACE)), TcIndex::Kept);
    }

    #[test]
    fn what_cannot_be_read_is_not_guessed() {
        assert_eq!(effect(&[], Some(PLACE)), TcIndex::Untold);
        assert_eq!(effect(&[verdict(0), exit()], None), TcIndex::Untold);
    }
}
