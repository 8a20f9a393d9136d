//! The kernel in memory against the real one: the same batches on both, random and often wrong, with the same refusals,
//! and the same state after each. So what the property and fault tests learn from the one holds for the other.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "faulty/dice.rs"]
mod dice;
mod live;
mod memory;

use dice::Dice;
use live::Place;
use memory::MemoryKernel;
use memory::topology::{BRIDGE, INTERFACES, PORTS, TUNNELS, port_of};
use memory::wire::remote;
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::bpf::{MapFull, NoMaps};
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::is_gone;
use tunnel_mesh::reconcile::kernel::{Batch, Hook, Kernel};
use tunnel_mesh::reconcile::live::LiveKernel;

/// Batches of one run.
const BATCHES: usize = 150;

/// Both kernels, and which link of the one is which of the other.
struct Both<'a> {
    place: &'a Place,
    live: LiveKernel,
    memory: MemoryKernel,
    /// Every link that ever was: index in the real kernel and in memory.
    links: Vec<(u32, u32)>,
    dice: Dice,
    hooks: Vec<HookKind>,
    port_kind: PortKind,
    /// Refusals by kind, so that a run that provoked none is noticed.
    refused: [usize; 4],
}

/// What an answer was, as far as the reconciler can tell.
fn class(error: &anyhow::Error) -> usize {
    if is_gone(error) {
        0
    } else if error.is::<MapFull>() {
        1
    } else if error.is::<NoMaps>() {
        2
    } else {
        3
    }
}

impl<'a> Both<'a> {
    async fn new(place: &'a Place, seed: u64) -> Both<'a> {
        let mut live = place.kernel().await;
        let seen = live.observe(true).await.unwrap();
        let mut memory = MemoryKernel::default();
        memory.state.netns_cookie = seen.netns_cookie;
        memory.state.features = seen.features;
        let mut hooks = vec![HookKind::Clsact];
        if seen.features.hook_kind == HookKind::Tcx {
            hooks.extend([HookKind::Tcx; 3]);
        }
        let port_kind = seen.features.port_kind;
        let mut both =
            Both { place, live, memory, links: Vec::new(), dice: Dice(seed), hooks, port_kind, refused: [0; 4] };
        for name in INTERFACES.iter().chain(&TUNNELS[..2]) {
            both.adopt(name, &seen);
        }
        both
    }

    /// Takes a link that somebody else made into memory.
    fn adopt(&mut self, name: &str, seen: &Observed) {
        let link = seen.link(name).unwrap();
        let ifindex = self.memory.add_link(name);
        *self.memory.state.links.last_mut().unwrap() = Link { ifindex, ..link.clone() };
        self.links.push((link.ifindex, ifindex));
    }

    /// A link of ours or of anybody, there or gone, or one that never was.
    fn any_link(&mut self) -> u32 {
        if self.dice.percent(3) {
            return 123_456;
        }
        self.links[self.dice.below(self.links.len())].1
    }

    fn slot(&mut self) -> u32 {
        60 + self.dice.below(24) as u32
    }

    fn key(&mut self) -> TunKey {
        // From a few keys, mostly; from many, so that the maps get full.
        let id = if self.dice.percent(30) { self.dice.below(3) } else { self.dice.below(400) } as u32;
        TunKey { tunnel: 1 + self.dice.below(3) as u32, id, remote: remote(self.dice.below(3) as u8) }
    }

    fn entry(&mut self) -> IfEntry {
        let mut flag = || self.dice.percent(50);
        let (endpoint, df, checksum) = (flag(), flag(), flag());
        let ttl = if flag() { OuterField::Inherit } else { OuterField::Fixed(64) };
        let (slot, key) = (self.slot(), self.key());
        let local = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        IfEntry { slot, endpoint, key, local, ttl, tos: OuterField::Fixed(8), df, checksum, fast: None, valid: true }
    }

    fn program(&mut self) -> Program {
        match self.dice.below(3) {
            0 => Program::HandleEgress,
            tunnel => Program::HandleIngress { tunnel: tunnel as u32 },
        }
    }

    fn many<T>(&mut self, most: usize, mut f: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..1 + self.dice.below(most)).map(|_| f(self)).collect()
    }

    /// A random batch, with the indexes of the links in memory.
    fn batch(&mut self) -> Batch {
        match self.dice.below(100) {
            0..=2 => Batch::CreateMaps(60 + self.dice.below(20) as u32),
            3..=4 => Batch::GrowMaps(60 + self.dice.below(60) as u32),
            5..=11 => Batch::LoadProgram(self.program()),
            12 => Batch::UnloadProgram(self.program()),
            13..=16 => Batch::CreateLink(self.new_link()),
            17..=26 => {
                let change = self.change();
                Batch::ChangeLink(self.ours(), change)
            }
            27..=28 => Batch::DeleteLinks(self.many(2, Self::ours)),
            29..=31 => Batch::ResetCounters(self.many(4, Self::slot)),
            32..=36 => Batch::SetConf(self.many(3, |s| {
                let (index, ifindex) = (s.dice.below(5) as u32, s.any_link());
                (
                    index,
                    Conf {
                        ifindex,
                        name: TUNNELS[s.dice.below(3)].to_owned(),
                        mark: s.dice.below(3) as u16,
                        ..Conf::default()
                    },
                )
            })),
            37..=38 => Batch::ClearConf(self.many(2, |s| s.dice.below(5) as u32)),
            39..=48 => Batch::SetDevs(self.many(6, |s| (s.slot(), s.any_link()))),
            49..=51 => Batch::ClearDevs(self.many(3, Self::slot)),
            52..=61 => {
                let most = if self.dice.percent(30) { 90 } else { 6 };
                Batch::SetTunkeys(self.many(most, |s| {
                    let (slot, endpoint) = (s.slot(), s.dice.percent(50));
                    (s.key(), SlotRef { slot, endpoint, valid: true })
                }))
            }
            62..=66 => Batch::DeleteTunkeys(self.many(40, Self::key)),
            67..=76 => Batch::SetIfs(self.many(6, |s| (s.any_link(), s.entry()))),
            77..=80 => Batch::DeleteIfs(self.many(3, Self::any_link)),
            81..=92 => {
                let (program, ifindex) = (self.program(), self.any_link());
                let (direction, kind) = (self.direction(), self.hook());
                Batch::Attach(vec![Hook { program, ifindex, direction, kind, replace: false }])
            }
            _ => Batch::Detach { ifindex: self.any_link(), direction: self.direction(), kind: self.hook() },
        }
    }

    fn direction(&mut self) -> Direction {
        if self.dice.percent(50) { Direction::Ingress } else { Direction::Egress }
    }

    fn hook(&mut self) -> HookKind {
        self.hooks[self.dice.below(self.hooks.len())]
    }

    /// A link that we made, mostly: nothing else is ever changed or deleted.
    fn ours(&mut self) -> u32 {
        let made: Vec<u32> = self.memory.state.links.iter().filter(|l| l.alias.is_some()).map(|l| l.ifindex).collect();
        if made.is_empty() || self.dice.percent(10) { 123_456 } else { made[self.dice.below(made.len())] }
    }

    fn new_link(&mut self) -> NewLink {
        match self.dice.below(4) {
            0 => NewLink::Tunnel {
                name: TUNNELS[2].to_owned(),
                kind: TunnelKind::Vxlan,
                port: Some(port_of(TUNNELS[2])),
                ip6: false,
                local: Local { v4: Some(Ipv4Addr::new(10, 0, 0, 1)), v6: None },
                mtu: 1450,
                alias: Instance::default().tunnel_alias(TUNNELS[2]),
                udp6_zero_checksum_rx: false,
            },
            1 => {
                NewLink::Bridge { name: BRIDGE.to_owned(), mtu: 1400, alias: Instance::default().bridge_alias(BRIDGE) }
            }
            n => {
                let (name, node) = (PORTS[n - 2].to_owned(), format!("n{n}"));
                let (altname, alias) = (format!("mesh/{node}"), Instance::default().port_alias("mesh", &node));
                NewLink::Port { name, kind: self.port_kind, altname, alias, mtu: 1450 }
            }
        }
    }

    fn change(&mut self) -> LinkChange {
        match self.dice.below(9) {
            0 | 1 => LinkChange::Up,
            2 => LinkChange::Down,
            3 => LinkChange::Mtu(1300 + self.dice.below(100) as u32),
            4 | 5 => {
                let bridge = self.memory.state.link(BRIDGE).map(|l| l.ifindex);
                LinkChange::Master { bridge: if self.dice.percent(20) { None } else { bridge } }
            }
            6 => LinkChange::Isolated(self.dice.percent(70)),
            7 => LinkChange::Alias(format!("tunnel-mesh something-else {}", self.dice.below(9))),
            _ => LinkChange::Altname(format!("mesh/other{}", self.dice.below(3))),
        }
    }

    /// The index in the real kernel.
    fn there(&self, ifindex: u32) -> u32 {
        // The last one: an index may come again.
        self.links.iter().rev().find(|(_, m)| *m == ifindex).map_or(ifindex, |(l, _)| *l)
    }

    /// The batch with the indexes of the real kernel.
    fn translate(&self, batch: &Batch) -> Batch {
        let mut batch = batch.clone();
        match &mut batch {
            Batch::ChangeLink(ifindex, change) => {
                *ifindex = self.there(*ifindex);
                if let LinkChange::Master { bridge: Some(bridge) } = change {
                    *bridge = self.there(*bridge);
                }
            }
            Batch::DeleteLinks(list) | Batch::DeleteIfs(list) => list.iter_mut().for_each(|i| *i = self.there(*i)),
            Batch::SetConf(list) => list.iter_mut().for_each(|(_, c)| c.ifindex = self.there(c.ifindex)),
            Batch::SetDevs(list) => list.iter_mut().for_each(|(_, i)| *i = self.there(*i)),
            Batch::SetIfs(list) => list.iter_mut().for_each(|(i, _)| *i = self.there(*i)),
            Batch::Attach(hooks) => hooks.iter_mut().for_each(|h| h.ifindex = self.there(h.ifindex)),
            Batch::Detach { ifindex, .. } => *ifindex = self.there(*ifindex),
            _ => {}
        }
        batch
    }

    /// Somebody else removes a link, or brings one back.
    async fn link_event(&mut self) {
        let names = [&INTERFACES[..], &TUNNELS[..2]].concat();
        let name = names[self.dice.below(names.len())];
        if let Some(ifindex) = self.memory.state.link(name).map(|l| l.ifindex) {
            self.place.remove_link(name);
            self.memory.remove_link(ifindex);
            return;
        }
        if TUNNELS.contains(&name) {
            self.place.add_vxlan(name);
        } else {
            self.place.add_link(name);
        }
        let seen = self.live.observe(false).await.unwrap();
        self.adopt(name, &seen);
    }

    /// One batch on both, and the states afterwards.
    async fn step(&mut self) {
        if self.dice.percent(8) {
            self.link_event().await;
        }
        let batch = self.batch();
        let real = self.live.execute(&self.translate(&batch)).await;
        let memory = self.memory.execute(&batch).await;
        match (&real, &memory) {
            (Ok(real), Ok(memory)) => {
                let places = |gone: &[(usize, anyhow::Error)]| gone.iter().map(|(place, _)| *place).collect::<Vec<_>>();
                assert_eq!(places(&real.gone), places(&memory.gone), "{batch:?}");
                self.refused[0] += real.gone.len();
                if let (Some(real), Some(memory)) = (real.ifindex, memory.ifindex) {
                    self.links.push((real, memory));
                }
            }
            (Err(real), Err(memory)) => {
                assert_eq!(class(real), class(memory), "{batch:?}\nthe real one says {real:#}\nmemory says {memory:#}");
                self.refused[class(real)] += 1;
            }
            (real, memory) => panic!("{batch:?}\nthe real one says {real:?}\nmemory says {memory:?}"),
        }
        let real = self.live.observe(true).await.unwrap();
        let memory = self.memory.observe(true).await.unwrap();
        let (real, memory) = (self.plain(&real, |l| l.0), self.plain(&memory, |l| l.1));
        let only = |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
        let (there, here) = (only(&real, &memory), only(&memory, &real));
        assert!(there.is_empty() && here.is_empty(), "after {batch:?}\nonly there: {there:#?}\nonly here: {here:#?}");
        assert_eq!(real, memory, "something is told twice");
    }

    /// A state in words that both kernels share: links by their number, programs by what they are.
    fn plain(&self, seen: &Observed, side: impl Fn(&(u32, u32)) -> u32) -> Vec<String> {
        let number = |ifindex: u32| self.links.iter().rposition(|l| side(l) == ifindex).unwrap_or(ifindex as usize);
        let mut out = Vec::new();
        for link in seen.links.iter().filter(|l| self.links.iter().any(|known| side(known) == l.ifindex)) {
            let Link { name, altnames, alias, mtu, up, isolated, tunnel, peer_in_other_netns, .. } = link;
            let (master, mut altnames) = (link.master.map(number), altnames.clone());
            altnames.sort();
            let of = number(link.ifindex);
            out.push(format!(
                "link {of} {name} {altnames:?} {alias:?} {mtu} {up} {master:?} {isolated:?} {tunnel:?} \
                 {peer_in_other_netns}"
            ));
        }
        if let Some(maps) = &seen.maps {
            out.push(format!("capacity {}", maps.capacity));
            out.extend(maps.conf.iter().map(|(i, c)| format!("conf {i} {} {} {}", number(c.ifindex), c.name, c.mark)));
            out.extend(maps.tunkey2if.iter().map(|entry| format!("{entry:?}")));
            out.extend(maps.if2tunkey.iter().map(|(i, entry)| format!("if {} {entry:?}", number(*i))));
            out.extend(maps.devs.iter().map(|(slot, i)| format!("dev {slot} {}", number(*i))));
        }
        out.extend(seen.programs.iter().map(|p| format!("program {:?} current {}", p.program, p.current)));
        for a in &seen.attachments {
            let runs = a.program.map(|id| seen.programs.iter().find(|p| p.id == id).map(|p| p.program));
            let of = number(a.ifindex);
            out.push(format!("attachment {of} {} {:?} runs {runs:?} at {}", a.direction, a.kind, a.position));
        }
        out.sort();
        out
    }
}

fn trace(seed: u64) -> [usize; 4] {
    let place = Place::new();
    place.block_on(|| async {
        let mut both = Both::new(&place, seed).await;
        for _ in 0..BATCHES {
            both.step().await;
        }
        both.refused
    })
}

#[test]
fn kernel_trace_of_random_batches_is_the_same_in_memory() {
    let mut refused = [0; 4];
    // Emulated machines do less of everything.
    let traces = if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { 1 } else { 3 };
    for seed in 1..=traces {
        eprintln!("trace {seed}");
        refused.iter_mut().zip(trace(seed)).for_each(|(all, some)| *all += some);
    }
    assert!(refused.iter().all(|n| *n > 0), "a kind of refusal never came: {refused:?}");
}
