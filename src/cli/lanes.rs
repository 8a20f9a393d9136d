//! Which lane mappings take, in words, with one line for all that have the same reason.

use crate::model::{Desired, Observed};
use crate::plan::lanes::{Lanes, MappingLanes, Why};
use serde::Serialize;
use std::collections::BTreeMap;

/// Mappings that a line names before it only counts.
const NAMED: usize = 5;

/// A mapping's lanes, as a plan's JSON has them.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    pub(super) address: String,
    #[serde(flatten)]
    pub(super) lanes: MappingLanes,
}

/// The lanes of every mapping of a state.
pub(super) fn told(desired: &Desired, observed: &Observed) -> Vec<Told> {
    let lanes = Lanes::of(desired, observed);
    desired.mappings.values().map(|m| Told { address: m.address(), lanes: lanes.of_mapping(m) }).collect()
}

/// How many are fast; then, for each reason and way, who isn't and why.
pub(super) fn lines<'a>(all: impl Iterator<Item = (&'a str, &'a MappingLanes)>) -> (String, Vec<String>) {
    let mut counts = [(0, "fast"), (0, "one way only"), (0, "by the tunnel device")];
    let mut reasons: BTreeMap<(&Why, &str), Vec<&str>> = BTreeMap::new();
    for (address, lanes) in all {
        let slow = [&lanes.sent_by_device, &lanes.received_by_device].into_iter().flatten().count();
        counts[slow].0 += 1;
        for (way, why) in lanes.reasons() {
            reasons.entry((why, way)).or_default().push(address);
        }
    }
    let some: Vec<String> =
        counts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
    let line = |((why, way), addresses): ((&Why, &str), Vec<&str>)| {
        let more = match addresses.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named: Vec<&str> = addresses.into_iter().take(NAMED).collect();
        format!("{}{more}: {way} by the tunnel device: {}", named.join(", "), why.what)
    };
    (some.join(", "), reasons.into_iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_line_for_one_reason() {
        let why = Why { code: "kind".into(), what: "so".into() };
        let slow = MappingLanes { sent_by_device: Some(why.clone()), received_by_device: Some(why.clone()) };
        let half = MappingLanes { received_by_device: Some(why), ..MappingLanes::default() };
        let names: Vec<String> = (0..8).map(|n| format!("red/{n}")).collect();
        let all = names.iter().map(|n| (n.as_str(), if n == "red/7" { &half } else { &slow }));
        let (summary, told) = lines(all);
        assert_eq!(summary, "1 one way only, 7 by the tunnel device");
        let expected = [
            "red/7: received by the tunnel device: so",
            "red/0, red/1, red/2, red/3, red/4 and 2 more: sent and received by the tunnel device: so",
        ];
        assert_eq!(told, expected);
        let fast = MappingLanes::default();
        assert_eq!(lines([("a", &fast), ("b", &slow)].into_iter()).0, "1 fast, 1 by the tunnel device");
        assert_eq!(lines([("a", &fast)].into_iter()), ("1 fast".to_owned(), vec![]));
    }
}
