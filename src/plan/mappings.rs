//! Map entries: desired against live, as inserts, in-place updates and deletes.

use super::builder::{Builder, Phase, PlannedMapping};
use super::live::{ByKey, Slots};
use super::views::{differences, kind, live_key_view, live_view, name_of, view};
use super::*;
use std::collections::HashMap;

/// Smallest capacity that maps are made with.
const SMALLEST_CAPACITY: u32 = 256;

/// Slots of the maps that are made for so many mappings: room for as many again, which also keeps the buckets of the hashes
/// short.
pub fn slots_for(mappings: u32) -> u32 {
    power_of_two(mappings.saturating_mul(2).saturating_add(FIRST_MAPPING_SLOT)).max(SMALLEST_CAPACITY)
}

/// The next one, up to the limit.
fn power_of_two(slots: u32) -> u32 {
    slots.checked_next_power_of_two().map_or(SLOT_LIMIT, |slots| slots.min(SLOT_LIMIT))
}

/// The key of a mapping in `tunkey2if`.
pub(super) fn key_of(mapping: &Mapping, tunnel: u32) -> TunKey {
    TunKey { tunnel, id: mapping.key.id, remote: mapping.key.remote }
}

/// Whether a mapping of the files speaks of that live key.
fn has_key(b: &Builder<'_>, mapping: &Mapping, key: TunKey) -> bool {
    mapping.key.id == key.id
        && mapping.key.remote == key.remote
        && b.tunnels.get(mapping.key.tunnel.as_str()).map_or_else(
            || b.live.conf.get(&key.tunnel).is_some_and(|c| mapping.key.tunnel == c.name),
            |t| t.index == key.tunnel,
        )
}

/// The mapping that a live entry stands for, and whether the new state still has it: by the name of its interface, else
/// by its key, in the new state and in the accepted one.
fn meant_by<'b>(b: &Builder<'b>, ifindex: Option<u32>, key: TunKey) -> Option<(&'b Mapping, bool)> {
    let name = ifindex.and_then(|i| b.links.indexed(i)).map(|l| l.name.as_str());
    let named = |desired: &'b Desired| name.and_then(|n| desired.mappings.get(n));
    let keyed = |by_key: &ByKey<'b>, desired: &'b Desired| by_key.of(desired, key).find(|m| has_key(b, m, key));
    let accepted = b.input.accepted;
    // Whose interface is another one and as it should be isn't meant: somebody used his key.
    let strays = |m: &Mapping| {
        let elsewhere = b.links.named(&m.interface).is_some_and(|l| Some(l.ifindex) != ifindex);
        ifindex.is_some() && elsewhere && !b.has_change(Object::Mapping, &m.address())
    };
    named(b.input.desired)
        .map(|m| (m, true))
        .or_else(|| accepted.and_then(named).map(|m| (m, false)))
        .or_else(|| keyed(&b.keyed[0], b.input.desired).filter(|m| !strays(m)).map(|m| (m, true)))
        .or_else(|| accepted.and_then(|a| keyed(&b.keyed[1], a).filter(|m| !strays(m))).map(|m| (m, false)))
}

/// Address of the change that a live entry of `if2tunkey` belongs to.
pub(super) fn address_of(b: &Builder<'_>, ifindex: u32, entry: &IfEntry) -> String {
    meant_by(b, Some(ifindex), entry.key).map_or_else(|| live_view(b, ifindex, entry).interface, |(m, _)| m.address())
}

/// Creates the maps, or grows them when the new entries don't fit beside the live ones.
pub(super) fn capacity(b: &mut Builder<'_>) {
    if b.mappings.is_empty() && b.tunnels.is_empty() && !b.live.present {
        return;
    }
    let slots = b.mappings.iter().map(|m| m.slot + 1).max().unwrap_or(FIRST_MAPPING_SLOT);
    // Entries come before those that they replace go: a mapping with another key needs room for both.
    let new_keys = b.mappings.iter().filter(|m| {
        let tunnel = b.tunnels.get(m.mapping.key.tunnel.as_str());
        tunnel.is_some_and(|t| b.live.key(&key_of(m.mapping, t.index), m.slot).is_none())
    });
    let new_ifs = b.mappings.iter().filter(|m| m.ifindex.is_none_or(|i| b.live.ifs.get(i).is_none()));
    let keys = b.live.keys.len() + new_keys.count();
    let ifs = b.live.ifs.len() + new_ifs.count();
    let peak = slots.max(keys as u32).max(ifs as u32);
    let roomy = slots_for(b.mappings.len() as u32).max(power_of_two(peak));
    if !b.live.present {
        let capacity = roomy;
        b.operation(Phase::Maps, DATA_PLANE, Step::CreateMaps { capacity });
        let detail = format!("create maps for {} mappings", capacity - FIRST_MAPPING_SLOT);
        // Programs on the old maps go on until each is replaced, which is after the new maps have been filled.
        let (reason, detail) = match &b.input.observed.outdated_maps {
            None => (Reason::Added, detail),
            Some(why) => (Reason::Upgrade, format!("{detail}: {why}; counters start anew")),
        };
        b.device_change(Object::DataPlane, DATA_PLANE, ChangeAction::Create, reason, detail);
        return;
    }
    // Maps of an earlier layout are carried over by what carries them over into larger ones.
    let outdated = b.input.observed.outdated_maps.as_ref();
    let (from, short) = (b.live.capacity, peak > b.live.capacity);
    let to = if short { roomy.max(from.saturating_mul(2)).min(SLOT_LIMIT) } else { from };
    if let Some(why) = outdated {
        let detail = format!("carry entries and counters over to the layout of this version: {why}");
        b.device_change(Object::DataPlane, DATA_PLANE, ChangeAction::Update, Reason::Upgrade, detail);
    }
    if short {
        let slots = |capacity: u32| capacity.saturating_sub(FIRST_MAPPING_SLOT);
        let detail = format!("grow maps from {} to {} mappings", slots(from), slots(to));
        b.device_change(Object::DataPlane, DATA_PLANE, ChangeAction::Update, Reason::Added, detail);
    }
    if short || outdated.is_some() {
        b.growing = true;
        b.operation(Phase::Maps, DATA_PLANE, Step::GrowMaps { from, to });
    }
}

/// An index of `conf` as it should be, with its place in `devs`.
struct Wanted<'a> {
    index: u32,
    name: &'a str,
    link: Option<LinkRef>,
    mark: u16,
    role: Role,
    way: Way,
    without_device: bool,
}

impl Wanted<'_> {
    /// Whether the entry of `conf` is right, and that of `devs`.
    fn same(&self, live: Option<&Conf>, dev: Option<u32>) -> (bool, bool) {
        let ifindex = self.link.as_ref().map_or(Some(0), |l| l.ifindex);
        let same_conf = live.is_some_and(|c| {
            (Some(c.ifindex), c.name.as_str(), c.mark) == (ifindex, self.name, self.mark)
                && (&c.role, c.way) == (&self.role, self.way)
        });
        let same_dev = match &self.link {
            Some(link) => link.ifindex.is_some() && dev == link.ifindex,
            None => dev.is_none(),
        };
        (same_conf, same_dev)
    }

    /// The target before the entry that makes it used; on the way out the other way round.
    fn write(self, b: &mut Builder<'_>, (same_conf, same_dev): (bool, bool), dev: Option<u32>) {
        let Self { index, name, link, mark, role, way, without_device } = self;
        match &link {
            Some(link) if !same_dev => {
                b.operation(Phase::TunnelTargets, name, Step::SetDev { slot: index, link: link.clone() });
            }
            None if dev.is_some() => b.operation(Phase::DropTargets, name, Step::ClearDev { slot: index }),
            _ => {}
        }
        if !same_conf {
            let step = Step::SetConf { index, name: name.to_owned(), link, mark, role, way, without_device };
            b.operation(Phase::Tunnels, name, step);
        }
    }
}

/// Whether an entry of `conf` names a device that isn't there any more.
fn is_gone(b: &Builder<'_>, device: Option<u32>) -> bool {
    device.is_some_and(|ifindex| b.links.indexed(ifindex).is_none())
}

/// "packets of 1450 over IPv4 by eth0, packets of 1430 over IPv6"
fn in_words(b: &Builder<'_>, way: Way) -> String {
    let known = [(way.v4, way.ethernet4, "IPv4"), (way.v6, way.ethernet6, "IPv6")];
    let known = known.into_iter().filter_map(|(room, device, family)| {
        let by = device.map_or_else(String::new, |ifindex| format!(" by {}", name_of(b, ifindex)));
        Some(format!("packets of {} over {family}{by}", room?))
    });
    match known.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "nothing is known of it".to_owned(),
        some => some,
    }
}

/// `conf` and the tunnels' own entries of `devs`.
pub(super) fn conf(b: &mut Builder<'_>) {
    let tunnels = b.tunnels.clone();
    for (name, planned) in &tunnels {
        let Some(tunnel) = b.input.desired.tunnels.get(*name) else { continue };
        let live = b.live.conf.get(&planned.index).cloned();
        let dev = b.live.devs.get(planned.index);
        let ifindex = planned.link.as_ref().map_or(Some(0), |l| l.ifindex);
        let role = Role::Tunnel(planned.decap);
        let wanted = Wanted {
            index: planned.index,
            name,
            link: planned.link.clone(),
            mark: tunnel.mark,
            role: role.clone(),
            way: planned.way,
            without_device: live.as_ref().is_none_or(|c| c.ifindex != 0),
        };
        let (same_conf, same_dev) = wanted.same(live.as_ref(), dev);
        if same_conf && same_dev {
            continue;
        }
        let (action, detail) = match &live {
            None => (ChangeAction::Create, format!("tunnel index {}", planned.index)),
            Some(c) if Some(c.ifindex) != ifindex || !same_dev => (
                ChangeAction::Update,
                match &planned.link {
                    Some(link) if Some(c.ifindex) != ifindex && c.ifindex != 0 => {
                        format!("device is {link}, conf has {}", name_of(b, c.ifindex))
                    }
                    Some(link) => match dev.filter(|d| Some(*d) != ifindex) {
                        Some(other) => format!("device is {link}, devs has {}", name_of(b, other)),
                        None => format!("device is {link}"),
                    },
                    None => "device is gone".to_owned(),
                },
            ),
            Some(c) if c.mark != tunnel.mark => (ChangeAction::Update, format!("mark {} -> {}", c.mark, tunnel.mark)),
            Some(c) if c.role == role => {
                (ChangeAction::Update, format!("the way to its remotes: {}", in_words(b, planned.way)))
            }
            Some(_) => {
                let by = if planned.decap.is_some() { "its underlay device" } else { "its own device" };
                (ChangeAction::Update, format!("decapsulated on {by}"))
            }
        };
        let reason = match &live {
            None if b.live.present && b.tunnel_unchanged(name) => Reason::Drift,
            None => Reason::Added,
            Some(_) if !b.tunnel_unchanged(name) => Reason::Changed,
            Some(_) if planned.link.is_none() => Reason::InterfaceGone,
            // An earlier version knew less of it.
            Some(c) if c.way != planned.way && b.input.observed.outdated_maps.is_some() => Reason::Upgrade,
            Some(c) if is_gone(b, c.way.ethernet4) || is_gone(b, c.way.ethernet6) => Reason::InterfaceRecreated,
            // Of a device that was recreated or is new, the kernel has emptied `devs`.
            Some(_) if same_dev => Reason::Drift,
            Some(c) if Some(c.ifindex) != ifindex && c.ifindex == 0 => Reason::InterfaceAppeared,
            Some(c) if Some(c.ifindex) != ifindex => Reason::InterfaceRecreated,
            Some(_) => Reason::Drift,
        };
        b.device_change(Object::Tunnel, name, action, reason, detail);
        wanted.write(b, (same_conf, same_dev), dev);
    }
    underlays(b);
    let mut used: BTreeSet<u32> = tunnels.values().map(|t| t.index).collect();
    used.extend(b.underlays.values().map(|u| u.index));
    for (index, conf) in b.live.conf.clone() {
        if used.contains(&index) {
            continue;
        }
        if let Role::Underlay(_) = conf.role {
            let detail = "no tunnel is decapsulated on it any more".to_owned();
            let reason = if b.links.indexed(conf.ifindex).is_some() { Reason::Changed } else { Reason::InterfaceGone };
            b.device_change(Object::Underlay, &conf.name, ChangeAction::Delete, reason, detail);
            b.operation(Phase::DropTargets, &conf.name, Step::ClearConf { index });
            continue;
        }
        let detail = format!("release tunnel index {index}");
        if b.input.desired.tunnels.contains_key(&conf.name) {
            let detail = format!("{detail}, a second one of {}", conf.name);
            b.device_change(Object::Tunnel, &conf.name, ChangeAction::Update, Reason::Drift, detail);
            b.operation(Phase::DropTargets, &conf.name, Step::ClearConf { index });
            continue;
        }
        let reason = match b.input.accepted {
            Some(a) if a.tunnels.contains_key(&conf.name) => Reason::Removed,
            Some(_) => Reason::Drift,
            None => Reason::Removed,
        };
        b.device_change(Object::Tunnel, &conf.name, ChangeAction::Delete, reason, detail);
        b.operation(Phase::DropTargets, &conf.name, Step::ClearConf { index });
    }
    let live_devs: Vec<u32> = b.live.devs.keys().filter(|s| *s < TUNNEL_INDEXES && !used.contains(s)).collect();
    for slot in live_devs {
        let name = b.live.tunnel_name(slot);
        b.operation(Phase::DropTargets, &name, Step::ClearDev { slot });
    }
}

/// The devices that carry tunnels: their entries of `conf` and of `devs`.
fn underlays(b: &mut Builder<'_>) {
    for (name, planned) in b.underlays.clone() {
        let (ifindex, index) = (planned.link.ifindex, planned.index);
        let role = Role::Underlay(planned.ports);
        let (live, dev) = (b.live.conf.get(&index).cloned(), b.live.devs.get(index));
        let wanted = Wanted {
            index,
            name,
            link: Some(LinkRef::of(planned.link)),
            mark: 0,
            role: role.clone(),
            way: Way::default(),
            without_device: false,
        };
        let (same_conf, same_dev) = wanted.same(live.as_ref(), dev);
        if same_conf && same_dev {
            continue;
        }
        let (action, reason) = match &live {
            None => (ChangeAction::Create, Reason::Added),
            Some(c) if c.ifindex != ifindex => (ChangeAction::Update, Reason::InterfaceRecreated),
            Some(c) if c.role != role => (ChangeAction::Update, Reason::Changed),
            Some(_) => (ChangeAction::Update, Reason::Drift),
        };
        let detail = format!("tunnels are decapsulated on {name}");
        b.device_change(Object::Underlay, name, action, reason, detail);
        wanted.write(b, (same_conf, same_dev), dev);
    }
}

/// Both hashes and the mappings' entries of `devs`.
pub(super) fn entries(b: &mut Builder<'_>) {
    let planned = std::mem::take(&mut b.mappings);
    // Which of the live keys are wanted, by their place.
    let mut wanted_keys = vec![false; b.live.keys.len()];
    let mut wanted_ifs = Slots::default();
    let mut wanted_slots = Slots::default();
    for p in &planned {
        let Some(tunnel) = b.tunnels.get(p.mapping.key.tunnel.as_str()).map(|t| t.index) else { continue };
        wanted_slots.insert(p.slot);
        if let Some(ifindex) = p.ifindex {
            wanted_ifs.insert(ifindex);
        }
        if let Some(place) = upsert(b, p, tunnel) {
            wanted_keys[place] = true;
        }
    }
    let stale_ifs: Vec<(u32, IfEntry)> = b.live.ifs.iter().filter(|(i, _)| !wanted_ifs.contains(*i)).collect();
    for (ifindex, entry) in stale_ifs {
        let address = address_of(b, ifindex, &entry);
        let before = live_view(b, ifindex, &entry);
        note_delete(b, &address, Some(ifindex), entry.key, before);
        let link = b.links.indexed(ifindex).map_or_else(|| LinkRef::gone(ifindex), LinkRef::of);
        b.operation(Phase::StopSending, &address, Step::DeleteIf { link, slot: entry.slot });
    }
    let stale_keys: Vec<(TunKey, SlotRef)> =
        b.live.keys.iter().zip(wanted_keys).filter(|(_, wanted)| !wanted).map(|(entry, _)| entry).collect();
    let holders: HashMap<u32, &Mapping> = match stale_keys.as_slice() {
        [] => HashMap::new(),
        _ => planned.iter().filter_map(|p| Some((p.ifindex?, p.mapping))).collect(),
    };
    for (key, value) in stale_keys {
        // A key that its interface leaves for another one belongs to that interface's change.
        let holder = b.live.devs.get(value.slot);
        let rekeyed = holder.and_then(|i| holders.get(&i)).map(|m| m.address());
        let address = rekeyed.clone().unwrap_or_else(|| {
            meant_by(b, holder, key).map_or_else(|| live_key_view(b, key, value).interface, |(m, _)| m.address())
        });
        if rekeyed.is_none() {
            let before = live_key_view(b, key, value);
            note_delete(b, &address, holder, key, before);
        } else if !has_change(b, &address) {
            note_stray_key(b, &address, key);
        }
        b.operation(Phase::StopReceiving, &address, Step::DeleteTunkey { key, slot: value.slot });
    }
    let stale_devs: Vec<u32> =
        b.live.devs.keys().filter(|s| *s >= FIRST_MAPPING_SLOT && !wanted_slots.contains(*s)).collect();
    for slot in stale_devs {
        let holder = b.live.devs.get(slot);
        let entry = holder.and_then(|i| b.live.ifs.get(i).map(|e| (i, e)));
        let address = entry.map_or_else(|| format!("slot {slot}"), |(i, e)| address_of(b, i, &e));
        if entry.is_none() && !has_change(b, &address) {
            let holder = holder.map_or_else(|| "nothing".to_owned(), |i| name_of(b, i));
            drift_only(b, &address, format!("slot {slot} of devs holds {holder}, which no entry uses"));
        }
        b.operation(Phase::DropTargets, &address, Step::ClearDev { slot });
    }
    b.mappings = planned;
}

/// Writes what a mapping lacks. Returns the place of its key among the live ones.
fn upsert(b: &mut Builder<'_>, p: &PlannedMapping<'_>, index: u32) -> Option<usize> {
    let mapping = p.mapping;
    let tunnel = b.input.desired.tunnels.get(mapping.key.tunnel.as_str())?;
    let key = key_of(mapping, index);
    let endpoint = mapping.attach == Attach::Endpoint;
    let slot_ref = SlotRef { slot: p.slot, endpoint, valid: true };
    let entry = IfEntry {
        slot: p.slot,
        endpoint,
        key,
        local: mapping.local,
        ttl: tunnel.ttl,
        tos: tunnel.tos,
        df: tunnel.df,
        checksum: tunnel.checksum_for(mapping.key.remote),
        fast: p.fast,
        valid: true,
    };
    let live_if = p.ifindex.and_then(|i| b.live.ifs.get(i));
    let (place, live_key) = b.live.key(&key, p.slot).unzip();
    let dev = b.live.devs.get(p.slot);
    let (same_if, same_key) = (live_if == Some(entry), live_key == Some(slot_ref));
    let same_dev = p.ifindex.is_some() && dev == p.ifindex;
    if same_if && same_key && same_dev {
        return place;
    }
    let address = mapping.address();
    let before = match (p.ifindex, &live_if) {
        (Some(ifindex), Some(e)) => Some(live_view(b, ifindex, e)),
        _ => live_key.map(|v| live_key_view(b, key, v)),
    };
    let action = if live_if.is_none() && live_key.is_none() { ChangeAction::Create } else { ChangeAction::Update };
    let reason = reason_for(b, p, live_if.is_some());
    let details = if reason == Reason::Drift && p.ifindex.is_none() {
        vec![format!("make the port {} again: it is missing", mapping.interface)]
    } else if reason == Reason::Drift || before == Some(view(mapping)) {
        let mut details = differences(live_if.as_ref(), &entry);
        if !same_key {
            details.push(match live_key {
                None => "tunkey2if entry is missing".to_owned(),
                Some(value) if !value.valid => "tunkey2if entry with a wrong check".to_owned(),
                Some(value) => format!("tunkey2if entry leads to slot {}, {}", value.slot, kind(value.endpoint)),
            });
        }
        if !same_dev {
            details.push(match dev {
                None => format!("devs entry of slot {} is missing", p.slot),
                Some(other) => format!("devs entry of slot {} is {}", p.slot, name_of(b, other)),
            });
        }
        details
    } else {
        Vec::new()
    };
    b.change(Object::Mapping, &address, || Change {
        object: Object::Mapping,
        address: address.clone(),
        action,
        reason,
        before,
        after: Some(view(mapping)),
        details,
        origin: Some(mapping.origin.clone()),
    });
    if p.fresh {
        b.operation(Phase::Counters, &address, Step::ResetCounters { slot: p.slot });
    }
    if !same_dev {
        b.operation(Phase::Targets, &address, Step::SetDev { slot: p.slot, link: p.link() });
    }
    if !same_key {
        b.operation(Phase::Receive, &address, Step::SetTunkey { insert: live_key.is_none(), key, value: slot_ref });
    }
    if !same_if {
        let step = Step::SetIf { insert: live_if.is_none(), link: p.link(), value: entry };
        b.operation(Phase::Send, &address, step);
    }
    place
}

fn reason_for(b: &Builder<'_>, p: &PlannedMapping<'_>, live_if: bool) -> Reason {
    let Some(accepted) = b.input.accepted else {
        return if live_if { Reason::Changed } else { Reason::Added };
    };
    let Some(known) = accepted.mappings.get(&p.mapping.interface) else { return Reason::Added };
    let same = Mapping { origin: Origin::default(), ..known.clone() }
        == Mapping { origin: Origin::default(), ..p.mapping.clone() };
    if !same || !b.tunnel_unchanged(&p.mapping.key.tunnel) {
        Reason::Changed
    } else if !b.live.present {
        Reason::Added
    } else if p.mapping.generated.is_some() && p.ifindex.is_none() {
        Reason::Drift
    } else if b.input.was_pending.contains(p.mapping.interface.as_str()) {
        Reason::InterfaceAppeared
    } else if !live_if && b.live.ifs.iter().any(|(i, e)| Some(i) != p.ifindex && has_key(b, p.mapping, e.key)) {
        Reason::InterfaceRecreated
    } else {
        Reason::Drift
    }
}

fn has_change(b: &mut Builder<'_>, address: &str) -> bool {
    b.has_change(Object::Mapping, address)
}

fn note_delete(b: &mut Builder<'_>, address: &str, ifindex: Option<u32>, key: TunKey, before: MappingView) {
    let (reason, origin) = match meant_by(b, ifindex, key) {
        // The files still have it, so its interface went away.
        Some((m, true)) => (Reason::InterfaceGone, Some(m.origin.clone())),
        Some((m, false)) => (Reason::Removed, Some(m.origin.clone())),
        None if b.input.accepted.is_none() => (Reason::Removed, None),
        None => (Reason::Drift, None),
    };
    b.change(Object::Mapping, address, || Change {
        object: Object::Mapping,
        address: address.to_owned(),
        action: ChangeAction::Delete,
        reason,
        before: Some(before),
        after: None,
        details: Vec::new(),
        origin,
    });
}

fn note_stray_key(b: &mut Builder<'_>, address: &str, key: TunKey) {
    let name = b.live.tunnel_name(key.tunnel);
    drift_only(b, address, format!("tunkey2if has {{{name}, {}, {}}} besides", key.id, key.remote));
}

fn drift_only(b: &mut Builder<'_>, address: &str, detail: String) {
    b.change(Object::Mapping, address, || Change {
        object: Object::Mapping,
        address: address.to_owned(),
        action: ChangeAction::Update,
        reason: Reason::Drift,
        before: None,
        after: None,
        details: vec![detail],
        origin: None,
    });
}
