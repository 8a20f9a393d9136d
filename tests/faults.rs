//! Random fault schedules against the reconciler: no panic, nothing wrong at any instant, nothing deleted that is wanted,
//! retries with growing pauses, `status` tells the truth meanwhile, and when the faults end it converges.

#![allow(clippy::unwrap_used, missing_docs)]

mod faulty;
mod memory;

use faulty::FaultyKernel;
use faulty::dice::Dice;
use memory::block;
use memory::topology::{Choice, INTERFACES, can_hold, desired, device, fresh_kernel, hook, in_force, meaning};
use memory::wire::{Fate, Packet, number};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tunnel_mesh::model::*;
use tunnel_mesh::plan::{Input, plan};
use tunnel_mesh::reconcile::chains::Chains;
use tunnel_mesh::reconcile::history::History;
use tunnel_mesh::reconcile::kernel::{Batch, Kernel};
use tunnel_mesh::reconcile::progress::{Progress, RETRY_MAX, RETRY_MIN};
use tunnel_mesh::reconcile::status::{Sources, State, Status};
use tunnel_mesh::reconcile::{Reconciler, Report};

/// Passes that may be needed once the faults have ended: one may have to finish a growth first.
const ENOUGH: usize = 3;

fn topology(dice: &mut Dice, before: Option<&Vec<Option<Choice>>>) -> Vec<Option<Choice>> {
    if let Some(before) = before.filter(|_| dice.percent(40)) {
        // The same keys on other interfaces.
        let mut moved = before.clone();
        for place in 0..moved.len() {
            moved.swap(place, dice.below(before.len()));
        }
        return moved;
    }
    let mut choice = || {
        let mut byte = || dice.below(256) as u8;
        Choice { tunnel: byte(), id: byte(), far: byte(), endpoint: byte() < 70 }
    };
    let all: Vec<Choice> = INTERFACES.iter().map(|_| choice()).collect();
    all.into_iter().map(|c| dice.percent(60).then_some(c)).collect()
}

/// What the daemon keeps beside the reconciler.
struct Run {
    reconciler: Reconciler<FaultyKernel>,
    progress: Progress,
    pauses: Vec<Duration>,
    /// Topologies since the last one that was reached, that one first.
    on_the_way: Vec<Desired>,
}

impl Run {
    fn pass(&mut self, from: &Desired, goal: &Desired) -> Option<Report> {
        self.reconciler.kernel().begin(&self.on_the_way, goal);
        let result = block(self.reconciler.pass(goal, Some(from)));
        let good = result.as_ref().is_ok_and(Report::converged);
        if good {
            self.on_the_way.clear();
        }
        if self.on_the_way.last() != Some(goal) {
            self.on_the_way.push(goal.clone());
        }
        let pause = self.progress.note(&result);
        match pause {
            None => self.pauses.clear(),
            Some(pause) => {
                let expected = self.pauses.last().map_or(RETRY_MIN, |last| (*last * 2).min(RETRY_MAX));
                assert_eq!(pause, expected, "pauses so far: {:?}", self.pauses);
                self.pauses.push(pause);
            }
        }
        assert_eq!((pause.is_none(), self.progress.errors.is_empty()), (good, good), "{:?}", self.progress);
        self.truth(goal);
        result.ok()
    }

    /// Compares what `status` says with what the data plane does.
    fn truth(&mut self, goal: &Desired) {
        let kernel = &self.reconciler.kernel().inner;
        let observed = kernel.seen();
        let nothing = BTreeSet::new();
        let plan = plan(Input { desired: goal, observed: &observed, accepted: Some(goal), was_pending: &nothing });
        let status = Status::of(Sources {
            accepted: Some(goal),
            held: &nothing,
            delayed: &nothing,
            observed: &observed,
            plan: Some(&plan),
            traffic: &BTreeMap::new(),
            rates: &BTreeMap::new(),
            unknown: Vec::new(),
            chains: &Chains::default(),
            history: &History::default(),
        });
        let wire = kernel.wire();
        for said in &status.mappings {
            let mapping = &goal.mappings[said.interface.as_str()];
            let link = observed.link(&said.interface);
            let tunnel = device(&observed, &goal.tunnels[&said.tunnel]);
            match said.state {
                State::Active => {
                    let (link, tunnel) = (link.unwrap().ifindex, tunnel.unwrap().ifindex);
                    let sent = wire.get(Packet::Sent(link, hook(said.attach)));
                    let received = wire.get(Packet::Received(tunnel, said.id, number(said.remote)));
                    let way = (Some(Fate::Into(tunnel, said.id, said.remote)), Some(Fate::To(link)));
                    assert_eq!((sent, received), way, "{said:?}\n{:#?}", plan.operations);
                }
                State::Pending => {
                    let possible = link.is_some_and(|l| can_hold(mapping, l, &observed));
                    assert!(!possible || tunnel.is_none(), "{said:?}");
                }
                State::Drifted => assert!(!plan.is_empty() && said.why.is_some(), "{said:?}"),
                State::Held => panic!("nothing is held: {said:?}"),
            }
        }
        // The daemon says "in force" only where, besides, nothing failed in its last pass.
        if status.in_force {
            assert_eq!(in_force(goal, &observed), Ok(()));
            assert_eq!(wire, meaning(goal, &kernel.state, &kernel.state));
        }
    }
}

/// Runs one schedule; returns the faults that it had.
fn schedule(seed: u64) -> [u64; 5] {
    let mut dice = Dice(seed);
    let mut kernel = fresh_kernel();
    if dice.percent(30) {
        kernel.state.features.hook_kind = HookKind::Clsact;
    }
    if dice.percent(50) {
        // So small that they must grow soon.
        block(kernel.execute(&Batch::CreateMaps(64 + dice.below(6) as u32))).unwrap();
    }
    kernel.watch();
    let faulty = FaultyKernel::new(kernel, Dice(dice.next()));
    let mut run = Run {
        reconciler: Reconciler::new(faulty),
        progress: Progress::default(),
        pauses: Vec::new(),
        on_the_way: Vec::new(),
    };
    let mut choices = None;
    let mut from = Desired::default();
    for _ in 0..1 + dice.below(3) {
        let next = topology(&mut dice, choices.as_ref());
        let goal = desired(&next, 1 + dice.below(2) as u8, dice.below(3) as u8);
        choices = Some(next);
        run.reconciler.kernel().rate = [5, 15, 40][dice.below(3)];
        if dice.percent(15) {
            // Restarted with another --hook.
            let kind = &mut run.reconciler.kernel().inner.state.features.hook_kind;
            *kind = if *kind == HookKind::Tcx { HookKind::Clsact } else { HookKind::Tcx };
        }
        for _ in 0..1 + usize::from(dice.percent(40)) {
            drop(run.pass(&from, &goal));
            from.clone_from(&goal);
            if dice.percent(30) {
                run.reconciler.kernel().link_event();
            }
            if dice.percent(20) {
                run.reconciler.kernel().heir();
            }
        }
    }

    run.reconciler.kernel().rate = 0;
    let goal = from;
    let mut passes = 0;
    while !run.pass(&goal, &goal).is_some_and(|report| report.converged()) {
        passes += 1;
        assert!(passes < ENOUGH, "doesn't converge: {:#?}", run.progress);
    }
    let kernel = run.reconciler.kernel();
    assert_eq!(in_force(&goal, &kernel.inner.seen()), Ok(()));
    assert_eq!(kernel.inner.wire(), meaning(&goal, &kernel.inner.state, &kernel.inner.state));
    kernel.inner.log.clear();
    assert!(!run.pass(&goal, &goal).unwrap().changed);
    let kernel = run.reconciler.kernel();
    assert!(kernel.inner.log.is_empty(), "{:?}", kernel.inner.log);
    assert!(kernel.wrong.is_empty(), "{}", kernel.wrong.join("\n"));
    kernel.faults
}

/// Runs schedules and names the one that fails.
fn schedules(seeds: std::ops::Range<u64>) {
    let mut faults = [0; 5];
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| schedule(seed)) {
            Ok(some) => faults.iter_mut().zip(some).for_each(|(all, some)| *all += some),
            Err(panic) => {
                eprintln!("schedule {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // Of each kind, or the schedules test nothing.
    assert!(faults[..4].iter().all(|n| *n > (seeds.end - seeds.start) / 10), "{faults:?}");
}

#[test]
fn five_thousand_schedules() {
    schedules(0..5_000);
}

#[test]
fn five_thousand_more_schedules() {
    schedules(5_000..10_000);
}
