//! Which mappings the tunnel devices carry instead of the fast lane, and where the fast lane passes by what it shouldn't.

use super::{Facts, Findings, few};
use crate::model::{Desired, Fast, LaneReason};
use crate::plan::lanes::{Lanes, Why};
use std::collections::BTreeMap;

/// What to do about a reason, where it is to be the fast lane.
fn remedy(reason: LaneReason) -> &'static str {
    match reason {
        LaneReason::RoutingDomain => "give the tunnel a source address outside of the VRF",
        LaneReason::RoutingRule => {
            "narrow the rule down so that it leaves out the remote, or UDP to the tunnel's port; where the tunnel may take \
             the same route, say `fast: on`"
        }
        LaneReason::Ipsec => {
            "where the policy isn't meant for tunnels, exempt UDP to their port; where it is, leave it at that"
        }
        LaneReason::Netfilter => {
            "take the chain's rules and its drop policy away if nobody needs them; where tunnels may pass it by, say \
             `fast: on`"
        }
        LaneReason::TcProgram => "where it needn't see tunnels, say `fast: on`",
        LaneReason::UnderlayDevice => "give the tunnel a source address on an Ethernet device",
        LaneReason::LearnedRoute => "set accept_ra to 2 on that link, or declare the default route",
        LaneReason::Unread => "let the daemon read it (it needs CAP_NET_ADMIN), or say `fast: on`",
        LaneReason::TooManyTunnels => "use fewer tunnels on one underlay device",
        LaneReason::NoSourceAddress => "give the tunnel a source address of that family that this host has",
        LaneReason::Checksum => "where the remotes take UDP without a checksum, say `checksum: false`",
        LaneReason::Forwarding => {
            "let tunnel-mesh make the device (`create: true`), or set net.ipv4.conf.DEVICE.forwarding (or ipv6) to 1"
        }
        LaneReason::FastOff => "leave `fast: off` out",
        LaneReason::Kind => "use VXLAN or Geneve",
    }
}

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    let chosen = reasons(desired, &Lanes::of(desired, &live.observed));
    for ((why, way), mappings) in &chosen {
        let Some(reason) = why.reason().filter(|reason| reason.is_finding()) else { continue };
        let what = format!("{}: {way} by the tunnel device, not the fast lane: {}", few(mappings.clone()), why.what);
        out.note(reason, None, what, remedy(reason));
    }
    // What would be chosen if it weren't asked for.
    let mut unasked = desired.clone();
    unasked.tunnels.values_mut().filter(|t| t.fast == Fast::On).for_each(|t| t.fast = Fast::Auto);
    for ((why, way), mappings) in reasons(&unasked, &Lanes::of(&unasked, &live.observed)) {
        let insisted: Vec<String> = match chosen.get(&(why.clone(), way)) {
            Some(known) => mappings.into_iter().filter(|m| !known.contains(m)).collect(),
            None => mappings,
        };
        if let Some(reason) = why.reason().filter(|_| !insisted.is_empty()) {
            let what = format!("{}: {way} by the fast lane as `fast: on` says, although {}", few(insisted), why.what);
            out.warning(reason, None, what, "say `fast: auto`, unless that is meant");
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
