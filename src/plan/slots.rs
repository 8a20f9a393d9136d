//! Gives every mapping a slot.
//!
//! A *slot* is the number under which `devs` and the counters know a mapping. It belongs to the interface: a mapping
//! that gets another key keeps it. The rule: a slot is claimed afresh only if no live entry refers to it, so that
//! writing its target makes nothing reachable that shouldn't be.

use super::builder::Builder;
use super::live::Slots;
use crate::model::FIRST_MAPPING_SLOT;
use std::collections::HashMap;

pub(super) fn assign(b: &mut Builder<'_>) {
    let live = &b.live;
    let mut taken = Slots::default();
    let mut open: Vec<usize> = Vec::new();

    // An interface that is mapped already keeps its slot, whatever happens to its key.
    for (i, planned) in b.mappings.iter_mut().enumerate() {
        let kept = planned.ifindex.and_then(|ifindex| {
            let slot = live.ifs.get(ifindex)?.slot;
            let is_its_own = live.devs.get(slot) == Some(ifindex);
            (is_its_own && slot >= FIRST_MAPPING_SLOT && taken.insert(slot)).then_some(slot)
        });
        match kept {
            Some(slot) => planned.slot = slot,
            None => open.push(i),
        }
    }

    // An interface that lost its entry keeps the slot of its key. One that was recreated takes it over, emptied by the
    // kernel, if nothing else arrives through that slot, and nothing else would be sent by an entry that waits there.
    if open.is_empty() {
        return;
    }
    let mut keys_by_slot: HashMap<u32, usize> = HashMap::with_capacity(live.keys.len());
    for value in live.keys.values() {
        *keys_by_slot.entry(value.slot).or_default() += 1;
    }
    open.retain(|&i| {
        let planned = &mut b.mappings[i];
        let Some(tunnel) = b.tunnels.get(planned.mapping.key.tunnel.as_str()) else { return true };
        let key = super::mappings::key_of(planned.mapping, tunnel.index);
        let Some(slot) = live.key(&key, 0).map(|(_, v)| v.slot) else { return true };
        let real = slot >= FIRST_MAPPING_SLOT && slot < live.capacity;
        let waiting = planned.ifindex.and_then(|i| live.ifs.get(i)).filter(|entry| entry.slot == slot);
        let usable = match live.devs.get(slot) {
            Some(holder) => planned.ifindex == Some(holder),
            None => keys_by_slot.get(&slot) == Some(&1) && waiting.is_none_or(|entry| entry.key == key),
        };
        if real && usable && taken.insert(slot) {
            planned.slot = slot;
            false
        } else {
            true
        }
    });

    // Everybody else gets the lowest slot that nobody refers to.
    let mut referenced = taken;
    let live_slots = live.keys.values().map(|v| v.slot).chain(live.ifs.values().map(|v| v.slot));
    live_slots.chain(live.devs.keys()).for_each(|slot| {
        referenced.insert(slot);
    });
    let mut free = (FIRST_MAPPING_SLOT..).filter(|slot| !referenced.contains(*slot));
    for i in open {
        if let Some(slot) = free.next() {
            b.mappings[i].slot = slot;
            b.mappings[i].fresh = true;
        }
    }
}
