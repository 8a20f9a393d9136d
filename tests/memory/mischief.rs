//! What happens to a live state behind our back, much of it such as no topology could make.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use crate::memory::MemoryKernel;
use crate::memory::topology::{INTERFACES, TUNNELS, port_of};
use crate::memory::wire::remote;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::model::*;

/// Something that happens to the live state behind our back.
#[derive(Debug, Clone)]
pub enum Mischief {
    DropKey(usize),
    DropIf(usize),
    DropDev(usize),
    WrongSlot(usize, u32),
    ForeignKey { tunnel: u32, id: u32, far: u8, slot: u32 },
    ForeignIf { ifindex: u32, tunnel: u32, id: u32, far: u8, slot: u32 },
    ForeignDev { slot: u32, link: usize },
    Garbled(usize),
    Conf(u32),
    Recreate(usize),
    Gone(usize),
    Heir(usize, usize),
    Rename(usize, usize),
    Detach(usize),
    Behind(usize),
    OldProgram(usize),
    Imposter(usize),
    OtherHook,
    LostMaps,
    EarlierMaps,
    SmallMaps(u32),
}

/// Any of them.
pub fn mischief() -> impl Strategy<Value = Mischief> {
    let slot = 60u32..72;
    prop_oneof![
        any::<usize>().prop_map(Mischief::DropKey),
        any::<usize>().prop_map(Mischief::DropIf),
        any::<usize>().prop_map(Mischief::DropDev),
        (any::<usize>(), slot.clone()).prop_map(|(i, s)| Mischief::WrongSlot(i, s)),
        (0u32..4, 0u32..3, any::<u8>(), slot.clone()).prop_map(|(tunnel, id, far, slot)| Mischief::ForeignKey {
            tunnel,
            id,
            far,
            slot
        }),
        (9u32..24, 0u32..4, 0u32..3, any::<u8>(), slot.clone())
            .prop_map(|(ifindex, tunnel, id, far, slot)| Mischief::ForeignIf { ifindex, tunnel, id, far, slot }),
        (slot, any::<usize>()).prop_map(|(slot, link)| Mischief::ForeignDev { slot, link }),
        any::<usize>().prop_map(Mischief::Garbled),
        (1u32..4).prop_map(Mischief::Conf),
        any::<usize>().prop_map(Mischief::Recreate),
        any::<usize>().prop_map(Mischief::Gone),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Mischief::Heir(a, b)),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Mischief::Rename(a, b)),
        any::<usize>().prop_map(Mischief::Detach),
        any::<usize>().prop_map(Mischief::Behind),
        any::<usize>().prop_map(Mischief::OldProgram),
        any::<usize>().prop_map(Mischief::Imposter),
        Just(Mischief::OtherHook),
        Just(Mischief::LostMaps),
        Just(Mischief::EarlierMaps),
        (64u32..72).prop_map(Mischief::SmallMaps),
    ]
}

fn nth<T>(list: &mut [T], n: usize) -> Option<&mut T> {
    let length = list.len();
    if length == 0 { None } else { list.get_mut(n % length) }
}

fn remove_nth<T>(list: &mut Vec<T>, n: usize) {
    if !list.is_empty() {
        let place = n % list.len();
        list.remove(place);
    }
}

/// Lets it happen.
pub fn spoil(kernel: &mut MemoryKernel, mischief: &Mischief) {
    let links: Vec<(u32, String)> = kernel.state.links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
    let pick = |n: usize| links.get(n % links.len().max(1)).cloned();
    match mischief {
        Mischief::Recreate(n) => {
            if let Some((ifindex, name)) = pick(*n) {
                kernel.remove_link(ifindex);
                match TUNNELS.iter().position(|t| *t == name) {
                    Some(_) => kernel.add_vxlan(&name, port_of(&name)),
                    None => kernel.add_link(&name),
                };
            }
            return;
        }
        Mischief::Gone(n) => {
            if let Some((ifindex, _)) = pick(*n) {
                kernel.remove_link(ifindex);
            }
            return;
        }
        Mischief::Heir(a, b) => {
            let (Some((first, one)), Some((second, two))) = (pick(*a), pick(*b)) else { return };
            let known = |name: &str| INTERFACES.contains(&name) || TUNNELS.contains(&name);
            if known(&one) && known(&two) && first != second {
                kernel.remove_link(first);
                kernel.remove_link(second);
                kernel.inherit(&two, first);
            }
            return;
        }
        Mischief::Rename(a, b) => {
            let (Some((first, one)), Some((second, two))) = (pick(*a), pick(*b)) else { return };
            let plain = |name: &str| INTERFACES.contains(&name);
            if plain(&one) && plain(&two) {
                for link in &mut kernel.state.links {
                    if link.ifindex == first {
                        link.name.clone_from(&two);
                    } else if link.ifindex == second {
                        link.name.clone_from(&one);
                    }
                }
            }
            return;
        }
        Mischief::Imposter(n) => {
            let name = TUNNELS[n % TUNNELS.len()];
            if let Some(link) = kernel.state.link(name).map(|l| l.ifindex) {
                kernel.remove_link(link);
            }
            // On a port that no tunnel has: the kernel gives each to one device.
            let ifindex = kernel.add_vxlan(name, 100 + port_of(name));
            kernel.state.links.iter_mut().filter(|l| l.ifindex == ifindex).for_each(|l| l.up = n % 2 == 0);
            return;
        }
        Mischief::OtherHook => {
            kernel.state.features.hook_kind = match kernel.state.features.hook_kind {
                HookKind::Tcx => HookKind::Clsact,
                HookKind::Clsact => HookKind::Tcx,
            };
            return;
        }
        Mischief::LostMaps => return kernel.lose_maps(),
        Mischief::EarlierMaps => return kernel.age_maps(),
        Mischief::Detach(n) => return remove_nth(&mut kernel.state.attachments, *n),
        Mischief::Behind(n) => {
            if let Some(a) = nth(&mut kernel.state.attachments, *n) {
                a.position = 1;
            }
            return;
        }
        Mischief::OldProgram(n) => {
            if let Some(p) = nth(&mut kernel.state.programs, *n) {
                p.current = false;
            }
            return;
        }
        _ => {}
    }
    let Some(maps) = &mut kernel.state.maps else { return };
    let tun = |tunnel: u32, id: u32, far: u8| TunKey { tunnel, id, remote: remote(far) };
    match mischief {
        Mischief::DropKey(n) => remove_nth(&mut maps.tunkey2if, *n),
        Mischief::DropIf(n) => remove_nth(&mut maps.if2tunkey, *n),
        Mischief::DropDev(n) => remove_nth(&mut maps.devs, *n),
        Mischief::WrongSlot(n, slot) => {
            if let Some((_, value)) = nth(&mut maps.tunkey2if, *n) {
                value.slot = *slot;
            }
        }
        Mischief::ForeignKey { tunnel, id, far, slot } => {
            let value = SlotRef { slot: *slot, endpoint: false, valid: true };
            let mut all: BTreeMap<_, _> = maps.tunkey2if.iter().copied().collect();
            all.insert(tun(*tunnel, *id, *far), value);
            maps.tunkey2if = all.into_iter().collect();
        }
        Mischief::ForeignIf { ifindex, tunnel, id, far, slot } => {
            let value = IfEntry {
                slot: *slot,
                endpoint: false,
                key: tun(*tunnel, *id, *far),
                local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
                ttl: OuterField::Fixed(1),
                tos: OuterField::Inherit,
                df: true,
                checksum: false,
                fast: None,
                valid: true,
            };
            let mut all: BTreeMap<_, _> = maps.if2tunkey.iter().copied().collect();
            all.insert(*ifindex, value);
            maps.if2tunkey = all.into_iter().collect();
        }
        Mischief::ForeignDev { slot, link } => {
            if let Some((ifindex, _)) = pick(*link).filter(|_| *slot < maps.capacity) {
                let mut all: BTreeMap<_, _> = maps.devs.iter().copied().collect();
                all.insert(*slot, ifindex);
                maps.devs = all.into_iter().collect();
            }
        }
        Mischief::Garbled(n) => {
            if let Some((_, value)) = nth(&mut maps.if2tunkey, *n) {
                value.valid = false;
            }
        }
        Mischief::Conf(index) => drop(maps.conf.remove(index)),
        // As if they had been made for fewer: what doesn't fit was never there.
        Mischief::SmallMaps(capacity) => {
            maps.capacity = *capacity;
            maps.devs.retain(|(slot, _)| slot < capacity);
        }
        _ => {}
    }
}
