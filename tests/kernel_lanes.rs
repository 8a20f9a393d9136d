//! Both lanes carry the same: what one workload sends is what the other receives, byte for byte, by the fast lane and by
//! the tunnel device, in every set-up.

#![allow(clippy::unwrap_used, missing_docs)]

mod lanes;
mod safety;
mod world;

use lanes::cases::{self, Case, Takes};
use lanes::inner::{EXPERIMENT, FAR, ethernet};
use lanes::raw::{Packet, Raw, stay_on_this_cpu};
use lanes::site::Site;
use lanes::*;

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

matrix!(everything_arrives);
