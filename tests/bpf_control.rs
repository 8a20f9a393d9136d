//! The control side of the bpf edge in the kernel: attachments, growth, batches, layouts, recovery.
#![allow(clippy::unwrap_used)]

mod bpf_lab;
#[path = "lifecycle/earlier.rs"]
mod earlier;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use bpf_lab::{Host, INGRESS, Lab, TUNNEL, in_netns, ping_in, run, uses_tcx};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tunnel_mesh::bpf::{Dataplane, MapFull, NoMaps};
use tunnel_mesh::model::{
    Attach, Attachment, Conf, Counters, Direction, HookKind, IfEntry, OuterField, Program, SlotRef, TunKey,
};

const SLOT: u32 = 64;
const ID: u32 = 456;
const LO: u32 = 1;

/// A namespace and maps of so many slots, without programs or devices.
fn bare(lab: &mut Lab, capacity: u32) -> (String, Dataplane) {
    let (ns, dir) = (lab.namespace("bare"), lab.pin_dir("bare"));
    let mut dp = Dataplane::open_writer(&dir).unwrap();
    dp.create_maps(capacity).unwrap();
    (ns, dp)
}

fn wired(lab: &mut Lab) -> (Host, Host) {
    let (a, b) = lab.two_hosts();
    for (host, remote, address) in [(&a, &b, "192.168.5.1/24"), (&b, &a, "192.168.5.2/24")] {
        host.add_port("p0", Some(address));
        host.map("p0", SLOT, ID, remote.v4, Attach::Port);
    }
    assert_eq!(a.ping("192.168.5.2", 1), 1);
    (a, b)
}

/// The n-th of many mappings.
fn numbered(n: u32) -> ((TunKey, SlotRef), (u32, IfEntry)) {
    let key = TunKey { tunnel: TUNNEL, id: n, remote: IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)) };
    let slot = SLOT + n;
    let entry = IfEntry {
        slot,
        endpoint: n.is_multiple_of(2),
        key,
        local: IpAddr::from([10, 9, 0, 1]),
        ttl: OuterField::Inherit,
        tos: OuterField::Fixed(8),
        df: n.is_multiple_of(3),
        checksum: n.is_multiple_of(5),
        fast: None,
        valid: true,
    };
    ((key, SlotRef { slot, endpoint: n.is_multiple_of(2), valid: true }), (1000 + n, entry))
}

#[test]
fn opening_makes_nothing_and_writing_without_maps_says_so() {
    let mut lab = Lab::new();
    let dir = lab.pin_dir("empty");
    let dp = Dataplane::open_writer(&dir).unwrap();
    assert!(!dir.exists());
    assert_eq!(dp.observe().unwrap(), None);
    assert_eq!(dp.programs().unwrap(), []);
    assert_eq!(dp.tcx_attachments().unwrap(), []);
    let error = dp.clear_conf(&[TUNNEL]).unwrap_err();
    assert!(error.downcast_ref::<NoMaps>().is_some(), "{error:#}");
    Dataplane::open_writer(&dir).unwrap().remove_all().unwrap();
}

#[test]
fn programs_are_current_only_on_the_maps_that_are_pinned() {
    let mut lab = Lab::new();
    let (_ns, mut dp) = bare(&mut lab, 128);
    let dir = dp.pin_dir().to_owned();
    let egress = dp.load(Program::HandleEgress).unwrap();
    let ingress = dp.load(INGRESS).unwrap();
    let again = Dataplane::open(&dir).unwrap();
    let programs: Vec<_> = again.programs().unwrap().iter().map(|p| (p.program, p.id, p.current)).collect();
    assert_eq!(programs, [(Program::HandleEgress, egress, true), (INGRESS, ingress, true)]);
    assert!(dp.create_maps(128).is_err(), "maps aren't made over others");

    // Somebody unpins one map: the next writer makes all of them anew, and loads the programs again.
    fs::remove_file(dir.join("devs")).unwrap();
    let mut dp = Dataplane::open_writer(&dir).unwrap();
    assert_eq!(dp.observe().unwrap(), None);
    dp.create_maps(128).unwrap();
    assert!(dp.programs().unwrap().iter().all(|p| !p.current));
    dp.load(INGRESS).unwrap();
    let current: Vec<_> = dp.programs().unwrap().iter().map(|p| p.current).collect();
    assert_eq!(current, [false, true]);
    dp.unload(Program::HandleEgress).unwrap();
    dp.unload(Program::HandleEgress).unwrap();
    assert_eq!(dp.programs().unwrap().len(), 1);
}

#[test]
fn batches_write_read_and_delete_many() {
    const MANY: u32 = 10_000;
    let mut lab = Lab::new();
    let (ns, dp) = bare(&mut lab, MANY + SLOT);
    let (keys, interfaces): (Vec<_>, Vec<_>) = (0..MANY).map(numbered).unzip();
    // Chunks of 4096.
    assert_eq!(dp.write_tunkey2if(&keys).unwrap(), 3);
    assert_eq!(dp.write_if2tunkey(&interfaces).unwrap(), 3);
    assert_eq!(dp.write_tunkey2if(&keys[..1]).unwrap(), 1);
    assert_eq!(dp.write_tunkey2if(&[]).unwrap(), 0);
    let conf = Conf { ifindex: 7, name: "vxlan0".to_owned(), mark: 1, ..Conf::default() };
    dp.write_conf(&[(TUNNEL, conf.clone()), (63, conf.clone())]).unwrap();
    in_netns(&ns, || assert_eq!(dp.write_devs(&[(TUNNEL, LO), (SLOT, LO)]).unwrap(), 2));

    let state = dp.observe().unwrap().unwrap();
    let mut sorted = keys.clone();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    assert_eq!(state.capacity, MANY + SLOT);
    assert_eq!(state.tunkey2if, sorted);
    assert_eq!(state.if2tunkey, interfaces);
    assert_eq!(state.conf.into_iter().collect::<Vec<_>>(), [(TUNNEL, conf.clone()), (63, conf)]);
    assert_eq!(state.devs, [(TUNNEL, LO), (SLOT, LO)]);

    // Every third is absent already: a batch stops there, and goes on behind it.
    let third: Vec<_> = interfaces.iter().step_by(3).map(|(ifindex, _)| *ifindex).collect();
    assert_eq!(dp.delete_if2tunkey(&third).unwrap(), 1);
    let some: Vec<_> = interfaces.iter().take(300).map(|(ifindex, _)| *ifindex).collect();
    assert_eq!(dp.delete_if2tunkey(&some).unwrap(), 101);
    let left = dp.observe().unwrap().unwrap().if2tunkey;
    assert!(left.iter().all(|(ifindex, _)| *ifindex >= 1300 && (*ifindex - 1000) % 3 != 0));
    assert_eq!(left.len(), (300..MANY).filter(|n| n % 3 != 0).count());
    let all: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
    assert_eq!(dp.delete_tunkey2if(&all).unwrap(), 3);
    dp.clear_conf(&[63]).unwrap();
    dp.clear_devs(&[SLOT, SLOT + 1]).unwrap();
    let state = dp.observe().unwrap().unwrap();
    assert_eq!((state.tunkey2if.len(), state.conf.len()), (0, 1));
    assert_eq!(state.devs, [(TUNNEL, LO)]);
}

#[test]
fn a_full_map_is_told_apart_and_grows() {
    let mut lab = Lab::new();
    let (ns, mut dp) = bare(&mut lab, 128);
    let (keys, _): (Vec<_>, Vec<_>) = (0..200).map(numbered).unzip();
    let error = dp.write_tunkey2if(&keys).unwrap_err();
    let full = error.downcast_ref::<MapFull>().unwrap();
    assert_eq!((full.map, full.capacity), ("tunkey2if", 128));
    assert_eq!(dp.observe().unwrap().unwrap().tunkey2if.len(), 128, "those before were written");
    in_netns(&ns, || {
        dp.write_devs(&[(127, LO)]).unwrap();
        let error = dp.write_devs(&[(128, LO)]).unwrap_err();
        assert!(error.downcast_ref::<MapFull>().is_some(), "{error:#}");
        let error = dp.write_devs(&[(127, 12345)]).unwrap_err();
        assert_eq!(error.downcast_ref::<tunnel_mesh::bpf::DeviceGone>().unwrap().ifindex, 12345);
        let growth = dp.grow_maps(100_000).unwrap();
        assert_eq!((growth.programs, growth.switched), (vec![], 0));
    });
    assert_eq!(dp.capacity(), Some(100_000));
    dp.write_tunkey2if(&keys).unwrap();
    let state = dp.observe().unwrap().unwrap();
    assert_eq!(state.tunkey2if.len(), 200);
    assert!(state.devs.contains(&(127, LO)));
    assert!(dp.grow_maps(200).is_err(), "maps don't shrink");
    let names: BTreeSet<_> =
        fs::read_dir(dp.pin_dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let expected = ["conf", "counters", "devs", "if2tunkey", "links", "meta", "programs", "tunkey2if", "unknown"];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn growth_under_traffic_loses_nothing() {
    let mut lab = Lab::new();
    let (a, b) = wired(&mut lab);
    let before = a.counters(SLOT);
    let state = a.dp.observe().unwrap().unwrap();
    let dir = a.dp.pin_dir().to_owned();
    let answered = std::thread::scope(|scope| {
        let ping = scope.spawn(|| ping_in(&a.ns, "192.168.5.2", 300));
        for capacity in [1024, 4096, 65_536] {
            std::thread::sleep(std::time::Duration::from_millis(150));
            in_netns(&a.ns, || {
                let mut dp = Dataplane::open_writer(&dir).unwrap();
                let growth = dp.grow_maps(capacity).unwrap();
                assert_eq!(growth.programs.len(), 2);
                if uses_tcx() {
                    assert_eq!(growth.switched, 2);
                    let running: BTreeSet<_> = dp.tcx_attachments().unwrap().iter().map(|x| x.program).collect();
                    let ids = growth.programs.iter().map(|(_, id)| Some(*id)).collect();
                    assert_eq!(running, ids);
                }
                assert!(dp.programs().unwrap().iter().all(|p| p.current));
            });
            for (program, interface, direction) in
                [(Program::HandleEgress, "p0", Direction::Egress), (INGRESS, "vxlan0", Direction::Ingress)]
            {
                a.attach(program, interface, direction);
            }
        }
        ping.join().unwrap()
    });
    assert_eq!(answered, 300);
    let grown = Dataplane::open(&dir).unwrap();
    let after = grown.observe().unwrap().unwrap();
    assert_eq!(after.capacity, 65_536);
    assert_eq!((after.tunkey2if, after.if2tunkey, after.conf, after.devs), {
        (state.tunkey2if, state.if2tunkey, state.conf, state.devs)
    });
    // Counters came along; a few packets, counted between the copy and the switch, are missing.
    let counters = grown.counters().unwrap().into_iter().find(|(slot, _)| *slot == SLOT).unwrap().1;
    assert!(counters.tx_packets > before.tx_packets, "{before:?} {counters:?}");
    drop(b);
}

#[test]
fn an_interrupted_growth_is_thrown_away_or_finished() {
    let mut lab = Lab::new();
    let (a, _b) = wired(&mut lab);
    let dir = a.dp.pin_dir().to_owned();
    let before = a.dp.observe().unwrap();
    let ids = |dp: &Dataplane| dp.programs().unwrap().iter().map(|p| p.id).collect::<Vec<_>>();

    // Stopped before the mark: thrown away.
    let mut next = Dataplane::open_writer(&dir.join("next")).unwrap();
    next.create_maps(512).unwrap();
    next.load(Program::HandleEgress).unwrap();
    drop(next);
    let reader = Dataplane::open(&dir).unwrap();
    assert_eq!(reader.observe().unwrap(), before);
    assert!(dir.join("next").exists(), "a reader changes nothing");
    let dp = in_netns(&a.ns, || Dataplane::open_writer(&dir).unwrap());
    assert!(!dir.join("next").exists());
    assert_eq!((dp.observe().unwrap(), ids(&dp)), (before, ids(&a.dp)));
    assert_eq!(a.ping("192.168.5.2", 2), 2);

    // Stopped behind the mark, with a map and a program renamed: finished.
    let mut next = Dataplane::open_writer(&dir.join("next")).unwrap();
    next.create_maps(512).unwrap();
    let new = [next.load(Program::HandleEgress).unwrap(), next.load(INGRESS).unwrap()];
    fs::create_dir(dir.join("next/committed")).unwrap();
    fs::rename(dir.join("next/conf"), dir.join("conf")).unwrap();
    let reader = Dataplane::open(&dir).unwrap();
    assert!(reader.clear_conf(&[5]).is_err(), "nobody writes to half a growth");
    let dp = in_netns(&a.ns, || Dataplane::open_writer(&dir).unwrap());
    assert!(!dir.join("next").exists());
    assert_eq!((dp.capacity(), ids(&dp)), (Some(512), new.to_vec()));
    assert!(dp.programs().unwrap().iter().all(|p| p.current));
    if uses_tcx() {
        let running: BTreeSet<_> =
            in_netns(&a.ns, || dp.tcx_attachments().unwrap()).iter().map(|x| x.program.unwrap()).collect();
        assert_eq!(running, new.into_iter().collect());
    }
}

#[test]
fn another_layout_counts_as_none() {
    let mut lab = Lab::new();
    let (_ns, dp) = bare(&mut lab, 128);
    let dir = dp.pin_dir().to_owned();
    let cases = [
        ("if2tunkey", "type hash key 4 value 8 entries 128", "value size"),
        ("tunkey2if", "type hash key 4 value 8 entries 128", "key size"),
        ("devs", "type array key 4 value 8 entries 128", "map type"),
        ("conf", "type array key 4 value 64 entries 2", "number of entries"),
        ("tunkey2if", "type hash key 24 value 8 entries 128 flags 1", "flags"),
    ];
    for (map, definition, what) in cases {
        let pin = dir.join(map);
        let aside = dir.join("aside");
        fs::rename(&pin, &aside).unwrap();
        run(&format!("bpftool map create {} name {map} {definition}", pin.display()));
        let opened = Dataplane::open(&dir).unwrap();
        let why = opened.outdated().unwrap();
        assert!(why.contains(what) && why.contains(pin.to_str().unwrap()), "{why}");
        assert_eq!(opened.capacity(), None);
        assert_eq!(opened.observe().unwrap(), None);
        fs::rename(&aside, &pin).unwrap();
    }
    assert_eq!(Dataplane::open(&dir).unwrap().outdated(), None);
    // A later layout of the same sizes.
    let meta = dir.join("meta").display().to_string();
    run(&format!("bpftool map update pinned {meta} key 0 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 99 0 0 0"));
    let mut later = Dataplane::open(&dir).unwrap();
    assert!(later.outdated().unwrap().contains("layout version"));
    later.create_maps(256).unwrap();
    assert_eq!((later.outdated(), later.capacity()), (None, Some(256)));
    assert_eq!(Dataplane::open(&dir).unwrap().outdated(), None);
}

/// Maps of an earlier version are read as they are, refuse to be written, and are moved into today's while packets flow.
fn carried_over(version: u32, differs: &str) {
    let mut lab = Lab::new();
    let (a, _b) = wired(&mut lab);
    let dir = a.dp.pin_dir().to_owned();
    assert_eq!(a.ping("192.168.5.2", 5), 5);
    earlier::age(&dir, version);
    let (before, counted) = (a.dp.observe().unwrap(), a.dp.counters().unwrap());
    assert!(counted.iter().any(|(slot, c)| *slot == SLOT && c.rx_packets >= 5 && c.tx_packets >= 5), "{counted:?}");

    let reader = Dataplane::open(&dir).unwrap();
    assert!(reader.outdated().unwrap().contains(differs), "{:?}", reader.outdated());
    assert_eq!((reader.observe().unwrap(), reader.counters().unwrap()), (before.clone(), counted.clone()));
    assert!(reader.programs().unwrap().iter().all(|p| !p.current));
    assert!(reader.clear_conf(&[1]).unwrap_err().to_string().contains("carried over"));

    let mut dp = in_netns(&a.ns, || Dataplane::open_writer(&dir).unwrap());
    assert!(dp.outdated().is_some() && dp.load(Program::HandleEgress).is_err());
    let capacity = dp.capacity().unwrap();
    let growth = in_netns(&a.ns, || dp.grow_maps(capacity).unwrap());
    assert_eq!((dp.outdated(), dp.capacity()), (None, Some(capacity)));
    assert_eq!((dp.observe().unwrap(), dp.counters().unwrap()), (before, counted.clone()));
    assert!(dp.programs().unwrap().iter().all(|p| p.current));
    if uses_tcx() {
        assert_eq!(growth.switched, 2, "the tunnel's and the port's");
        assert_eq!(a.ping("192.168.5.2", 3), 3);
        let of = |counted: &[(u32, Counters)]| counted.iter().find(|(slot, _)| *slot == SLOT).unwrap().1.tx_packets;
        assert!(of(&dp.counters().unwrap()) >= of(&counted) + 3, "it counts on");
    }
    assert_eq!(Dataplane::open(&dir).unwrap().outdated(), None);
}

#[test]
fn maps_of_version_1_are_carried_over() {
    carried_over(1, "conf has another layout (value size 32");
}

#[test]
fn maps_of_version_2_are_carried_over() {
    carried_over(2, "counters has another layout (value size 184");
}

/// What is attached by TCX, as (ifindex, direction, program, position).
fn attached(ns: &str, dp: &Dataplane) -> Vec<(u32, Direction, Option<u32>, u32)> {
    let attachments = in_netns(ns, || dp.tcx_attachments().unwrap());
    assert!(attachments.iter().all(|a| a.kind == HookKind::Tcx));
    attachments
        .into_iter()
        .map(|Attachment { ifindex, direction, program, position, .. }| (ifindex, direction, program, position))
        .collect()
}

#[test]
fn tcx_attachments_are_pinned_taken_over_and_replaced_in_place() {
    let mut lab = Lab::new();
    let (ns, mut dp) = bare(&mut lab, 128);
    let dir = dp.pin_dir().to_owned();
    let first = dp.load(Program::HandleEgress).unwrap();
    in_netns(&ns, || {
        dp.tcx_attach(Program::HandleEgress, LO, Direction::Egress).unwrap();
        dp.tcx_attach(Program::HandleEgress, LO, Direction::Egress).unwrap();
        dp.tcx_attach(Program::HandleEgress, LO, Direction::Ingress).unwrap();
    });
    drop(dp);
    let mut dp = Dataplane::open_writer(&dir).unwrap();
    let expected = [(LO, Direction::Ingress, Some(first), 0), (LO, Direction::Egress, Some(first), 0)];
    assert_eq!(attached(&ns, &dp), expected);

    let link = || run(&format!("bpftool -j link show pinned {}/links/egress_1", dir.display()));
    let before = link();
    let second = dp.load(Program::HandleEgress).unwrap();
    assert_ne!(first, second);
    in_netns(&ns, || dp.tcx_attach(Program::HandleEgress, LO, Direction::Egress).unwrap());
    assert_eq!(attached(&ns, &dp)[1], (LO, Direction::Egress, Some(second), 0));
    let id = |text: &str| text.split(',').next().unwrap().to_owned();
    assert_eq!(id(&link()), id(&before), "the same bpf_link");

    dp.tcx_detach(LO, Direction::Egress).unwrap();
    dp.tcx_detach(LO, Direction::Egress).unwrap();
    assert_eq!(attached(&ns, &dp).len(), 1);
    let error = in_netns(&ns, || dp.tcx_attach(Program::HandleEgress, 4242, Direction::Egress).unwrap_err());
    assert!(error.downcast_ref::<tunnel_mesh::bpf::DeviceGone>().is_some(), "{error:#}");
    assert!(error.to_string().contains("handle_egress") && error.to_string().contains("4242"), "{error:#}");
    dp.remove_all().unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_defunct_tcx_attachment_is_made_anew() {
    let mut lab = Lab::new();
    let (ns, mut dp) = bare(&mut lab, 128);
    let elsewhere = lab.namespace("elsewhere");
    let id = dp.load(Program::HandleEgress).unwrap();
    let make = || run(&format!("ip -n {ns} link add x0 index 77 type veth peer name x1"));
    make();
    in_netns(&ns, || dp.tcx_attach(Program::HandleEgress, 77, Direction::Egress).unwrap());
    assert_eq!(attached(&ns, &dp), [(77, Direction::Egress, Some(id), 0)]);

    run(&format!("ip -n {ns} link del x0"));
    assert_eq!(attached(&ns, &dp), [(77, Direction::Egress, None, 0)]);
    make();
    assert_eq!(attached(&ns, &dp), [(77, Direction::Egress, None, 0)], "the newcomer has nothing attached");
    in_netns(&ns, || dp.tcx_attach(Program::HandleEgress, 77, Direction::Egress).unwrap());
    assert_eq!(attached(&ns, &dp), [(77, Direction::Egress, Some(id), 0)]);

    // Moved away with its attachment, and a stranger comes in its place.
    run(&format!("ip -n {ns} link set x0 netns {elsewhere}"));
    run(&format!("ip -n {ns} link add y0 index 77 type veth peer name y1"));
    assert_eq!(attached(&ns, &dp), [(77, Direction::Egress, None, 0)]);
    in_netns(&ns, || dp.tcx_attach(Program::HandleEgress, 77, Direction::Egress).unwrap());
    assert_eq!(attached(&ns, &dp), [(77, Direction::Egress, Some(id), 0)]);
}

#[test]
fn a_foreign_tcx_program_before_ours_is_overtaken_without_a_gap() {
    let mut lab = Lab::new();
    let (a, _b) = wired(&mut lab);
    let dir = a.dp.pin_dir().to_owned();
    let port = a.ifindex("p0");
    let pin = lab.foreign_program();
    let of_port = |dp: &Dataplane| attached(&a.ns, dp).into_iter().find(|(ifindex, ..)| *ifindex == port).unwrap();
    let before = of_port(&a.dp);
    assert_eq!(before.3, 0);

    let foreign = in_netns(&a.ns, || {
        let mut foreign = SchedClassifier::from_pin(pin.join("foreign")).unwrap();
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = foreign.attach_with_options("p0", TcAttachType::Egress, options).unwrap();
        foreign.take_link(link).unwrap()
    });
    assert_eq!(of_port(&a.dp).3, 1);
    let stop = AtomicBool::new(false);
    let lost = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            let mut lost = 0;
            while !stop.load(Ordering::Relaxed) {
                lost += 20 - ping_in(&a.ns, "192.168.5.2", 20);
            }
            lost
        });
        in_netns(&a.ns, || {
            let mut dp = Dataplane::open_writer(&dir).unwrap();
            dp.tcx_attach(Program::HandleEgress, port, Direction::Egress).unwrap();
        });
        stop.store(true, Ordering::Relaxed);
        pinging.join().unwrap()
    });
    assert_eq!(lost, 0);
    assert_eq!(of_port(&a.dp), before);
    // Nothing passes us now: the other program sees no more packets.
    let seen = || run(&format!("bpftool map dump pinned {}", Path::new(&pin).join("seen").display()));
    let before = seen();
    assert_eq!(a.ping("192.168.5.2", 3), 3);
    assert_eq!(seen(), before);
    drop(foreign);
    assert_eq!(a.ping("192.168.5.2", 3), 3);
}

#[test]
fn counters_are_reset_for_a_new_mapping() {
    let mut lab = Lab::new();
    let (a, _b) = wired(&mut lab);
    assert!(a.counters(SLOT).tx_packets > 0);
    assert_eq!(a.dp.reset_counters(&[SLOT, SLOT + 1, SLOT + 2]).unwrap(), 1);
    assert_eq!(a.counters(SLOT), tunnel_mesh::model::Counters::default());
}
