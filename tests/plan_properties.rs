//! The plan on random topologies and random live states: it converges, it is minimal, and every prefix of it is safe.

#![allow(clippy::unwrap_used, missing_docs)]

mod memory;

use memory::MemoryKernel;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::model::*;
use tunnel_mesh::plan::{Input, Plan, Step, plan};
use tunnel_mesh::reconcile::{Reconciler, apply::apply};

const INTERFACES: [&str; 8] = ["eth0", "eth1", "eth2", "eth3", "eth4", "eth5", "eth6", "eth7"];
const TUNNELS: [&str; 3] = ["vxlan0", "vxlan1", "vxlan2"];

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn remote(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2 + n % 3))
}

fn tunnel(name: &str, ttl: u8) -> Tunnel {
    let port = TUNNELS.iter().position(|t| *t == name).map(|p| 4789 + p as u16);
    Tunnel {
        name: name.to_owned(),
        kind: TunnelKind::Vxlan,
        port,
        create: false,
        local: Local { v4: Some(Ipv4Addr::new(10, 0, 0, 1)), v6: None },
        mtu: None,
        ttl: OuterField::Fixed(ttl),
        tos: OuterField::Fixed(0),
        df: false,
        checksum: None,
        mark: 1,
        fast: Fast::Auto,
        origin: Origin::default(),
    }
}

/// A topology: for each interface maybe a mapping (tunnel, id, remote); keys claimed twice are dropped.
fn desired(wanted: &[Option<(u8, u8, u8)>], ttl: u8) -> Desired {
    let mut out = Desired::default();
    let mut keys = BTreeSet::new();
    for (interface, choice) in INTERFACES.iter().zip(wanted) {
        let Some((t, id, far)) = choice else { continue };
        let name = TUNNELS[usize::from(*t) % 2];
        let key = TunnelKey { tunnel: name.to_owned(), id: u32::from(id % 3), remote: remote(*far) };
        if !keys.insert(key.clone()) {
            continue;
        }
        out.tunnels.entry(name.to_owned()).or_insert_with(|| tunnel(name, ttl));
        let mapping = Mapping {
            tenant: format!("t{interface}"),
            interface: (*interface).to_owned(),
            key,
            local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            attach: Attach::Port,
            generated: None,
            origin: Origin::default(),
        };
        out.mappings.insert((*interface).to_owned(), mapping);
    }
    out
}

/// Something that happens to the live state behind our back.
#[derive(Debug, Clone)]
enum Mischief {
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
    Rename(usize, usize),
    Detach(usize),
    Behind(usize),
    OldProgram(usize),
}

fn mischief() -> impl Strategy<Value = Mischief> {
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
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Mischief::Rename(a, b)),
        any::<usize>().prop_map(Mischief::Detach),
        any::<usize>().prop_map(Mischief::Behind),
        any::<usize>().prop_map(Mischief::OldProgram),
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

fn spoil(kernel: &mut MemoryKernel, mischief: &Mischief) {
    let links: Vec<(u32, String)> = kernel.state.links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
    let pick = |n: usize| links.get(n % links.len().max(1)).cloned();
    match mischief {
        Mischief::Recreate(n) => {
            if let Some((ifindex, name)) = pick(*n) {
                kernel.remove_link(ifindex);
                match TUNNELS.iter().position(|t| *t == name) {
                    Some(p) => kernel.add_vxlan(&name, 4789 + p as u16),
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
                valid: true,
            };
            let mut all: BTreeMap<_, _> = maps.if2tunkey.iter().copied().collect();
            all.insert(*ifindex, value);
            maps.if2tunkey = all.into_iter().collect();
        }
        Mischief::ForeignDev { slot, link } => {
            if let Some((ifindex, _)) = pick(*link) {
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
        _ => {}
    }
}

fn fresh_kernel() -> MemoryKernel {
    let mut kernel = MemoryKernel::with_links(&INTERFACES);
    kernel.add_vxlan("vxlan0", 4789);
    kernel.add_vxlan("vxlan1", 4790);
    kernel
}

fn plan_of(kernel: &MemoryKernel, desired: &Desired, before: Option<&Desired>) -> Plan {
    let none = BTreeSet::new();
    plan(Input { desired, observed: &kernel.state, accepted: before, was_pending: &none })
}

/// What the data plane does with every key and from every link.
#[derive(Debug, Clone, PartialEq)]
struct Behaviour {
    delivers: BTreeMap<TunKey, Option<u32>>,
    sends: BTreeMap<u32, Option<Option<TunKey>>>,
}

fn behaviour(kernel: &MemoryKernel) -> Behaviour {
    let keys = (0..5u32).flat_map(|t| (0..3u32).flat_map(move |id| (0..3u8).map(move |far| (t, id, far))));
    Behaviour {
        delivers: keys
            .map(|(tunnel, id, far)| TunKey { tunnel, id, remote: remote(far) })
            .map(|key| (key, kernel.delivers(key)))
            .collect(),
        sends: kernel.state.links.iter().map(|l| (l.ifindex, kernel.sends(l.ifindex))).collect(),
    }
}

fn topologies() -> impl Strategy<Value = Vec<Option<(u8, u8, u8)>>> {
    prop::collection::vec(prop::option::weighted(0.7, (any::<u8>(), any::<u8>(), any::<u8>())), INTERFACES.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// After every prefix of the operations each key is delivered where the old or the new topology says, or nowhere;
    /// the same for what is sent. What is the same before and after is never interrupted. Then nothing is left to do.
    #[test]
    fn every_prefix_is_safe_and_the_end_is_the_goal(
        first in topologies(),
        second in topologies(),
        ttl in 1u8..3,
        spoils in prop::collection::vec(mischief(), 0..6),
    ) {
        let mut kernel = fresh_kernel();
        let before = desired(&first, 1);
        let goal = desired(&second, ttl);
        let start = plan_of(&kernel, &before, None);
        prop_assert!(block(apply(&mut kernel, &start)).failures.is_empty());
        prop_assert!(plan_of(&kernel, &before, Some(&before)).is_empty());
        for spoil_with in &spoils {
            spoil(&mut kernel, spoil_with);
        }

        let plan = plan_of(&kernel, &goal, Some(&before));
        let old = behaviour(&kernel);
        let mut end = kernel.clone();
        let applied = block(apply(&mut end, &plan));
        prop_assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let new = behaviour(&end);

        let mut step = kernel.clone();
        for operation in &plan.operations {
            let one = Plan { operations: vec![operation.clone()], ..Plan::default() };
            prop_assert!(block(apply(&mut step, &one)).failures.is_empty());
            let now = behaviour(&step);
            for (key, target) in &now.delivers {
                let (was, will) = (old.delivers[key], new.delivers[key]);
                prop_assert!(
                    *target == was || *target == will || (target.is_none() && was != will),
                    "after {operation:?}: {key:?} goes to {target:?}, was {was:?}, will be {will:?}\nof {:#?}", plan.operations
                );
            }
            for (ifindex, sent) in &now.sends {
                let was = old.sends[ifindex];
                let will = new.sends[ifindex];
                prop_assert!(
                    *sent == was || *sent == will || (*sent == Some(None) && was != will),
                    "after {operation:?}: {ifindex} sends {sent:?}, was {was:?}, will be {will:?}\nof {:#?}", plan.operations
                );
            }
        }

        // The second look finds nothing to do, unless indexes had to be waited for.
        let again = plan_of(&end, &goal, Some(&goal));
        prop_assert!(again.is_empty(), "left over: {:#?}", again.operations);
        check_in_force(&end, &goal)?;
    }

    /// A plan writes only what differs: no entry that is right already, none twice.
    #[test]
    fn nothing_unchanged_is_written(first in topologies(), second in topologies()) {
        let mut kernel = fresh_kernel();
        let before = desired(&first, 1);
        let goal = desired(&second, 1);
        let start = plan_of(&kernel, &before, None);
        block(apply(&mut kernel, &start));
        let maps = kernel.state.maps.clone().unwrap_or_default();
        let keys: BTreeMap<_, _> = maps.tunkey2if.into_iter().collect();
        let ifs: BTreeMap<_, _> = maps.if2tunkey.into_iter().collect();
        let plan = plan_of(&kernel, &goal, Some(&before));
        let mut written = BTreeSet::new();
        for operation in &plan.operations {
            match &operation.step {
                Step::SetTunkey { key, value, insert } => {
                    let once = written.insert(format!("{key:?}"));
                    prop_assert!(once);
                    prop_assert_ne!(keys.get(key), Some(value));
                    prop_assert_eq!(*insert, !keys.contains_key(key));
                }
                Step::DeleteTunkey { key, .. } => {
                    let once = written.insert(format!("{key:?}"));
                    prop_assert!(once);
                    prop_assert!(keys.contains_key(key));
                }
                Step::SetIf { link, value, .. } => {
                    let once = written.insert(format!("{link:?}"));
                    prop_assert!(once);
                    prop_assert_ne!(ifs.get(&link.ifindex.unwrap_or(0)), Some(value));
                }
                Step::DeleteIf { link, .. } => {
                    let once = written.insert(format!("{link:?}"));
                    prop_assert!(once);
                }
                _ => {}
            }
        }
    }

    /// The reconciler needs one round where nothing fails, and is idle afterwards.
    #[test]
    fn a_pass_converges(first in topologies(), spoils in prop::collection::vec(mischief(), 0..4)) {
        let goal = desired(&first, 1);
        let mut kernel = fresh_kernel();
        let start = plan_of(&kernel, &goal, None);
        block(apply(&mut kernel, &start));
        for spoil_with in &spoils {
            spoil(&mut kernel, spoil_with);
        }
        let mut reconciler = Reconciler::new(kernel);
        let report = block(reconciler.pass(&goal, Some(&goal))).unwrap();
        prop_assert!(report.converged(), "{report:?}");
        let again = block(reconciler.pass(&goal, Some(&goal))).unwrap();
        prop_assert!(!again.changed && again.plan.is_empty());
    }
}

fn check_in_force(kernel: &MemoryKernel, goal: &Desired) -> Result<(), TestCaseError> {
    for mapping in goal.mappings.values() {
        let Some(link) = kernel.state.link(&mapping.interface) else { continue };
        let Some(device) = kernel.state.link(&mapping.key.tunnel) else { continue };
        let maps = kernel.state.maps.as_ref().unwrap();
        let index = maps.conf.iter().find(|(_, c)| c.ifindex == device.ifindex).map(|(i, _)| *i);
        let key = TunKey { tunnel: index.unwrap_or(0), id: mapping.key.id, remote: mapping.key.remote };
        prop_assert_eq!(kernel.delivers(key), Some(link.ifindex));
        prop_assert_eq!(kernel.sends(link.ifindex), Some(Some(key)));
    }
    let keys: Vec<_> = kernel.state.maps.iter().flat_map(|m| &m.tunkey2if).collect();
    let present = goal.mappings.values().filter(|m| kernel.state.link(&m.interface).is_some()).count();
    prop_assert_eq!(keys.len(), present);
    Ok(())
}

#[test]
fn an_empty_topology_on_a_fresh_kernel_needs_nothing() {
    let kernel = fresh_kernel();
    assert!(plan_of(&kernel, &Desired::default(), None).is_empty());
}

#[test]
fn a_key_that_moves_between_interfaces_is_one_update() {
    let mut kernel = fresh_kernel();
    let before = desired(&[Some((0, 1, 0)), None], 1);
    let goal = desired(&[None, Some((0, 1, 0))], 1);
    let start = plan_of(&kernel, &before, None);
    block(apply(&mut kernel, &start));
    let plan = plan_of(&kernel, &goal, Some(&before));
    let writes: Vec<_> = plan
        .operations
        .iter()
        .filter(|o| matches!(o.step, Step::SetTunkey { .. } | Step::DeleteTunkey { .. }))
        .collect();
    assert_eq!(writes.len(), 1, "{writes:#?}");
    assert!(matches!(writes[0].step, Step::SetTunkey { insert: false, .. }));
}
