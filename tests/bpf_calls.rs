//! What a change costs in calls of bpf(2), counted on the running kernel and compared with the least there can be.
//!
//! `devs` has no batch calls: it is counted apart, one call for each entry.

#![allow(clippy::unwrap_used, missing_docs)]

mod live;
mod memory;

use live::Place;
use memory::topology::{Choice, desired, in_force};
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::bpf::{Calls, Dataplane, SLOTS_READ, calls};
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::Reconciler;
use tunnel_mesh::reconcile::kernel::Kernel;

/// Mappings of the large table: two chunks of 4096, and a third that isn't full.
const MANY: u32 = 10_000;

/// What a closure costs.
fn cost<T>(f: impl FnOnce() -> T) -> (Calls, T) {
    let before = calls();
    let value = f();
    (calls().since(before), value)
}

fn key(n: u32) -> TunKey {
    TunKey { tunnel: 1, id: n, remote: IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)) }
}

fn slot_ref(n: u32) -> SlotRef {
    SlotRef { slot: FIRST_MAPPING_SLOT + n, endpoint: false, valid: true }
}

fn entry(n: u32, ttl: u8) -> IfEntry {
    IfEntry {
        slot: FIRST_MAPPING_SLOT + n,
        endpoint: false,
        key: key(n),
        local: IpAddr::from([10, 0, 0, 1]),
        ttl: OuterField::Fixed(ttl),
        tos: OuterField::Inherit,
        df: false,
        checksum: false,
        fast: None,
        valid: true,
    }
}

#[test]
fn bpf_calls_of_large_tables_are_one_for_each_chunk() {
    let place = Place::new();
    place.block_on(|| async {
        let mut dataplane = Dataplane::open_writer(&place.pins).unwrap();
        dataplane.create_maps(2 * MANY).unwrap();
        let keys: Vec<_> = (0..MANY).map(|n| (key(n), slot_ref(n))).collect();
        let ifs: Vec<_> = (0..MANY).map(|n| (1000 + n, entry(n, 1))).collect();
        let three = Calls { update_batches: 3, ..Calls::default() };
        assert_eq!(cost(|| dataplane.write_tunkey2if(&keys).unwrap()), (three, 3));
        assert_eq!(cost(|| dataplane.write_if2tunkey(&ifs).unwrap()), (three, 3));

        // Few entries, in whatever places, are one call.
        let changed: Vec<_> = (0..MANY).step_by(100).map(|n| (1000 + n, entry(n, 9))).collect();
        let one = Calls { update_batches: 1, ..Calls::default() };
        assert_eq!(cost(|| dataplane.write_if2tunkey(&changed).unwrap()), (one, 1));
        let conf = |n: u32| (n, Conf { ifindex: 1, name: format!("v{n}"), mark: 1, ..Conf::default() });
        assert_eq!(cost(|| dataplane.write_conf(&(1..64).map(conf).collect::<Vec<_>>()).unwrap()), (one, 1));
        assert_eq!(cost(|| dataplane.clear_conf(&(2..64).collect::<Vec<_>>()).unwrap()), (one, 1));
        let slots: Vec<u32> = (64..164).collect();
        assert_eq!(cost(|| dataplane.reset_counters(&slots).unwrap()), (one, 1));
        assert_eq!(cost(|| dataplane.write_tunkey2if(&[]).unwrap()), (Calls::default(), 0));

        // One call for each entry of devs.
        let devs: Vec<_> = (64..74).map(|slot| (slot, 1)).collect();
        let ten = Calls { updates: 10, ..Calls::default() };
        assert_eq!(cost(|| dataplane.write_devs(&devs).unwrap()), (ten, 10));
        let five = Calls { deletes: 5, ..Calls::default() };
        assert_eq!(cost(|| dataplane.clear_devs(&[64, 65, 66, 67, 68]).unwrap()), (five, 5));

        // A look: both hashes by chunks, conf at once, devs slot by slot as far as entries lead.
        let (spent, state) = cost(|| dataplane.observe().unwrap().unwrap());
        let slots = u64::from(FIRST_MAPPING_SLOT + MANY);
        assert_eq!(spent, Calls { lookup_batches: 3 + 3 + 1, lookups: slots, ..Calls::default() });
        let counts = (state.tunkey2if.len(), state.if2tunkey.len(), state.conf.len(), state.devs.len());
        assert_eq!(counts, (MANY as usize, MANY as usize, 1, 5));
        assert_eq!(state.if2tunkey[100], (1100, entry(100, 9)));

        // A key that is absent costs the call that finds it.
        let (spent, _) = cost(|| dataplane.delete_tunkey2if(&[key(1), key(MANY), key(2)]).unwrap());
        assert_eq!(spent, Calls { delete_batches: 2, ..Calls::default() });
        let gone: Vec<_> = (3..MANY).map(key).collect();
        assert_eq!(cost(|| dataplane.delete_tunkey2if(&gone).unwrap()).0.delete_batches, 3);
        assert_eq!(dataplane.observe().unwrap().unwrap().tunkey2if.len(), 1);
    });
}

fn mapped(tunnel: u8, id: u8, far: u8) -> Option<Choice> {
    Some(Choice { tunnel, id, far, endpoint: false })
}

/// What the looks of a pass cost: the first and, where something was done, the one that verifies.
async fn looks(reconciler: &mut Reconciler<tunnel_mesh::reconcile::live::LiveKernel>) -> (Calls, Observed) {
    let before = calls();
    let observed = reconciler.kernel().observe(false).await.unwrap();
    (calls().since(before), observed)
}

#[test]
fn bpf_calls_of_a_pass_are_the_least_there_can_be() {
    let place = Place::new();
    place.block_on(|| async {
        let mut reconciler = Reconciler::new(place.kernel().await);
        let first = [mapped(0, 0, 0), mapped(0, 1, 0), mapped(1, 0, 0), mapped(1, 1, 0), None, None];
        let before = desired(&first, 1, 0);
        assert!(reconciler.pass(&before, None).await.unwrap().converged());

        // Nothing to do: one look.
        let (look, observed) = looks(&mut reconciler).await;
        assert_eq!(in_force(&before, &observed), Ok(()));
        let slots = u64::from(observed.maps.as_ref().unwrap().capacity.min(SLOTS_READ));
        // Three maps by batches; devs, the namespace's cookie and the records of three programs one by one.
        assert_eq!(look, Calls { lookup_batches: 3, lookups: slots + 4, ..Calls::default() });
        let spent = calls();
        assert!(!reconciler.pass(&before, Some(&before)).await.unwrap().changed);
        assert_eq!(calls().since(spent), look);

        // Two keys swap, one mapping goes, one changes, two come.
        let second = [mapped(0, 1, 0), mapped(0, 0, 0), None, mapped(1, 2, 0), mapped(1, 0, 0), mapped(0, 2, 2)];
        let goal = desired(&second, 1, 0);
        let (look, _) = looks(&mut reconciler).await;
        let spent = calls();
        let report = reconciler.pass(&goal, Some(&before)).await.unwrap();
        let spent = calls().since(spent);
        assert!(report.converged(), "{report:?}");
        let (again, observed) = looks(&mut reconciler).await;
        assert_eq!(in_force(&goal, &observed), Ok(()));
        let least = Calls {
            lookups: look.lookups + again.lookups,
            lookup_batches: look.lookup_batches + again.lookup_batches,
            // Counters of two new slots, tunkey2if, if2tunkey: each at once.
            update_batches: 3,
            // The key that was left, the interface that was left.
            delete_batches: 2,
            // devs: two new mappings, and one that is gone.
            updates: 2,
            deletes: 1,
        };
        assert_eq!(spent, least, "{:#?}", report.plan.operations);
    });
}
