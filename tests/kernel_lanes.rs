//! Both lanes carry the same: what one workload sends is what the other receives, byte for byte, by the fast lane and by
//! the tunnel device, in every set-up.

#![allow(clippy::unwrap_used, missing_docs)]

mod lanes;
mod safety;
mod world;

use lanes::cases::{self, Case, Takes};
use lanes::inner::{EXPERIMENT, FAR, ethernet};
use lanes::model::{Lost, Tenant, Verdict};
use lanes::mutate::{self, Random, Wrong};
use lanes::outer::Outer;
use lanes::raw::{Packet, Raw, stay_on_this_cpu};
use lanes::site::Site;
use lanes::*;
use world::scaled;

/// Ends what was sent: goes by the tunnel device in both lanes, so whatever was sent before it arrives before it.
fn last(number: usize) -> Packet {
    Packet::plain(ethernet(FAR, EXPERIMENT, format!("the last of {number:08}").as_bytes()))
}

/// Sends the case's packets one after the other and compares what comes out with what went in.
fn send(site: &Site, sockets: &[Raw; 3], number: usize, case: &Case) -> Vec<Vec<u8>> {
    let end = last(number);
    let [near, far, blue] = sockets;
    site.red[0].enter(|| {
        stay_on_this_cpu();
        near.send(&case.packets);
        near.send(std::slice::from_ref(&end));
    });
    let arrived = far.until(&end.bytes);
    assert_eq!((far.lost(), blue.drain()), (0, vec![]), "{}", case.name);
    arrived
}

/// Puts two lists of frames side by side where they differ.
fn assert_same(what: &str, expected: &[Vec<u8>], found: &[Vec<u8>]) {
    for (n, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert!(expected == found, "{what}: frame {n} of {} is\n{found:02x?}\nnot\n{expected:02x?}", expected.len());
    }
    assert_eq!(expected.len(), found.len(), "{what}: frames");
}

fn everything_arrives(setup: Setup) {
    let site = Site::new(setup);
    let sockets = [&site.red[0], &site.red[1], &site.blue[1]].map(|w| Raw::on(w, "eth0"));
    let all = cases::all(site.mtu());
    for lane in LANES {
        site.use_lane(lane, "");
        for takes in [Takes::Fast, Takes::Device, Takes::Either] {
            let before = [site.counts(0), site.counts(1)];
            let (mut frames, mut ends) = (0, 0);
            for (number, case) in all.iter().enumerate().filter(|(_, case)| case.takes == takes) {
                let expected: Vec<Vec<u8>> = case.packets.iter().flat_map(Packet::frames).collect();
                let found = send(&site, &sockets, number, case);
                assert_same(&format!("{setup:?}, {lane:?}, {}", case.name), &expected, &found);
                frames += expected.len() as u64;
                ends += 1;
            }
            let now = [0, 1].map(|n| site.counts(n).since(before[n]));
            let sent = (now[0].tx, now[1].rx, now[0].drops, now[1].drops);
            assert_eq!(sent, (frames + ends, frames + ends, 0, 0), "{setup:?}, {lane:?}, {takes:?}: {now:?}");
        }
    }
}

/// Packets with something wrong in them that each lane of each set-up gets: 100,000 and more over the run.
const SPOILED: u64 = 7_000;

/// How many of them are sent before it is looked what came of them.
const PART: usize = 200;

/// What arrived at one tenant is what the verdicts say, in order.
fn judge(what: &str, tenant: Tenant, sent: &[(Wrong, Packet, Verdict)], arrived: &[Vec<u8>]) {
    let mut arrived = arrived.iter().peekable();
    for (wrong, packet, verdict) in sent {
        let next = arrived.peek().map(|frame| frame.as_slice());
        let (sure, right) = match verdict {
            Verdict::Delivered(to, frame) if *to == tenant => (true, next == Some(frame)),
            Verdict::Perhaps(to, frame) if *to == tenant => (false, next == Some(frame)),
            Verdict::Something(to, length) if *to == tenant => (false, next.is_some_and(|f| f.len() == *length)),
            _ => continue,
        };
        if right {
            arrived.next();
        }
        assert!(
            right || !sure,
            "{what}: {wrong:?}: {tenant:?} got\n{next:02x?}\nfrom\n{:02x?}\n{verdict:02x?}",
            packet.bytes
        );
    }
    let more: Vec<_> = arrived.collect();
    assert!(more.is_empty(), "{what}: {tenant:?} got what nobody sent it: {more:02x?}");
}

fn malformed_outer_packets(setup: Setup) {
    let site = Site::new(setup);
    let seed = mutate::seed();
    println!("TUNNEL_MESH_SEED={seed}");
    let mut random = Random::new(seed);
    let world = site.world();
    let ids = [RED, BLUE];
    let outers = ids.map(|id| site.outer(id));
    let spoiled: Vec<(Wrong, Packet, Verdict)> = (0..scaled(SPOILED))
        .map(|n| {
            let wrong = mutate::ALL[usize::try_from(n).unwrap() % mutate::ALL.len()];
            let inner = mutate::tenants_frame(&mut random, u32::try_from(n).unwrap());
            let mut outer = outers[random.below(2)].clone();
            (outer.id, outer.tos) = (u16::try_from(n).unwrap(), random.pick(&[0, 0, 0, 1, 2, 3, 0xb8]));
            outer.checksum = setup.over == Over::Ipv6 && random.below(8) != 0 || random.below(4) == 0;
            let packet = mutate::spoil(&mut random, wrong, &outer, &inner, ids);
            let verdict = world.verdict(&packet.bytes);
            (wrong, packet, verdict)
        })
        .collect();
    let wire = Raw::on(&site.underlay.netns, "p1");
    let sockets = [(Tenant::Red, &site.red[1]), (Tenant::Blue, &site.blue[1])].map(|(t, w)| (t, Raw::on(w, "eth0")));
    let ends = outers.each_ref().map(|outer| Packet::plain(outer.frame(&last(0).bytes)));
    // Whether this kernel counts a VXLAN header with bits that mean something else.
    let counts_bits = {
        let before = account::account(&site.hosts[1]);
        wire.send(&[
            Packet::plain(Outer { flags: 0x8800_0000, ..outers[0].clone() }.frame(&last(0).bytes)),
            ends[0].clone(),
        ]);
        sockets[0].1.until(&last(0).bytes);
        account::since(&account::account(&site.hosts[1]), &before).contains_key("vxlan0 errors")
    };
    let parts = spoiled.chunks(PART).len() as u64;
    let counted = spoiled.iter().filter(|(_, packet, _)| match world.lost(&packet.bytes) {
        Some(Lost::Uncounted) => false,
        Some(Lost::Bits) => counts_bits,
        _ => true,
    });
    let counted = counted.count() as u64;
    let mut first: Option<(Vec<Vec<Vec<u8>>>, u64)> = None;
    for lane in LANES {
        site.use_lane(lane, "");
        let what = format!("{setup:?}, {lane:?}, seed {seed}");
        let mut all = Vec::new();
        let before = account::account(&site.hosts[1]);
        for part in spoiled.chunks(PART) {
            let packets: Vec<Packet> = part.iter().map(|(_, packet, _)| packet.clone()).collect();
            site.underlay.netns.enter(|| {
                stay_on_this_cpu();
                wire.send(&packets);
                wire.send(&ends);
            });
            for (tenant, socket) in &sockets {
                let arrived = socket.until(&last(0).bytes);
                judge(&what, *tenant, part, &arrived);
                assert_eq!(socket.lost(), 0);
                all.push(arrived);
            }
        }
        let found = account::since(&account::account(&site.hosts[1]), &before);
        let total = found.values().sum::<u64>() - 2 * parts;
        // The kernel counts some twice, and isn't asked why.
        assert!(
            total >= counted && total < counted + counted / 100,
            "{what}: {counted} packets, counted {total}: {found:#?}"
        );
        match &first {
            None => first = Some((all, total)),
            Some((first, counted)) => {
                assert_eq!(total, *counted, "{what}: counted by the other lane, and here: {found:#?}");
                for (n, (expected, found)) in first.iter().zip(&all).enumerate() {
                    assert_same(&format!("{what}: part {n}"), expected, found);
                }
            }
        }
    }
}

macro_rules! matrix {
    ($($body:ident),* $(,)?) => {
        $(
            mod $body {
                use super::{Attach, Hook, Over, Setup};

                fn run(attach: Attach, over: Over, hook: Hook) {
                    super::$body(Setup { attach, over, hook });
                }

                #[test]
                fn port_over_ipv4_by_tcx() {
                    run(Attach::Port, Over::Ipv4, Hook::Tcx);
                }

                #[test]
                fn port_over_ipv6_by_tcx() {
                    run(Attach::Port, Over::Ipv6, Hook::Tcx);
                }

                #[test]
                fn endpoint_over_ipv4_by_tcx() {
                    run(Attach::Endpoint, Over::Ipv4, Hook::Tcx);
                }

                #[test]
                fn endpoint_over_ipv6_by_tcx() {
                    run(Attach::Endpoint, Over::Ipv6, Hook::Tcx);
                }

                #[test]
                fn port_over_ipv4_by_clsact() {
                    run(Attach::Port, Over::Ipv4, Hook::Clsact);
                }

                #[test]
                fn port_over_ipv6_by_clsact() {
                    run(Attach::Port, Over::Ipv6, Hook::Clsact);
                }

                #[test]
                fn endpoint_over_ipv4_by_clsact() {
                    run(Attach::Endpoint, Over::Ipv4, Hook::Clsact);
                }

                #[test]
                fn endpoint_over_ipv6_by_clsact() {
                    run(Attach::Endpoint, Over::Ipv6, Hook::Clsact);
                }
            }
        )*
    };
}

matrix!(everything_arrives, malformed_outer_packets);
