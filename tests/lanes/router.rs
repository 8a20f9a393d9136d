//! A workload that routes: what comes out of the tunnel goes back into it.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::inner::*;
use super::raw::Packet;
use super::segment::fix_ipv4_checksum;
use super::site::Site;
use crate::safety::knob;

/// Where packets are to go that the router gets.
const BEHIND: [&str; 2] = ["192.168.50.9", "fd50::9"];

/// Makes the second workload of red a router on one leg: it knows the first one as the way to [`BEHIND`].
pub fn make(site: &Site) {
    let router = &site.red[1];
    for which in ["all", "default", "eth0"] {
        knob(router, &format!("ipv6/conf/{which}/disable_ipv6"), "0");
        knob(router, &format!("ipv6/conf/{which}/accept_dad"), "0");
        knob(router, &format!("ipv6/conf/{which}/router_solicitations"), "0");
        knob(router, &format!("ipv4/conf/{which}/send_redirects"), "0");
        knob(router, &format!("ipv4/conf/{which}/rp_filter"), "0");
    }
    router.cmd("ip link set eth0 addrgenmode none");
    knob(router, "ipv4/ip_forward", "1");
    knob(router, "ipv6/conf/all/forwarding", "1");
    router.cmd("ip addr add 192.168.50.2/24 dev eth0");
    router.cmd("ip addr add fd50::2/64 dev eth0 nodad");
    let near = NEAR.map(|b| format!("{b:02x}")).join(":");
    for address in BEHIND {
        router.cmd(&format!("ip neigh replace {address} lladdr {near} dev eth0 nud permanent"));
    }
}

/// Packets for the router, all kinds that a router forwards.
pub fn packets(mtu: usize) -> Vec<Packet> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for tos in [0, 1, 2, 3, 0xb8] {
            let ip = Ip { host: 9, tos, ..ip(v6) };
            for how in [Checksum::Whole, Checksum::Partial] {
                all.push(ip.udp(&payload(200, tos), how));
                all.push(ip.tcp(0x18, 1, &payload(1_000, tos), how));
            }
            all.push(ip.tcp_gso(0x18, 100, &payload(20_000, 40), 1_400));
            all.push(ip.tcp_gso(0x10, 200, &payload(50_000, 41), u16::try_from(mtu).unwrap() - 100));
            all.push(ip.udp(&payload(mtu - if v6 { 48 } else { 28 }, 42), Checksum::Whole));
        }
    }
    all
}

/// What the router makes of a frame.
pub fn forwarded(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&NEAR);
    frame[6..12].copy_from_slice(&FAR);
    if frame[14] >> 4 == 4 {
        frame[22] -= 1;
        fix_ipv4_checksum(&mut frame, 14);
    } else {
        frame[21] -= 1;
    }
    frame
}
