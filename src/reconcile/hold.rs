//! What stays in force although the files no longer have it. Pure.

use crate::model::{Desired, Mapping};
use std::collections::BTreeSet;

/// The new state, with those mappings of the accepted one kept whose interfaces are named, and with the tunnels and
/// bridges that they need.
///
/// A mapping is not kept where the new state gives its interface or its key to another one. A bridge stays with the tenant
/// whose ports are kept in it: what another tenant is to have there waits, or the two would share a segment.
pub fn keep(accepted: &Desired, new: &Desired, interfaces: &BTreeSet<String>) -> Desired {
    let mut out = new.clone();
    let keys: BTreeSet<_> = new.mappings.values().map(|m| m.key.clone()).collect();
    for interface in interfaces {
        let Some(mapping) = accepted.mappings.get(interface.as_str()) else { continue };
        if out.mappings.contains_key(interface.as_str()) || keys.contains(&mapping.key) {
            continue;
        }
        if let Some(tunnel) = accepted.tunnels.get(mapping.key.tunnel.as_str()) {
            out.tunnels.entry(tunnel.name.clone()).or_insert_with(|| tunnel.clone());
        }
        if let Some(bridge) = mapping.generated.as_ref().and_then(|g| accepted.bridges.get(&g.bridge)) {
            let there = out.bridges.entry(bridge.name.clone()).or_insert_with(|| bridge.clone());
            if there.tenant != bridge.tenant {
                *there = bridge.clone();
                let waits = |m: &Mapping| {
                    m.generated.as_ref().is_some_and(|g| g.bridge == bridge.name) && m.tenant != bridge.tenant
                };
                out.mappings.retain(|_, m| !waits(m));
            }
        }
        out.mappings.insert(mapping.interface.clone(), mapping.clone());
    }
    out
}
