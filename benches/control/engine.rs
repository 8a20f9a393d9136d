//! The batch engine on maps of its own, and the pure difference, both at 100,000 mappings.

use crate::lab::{Maps, entries};
use crate::table::{Table, Times, ratio, show, timed};
use std::collections::BTreeSet;
use tunnel_mesh::bpf::bare::Encoded;
use tunnel_mesh::bpf::{Calls, calls};
use tunnel_mesh::model::{
    Attachment, Conf, Desired, Direction, FIRST_MAPPING_SLOT, HookKind, IfEntry, Link, LoadedProgram, Local, MapState,
    Mapping, Observed, Program, SlotRef, TunKey, Tunnel, TunnelDevice, TunnelKey, TunnelKind,
};
use tunnel_mesh::plan::{Input, plan};

const ENTRIES: u32 = 100_000;
const ROUNDS: usize = 9;

pub fn run(table: &mut Table) {
    let maps = Maps::new("engine", ENTRIES + FIRST_MAPPING_SLOT);
    let (keys, ifs) = entries(ENTRIES);
    let encoded = Encoded::of(&keys, &ifs);
    let bare = maps.dataplane.bare().unwrap();
    let engine = || {
        maps.dataplane.write_tunkey2if(&keys).unwrap();
        maps.dataplane.write_if2tunkey(&ifs).unwrap();
    };

    let (mut ours, mut batch, mut each) = (Times::default(), Times::default(), Times::default());
    let (mut read, mut scan, mut scan_each) = (Times::default(), Times::default(), Times::default());
    let mut count = [0; 4];
    let counted = |n: &mut u64, f: &dyn Fn()| {
        let before = calls();
        let (time, ()) = timed(f);
        *n = total(calls().since(before));
        time
    };
    for _ in 0..ROUNDS {
        ours.add(counted(&mut count[0], &engine));
        read.add(counted(&mut count[1], &|| drop(maps.dataplane.read_hashes().unwrap())));
        bare.clear(&encoded).unwrap();
        batch.add(timed(|| bare.update_batch(&encoded).unwrap()).0);
        scan.add(timed(|| assert_eq!(bare.scan().unwrap(), 2 * ENTRIES as usize)).0);
        bare.clear(&encoded).unwrap();
        each.add(counted(&mut count[2], &|| bare.update_each(&encoded).unwrap()));
        scan_each.add(counted(&mut count[3], &|| assert_eq!(bare.scan_each().unwrap(), 2 * ENTRIES as usize)));
        bare.clear(&encoded).unwrap();
    }
    let r = ratio(&each, &ours);
    table.add(
        "100k new entries in both hashes, against one by one",
        &ours.text(),
        &each.text(),
        &format!("{r:.2}x faster"),
        "at least 2x",
        Some(r >= 2.0),
    );
    let r = ratio(&ours, &batch);
    table.add(
        "the same, against one bare UPDATE_BATCH a map",
        &ours.text(),
        &batch.text(),
        &format!("{r:.2}x"),
        "at most 1.15x",
        Some(r <= 1.15),
    );
    let r = ratio(&read, &scan);
    table.add(
        "100k entries of both hashes read, decoded and sorted, against a bare scan",
        &read.text(),
        &scan.text(),
        &format!("{r:.2}x"),
        "",
        None,
    );
    let (engine_calls, single_calls) = (count[0] + count[1], count[2] + count[3]);
    let r = single_calls as f64 / engine_calls as f64;
    table.add(
        "bpf(2) calls on the hashes, 100k entries written and read, against one by one",
        &engine_calls.to_string(),
        &single_calls.to_string(),
        &format!("1/{r:.0}"),
        "at most 1/1000",
        Some(r >= 1000.0),
    );

    // The pure difference beside a bare scan of the same number of live entries.
    let (desired, observed) = world(ENTRIES);
    bare.update_batch(&encoded).unwrap();
    let (mut diff, mut scan) = (Times::default(), Times::default());
    for _ in 0..ROUNDS {
        let nothing = BTreeSet::new();
        let input = Input { desired: &desired, observed: &observed, accepted: Some(&desired), was_pending: &nothing };
        let (time, made) = timed(|| plan(input));
        assert!(made.is_empty(), "{:?}", made.operations.first());
        diff.add(time);
        scan.add(timed(|| bare.scan().unwrap()).0);
    }
    let r = ratio(&diff, &scan);
    table.add(
        "pure diff of 100k unchanged mappings, against a bare scan of 100k",
        &diff.text(),
        &scan.text(),
        &format!("{r:.2}x"),
        "at most 1.5x",
        Some(r <= 1.5),
    );
    let _ = show;
}

/// A desired state of that many mappings, and a live state that equals it.
fn world(count: u32) -> (Desired, Observed) {
    const DEVICE: u32 = 2;
    let local = "10.9.0.1".parse().unwrap();
    let (keys, ifs) = entries(count);
    let tunnel = Tunnel {
        name: "vx0".to_owned(),
        kind: TunnelKind::Vxlan,
        port: Some(4789),
        create: false,
        local: Local { v4: Some("10.9.0.1".parse().unwrap()), v6: None },
        mtu: Some(1450),
        ttl: ifs[0].1.ttl,
        tos: ifs[0].1.tos,
        df: false,
        checksum: None,
        mark: 1,
        fast: tunnel_mesh::model::Fast::Auto,
        origin: Default::default(),
    };
    let device = TunnelDevice {
        kind: TunnelKind::Vxlan,
        ip6: false,
        external: true,
        port: Some(4789),
        learning: false,
        local: Local::default(),
        udp6_zero_checksum_rx: false,
    };
    let mut desired = Desired { tunnels: [("vx0".to_owned(), tunnel)].into(), ..Desired::default() };
    let mut links = vec![Link {
        ifindex: DEVICE,
        name: "vx0".to_owned(),
        kind: "vxlan".into(),
        mtu: 1450,
        up: true,
        tunnel: Some(Box::new(device)),
        ..Link::default()
    }];
    let mut attachments = vec![Attachment {
        kind: HookKind::Tcx,
        ifindex: DEVICE,
        direction: Direction::Ingress,
        program: Some(2),
        position: 0,
    }];
    for (ifindex, entry) in &ifs {
        let name = format!("i{ifindex}");
        links.push(Link { ifindex: *ifindex, name: name.clone(), kind: "ifb".into(), ..Link::default() });
        attachments.push(Attachment {
            kind: HookKind::Tcx,
            ifindex: *ifindex,
            direction: Direction::Egress,
            program: Some(1),
            position: 0,
        });
        let key = TunnelKey { tunnel: "vx0".into(), id: entry.key.id, remote: entry.key.remote };
        let mapping = Mapping {
            tenant: "bench".into(),
            interface: name.as_str().into(),
            key,
            local,
            attach: Default::default(),
            node: None,
            generated: None,
            origin: Default::default(),
        };
        desired.mappings.insert(name.into(), mapping);
    }
    let sorted = |mut keys: Vec<(TunKey, SlotRef)>| {
        keys.sort_unstable_by_key(|(key, _)| *key);
        keys
    };
    let devs = [(1, DEVICE)].into_iter().chain(ifs.iter().map(|(i, e): &(u32, IfEntry)| (e.slot, *i))).collect();
    let program = |program, id| LoadedProgram { program, id, current: true };
    let observed = Observed {
        links,
        maps: Some(MapState {
            capacity: count + FIRST_MAPPING_SLOT,
            conf: [(1, Conf { ifindex: DEVICE, name: "vx0".to_owned(), mark: 1, ..Conf::default() })].into(),
            tunkey2if: sorted(keys),
            if2tunkey: ifs,
            devs,
        }),
        programs: vec![program(Program::HandleEgress, 1), program(Program::HandleIngress { tunnel: 1 }, 2)],
        attachments,
        ..Observed::default()
    };
    (desired, observed)
}

fn total(calls: Calls) -> u64 {
    let Calls { lookups, updates, deletes, lookup_batches, update_batches, delete_batches } = calls;
    lookups + updates + deletes + lookup_batches + update_batches + delete_batches
}
