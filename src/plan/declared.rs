//! Two desired states against each other: what the files change, whatever is live. For review, where no host can be asked.

use super::views::view;
use super::*;

/// The changes from one desired state to another, as [`super::plan`] would tell them; there are no operations.
pub fn changes(before: &Desired, after: &Desired) -> Vec<Change> {
    let mut out = Vec::new();
    let names = |a: &Desired, b: &Desired, of: fn(&Desired) -> Vec<String>| {
        let all: BTreeSet<String> = of(a).into_iter().chain(of(b)).collect();
        all
    };
    for name in names(before, after, |d| d.tunnels.keys().cloned().collect()) {
        let plain = |t: &Tunnel| Tunnel { origin: Origin::default(), ..t.clone() };
        let (old, new) = (before.tunnels.get(&name), after.tunnels.get(&name));
        if old.map(plain) != new.map(plain) {
            let details = old.zip(new).map(|(old, new)| tunnel_details(old, new)).unwrap_or_default();
            out.extend(device(Object::Tunnel, &name, old.map(|t| &t.origin), new.map(|t| &t.origin), details));
        }
    }
    for name in names(before, after, |d| d.bridges.keys().cloned().collect()) {
        let plain = |b: &Bridge| Bridge { origin: Origin::default(), ..b.clone() };
        let (old, new) = (before.bridges.get(&name), after.bridges.get(&name));
        if old.map(plain) != new.map(plain) {
            let details = old.zip(new).map(|(old, new)| bridge_details(old, new)).unwrap_or_default();
            out.extend(device(Object::Bridge, &name, old.map(|b| &b.origin), new.map(|b| &b.origin), details));
        }
    }
    let mappings = mapping_changes(before, after);
    out.extend(mappings);
    out
}

fn device(
    object: Object,
    name: &str,
    old: Option<&Origin>,
    new: Option<&Origin>,
    details: Vec<String>,
) -> Option<Change> {
    let (action, reason) = kind_of(old.is_some(), new.is_some())?;
    let origin = new.or(old).cloned();
    Some(Change { object, address: name.to_owned(), action, reason, before: None, after: None, details, origin })
}

fn kind_of(old: bool, new: bool) -> Option<(ChangeAction, Reason)> {
    match (old, new) {
        (false, true) => Some((ChangeAction::Create, Reason::Added)),
        (true, false) => Some((ChangeAction::Delete, Reason::Removed)),
        (true, true) => Some((ChangeAction::Update, Reason::Changed)),
        (false, false) => None,
    }
}

fn mapping_changes(before: &Desired, after: &Desired) -> Vec<Change> {
    let interfaces: BTreeSet<&Name> = before.mappings.keys().chain(after.mappings.keys()).collect();
    let mut out: Vec<Change> = Vec::new();
    for interface in interfaces {
        let (old, new) = (before.mappings.get(interface), after.mappings.get(interface));
        let plain = |m: &Mapping| Mapping { origin: Origin::default(), ..m.clone() };
        // What all packets of a tunnel are sent with is each mapping's own.
        let outer = |state: &Desired, m: &Mapping| {
            let tunnel = state.tunnels.get(m.key.tunnel.as_str());
            tunnel.map(|t| (t.ttl, t.tos, t.df, t.checksum, t.kind, t.port, t.mark))
        };
        let same = old.map(plain) == new.map(plain) && old.map(|m| outer(before, m)) == new.map(|m| outer(after, m));
        let Some((action, reason)) = kind_of(old.is_some(), new.is_some()).filter(|_| !same) else { continue };
        let Some(shown) = new.or(old) else { continue };
        let mut details = Vec::new();
        if let Some((old, new)) = old.zip(new) {
            if old.tenant != new.tenant {
                details.push(format!("tenant {} -> {}", old.tenant, new.tenant));
            }
            if old.local != new.local {
                details.push(format!("source {} -> {}", old.local, new.local));
            }
        }
        out.push(Change {
            object: Object::Mapping,
            address: shown.address(),
            action,
            reason,
            before: old.map(view),
            after: new.map(view),
            details,
            origin: Some(shown.origin.clone()),
        });
    }
    out.sort_by(|a, b| a.address.cmp(&b.address));
    out
}

fn tunnel_details(old: &Tunnel, new: &Tunnel) -> Vec<String> {
    let mut out = Vec::new();
    let mut note = |what: &str, old: String, new: String| {
        if old != new {
            out.push(format!("{what} {old} -> {new}"));
        }
    };
    let none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let auto = |value: Option<u32>| value.map_or_else(|| "computed".to_owned(), |v| v.to_string());
    note("kind", old.kind.to_string(), new.kind.to_string());
    note("port", none(old.port.map(|p| p.to_string())), none(new.port.map(|p| p.to_string())));
    note("create", old.create.to_string(), new.create.to_string());
    note("IPv4 source", none(old.local.v4.map(|a| a.to_string())), none(new.local.v4.map(|a| a.to_string())));
    note("IPv6 source", none(old.local.v6.map(|a| a.to_string())), none(new.local.v6.map(|a| a.to_string())));
    note("MTU", auto(old.mtu), auto(new.mtu));
    note("ttl", old.ttl.to_string(), new.ttl.to_string());
    note("tos", old.tos.to_string(), new.tos.to_string());
    note("df", old.df.to_string(), new.df.to_string());
    let usual = |checksum: Option<bool>| checksum.map_or_else(|| "as usual".to_owned(), |c| c.to_string());
    note("checksum", usual(old.checksum), usual(new.checksum));
    note("mark", old.mark.to_string(), new.mark.to_string());
    let fast = |fast: Fast| format!("{fast:?}").to_lowercase();
    note("fast", fast(old.fast), fast(new.fast));
    out
}

fn bridge_details(old: &Bridge, new: &Bridge) -> Vec<String> {
    let mut out = Vec::new();
    if old.tenant != new.tenant {
        out.push(format!("tenant {} -> {}", old.tenant, new.tenant));
    }
    if old.mtu != new.mtu {
        let mtu = |mtu: Option<u32>| mtu.map_or_else(|| "computed".to_owned(), |m| m.to_string());
        out.push(format!("MTU {} -> {}", mtu(old.mtu), mtu(new.mtu)));
    }
    out
}
