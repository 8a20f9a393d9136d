//! Whether what tenants send fits into the underlay's packets.

use super::{Code, Facts, Findings, few};
use crate::plan::room::too_large;

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    for found in too_large(desired, &live.observed) {
        let links = few(found.links.iter().map(|(name, mtu)| format!("{name} (MTU {mtu})")).collect());
        let remedy = match &found.origin {
            Some(origin) => format!("{} ({origin})", found.remedy),
            None => found.remedy,
        };
        out.warning(Code::MtuTooLarge, found.address.as_deref(), format!("{links}: {}", found.why), remedy);
    }
}
