//! A line from one workload to the other: sends, and knows when everything that was sent has arrived or never will.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::inner::{EXPERIMENT, FAR, ethernet};
use super::outer::Outer;
use super::raw::{Packet, Raw, on_cpu, some_cpu};
use super::site::Site;
use super::{BLUE, RED};
use crate::world::eventually;

/// All of it happens on one processor, where the kernel keeps the order of what takes the same way. What takes the fast
/// lane may overtake what takes the tunnel device; a frame that the test itself puts on the underlay, with a UDP checksum
/// and so always for the device, is behind all.
pub struct Line<'a> {
    site: &'a Site,
    cpu: usize,
    near: Raw,
    wire: Raw,
    red: Raw,
    blue: Raw,
    ends: [Packet; 2],
}

const MARK: [&[u8]; 2] = [b"the last of the workload", b"the last on the underlay"];

/// A frame of the test's own, that ends what is sent.
pub fn end(which: usize) -> Vec<u8> {
    ethernet(FAR, EXPERIMENT, MARK[which])
}

impl<'a> Line<'a> {
    pub fn new(site: &'a Site) -> Self {
        let ends = [RED, BLUE].map(|id| {
            let outer = Outer { checksum: true, ..site.outer(id) };
            Packet::plain(outer.frame(&end(1)))
        });
        Self {
            site,
            cpu: some_cpu(),
            near: Raw::on(&site.red[0], "eth0"),
            wire: Raw::on(&site.underlay.netns, "p1"),
            red: Raw::on(&site.red[1], "eth0"),
            blue: Raw::on(&site.blue[1], "eth0"),
            ends,
        }
    }

    /// Sends from the first workload; answers with what reaches the second one. Nobody else may get anything.
    pub fn send(&self, packets: &[Packet]) -> Vec<Vec<u8>> {
        self.site.red[0].enter(|| {
            on_cpu(self.cpu);
            self.near.send(packets);
            self.near.send(&[Packet::plain(end(0))]);
        });
        let mut arrived = self.red.until(&end(0));
        let [more, others] = self.inject(&[]);
        arrived.extend(more);
        assert_eq!(others, Vec::<Vec<u8>>::new(), "the other tenant got something");
        arrived
    }

    /// Puts frames on the second host's underlay; answers with what reaches each tenant's workload there.
    pub fn inject(&self, frames: &[Packet]) -> [Vec<Vec<u8>>; 2] {
        self.site.underlay.netns.enter(|| {
            on_cpu(self.cpu);
            self.wire.send(frames);
            self.wire.send(&self.ends);
        });
        [&self.red, &self.blue].map(|socket| {
            let arrived = socket.until(&end(1));
            assert_eq!(socket.lost(), 0);
            arrived
        })
    }

    /// That many frames that come to the first workload, and no more than those; without what a router tells all of its
    /// kind.
    pub fn came_back(&self, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        eventually(&format!("{count} frames come back"), || {
            all.extend(self.near.drain().into_iter().filter(|frame| frame[..2] != [0x33, 0x33]));
            all.len() >= count
        });
        all
    }
}

/// Packets that a call of [`Line::send`] adds at the sender, and at the receiver: its own marks.
pub const ADDED: [u64; 2] = [1, 3];
/// As [`ADDED`] at the receiver, of [`Line::inject`].
pub const INJECTED: u64 = 2;
