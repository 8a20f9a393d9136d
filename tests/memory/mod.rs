//! A kernel in memory: carries batches out as the real one does, refuses what it refuses, and answers what its data
//! plane would do with every packet. `tests/kernel_trace.rs` compares its answers with the real kernel's.
//!
//! - `batches`: what a batch does, one write after the other.
//! - `wire`: which interface receives a packet, and what becomes of what an interface sends.
//! - `topology`: random topologies and what they mean on the wire.

// Every test binary compiles its own copy and uses a part of it.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod batches;
pub mod topology;
pub mod wire;

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::kernel::{Batch, Kernel, Outcome};
use wire::Wire;

/// Runs a future that never waits.
pub fn block<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a kernel in memory doesn't wait"),
    }
}

/// Maps that are filled beside the live ones, while attachments are switched to them.
#[derive(Debug, Clone)]
pub struct Growth {
    pub maps: MapState,
    pub generation: u32,
    pub programs: Vec<LoadedProgram>,
}

/// The kernel.
#[derive(Debug, Clone, Default)]
pub struct MemoryKernel {
    /// Its state: everything, also what a look doesn't show.
    pub state: Observed,
    /// Batches carried out, in whole or in part.
    pub log: Vec<Batch>,
    /// What the data plane did after each single write, where somebody wants to know.
    pub moments: Option<Vec<Wire>>,
    /// A growth that began to switch attachments and isn't finished.
    pub growth: Option<Growth>,
    /// How often links were changed.
    pub links_changed: u64,
    /// Which maps the live ones are: each set of maps is a generation of its own.
    generation: u32,
    /// Maps that attached programs still run on although they aren't the live ones.
    older: BTreeMap<u32, MapState>,
    /// Every program that was ever loaded: what it is, and the maps it runs on.
    programs: BTreeMap<u32, (Program, u32)>,
    next_ifindex: u32,
    next_program: u32,
}

impl MemoryKernel {
    /// A kernel with plain links of these names, indexes from 11 up.
    pub fn with_links(names: &[&str]) -> Self {
        let mut kernel = Self { next_ifindex: 10, next_program: 100, ..Self::default() };
        for name in names {
            kernel.add_link(name);
        }
        kernel
    }

    /// Adds a link as somebody else would.
    pub fn add_link(&mut self, name: &str) -> u32 {
        self.links_changed += 1;
        self.next_ifindex += 1;
        let ifindex = self.next_ifindex;
        // An address of its own tells a link from one that had its name or index before.
        let [.., a, b, c, d] = self.links_changed.to_be_bytes();
        self.state.links.push(Link {
            ifindex,
            name: name.to_owned(),
            kind: "veth".into(),
            mac: Some([2, 0, a, b, c, d]),
            ethernet: true,
            mtu: 1500,
            up: true,
            peer_in_other_netns: true,
            ..Link::default()
        });
        ifindex
    }

    /// A link of that name takes the index of one that is gone, as it may with a move from another namespace.
    pub fn inherit(&mut self, name: &str, ifindex: u32) {
        self.links_changed += 1;
        let free = self.state.link(name).is_none() && self.state.link_by_index(ifindex).is_none();
        assert!(free, "{name} or ifindex {ifindex} is taken");
        let kept = self.next_ifindex;
        if let Some(tunnel) = topology::TUNNELS.iter().find(|t| **t == name) {
            self.add_vxlan(name, topology::port_of(tunnel));
        } else {
            self.add_link(name);
        }
        self.next_ifindex = kept;
        self.state.links.last_mut().unwrap().ifindex = ifindex;
    }

    /// Adds a tunnel device in external mode as somebody else would.
    pub fn add_vxlan(&mut self, name: &str, port: u16) -> u32 {
        let ifindex = self.add_link(name);
        if let Some(link) = self.state.links.iter_mut().find(|l| l.ifindex == ifindex) {
            link.kind = "vxlan".into();
            link.peer_in_other_netns = false;
            link.forwards.v4 = true;
            link.tunnel = Some(Box::new(TunnelDevice {
                kind: TunnelKind::Vxlan,
                ip6: false,
                external: true,
                port: Some(port),
                learning: false,
                local: Local::default(),
                udp6_zero_checksum_rx: false,
            }));
        }
        ifindex
    }

    /// Removes a link: the kernel itself takes it out of every `devs` and detaches what is on it.
    pub fn remove_link(&mut self, ifindex: u32) {
        self.links_changed += 1;
        self.state.links.retain(|l| l.ifindex != ifindex);
        self.state.addresses.retain(|a| a.ifindex != ifindex);
        for link in self.state.links.iter_mut().filter(|l| l.master == Some(ifindex)) {
            link.master = None;
            link.isolated = None;
        }
        let growing = self.growth.iter_mut().map(|g| &mut g.maps);
        for maps in self.state.maps.iter_mut().chain(self.older.values_mut()).chain(growing) {
            maps.devs.retain(|(_, i)| *i != ifindex);
        }
        self.state.attachments.retain(|a| a.ifindex != ifindex || a.kind == HookKind::Tcx);
        for attachment in self.state.attachments.iter_mut().filter(|a| a.ifindex == ifindex) {
            attachment.program = None;
            attachment.position = 0;
        }
    }

    /// Somebody unpins a map: what is attached goes on with the old ones.
    pub fn lose_maps(&mut self) {
        if let Some(maps) = self.state.maps.take() {
            self.older.insert(self.generation, maps);
        }
        (self.growth, self.state.outdated_maps) = (None, None);
    }

    /// They turn out to be what an earlier version made: to be read, and to be carried over.
    pub fn age_maps(&mut self) {
        if self.growth.is_none() && self.state.maps.is_some() {
            self.state.outdated_maps = Some("the maps are of an earlier layout".to_owned());
        }
    }

    /// The maps that a program runs on.
    fn maps_of(&self, generation: u32) -> Option<&MapState> {
        if let Some(growth) = self.growth.as_ref().filter(|g| g.generation == generation) {
            return Some(&growth.maps);
        }
        self.state.maps.as_ref().filter(|_| generation == self.generation).or_else(|| self.older.get(&generation))
    }

    /// The highest program id that was ever given out, and the highest ifindex.
    pub fn heights(&self) -> (u32, u32) {
        (self.next_program, self.next_ifindex)
    }

    /// What a look shows.
    pub fn seen(&self) -> Observed {
        let mut seen = self.state.clone();
        if let Some(maps) = &mut seen.maps {
            // Slots of `devs` are read one by one: the first ones, and up to the highest that an entry names.
            let keys = maps.tunkey2if.iter().map(|(_, v)| v.slot);
            let named = keys.chain(maps.if2tunkey.iter().map(|(_, v)| v.slot)).filter(|slot| *slot < maps.capacity);
            let end = named.max().map_or(FIRST_MAPPING_SLOT, |s| s + 1).max(tunnel_mesh::bpf::SLOTS_READ);
            maps.devs.retain(|(slot, _)| *slot < end);
        }
        if seen.maps.is_none() || seen.outdated_maps.is_some() {
            seen.programs.iter_mut().for_each(|p| p.current = false);
        }
        seen.programs.sort_by_key(|p| p.program);
        seen.attachments.sort_by_key(|a| (a.ifindex, a.direction, a.kind));
        seen
    }

    /// Starts over with noting batches and moments.
    pub fn watch(&mut self) {
        self.log.clear();
        self.moments = Some(Vec::new());
    }

    /// Notes what the data plane does now, where somebody wants to know.
    fn moment(&mut self) {
        let Some(mut moments) = self.moments.take() else { return };
        let now = self.wire();
        if moments.last() != Some(&now) {
            moments.push(now);
        }
        self.moments = Some(moments);
    }
}

impl Kernel for MemoryKernel {
    async fn observe(&mut self, _ports: bool) -> anyhow::Result<Observed> {
        Ok(self.seen())
    }

    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<Outcome> {
        self.execute_part(batch, usize::MAX)
    }

    async fn grace_period(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}
