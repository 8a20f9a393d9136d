//! A plan as a unified diff: the live state and the desired one as canonical YAML.
//!
//! *Canonical* means that the same state is the same text: sorted, one line a tunnel, bridge and mapping. What is live has
//! no tenants' names and no origin; those are taken from the files, so that a line differs only where the state does.

use super::Shown;
use crate::model::*;
use crate::plan::{Change, Reason};
use crate::topology::adopt;
use crate::topology::write::{address, flow, scalar, tunnel_fields};
use std::collections::BTreeMap;

/// The diff; empty where both are the same.
pub(in crate::cli) fn plan(shown: &Shown<'_>) -> String {
    let (from, to) = (before(shown), after(shown));
    let node = shown.node.map(|n| format!(" {n}")).unwrap_or_default();
    let old = if shown.observed.is_some() { "live" } else { "declared before" };
    similar::TextDiff::from_lines(from.as_str(), to.as_str())
        .unified_diff()
        .context_radius(3)
        .header(&format!("{old}{node}"), &format!("desired{node}"))
        .to_string()
}

fn before(shown: &Shown<'_>) -> String {
    let Some(observed) = shown.observed else {
        return shown.before.map(|before| write(before, None, &Notes::new())).unwrap_or_default();
    };
    // What no topology would say: an entry of its own kind, a map that lacks one, a program that is gone.
    let drifted = |c: &&Change| c.reason == Reason::Drift && !c.details.is_empty();
    let notes = shown.plan.changes.iter().filter(drifted).map(|c| {
        let interface = c.after.as_ref().or(c.before.as_ref()).map(|view| view.interface.as_str());
        let name = interface.unwrap_or_else(|| c.address.rsplit('/').next().unwrap_or_default());
        (name.to_owned(), format!("drift: {}", c.details.join("; ")))
    });
    write(&live(shown, observed), Some(observed), &notes.collect())
}

fn after(shown: &Shown<'_>) -> String {
    let pending = shown.plan.pending.iter().map(|p| (p.interface.clone(), format!("pending: {}", p.why)));
    write(shown.desired, shown.observed, &pending.collect())
}

/// The live state, with the names that only files know.
fn live(shown: &Shown<'_>, observed: &Observed) -> Desired {
    let mut live = adopt::adopt(observed);
    let states = || [Some(shown.desired), shown.before].into_iter().flatten();
    for mapping in live.mappings.values_mut().filter(|m| m.tenant.is_empty()) {
        let named = states().find_map(|s| s.mappings.get(&mapping.interface));
        let keyed = || states().find_map(|s| s.mappings.values().find(|m| m.key == mapping.key));
        if let Some(known) = named.or_else(keyed) {
            mapping.tenant = known.tenant.clone();
        }
    }
    for tunnel in live.tunnels.values_mut() {
        let Some(known) = states().find_map(|s| s.tunnels.get(&tunnel.name)) else { continue };
        tunnel.fast = known.fast;
        if !live.mappings.values().any(|m| m.key.tunnel == tunnel.name) {
            // Nothing live tells what it would send with.
            (tunnel.ttl, tunnel.tos, tunnel.df, tunnel.checksum) = (known.ttl, known.tos, known.df, known.checksum);
        } else if known.checksum.is_some() && tunnel.checksum.is_none() {
            let families = [tunnel.local.v4.map(std::net::IpAddr::V4), tunnel.local.v6.map(std::net::IpAddr::V6)];
            let same = |source| known.checksum_for(source) == tunnel.checksum_for(source);
            if families.into_iter().flatten().all(same) {
                tunnel.checksum = known.checksum;
            }
        }
    }
    live
}

/// What is said beside a line, by the name of its device.
type Notes = BTreeMap<String, String>;

/// Canonical text.
fn write(state: &Desired, observed: Option<&Observed>, notes: &Notes) -> String {
    let note = |name: &str| notes.get(name).map(|note| format!("  # {}", note.replace('\n', " "))).unwrap_or_default();
    let is_live = state.revision == "live";
    let mut out = String::new();
    let mut section = |name: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            out.push_str(&format!("{name}:\n{}", lines.concat()));
        }
    };
    let tunnels = state.tunnels.values().map(|tunnel| {
        let mut tunnel = tunnel.clone();
        let device = observed.and_then(|o| o.link(&tunnel.name));
        if tunnel.create
            && let Some(observed) = observed
        {
            let asked = crate::plan::tunnel_mtu(observed, &tunnel);
            tunnel.mtu = if is_live { device.map(|d| d.mtu) } else { Some(asked) };
        }
        let missing = if is_live && device.is_none() { "  # no device".to_owned() } else { note(&tunnel.name) };
        format!("  {}: {}{missing}\n", scalar(&tunnel.name), flow(&tunnel_fields(&tunnel)))
    });
    section("tunnels", tunnels.collect());
    let bridges = state
        .bridges
        .values()
        .map(|bridge| format!("  {}: {}\n", scalar(&bridge.name), flow(&[("tenant", scalar(&bridge.tenant))])));
    section("bridges", bridges.collect());
    let mappings = state.mappings.values().map(|mapping| {
        let mut fields = Vec::new();
        if !mapping.tenant.is_empty() {
            fields.push(("tenant", scalar(&mapping.tenant)));
        }
        fields.extend([
            ("interface", scalar(&mapping.interface)),
            ("tunnel", scalar(&mapping.key.tunnel)),
            ("id", mapping.key.id.to_string()),
            ("remote", address(mapping.key.remote)),
            ("from", address(mapping.local)),
            ("attach", mapping.attach.to_string()),
        ]);
        if let Some(port) = &mapping.generated {
            fields.push(("bridge", scalar(&port.bridge)));
            fields.push(("to", scalar(&port.node)));
        }
        format!("  - {}{}\n", flow(&fields), note(&mapping.interface))
    });
    section("mappings", mappings.collect());
    out
}
