//! Which mappings the tunnel devices carry instead of the fast lane, and where the fast lane passes by what it shouldn't.

use super::{Facts, Findings, few};
use crate::model::{Desired, Fast};
use crate::plan::lanes::{Lanes, Why};
use std::collections::BTreeMap;

/// What to do about a reason, where it is to be the fast lane.
fn remedy(code: &str) -> &'static str {
    match code {
        "routing-domain" => "give the tunnel a source address outside of the VRF",
        "routing-rule" => {
            "narrow the rule down so that it leaves out the remote, or UDP to the tunnel's port; where the tunnel may take \
             the same route, say `fast: on`"
        }
        "ipsec" => "where the policy isn't meant for tunnels, exempt UDP to their port; where it is, leave it at that",
        "netfilter" => {
            "take the chain's rules and its drop policy away if nobody needs them; where tunnels may pass it by, say \
             `fast: on`"
        }
        "tc-program" => "where it needn't see tunnels, say `fast: on`",
        "underlay-device" => "give the tunnel a source address on an Ethernet device",
        "learned-route" => "set accept_ra to 2 on that link, or declare the default route",
        "unread" => "let the daemon read it (it needs CAP_NET_ADMIN), or say `fast: on`",
        "too-many-tunnels" => "use fewer tunnels on one underlay device",
        _ => "see docs/lanes.md",
    }
}

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    let chosen = reasons(desired, &Lanes::of(desired, &live.observed));
    for ((why, way), mappings) in &chosen {
        // Nobody needs to be told of what the files say, or of what there is no fast lane for.
        if !matches!(why.code.as_ref(), "fast-off" | "kind") {
            let what =
                format!("{}: {way} by the tunnel device, not the fast lane: {}", few(mappings.clone()), why.what);
            out.note(&why.code, None, what, remedy(&why.code));
        }
    }
    // What would be chosen if it weren't asked for.
    let mut unasked = desired.clone();
    unasked.tunnels.values_mut().filter(|t| t.fast == Fast::On).for_each(|t| t.fast = Fast::Auto);
    for ((why, way), mappings) in reasons(&unasked, &Lanes::of(&unasked, &live.observed)) {
        let insisted: Vec<String> = match chosen.get(&(why.clone(), way)) {
            Some(known) => mappings.into_iter().filter(|m| !known.contains(m)).collect(),
            None => mappings,
        };
        if !insisted.is_empty() {
            let what = format!("{}: {way} by the fast lane as `fast: on` says, although {}", few(insisted), why.what);
            out.warning(&why.code, None, what, "say `fast: auto`, unless that is meant");
        }
    }
}

/// Addresses of mappings by the reason for the device lane and the way.
fn reasons(desired: &Desired, lanes: &Lanes<'_>) -> BTreeMap<(Why, &'static str), Vec<String>> {
    let mut reasons: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for mapping in desired.mappings.values() {
        for (way, why) in lanes.of_mapping(mapping).reasons() {
            reasons.entry((why.clone(), way)).or_default().push(mapping.address());
        }
    }
    reasons
}
