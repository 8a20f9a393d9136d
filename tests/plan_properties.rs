//! The plan on random topologies and random live states: it converges, it is minimal, and every prefix of it is safe.

#![allow(clippy::unwrap_used, missing_docs)]

mod memory;
#[path = "memory/mischief.rs"]
mod mischief;

use memory::batches::singles;
use memory::topology::{Choice, INTERFACES, add_underlay, desired, fresh_kernel, in_force, meaning};
use memory::wire::{Fate, Packet};
use memory::{MemoryKernel, block};
use mischief::{mischief, spoil};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tunnel_mesh::model::*;
use tunnel_mesh::plan::{Input, Plan, Step, plan};
use tunnel_mesh::reconcile::kernel::{Batch, Hook, Kernel};
use tunnel_mesh::reconcile::{Reconciler, apply::apply};

fn plan_of(kernel: &MemoryKernel, desired: &Desired, before: Option<&Desired>) -> Plan {
    let none = BTreeSet::new();
    plan(Input { desired, observed: &kernel.seen(), accepted: before, was_pending: &none })
}

fn choice() -> impl Strategy<Value = Choice> {
    (any::<u8>(), any::<u8>(), any::<u8>(), prop::bool::weighted(0.3)).prop_map(|(tunnel, id, far, endpoint)| Choice {
        tunnel,
        id,
        far,
        endpoint,
    })
}

fn topologies() -> impl Strategy<Value = Vec<Option<Choice>>> {
    prop::collection::vec(prop::option::weighted(0.7, choice()), INTERFACES.len())
}

/// Two topologies: unrelated, or the second one the first with its keys moved and swapped between interfaces.
fn pairs() -> impl Strategy<Value = (Vec<Option<Choice>>, Vec<Option<Choice>>)> {
    let order = Just((0..INTERFACES.len()).collect::<Vec<_>>()).prop_shuffle();
    prop_oneof![
        (topologies(), topologies()),
        (topologies(), order).prop_map(|(first, order)| {
            let second = order.iter().map(|place| first[*place]).collect();
            (first, second)
        }),
    ]
}

/// The single batch that a step asks for. What a plan makes is found by its name in the end.
fn batch_of(step: &Step, end: &MemoryKernel) -> Batch {
    use tunnel_mesh::plan::{LinkEdit, LinkRef};
    let index = |link: &LinkRef| link.ifindex.unwrap_or_else(|| end.state.link(&link.name).unwrap().ifindex);
    match step.clone() {
        Step::CreateMaps { capacity } => Batch::CreateMaps(capacity),
        Step::GrowMaps { to, .. } => Batch::GrowMaps(to),
        Step::LoadProgram { program } => Batch::LoadProgram(program),
        Step::UnloadProgram { program } => Batch::UnloadProgram(program),
        Step::CreateLink { link } => Batch::CreateLink(link),
        Step::ChangeLink { link, edit } => {
            let change = match edit {
                LinkEdit::Up(up) => [LinkChange::Down, LinkChange::Up][usize::from(up)].clone(),
                LinkEdit::Mtu(mtu) => LinkChange::Mtu(mtu),
                LinkEdit::Master(bridge) => LinkChange::Master { bridge: Some(index(&bridge)) },
                LinkEdit::Isolated(on) => LinkChange::Isolated(on),
                LinkEdit::Learning(on) => LinkChange::Learning(on),
                LinkEdit::Forward { ipv6 } => LinkChange::Forward { ipv6 },
                LinkEdit::VxlanLocal(local) => LinkChange::VxlanLocal(local),
                LinkEdit::Alias(alias) => LinkChange::Alias(alias),
                LinkEdit::Altname(name) => LinkChange::Altname(name),
            };
            Batch::ChangeLink(index(&link), change)
        }
        Step::DeleteLink { link } => Batch::DeleteLinks(vec![index(&link)]),
        Step::ResetCounters { slot } => Batch::ResetCounters(vec![slot]),
        Step::SetConf { index: tunnel, name, link, mark, role, way, .. } => {
            Batch::SetConf(vec![(tunnel, Conf { ifindex: link.map_or(0, |l| index(&l)), name, mark, role, way })])
        }
        Step::ClearConf { index } => Batch::ClearConf(vec![index]),
        Step::SetDev { slot, link } => Batch::SetDevs(vec![(slot, index(&link))]),
        Step::ClearDev { slot } => Batch::ClearDevs(vec![slot]),
        Step::SetTunkey { key, value, .. } => Batch::SetTunkeys(vec![(key, value)]),
        Step::DeleteTunkey { key, .. } => Batch::DeleteTunkeys(vec![key]),
        Step::SetIf { link, value, .. } => Batch::SetIfs(vec![(index(&link), value)]),
        Step::DeleteIf { link, .. } => Batch::DeleteIfs(vec![index(&link)]),
        Step::Attach { program, link, direction, kind, replace } => {
            Batch::Attach(vec![Hook { program, ifindex: index(&link), direction, kind, replace }])
        }
        Step::Detach { link, direction, kind } => Batch::Detach { ifindex: index(&link), direction, kind },
    }
}

/// Each entry is written at most once, none that was right already, and each kind of write takes one batch, of which the
/// kernel makes one call.
fn check_minimal(before: &Observed, log: &[Batch]) -> Result<(), TestCaseError> {
    let maps = before.maps.clone().unwrap_or_default();
    let keys: BTreeMap<_, _> = maps.tunkey2if.into_iter().collect();
    let ifs: BTreeMap<_, _> = maps.if2tunkey.into_iter().collect();
    let devs: BTreeMap<_, _> = maps.devs.into_iter().collect();
    let mut written = BTreeSet::new();
    for single in log.iter().flat_map(singles) {
        let (what, needed) = match &single {
            Batch::SetTunkeys(list) => (format!("key {:?}", list[0].0), keys.get(&list[0].0) != Some(&list[0].1)),
            Batch::DeleteTunkeys(list) => (format!("key {:?}", list[0]), keys.contains_key(&list[0])),
            Batch::SetIfs(list) => (format!("if {}", list[0].0), ifs.get(&list[0].0) != Some(&list[0].1)),
            Batch::DeleteIfs(list) => (format!("if {}", list[0]), ifs.contains_key(&list[0])),
            Batch::SetDevs(list) => (format!("dev {}", list[0].0), devs.get(&list[0].0) != Some(&list[0].1)),
            Batch::ClearDevs(list) => (format!("dev {}", list[0]), devs.contains_key(&list[0])),
            Batch::SetConf(list) => (format!("conf {}", list[0].0), maps.conf.get(&list[0].0) != Some(&list[0].1)),
            Batch::ClearConf(list) => (format!("conf {}", list[0]), maps.conf.contains_key(&list[0])),
            Batch::ResetCounters(list) => (format!("counters {}", list[0]), true),
            _ => continue,
        };
        prop_assert!(needed, "nothing asked for {single:?}");
        // A dead entry may stand where a device that the plan makes gets its index.
        let made = matches!(&single, Batch::SetIfs(list) if before.link_by_index(list[0].0).is_none());
        prop_assert!(written.insert(what) || made, "{single:?} is written twice");
    }
    let mut kinds = BTreeSet::new();
    // What is replaced before the maps are written can't wait for what is attached after.
    let entries = |b: &Batch| matches!(b, Batch::SetTunkeys(_) | Batch::SetIfs(_) | Batch::SetConf(_));
    let written = log.iter().rposition(entries).unwrap_or(0);
    let early = |n: usize, b: &Batch| matches!(b, Batch::Attach(_)) && n < written;
    let log = log.iter().enumerate().filter(|(n, b)| !early(*n, b)).map(|(_, b)| b);
    for batch in log.filter(|b| !matches!(b, Batch::SetDevs(_) | Batch::ClearDevs(_))) {
        let single = std::slice::from_ref(batch) == singles(batch);
        let name = format!("{batch:?}").split('(').next().unwrap_or_default().to_owned();
        let first = single && !name.starts_with(['S', 'R', 'D']) || kinds.insert(name);
        prop_assert!(first, "{batch:?} should have travelled with the one before");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Applied to any live state, the plan ends in exactly the desired one, by exactly the operations that it lists and
    /// no more than are needed. At every instant each packet has its old fate or its new one, or is dropped on its way
    /// from the one to the other; what is the same before and after is never interrupted. Then nothing is left to do.
    #[test]
    fn every_prefix_is_safe_and_the_end_is_the_goal(
        (first, second) in pairs(),
        ports in (0u8..3, 0u8..3),
        ttl in 1u8..3,
        spoils in prop::collection::vec(mischief(), 0..6),
        fast in any::<bool>(),
    ) {
        let mut kernel = fresh_kernel();
        if fast {
            add_underlay(&mut kernel);
        }
        let before = desired(&first, 1, ports.0);
        let goal = desired(&second, ttl, ports.1);
        let start = plan_of(&kernel, &before, None);
        let applied = block(apply(&mut kernel, &start));
        prop_assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        prop_assert!(plan_of(&kernel, &before, Some(&before)).is_empty());
        prop_assert_eq!(in_force(&before, &kernel.seen()), Ok(()));
        prop_assert_eq!(kernel.wire(), meaning(&before, &kernel.state, &kernel.state));
        let (mut unspoiled, links) = (kernel.wire(), kernel.state.links.clone());
        for spoil_with in &spoils {
            spoil(&mut kernel, spoil_with);
        }
        // Who inherited an index has no claim to what its owner had.
        let is_same = |i: u32| {
            let now = kernel.state.link_by_index(i);
            now.is_some_and(|now| links.iter().any(|l| l.ifindex == i && l.mac == now.mac))
        };
        unspoiled.0.retain(|(packet, fate)| {
            let from = match packet {
                Packet::Received(ifindex, ..) | Packet::Sent(ifindex, _) => *ifindex,
            };
            let to = match fate {
                Fate::To(ifindex) | Fate::Into(ifindex, ..) => *ifindex,
                _ => from,
            };
            is_same(from) && is_same(to)
        });

        let plan = plan_of(&kernel, &goal, Some(&before));
        let old = kernel.wire();
        let mut end = kernel.clone();
        end.watch();
        let applied = block(apply(&mut end, &plan));
        prop_assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let new = end.wire();
        for (n, moment) in end.moments.iter().flatten().enumerate() {
            if let Err(wrong) = moment.check(&old, std::slice::from_ref(&unspoiled), &new, true) {
                prop_assert!(false, "moment {n}: {wrong}\nof {:#?}", end.log);
            }
        }

        // What was executed is what was planned, and no more than was needed.
        let executed: Vec<Batch> = end.log.iter().flat_map(singles).collect();
        let planned: Vec<Batch> = plan.operations.iter().map(|o| batch_of(&o.step, &end)).collect();
        prop_assert_eq!(executed, planned);
        check_minimal(&kernel.seen(), &end.log)?;

        let again = plan_of(&end, &goal, Some(&goal));
        prop_assert!(again.is_empty(), "left over: {:#?}", again.operations);
        prop_assert_eq!(in_force(&goal, &end.seen()), Ok(()));
        prop_assert_eq!(&new, &meaning(&goal, &end.state, &kernel.state));
    }

    /// The reconciler needs one round where nothing fails, and is idle afterwards.
    #[test]
    fn a_pass_converges(first in topologies(), spoils in prop::collection::vec(mischief(), 0..4), fast: bool) {
        let goal = desired(&first, 1, 1);
        let mut kernel = fresh_kernel();
        if fast {
            add_underlay(&mut kernel);
        }
        let start = plan_of(&kernel, &goal, None);
        block(apply(&mut kernel, &start));
        for spoil_with in &spoils {
            spoil(&mut kernel, spoil_with);
        }
        let mut reconciler = Reconciler::new(kernel);
        let report = block(reconciler.pass(&goal, Some(&goal))).unwrap();
        prop_assert!(report.converged(), "{report:?}");
        reconciler.kernel().log.clear();
        let again = block(reconciler.pass(&goal, Some(&goal))).unwrap();
        prop_assert!(!again.changed && again.plan.is_empty() && reconciler.kernel().log.is_empty());
    }
}

#[test]
fn an_empty_topology_on_a_fresh_kernel_needs_nothing() {
    let kernel = fresh_kernel();
    assert!(plan_of(&kernel, &Desired::default(), None).is_empty());
}

fn mapped(tunnel: u8, id: u8, far: u8) -> Option<Choice> {
    Some(Choice { tunnel, id, far, endpoint: false })
}

#[test]
fn a_key_that_moves_between_interfaces_is_one_update() {
    let mut kernel = fresh_kernel();
    let before = desired(&[mapped(0, 1, 0), None], 1, 0);
    let goal = desired(&[None, mapped(0, 1, 0)], 1, 0);
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

/// While maps grow, some programs run on the old ones and some on the new ones.
#[test]
fn both_generations_of_a_growing_map_say_the_same() {
    let mut kernel = fresh_kernel();
    block(kernel.execute(&Batch::CreateMaps(66))).unwrap();
    let goal = desired(&[mapped(0, 0, 0), mapped(1, 1, 0)], 1, 0);
    let start = plan_of(&kernel, &goal, None);
    assert!(block(apply(&mut kernel, &start)).failures.is_empty());
    let before = kernel.wire();
    assert_eq!(before, meaning(&goal, &kernel.state, &kernel.state));

    let wider = desired(&[mapped(0, 0, 0), mapped(1, 1, 0), mapped(0, 2, 1)], 1, 0);
    let plan = plan_of(&kernel, &wider, Some(&goal));
    assert!(matches!(plan.operations[0].step, Step::GrowMaps { from: 66, to: 256 }), "{:#?}", plan.operations);
    for attachments in 0..=4 {
        let mut half = kernel.clone();
        half.execute_part(&Batch::GrowMaps(256), 1 + attachments).unwrap();
        assert_eq!(half.growth.is_some(), attachments < 4, "two tunnels and two ports are attached");
        assert_eq!(half.wire(), before);
        // Nobody writes to half a growth; it is finished first.
        if half.growth.is_some() {
            assert!(block(half.execute(&Batch::ClearConf(vec![1]))).is_err());
            assert_eq!((half.growth.is_none(), half.wire() == before), (true, true));
        }
        let mut reconciler = Reconciler::new(half);
        assert!(block(reconciler.pass(&wider, Some(&goal))).unwrap().converged());
        let state = reconciler.kernel().state.clone();
        assert_eq!(reconciler.kernel().wire(), meaning(&wider, &state, &state));
    }
}
