//! What the maps of earlier versions look like, and how their values become today's.
//!
//! Rule: an earlier layout is never written to. A growth carries its contents over, the way it carries over those of maps
//! that have become too small; until then they are read as if they were today's.

use super::abi::{RawConf, RawCounters, RawIfEntry};
use std::mem::offset_of;

/// A stretch of bytes that means the same in both layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    from: usize,
    to: usize,
    length: usize,
}

/// The values of one map of one earlier version. Bytes that it lacks are zero today: what is new must mean by zero what
/// was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Earlier {
    version: u32,
    map: &'static str,
    /// Size of a value then.
    pub(super) from: usize,
    /// Size of a value today.
    to: usize,
    pieces: &'static [Piece],
}

/// Every layout that a released version had, and that isn't today's.
const LAYOUTS: [Earlier; 4] = [
    Earlier { version: 1, map: "conf", from: 32, to: size_of::<RawConf>(), pieces: &[whole(32)] },
    Earlier { version: 1, map: "if2tunkey", from: 56, to: size_of::<RawIfEntry>(), pieces: &[whole(56)] },
    Earlier {
        version: 1,
        map: "counters",
        from: 128,
        to: size_of::<RawCounters>(),
        // Packets and bytes each way, then twelve reasons of drops.
        pieces: &[whole(32), Piece { from: 32, to: offset_of!(RawCounters, drops), length: 96 }],
    },
    Earlier {
        version: 2,
        map: "counters",
        from: 184,
        to: size_of::<RawCounters>(),
        // What is counted without drops; then those, and what paces answers.
        pieces: &[whole(48), Piece { from: 48, to: offset_of!(RawCounters, drops), length: 136 }],
    },
];

/// What lies at the start of both.
const fn whole(length: usize) -> Piece {
    Piece { from: 0, to: 0, length }
}

impl Earlier {
    /// The layout that a map of that version has, where it isn't today's.
    pub(super) fn of(version: u32, map: &str) -> Option<Self> {
        LAYOUTS.into_iter().find(|layout| layout.version == version && layout.map == map)
    }

    /// The value, or the values of all CPUs one after the other, as they are today.
    pub(super) fn translate(&self, values: &[u8]) -> Vec<u8> {
        let mut out = vec![0; values.len() / self.from * self.to];
        for (old, new) in values.chunks_exact(self.from).zip(out.chunks_exact_mut(self.to)) {
            for Piece { from, to, length } in self.pieces {
                if let (Some(old), Some(new)) = (old.get(*from..from + length), new.get_mut(*to..to + length)) {
                    new.copy_from_slice(old);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_within_both_layouts_and_beside_each_other() {
        for Earlier { map, from, to, pieces, .. } in LAYOUTS {
            assert!(from > 0 && from % 8 == 0 && to % 8 == 0, "{map}: values of CPUs lie eight bytes apart");
            assert!(pieces.iter().all(|p| p.from + p.length <= from && p.to + p.length <= to), "{map}");
            assert_eq!(pieces.iter().map(|p| p.length).sum::<usize>(), from, "{map}: something is lost");
            let ends = pieces.iter().map(|p| p.to + p.length);
            assert!(ends.zip(pieces.iter().skip(1)).all(|(end, next)| end <= next.to), "{map}: pieces overlap");
        }
    }

    #[test]
    fn each_value_is_carried_over_and_the_rest_is_zero() {
        const PIECES: [Piece; 2] = [whole(4), Piece { from: 4, to: 12, length: 4 }];
        let layout = Earlier { version: 0, map: "m", from: 8, to: 16, pieces: &PIECES };
        let values: Vec<u8> = (1..=16).collect();
        let expected =
            [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 13, 14, 15, 16];
        assert_eq!(layout.translate(&values), expected);
        assert!(layout.translate(&[]).is_empty());
    }
}
