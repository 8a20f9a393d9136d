//! From what the files say to what is to be in force: the deletion guard and the delay of removals. Pure.

use super::hold;
use crate::model::{Desired, Intent};
use crate::topology::guard;
use std::collections::BTreeSet;

/// How removals are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removals {
    /// Releases what the guard would hold.
    pub allow: bool,
    /// Keeps what goes until the directory was seen unchanged once more.
    pub delay: bool,
}

/// Compares the files' new state with the accepted one.
///
/// What was held stays held as long as the files don't have it, whatever else they change: mappings that come
/// meanwhile don't make the share smaller.
pub fn intend(accepted: Option<&Intent>, new: Desired, removals: Removals) -> Intent {
    let Some(Intent { desired: accepted, held: held_before, .. }) = accepted else {
        return Intent { desired: new, ..Intent::default() };
    };
    let verdict = guard::check(accepted, &new);
    let removed: BTreeSet<String> = verdict.removed.into_iter().collect();
    let held: BTreeSet<String> = match (removals.allow, verdict.held) {
        (true, _) => BTreeSet::new(),
        (false, true) => removed.clone(),
        (false, false) => removed.intersection(held_before).cloned().collect(),
    };
    let delayed: BTreeSet<String> =
        if removals.delay { removed.difference(&held).cloned().collect() } else { BTreeSet::new() };
    let kept: BTreeSet<String> = held.union(&delayed).cloned().collect();
    if kept.is_empty() {
        return Intent { desired: new, held, delayed };
    }
    Intent { desired: hold::keep(accepted, &new, &kept), held, delayed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attach, Mapping, Origin, TunnelKey};
    use std::net::{IpAddr, Ipv4Addr};
    use std::ops::Range;

    const ONE_PASS: Removals = Removals { allow: false, delay: false };
    const FREED: Removals = Removals { allow: true, delay: false };

    fn state(numbers: Range<u32>) -> Desired {
        let mapping = |n| Mapping {
            tenant: "red".to_owned(),
            interface: format!("eth{n}"),
            key: TunnelKey { tunnel: "vxlan0".to_owned(), id: n, remote: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)) },
            local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            attach: Attach::Port,
            generated: None,
            origin: Origin::default(),
        };
        let mappings = numbers.map(|n| (format!("eth{n}"), mapping(n))).collect();
        Desired { mappings, ..Desired::default() }
    }

    #[test]
    fn what_is_held_stays_held_when_others_come() {
        let accepted = Intent { desired: state(0..30), ..Intent::default() };
        let held = intend(Some(&accepted), state(12..30), ONE_PASS);
        assert_eq!((held.held.len(), held.desired.mappings.len()), (12, 30));
        // 12 of 30 were too many; 12 of 130 would not be.
        let grown = intend(Some(&held), state(12..130), ONE_PASS);
        assert_eq!(grown.held, held.held);
        let again = intend(Some(&grown), state(12..130), ONE_PASS);
        assert_eq!((&again.held, again.desired.mappings.len()), (&held.held, 130));
        // A single one that goes now goes, the others stay held.
        let fewer = intend(Some(&again), state(13..130), ONE_PASS);
        assert_eq!(fewer.held, held.held);
        let fewer = intend(Some(&again), state(12..129), ONE_PASS);
        assert_eq!((&fewer.held, fewer.desired.mappings.contains_key("eth129")), (&held.held, false));
        let freed = intend(Some(&again), state(12..130), FREED);
        assert_eq!((freed.held.len(), freed.desired.mappings.len()), (0, 118));
    }

    #[test]
    fn what_comes_back_is_not_held_any_more() {
        let accepted = Intent { desired: state(0..12), ..Intent::default() };
        let held = intend(Some(&accepted), state(0..1), ONE_PASS);
        assert_eq!(held.held.len(), 11);
        let back = intend(Some(&held), state(0..12), ONE_PASS);
        assert_eq!(back.held, BTreeSet::new());
        assert_eq!(back.desired, accepted.desired);
    }

    #[test]
    fn the_last_one_stays_held_when_another_comes() {
        let accepted = Intent { desired: state(0..1), ..Intent::default() };
        let held = intend(Some(&accepted), state(1..2), Removals { allow: false, delay: true });
        assert_eq!(held.held.len(), 1);
        let again = intend(Some(&held), state(1..2), ONE_PASS);
        assert_eq!(again.held, held.held);
    }
}
