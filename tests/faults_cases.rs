//! Faults one by one, where a random schedule would tell too little: what exactly stops, what goes on.

#![allow(clippy::unwrap_used, missing_docs)]

mod memory;

use memory::batches::{refusal, singles};
use memory::topology::{Choice, desired, fresh_kernel, in_force};
use memory::wire::remote;
use memory::{MemoryKernel, block};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::bpf::DeviceGone;
use tunnel_mesh::model::*;
use tunnel_mesh::plan::{Input, LinkRef, Operation, Plan, Step, plan};
use tunnel_mesh::reconcile::Reconciler;
use tunnel_mesh::reconcile::apply::apply;
use tunnel_mesh::reconcile::kernel::{Batch, Kernel, Outcome};

fn mapped(tunnel: u8, id: u8, far: u8) -> Option<Choice> {
    Some(Choice { tunnel, id, far, endpoint: false })
}

/// A kernel that refuses some batches.
struct Refusing<F> {
    inner: MemoryKernel,
    refuse: F,
}

impl<F: FnMut(&Batch) -> Option<anyhow::Error>> Kernel for Refusing<F> {
    async fn observe(&mut self, ports: bool) -> anyhow::Result<Observed> {
        self.inner.observe(ports).await
    }

    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<Outcome> {
        if !matches!(batch, Batch::Attach(_)) {
            return match (self.refuse)(batch) {
                Some(error) => Err(error),
                None => self.inner.execute(batch).await,
            };
        }
        // Each by itself.
        let mut outcome = Outcome::default();
        for (place, single) in singles(batch).iter().enumerate() {
            match (self.refuse)(single) {
                Some(error) => outcome.failed.push((place, error)),
                None => {
                    let failed = self.inner.execute(single).await?.failed;
                    outcome.failed.extend(failed.into_iter().map(|(_, error)| (place, error)));
                }
            }
        }
        Ok(outcome)
    }

    async fn grace_period(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

fn attaches_to(batch: &Batch, link: u32) -> bool {
    matches!(batch, Batch::Attach(hooks) if hooks.iter().any(|h| h.ifindex == link))
}

fn plan_of(kernel: &MemoryKernel, goal: &Desired) -> Plan {
    let nothing = BTreeSet::new();
    plan(Input { desired: goal, observed: &kernel.seen(), accepted: Some(goal), was_pending: &nothing })
}

/// A kernel on clsact whose maps are full, and the topology that is in force there.
fn full_on_clsact() -> (MemoryKernel, Desired) {
    let mut kernel = fresh_kernel();
    kernel.state.features.hook_kind = HookKind::Clsact;
    block(kernel.execute(&Batch::CreateMaps(66))).unwrap();
    let goal = desired(&[mapped(0, 0, 0), mapped(1, 1, 0)], 1, 0);
    assert!(block(Reconciler::new(&mut kernel).pass(&goal, None)).unwrap().converged());
    kernel.log.clear();
    (kernel, goal)
}

impl Kernel for &mut MemoryKernel {
    async fn observe(&mut self, ports: bool) -> anyhow::Result<Observed> {
        (**self).observe(ports).await
    }

    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<Outcome> {
        (**self).execute(batch).await
    }

    async fn grace_period(&mut self) -> anyhow::Result<()> {
        (**self).grace_period().await
    }
}

fn writes_entries(batch: &Batch) -> bool {
    matches!(batch, Batch::SetTunkeys(_) | Batch::SetIfs(_) | Batch::DeleteTunkeys(_) | Batch::DeleteIfs(_))
}

/// A filter that goes on on the maps before a growth knows a topology that nobody changes any more. Until it is replaced,
/// nothing is written to the new maps, in this pass and in the next ones.
#[test]
fn nothing_is_written_while_a_filter_runs_on_the_maps_before_a_growth() {
    let (kernel, goal) = full_on_clsact();
    let wider = desired(&[mapped(0, 0, 0), mapped(1, 1, 0), mapped(0, 2, 0)], 1, 0);
    let vxlan1 = kernel.state.link("vxlan1").unwrap().ifindex;
    let stuck = |batch: &Batch| attaches_to(batch, vxlan1).then(|| refusal(libc::ENOMEM, "attach"));
    let mut reconciler = Reconciler::new(Refusing { inner: kernel, refuse: stuck });
    for _ in 0..3 {
        let report = block(reconciler.pass(&wider, Some(&goal))).unwrap();
        assert!(!report.converged() && report.left > 0, "{report:?}");
        let log = &reconciler.kernel().inner.log;
        assert!(log.contains(&Batch::GrowMaps(256)) && !log.iter().any(writes_entries), "{log:?}");
    }
    let mut kernel = reconciler.kernel().inner.clone();
    kernel.log.clear();
    assert!(block(Reconciler::new(&mut kernel).pass(&wider, Some(&goal))).unwrap().converged());
    let attached = kernel.log.iter().position(|b| attaches_to(b, vxlan1));
    let written = kernel.log.iter().position(writes_entries);
    assert!(attached.unwrap() < written.unwrap(), "{:?}", kernel.log);
    assert_eq!(in_force(&wider, &kernel.seen()), Ok(()));
}

/// The same with a link that is gone: nothing passes it, and the others don't wait.
#[test]
fn a_filter_whose_link_is_gone_holds_nothing_up() {
    let (kernel, goal) = full_on_clsact();
    let wider = desired(&[mapped(0, 0, 0), mapped(1, 1, 0), mapped(0, 2, 0)], 1, 0);
    let (eth0, vxlan1) = (kernel.state.link("eth0").unwrap().ifindex, kernel.state.link("vxlan1").unwrap().ifindex);
    let mut once = true;
    let gone = |batch: &Batch| {
        let first = attaches_to(batch, eth0) && std::mem::take(&mut once);
        first.then(|| DeviceGone { ifindex: eth0 }.into())
    };
    let mut kernel = Refusing { inner: kernel, refuse: gone };
    let plan = plan_of(&kernel.inner, &wider);
    let applied = block(apply(&mut kernel, &plan));
    assert!(applied.failures.len() == 1 && applied.failures[0].vanished, "{:?}", applied.failures);
    let log = &kernel.inner.log;
    assert!(log.iter().any(|b| attaches_to(b, vxlan1)), "{log:?}");
    assert!(log.iter().any(writes_entries));
    assert_eq!(goal.mappings.len(), 2);
}

/// What nobody wants stops although its change is stuck; the rest of that change waits.
#[test]
fn deletes_go_on_where_their_change_is_stuck() {
    let mut kernel = fresh_kernel();
    let goal = desired(&[mapped(0, 0, 0)], 1, 0);
    assert!(block(Reconciler::new(&mut kernel).pass(&goal, None)).unwrap().converged());
    let (key, value) = kernel.state.maps.as_ref().unwrap().tunkey2if[0];
    let of = |step| Operation { change: "teth0/eth0".to_owned(), slot: None, step };
    let other = TunKey { id: 9, ..key };
    let operations = vec![
        of(Step::SetDev { slot: 80, link: LinkRef::gone(4242) }),
        of(Step::SetTunkey { insert: true, key: other, value: SlotRef { slot: 80, ..value } }),
        of(Step::DeleteTunkey { key, slot: value.slot }),
    ];
    let applied = block(apply(&mut kernel, &Plan { operations, ..Plan::default() }));
    assert_eq!((applied.done, applied.failures.len(), applied.released), (1, 1, true));
    assert!(kernel.state.maps.unwrap().tunkey2if.is_empty());
}

/// A pass goes on although all it had to do failed, if that was because a link went: the next look knows.
#[test]
fn a_link_that_vanished_is_settled_in_the_same_pass() {
    let mut kernel = fresh_kernel();
    let goal = desired(&[mapped(0, 0, 0), mapped(1, 1, 0)], 1, 0);
    assert!(block(Reconciler::new(&mut kernel).pass(&goal, None)).unwrap().converged());
    kernel.state.attachments.retain(|a| a.direction != Direction::Egress);
    for errno in [None, Some(libc::EBUSY)] {
        let mut left = 2;
        let fails = |batch: &Batch| {
            if !matches!(batch, Batch::Attach(_)) || left == 0 {
                return None;
            }
            left -= 1;
            let what = || refusal(errno.unwrap(), "attach");
            Some(if errno.is_none() { DeviceGone { ifindex: 11 }.into() } else { what() })
        };
        let mut reconciler = Reconciler::new(Refusing { inner: kernel.clone(), refuse: fails });
        let report = block(reconciler.pass(&goal, Some(&goal))).unwrap();
        // Anything else waits for the retry, with its pause.
        assert_eq!(report.converged(), errno.is_none(), "{report:?}");
    }
}

/// An interface without its device in `devs`, and with an entry that somebody else left there, doesn't send by that entry
/// while its slot is filled again.
#[test]
fn a_foreign_entry_that_waits_for_a_slot_is_not_brought_to_life() {
    let mut kernel = fresh_kernel();
    let goal = desired(&[mapped(0, 0, 0)], 1, 0);
    assert!(block(Reconciler::new(&mut kernel).pass(&goal, None)).unwrap().converged());
    let maps = kernel.state.maps.as_mut().unwrap();
    maps.devs.retain(|(slot, _)| *slot < FIRST_MAPPING_SLOT);
    let foreign = TunKey { id: 2, remote: remote(2), ..maps.if2tunkey[0].1.key };
    maps.if2tunkey[0].1.key = foreign;
    assert_eq!(maps.if2tunkey[0].1.local, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let before = kernel.wire();
    kernel.watch();
    let plan = plan_of(&kernel, &goal);
    assert!(block(apply(&mut kernel, &plan)).failures.is_empty());
    let after = kernel.wire();
    for moment in kernel.moments.iter().flatten() {
        assert_eq!(moment.check(&before, &[], &after, true), Ok(()));
    }
    assert_eq!(in_force(&goal, &kernel.seen()), Ok(()));
}
