//! What the data plane does with packets: the programs of `bpf-src/` over the maps that each of them runs on.

use super::MemoryKernel;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::model::*;

/// Tunnel ids that are looked at.
pub const IDS: u32 = 3;
/// Remotes that are looked at.
pub const REMOTES: u8 = 3;

/// A far host.
pub fn remote(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2 + n % REMOTES))
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// No program of ours sees it: the host's own stack gets it.
    Host,
    /// Counted and dropped.
    Dropped,
    /// Delivered to that interface.
    To(u32),
    /// Sent through that tunnel device, with that id, to that remote.
    Into(u32, u32, IpAddr),
}

/// The fate of every packet that may come: what arrives at a tunnel device, by id and remote, and what an interface
/// sends, by the hook that sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wire {
    pub received: BTreeMap<(u32, u32, IpAddr), Fate>,
    pub sent: BTreeMap<(u32, Direction), Fate>,
}

fn find<K: Ord + Copy, V: Copy>(list: &[(K, V)], key: K) -> Option<V> {
    list.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
}

/// What runs at a hook, and on which maps.
type Running<'a> = (Program, Option<&'a MapState>);

impl MemoryKernel {
    /// The first program of ours at a hook. TCX runs before clsact.
    fn runs(&self, ifindex: u32, direction: Direction) -> Option<Running<'_>> {
        let here = self.state.attachments.iter().filter(|a| a.ifindex == ifindex && a.direction == direction);
        let id = here.filter(|a| a.program.is_some()).min_by_key(|a| (a.kind, a.position))?.program?;
        let (program, generation) = *self.programs.get(&id)?;
        Some((program, self.maps_of(generation)))
    }

    fn is_up(&self, ifindex: u32) -> bool {
        self.state.links.iter().any(|l| l.ifindex == ifindex && l.up)
    }

    /// What becomes of a packet that arrives at a tunnel device.
    pub fn received(&self, device: u32, id: u32, far: IpAddr) -> Fate {
        if !self.is_up(device) {
            return Fate::Dropped;
        }
        let target = match self.runs(device, Direction::Ingress) {
            None => return Fate::Host,
            Some((Program::HandleIngress { tunnel }, Some(maps))) => ingress(maps, device, tunnel, id, far),
            _ => None,
        };
        target.filter(|ifindex| self.is_up(*ifindex)).map_or(Fate::Dropped, Fate::To)
    }

    /// What becomes of a packet at a hook of an interface: sent out of a port, or by the workload behind an endpoint.
    pub fn sent(&self, ifindex: u32, direction: Direction) -> Fate {
        let way = match self.runs(ifindex, direction) {
            None => return Fate::Host,
            Some((Program::HandleEgress, Some(maps))) => egress(maps, ifindex, direction),
            _ => None,
        };
        let way = way.filter(|(device, ..)| self.is_up(*device));
        way.map_or(Fate::Dropped, |(device, id, far)| Fate::Into(device, id, far))
    }

    /// The fate of every packet.
    pub fn wire(&self) -> Wire {
        let mut wire = Wire::default();
        for link in &self.state.links {
            if link.tunnel.is_some() {
                for id in 0..IDS {
                    for far in (0..REMOTES).map(remote) {
                        wire.received.insert((link.ifindex, id, far), self.received(link.ifindex, id, far));
                    }
                }
            } else {
                for direction in [Direction::Ingress, Direction::Egress] {
                    wire.sent.insert((link.ifindex, direction), self.sent(link.ifindex, direction));
                }
            }
        }
        wire
    }
}

/// `handle_ingress`.
fn ingress(maps: &MapState, device: u32, tunnel: u32, id: u32, far: IpAddr) -> Option<u32> {
    let conf = maps.conf.get(&tunnel)?;
    if conf.ifindex != device || find(&maps.devs, tunnel) != Some(device) {
        return None;
    }
    let value = find(&maps.tunkey2if, TunKey { tunnel, id, remote: far }).filter(|value| value.valid)?;
    find(&maps.devs, value.slot)
}

/// `handle_egress`.
fn egress(maps: &MapState, ifindex: u32, direction: Direction) -> Option<(u32, u32, IpAddr)> {
    let entry = find(&maps.if2tunkey, ifindex).filter(|entry| entry.valid)?;
    let right_hook = entry.endpoint == (direction == Direction::Ingress);
    if !right_hook || find(&maps.devs, entry.slot) != Some(ifindex) {
        return None;
    }
    let conf = maps.conf.get(&entry.key.tunnel)?;
    let device = find(&maps.devs, entry.key.tunnel).filter(|device| *device == conf.ifindex)?;
    Some((device, entry.key.id, entry.key.remote))
}

impl Wire {
    /// Compares a moment with what was before and what is to be: every packet has the fate that it had or is to have, or
    /// is dropped on its way from one to the other; what is the same before and after is never interrupted. Where the
    /// live state was spoiled, the fate by the topology in force before is right, too. A link that wasn't there before, or
    /// won't be, counts as one whose packets are dropped.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, before: &Self, unspoiled: &Self, after: &Self) -> Result<(), String> {
        check(&self.received, &before.received, &unspoiled.received, &after.received)?;
        check(&self.sent, &before.sent, &unspoiled.sent, &after.sent)
    }
}

fn check<K: Ord + std::fmt::Debug>(
    now: &BTreeMap<K, Fate>,
    before: &BTreeMap<K, Fate>,
    unspoiled: &BTreeMap<K, Fate>,
    after: &BTreeMap<K, Fate>,
) -> Result<(), String> {
    for (packet, fate) in now {
        let (was, will) = (before.get(packet), after.get(packet));
        let expected = Some(fate) == was || Some(fate) == will;
        let changes = was != will || was.is_none() || will.is_none();
        let between = *fate == Fate::Dropped || (*fate != Fate::Host && Some(fate) == unspoiled.get(packet));
        // A link that is being made has no program yet, and nothing passes it: it is down.
        let unborn = *fate == Fate::Host && was.is_none();
        if !(expected || (changes && between) || unborn) {
            return Err(format!("{packet:?}: {fate:?}, was {was:?}, will be {will:?}"));
        }
    }
    Ok(())
}
