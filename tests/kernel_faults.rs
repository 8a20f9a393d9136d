//! Faults on the running kernel that a process has to get over by itself.

#![allow(clippy::unwrap_used, missing_docs)]

mod live;
mod memory;

use live::Place;
use memory::topology::{Choice, desired, in_force};
use std::fs;
use tunnel_mesh::bpf::Dataplane;
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::kernel::{Batch, Hook, Kernel};
use tunnel_mesh::reconcile::live::LiveKernel;
use tunnel_mesh::reconcile::{Reconciler, Report};

fn mapped(tunnel: u8, id: u8, far: u8) -> Option<Choice> {
    Some(Choice { tunnel, id, far, endpoint: false })
}

/// Everything is as it should be, and runs on the maps that are pinned.
async fn check(place: &Place, reconciler: &mut Reconciler<LiveKernel>, goal: &Desired) {
    let seen = reconciler.kernel().observe(false).await.unwrap();
    assert_eq!(in_force(goal, &seen), Ok(()));
    assert!(seen.programs.iter().all(|p| p.current), "{:?}", seen.programs);
    let runs = |a: &Attachment| seen.programs.iter().any(|p| Some(p.id) == a.program);
    assert!(!seen.attachments.is_empty() && seen.attachments.iter().all(runs), "{:?}", seen.attachments);
    let pinned = Dataplane::open(&place.pins).unwrap();
    assert_eq!(pinned.observe().unwrap(), seen.maps);
}

#[test]
fn kernel_a_growth_that_fails_half_way_is_finished_by_the_same_process() {
    let place = Place::new();
    place.block_on(|| async {
        let mut reconciler = Reconciler::new(place.kernel().await);
        let goal = desired(&[mapped(0, 0, 0), mapped(1, 1, 0)], 1, 0);
        assert!(reconciler.pass(&goal, None).await.unwrap().converged());

        // Something stands in the way of the last step, when every attachment runs on the new maps already.
        let conf = place.pins.join("conf");
        fs::remove_file(&conf).unwrap();
        fs::create_dir(&conf).unwrap();
        let error = reconciler.kernel().execute(&Batch::GrowMaps(512)).await.unwrap_err();
        assert!(format!("{error:#}").contains("conf"), "{error:#}");
        assert!(place.pins.join("next/committed").exists());

        // As long as it stands there, nothing is written anywhere.
        let wider = desired(&[mapped(0, 0, 0), mapped(1, 1, 0), mapped(0, 2, 0)], 1, 0);
        let before = reconciler.kernel().observe(false).await.unwrap().maps;
        let report = reconciler.pass(&wider, Some(&goal)).await.unwrap();
        assert!(!report.converged() && !report.changed, "{report:?}");
        assert_eq!(reconciler.kernel().observe(false).await.unwrap().maps, before);

        fs::remove_dir(&conf).unwrap();
        let report = reconciler.pass(&wider, Some(&goal)).await.unwrap();
        assert!(!report.converged(), "the first pass finishes the growth and says so: {report:?}");
        let report = reconciler.pass(&wider, Some(&goal)).await.unwrap();
        assert!(report.converged(), "{report:?}");
        assert!(!place.pins.join("next").exists());
        check(&place, &mut reconciler, &wider).await;
        assert_eq!(reconciler.kernel().observe(false).await.unwrap().maps.unwrap().capacity, 512);
        assert!(!reconciler.pass(&wider, Some(&wider)).await.unwrap().changed);
    });
}

#[test]
fn kernel_maps_that_are_unpinned_meanwhile_are_pinned_again_before_a_program_is_loaded() {
    let place = Place::new();
    place.block_on(|| async {
        let mut reconciler = Reconciler::new(place.kernel().await);
        let goal = desired(&[mapped(0, 0, 0)], 1, 0);
        assert!(reconciler.pass(&goal, None).await.unwrap().converged());
        for map in ["conf", "tunkey2if", "counters"] {
            fs::remove_file(place.pins.join(map)).unwrap();
        }
        // Another tunnel needs another program, which must run on the maps that we write to.
        let wider = desired(&[mapped(0, 0, 0), mapped(1, 1, 0)], 1, 0);
        let report = reconciler.pass(&wider, Some(&goal)).await.unwrap();
        assert!(report.converged(), "{report:?}");
        check(&place, &mut reconciler, &wider).await;
    });
}

/// A run on clsact was cut short: its filter stands where no entry leads. The next one, on TCX where there is TCX, finds
/// and removes it.
#[test]
fn kernel_a_filter_that_was_left_behind_is_found_without_an_entry() {
    let place = Place::new();
    place.block_on(|| async {
        let goal = desired(&[mapped(0, 0, 0)], 1, 0);
        let mut first = Reconciler::new(place.kernel_on(Some(HookKind::Clsact)).await);
        assert!(first.pass(&goal, None).await.unwrap().converged());
        let ifindex = first.kernel().observe(false).await.unwrap().link("eth7").unwrap().ifindex;
        let (program, direction, kind) = (Program::HandleEgress, Direction::Egress, HookKind::Clsact);
        let hook = Hook { program, ifindex, direction, kind, replace: false };
        first.kernel().execute(&Batch::Attach(vec![hook])).await.unwrap();
        drop(first);

        let mut second = Reconciler::new(place.kernel_on(None).await);
        let seen = second.kernel().observe(false).await.unwrap();
        assert!(seen.attachments.iter().any(|a| a.ifindex == ifindex), "{:?}", seen.attachments);
        assert!(second.pass(&goal, Some(&goal)).await.unwrap().converged());
        let seen = second.kernel().observe(false).await.unwrap();
        assert!(seen.attachments.iter().all(|a| a.kind == seen.features.hook_kind && a.ifindex != ifindex));
        check(&place, &mut second, &goal).await;
    });
}

/// A link that goes between the look and the write costs its own change only, and the same pass settles it.
#[test]
fn kernel_a_link_that_goes_during_a_pass_is_settled_by_that_pass() {
    let place = Place::new();
    place.block_on(|| async {
        let mut reconciler =
            Reconciler::new(Vanishing { place: &place, live: place.kernel().await, names: vec!["eth0"] });
        let goal = desired(&[mapped(0, 0, 0), mapped(1, 1, 0)], 1, 0);
        let report: Report = reconciler.pass(&goal, None).await.unwrap();
        assert!(report.converged(), "{report:?}");
        let seen = reconciler.kernel().observe(false).await.unwrap();
        assert_eq!(in_force(&goal, &seen), Ok(()));
        assert_eq!(seen.maps.unwrap().if2tunkey.len(), 1);

        // And while programs are attached.
        let wider = desired(&[mapped(0, 0, 0), mapped(1, 1, 0), mapped(0, 2, 0), mapped(0, 1, 1)], 1, 0);
        reconciler.kernel().names = vec!["attach", "eth2"];
        let report = reconciler.pass(&wider, Some(&goal)).await.unwrap();
        assert!(report.converged(), "{report:?}");
        let seen = reconciler.kernel().observe(false).await.unwrap();
        assert_eq!(in_force(&wider, &seen), Ok(()));
        assert_eq!(seen.maps.unwrap().if2tunkey.len(), 2);
    });
}

/// The real kernel, with somebody who removes a link at the first write to `devs`, or at the first attachment.
struct Vanishing<'a> {
    place: &'a Place,
    live: LiveKernel,
    names: Vec<&'static str>,
}

impl Kernel for Vanishing<'_> {
    async fn observe(&mut self, ports: bool) -> anyhow::Result<Observed> {
        self.live.observe(ports).await
    }

    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<tunnel_mesh::reconcile::kernel::Outcome> {
        let late = self.names.first() == Some(&"attach");
        let now = if late { matches!(batch, Batch::Attach(_)) } else { matches!(batch, Batch::SetDevs(_)) };
        if now && let Some(name) = std::mem::take(&mut self.names).last() {
            self.place.remove_link(name);
        }
        self.live.execute(batch).await
    }

    async fn grace_period(&mut self) -> anyhow::Result<()> {
        self.live.grace_period().await
    }
}
