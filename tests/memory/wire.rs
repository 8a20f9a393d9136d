//! What the data plane does with packets: the programs of `bpf-src/` over the maps that each of them runs on.

use super::MemoryKernel;
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::model::*;

/// Tunnel ids that are looked at.
pub const IDS: u32 = 3;
/// Remotes that are looked at.
pub const REMOTES: u8 = 3;

/// The number of a far host.
pub fn number(far: IpAddr) -> u8 {
    (0..REMOTES).find(|n| remote(*n) == far).unwrap_or(REMOTES)
}

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
    /// Delivered to a generated port without its bridge: the host's own stack gets a tenant's packet.
    Leaked(u32),
    /// Sent through that tunnel device, with that id, to that remote.
    Into(u32, u32, IpAddr),
}

/// What can be asked for the fate of: what arrives at a tunnel device, by id and remote, and what an interface sends, by
/// the hook that sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packet {
    Received(u32, u32, u8),
    Sent(u32, Direction),
}

/// The fate of every packet that may come, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wire(pub Vec<(Packet, Fate)>);

/// Looks a sorted list up.
fn find<K: Ord + Copy, V: Copy>(list: &[(K, V)], key: K) -> Option<V> {
    list.binary_search_by_key(&key, |(k, _)| *k).ok().map(|place| list[place].1)
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

    /// `handle_underlay`, wherever it stands: the interface to which it hands what comes to that UDP port.
    fn carried(&self, port: u16, id: u32, far: IpAddr) -> Option<u32> {
        self.state.links.iter().find_map(|link| {
            let (Program::HandleUnderlay { index }, Some(maps)) = self.runs(link.ifindex, Direction::Underlay)? else {
                return None;
            };
            let here = maps.conf.get(&index)?;
            let Role::Underlay(ports) = &here.role else { return None };
            if here.ifindex != link.ifindex || find(&maps.devs, index) != Some(link.ifindex) {
                return None;
            }
            let tunnel = ports.iter().find(|p| p.port == port)?.tunnel;
            let conf = maps.conf.get(&tunnel)?;
            let told = matches!(conf.role, Role::Tunnel(Some(_)));
            if !told || conf.ifindex == 0 || find(&maps.devs, tunnel) != Some(conf.ifindex) {
                return None;
            }
            let value = find(&maps.tunkey2if, TunKey { tunnel, id, remote: far }).filter(|value| value.valid)?;
            find(&maps.devs, value.slot)
        })
    }

    /// The fate of every packet.
    pub fn wire(&self) -> Wire {
        let mut up: Vec<(u32, bool)> = self.state.links.iter().map(|l| (l.ifindex, l.up)).collect();
        up.sort_unstable();
        let is_up = |ifindex: u32| find(&up, ifindex) == Some(true);
        let mut fates = Vec::with_capacity(64);
        let (tunnels, others): (Vec<&Link>, Vec<&Link>) = self.state.links.iter().partition(|l| l.tunnel.is_some());
        for link in tunnels {
            let running = self.runs(link.ifindex, Direction::Ingress);
            let port = link.tunnel.as_ref().and_then(|device| device.port);
            for id in 0..IDS {
                for far in 0..REMOTES {
                    let carried = port.and_then(|port| self.carried(port, id, remote(far)));
                    let target = match running {
                        Some((Program::HandleIngress { tunnel }, Some(maps))) => {
                            ingress(maps, link.ifindex, tunnel, id, remote(far)).filter(|ifindex| is_up(*ifindex))
                        }
                        _ => None,
                    };
                    let idle = if link.up && running.is_none() { Fate::Host } else { Fate::Dropped };
                    let handed = |ifindex: u32| {
                        let link = self.state.link_by_index(ifindex);
                        let made = link.and_then(|l| self.state.instance.made(l.alias.as_deref()));
                        let orphan = made.is_some() && link.is_some_and(|l| l.master.is_none());
                        if orphan { Fate::Leaked(ifindex) } else { Fate::To(ifindex) }
                    };
                    // What the underlay device's program doesn't take goes on to the tunnel device.
                    let fate = match carried {
                        Some(target) if is_up(target) => handed(target),
                        Some(_) => Fate::Dropped,
                        None => target.filter(|_| link.up).map_or(idle, handed),
                    };
                    fates.push((Packet::Received(link.ifindex, id, far), fate));
                }
            }
        }
        for link in others {
            for direction in [Direction::Ingress, Direction::Egress] {
                let fate = match self.runs(link.ifindex, direction) {
                    None => Fate::Host,
                    Some((Program::HandleEgress, Some(maps))) => {
                        let way = egress(maps, link.ifindex, direction).filter(|(device, ..)| is_up(*device));
                        way.map_or(Fate::Dropped, |(device, id, far)| Fate::Into(device, id, far))
                    }
                    _ => Fate::Dropped,
                };
                fates.push((Packet::Sent(link.ifindex, direction), fate));
            }
        }
        fates.sort_unstable_by_key(|(packet, _)| *packet);
        Wire(fates)
    }
}

/// Every packet that may come with these links.
pub fn packets(links: &[Link]) -> Vec<Packet> {
    let mut packets = Vec::with_capacity(64);
    for link in links {
        if link.tunnel.is_some() {
            let keys = (0..IDS).flat_map(|id| (0..REMOTES).map(move |far| (id, far)));
            packets.extend(keys.map(|(id, far)| Packet::Received(link.ifindex, id, far)));
        } else {
            packets.extend([Direction::Ingress, Direction::Egress].map(|d| Packet::Sent(link.ifindex, d)));
        }
    }
    packets.sort_unstable();
    packets
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
    /// The fate of one packet; `None` where its link isn't there.
    pub fn get(&self, packet: Packet) -> Option<Fate> {
        find(&self.0, packet)
    }

    /// Says what becomes of a packet.
    pub fn set(&mut self, packet: Packet, fate: Fate) {
        match self.0.binary_search_by_key(&packet, |(p, _)| *p) {
            Ok(place) => self.0[place].1 = fate,
            Err(place) => self.0.insert(place, (packet, fate)),
        }
    }

    /// Compares a moment with what was before and what is to be: every packet has the fate that it had or is to have, or
    /// is dropped on its way from one to the other; what is the same before and after is never interrupted. Where the
    /// live state was spoiled, or a pass before failed, the fate by a topology `on_the_way` here is right, too. A link that
    /// wasn't there before, or won't be, counts as one whose packets are dropped. Where links come and go meanwhile (not
    /// `steady`), anything may be interrupted.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, before: &Self, on_the_way: &[Self], after: &Self, steady: bool) -> Result<(), String> {
        let (mut old, mut new) = (before.0.iter().peekable(), after.0.iter().peekable());
        for (packet, fate) in &self.0 {
            while old.next_if(|(p, _)| p < packet).is_some() {}
            while new.next_if(|(p, _)| p < packet).is_some() {}
            let was = old.next_if(|(p, _)| p == packet).map(|(_, fate)| *fate);
            let will = new.next_if(|(p, _)| p == packet).map(|(_, fate)| *fate);
            if Some(*fate) == was || Some(*fate) == will {
                continue;
            }
            let changes = !steady || was != will || was.is_none() || will.is_none();
            let once = || *fate != Fate::Host && on_the_way.iter().any(|wire| wire.get(*packet) == Some(*fate));
            // A link that is being made has no program yet, and nothing passes it: it is down.
            let unborn = *fate == Fate::Host && was.is_none();
            // Somebody deleted the bridge in the middle of it.
            let orphaned = !steady && matches!(fate, Fate::Leaked(_));
            if !(unborn || orphaned || (changes && (*fate == Fate::Dropped || once()))) {
                return Err(format!("{packet:?}: {fate:?}, was {was:?}, will be {will:?}"));
            }
        }
        Ok(())
    }
}
