//! A kernel in memory that fails by a schedule, and that watches what is done to it.
//!
//! A schedule is a number: everything random follows from it. A batch may be carried out in part and then fail, links go
//! and come back between two batches, a look may fail. Whatever is wrong at any instant is noted.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod dice;

use crate::memory::MemoryKernel;
use crate::memory::batches::{refusal, singles};
use crate::memory::topology::{INTERFACES, TUNNELS, device, meaning, port_of, possible};
use crate::memory::wire::Wire;
use dice::Dice;
use std::collections::BTreeSet;
use tunnel_mesh::bpf::{DeviceGone, MapFull};
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::kernel::{Batch, Kernel, Outcome};

/// The kernel.
#[derive(Debug)]
pub struct FaultyKernel {
    pub inner: MemoryKernel,
    pub dice: Dice,
    /// How many calls in a hundred fail.
    pub rate: u32,
    /// What the pass under way is to reach.
    pub goal: Desired,
    /// What went wrong, in words.
    pub wrong: Vec<String>,
    /// Faults so far, by kind.
    pub faults: [u64; 5],
    before: Wire,
    on_the_way: Vec<Desired>,
    will: Wire,
    /// As of which change of the links those are.
    as_of: Option<u64>,
    /// Whether a link came or went in this pass, so that something may be interrupted.
    disturbed: bool,
    /// What the last look showed.
    seen: Observed,
    /// Slots and tunnel indexes that a key led to until a write since the last grace period.
    released: BTreeSet<u32>,
}

impl FaultyKernel {
    pub fn new(inner: MemoryKernel, dice: Dice) -> Self {
        Self {
            inner,
            dice,
            rate: 0,
            goal: Desired::default(),
            wrong: Vec::new(),
            faults: [0; 5],
            before: Wire::default(),
            on_the_way: Vec::new(),
            will: Wire::default(),
            as_of: None,
            disturbed: false,
            seen: Observed::default(),
            released: BTreeSet::new(),
        }
    }

    /// A pass begins. `on_the_way` are the topologies since the last one that was reached, that one first.
    pub fn begin(&mut self, on_the_way: &[Desired], goal: &Desired) {
        self.goal = goal.clone();
        self.before = self.inner.wire();
        self.on_the_way = on_the_way.to_vec();
        self.as_of = None;
        self.disturbed = false;
    }

    /// A link goes, and another one takes its index; or two links change their indexes.
    pub fn heir(&mut self) {
        let (gone, comes) = (self.name(), self.name());
        self.disturbed = true;
        let Some(ifindex) = self.inner.state.link(gone).map(|l| l.ifindex) else { return };
        self.inner.remove_link(ifindex);
        if let Some(old) = self.inner.state.link(comes).map(|l| l.ifindex) {
            self.inner.remove_link(old);
            if gone != comes && self.dice.percent(50) {
                self.inner.inherit(gone, old);
            }
        }
        self.inner.inherit(comes, ifindex);
    }

    fn name(&mut self) -> &'static str {
        let names = [&INTERFACES[..], &TUNNELS[..]].concat();
        names[self.dice.below(names.len())]
    }

    /// A link goes; perhaps it comes back, as another one.
    pub fn link_event(&mut self) {
        let name = self.name();
        self.disturbed = true;
        match self.inner.state.link(name).map(|l| l.ifindex) {
            Some(ifindex) => {
                self.inner.remove_link(ifindex);
                if self.dice.percent(60) {
                    self.add(name);
                }
            }
            None => self.add(name),
        }
    }

    fn add(&mut self, name: &str) {
        if TUNNELS.contains(&name) {
            self.inner.add_vxlan(name, port_of(name));
        } else {
            self.inner.add_link(name);
        }
    }

    fn fault(&mut self, kind: usize) -> bool {
        let happens = self.dice.percent(self.rate);
        self.faults[kind] += u64::from(happens);
        happens
    }

    fn error(&mut self, batch: &Batch) -> anyhow::Error {
        let what = format!("{batch:?}").chars().take(20).collect::<String>();
        match self.dice.below(8) {
            0 => MapFull { map: "tunkey2if", capacity: 64 }.into(),
            1 => match batch {
                // It says so because it is so.
                Batch::Detach { ifindex, .. } | Batch::ChangeLink(ifindex, _) => self.lose(*ifindex),
                Batch::Attach(hooks) => hooks.first().map_or_else(|| unreachable!(), |h| self.lose(h.ifindex)),
                _ => refusal(libc::ENODEV, &what),
            },
            2 => refusal(libc::EPERM, &what),
            3 => refusal(libc::EBUSY, &what),
            4 => refusal(libc::ENOSPC, &what),
            5 => anyhow::anyhow!("the netlink connection is closed"),
            _ => refusal(libc::ENOMEM, &what),
        }
    }

    fn lose(&mut self, ifindex: u32) -> anyhow::Error {
        self.disturbed = true;
        self.inner.remove_link(ifindex);
        DeviceGone { ifindex }.into()
    }

    /// Attaches each by itself, as the real kernel does; some fail.
    async fn attach(&mut self, batch: &Batch) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        for (place, single) in singles(batch).iter().enumerate() {
            if self.fault(2) {
                outcome.failed.push((place, self.error(single)));
                continue;
            }
            let failed = self.inner.execute(single).await?.failed;
            self.check_moments(single);
            outcome.failed.extend(failed.into_iter().map(|(_, error)| (place, error)));
        }
        Ok(outcome)
    }

    /// Slots and tunnel indexes that keys lead to, each with its key.
    fn led_to(&self) -> BTreeSet<(TunKey, u32)> {
        let keys = self.inner.state.maps.iter().flat_map(|m| &m.tunkey2if);
        keys.flat_map(|(key, value)| [(*key, value.slot), (*key, key.tunnel)]).collect()
    }

    /// What must not be asked for, whatever happened before.
    fn judge(&mut self, batch: &Batch) {
        let seen = &self.seen;
        let mut wrong = |what: String| self.wrong.push(format!("{what} by {batch:?}"));
        let possible = match batch {
            Batch::DeleteLinks(_) | Batch::DeleteIfs(_) | Batch::DeleteTunkeys(_) => possible(&self.goal, seen),
            _ => Vec::new(),
        };
        let conf = seen.maps.iter().flat_map(|m| &m.conf);
        let name_of = |index: u32| conf.clone().find(|(i, _)| **i == index).map(|(_, c)| c.name.as_str());
        match batch {
            Batch::DeleteLinks(list) => {
                for link in list.iter().filter_map(|i| seen.link_by_index(*i)) {
                    if self.inner.state.instance.made(link.alias.as_deref()).is_none() {
                        wrong(format!("{} isn't ours", link.name));
                    }
                    let tunnel = self.goal.tunnels.values().any(|t| device(seen, t) == Some(link));
                    let mapped = possible.iter().any(|(_, i)| *i == link.ifindex);
                    if tunnel || mapped || self.goal.bridges.contains_key(&link.name) {
                        wrong(format!("{} is wanted", link.name));
                    }
                }
            }
            Batch::ChangeLink(ifindex, change) => {
                let link = seen.link_by_index(*ifindex);
                let ours = link.is_none_or(|l| self.inner.state.instance.made(l.alias.as_deref()).is_some());
                let up = matches!(change, LinkChange::Up) && link.is_some_and(|l| l.tunnel.is_some());
                if !ours && !up {
                    wrong(format!("{link:?} isn't ours"));
                }
            }
            Batch::DeleteIfs(list) => {
                if let Some((m, _)) = possible.iter().find(|(_, i)| list.contains(i)) {
                    wrong(format!("the entry of {} is wanted", m.interface));
                }
            }
            Batch::DeleteTunkeys(list) => {
                for key in list {
                    let same = |m: &Mapping| m.key.id == key.id && m.key.remote == key.remote;
                    let of = |m: &Mapping| same(m) && name_of(key.tunnel) == Some(&m.key.tunnel);
                    if let Some((m, _)) = possible.iter().find(|(m, _)| of(m)) {
                        wrong(format!("the key of {} is wanted", m.interface));
                    }
                }
            }
            Batch::ClearConf(list) => {
                if let Some(name) = list.iter().filter_map(|i| name_of(*i)).find(|n| self.goal.tunnels.contains_key(*n))
                {
                    wrong(format!("conf of {name} is wanted"));
                }
            }
            Batch::ResetCounters(list) => {
                if let Some(slot) = list.iter().find(|slot| self.released.contains(slot)) {
                    wrong(format!("slot {slot} is given away without a grace period"));
                }
            }
            Batch::SetConf(list) => {
                let kept = |i: u32, c: &Conf| seen.maps.iter().any(|m| m.devs.contains(&(i, c.ifindex)));
                let fresh = |(i, c): &&(u32, Conf)| name_of(*i).is_none() && !kept(*i, c) && self.released.contains(i);
                let fresh = list.iter().find(fresh);
                if let Some((index, _)) = fresh {
                    wrong(format!("tunnel index {index} is given away without a grace period"));
                }
            }
            _ => {}
        }
    }

    /// Looks at every instant since the last time.
    fn check_moments(&mut self, batch: &Batch) {
        let moments = std::mem::take(self.inner.moments.as_mut().unwrap());
        if moments.is_empty() {
            return;
        }
        if self.as_of != Some(self.inner.links_changed) {
            self.will = meaning(&self.goal, &self.inner.state, &self.inner.state);
            self.as_of = Some(self.inner.links_changed);
        }
        for moment in moments {
            if moment.check(&self.before, &[], &self.will, !self.disturbed).is_ok() {
                continue;
            }
            let on_the_way: Vec<Wire> =
                self.on_the_way.iter().map(|from| meaning(from, &self.inner.state, &self.inner.state)).collect();
            if let Err(wrong) = moment.check(&self.before, &on_the_way, &self.will, !self.disturbed) {
                self.wrong.push(format!("{wrong}\nafter {batch:?}"));
            }
        }
    }
}

impl Kernel for FaultyKernel {
    async fn observe(&mut self, ports: bool) -> anyhow::Result<Observed> {
        if self.fault(0) {
            return Err(refusal(libc::ENOMEM, "list links"));
        }
        self.seen = self.inner.observe(ports).await?;
        Ok(self.seen.clone())
    }

    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<Outcome> {
        if self.fault(1) && self.dice.percent(30) {
            self.link_event();
        }
        self.judge(batch);
        let counts = matches!(batch, Batch::SetTunkeys(_) | Batch::DeleteTunkeys(_));
        let led_to = if counts { self.led_to() } else { BTreeSet::new() };
        let result = if matches!(batch, Batch::Attach(_)) {
            self.attach(batch).await
        } else if self.fault(2) {
            let length = match batch {
                Batch::GrowMaps(_) => 2 + self.inner.state.attachments.len(),
                other => singles(other).len(),
            };
            let error = self.error(batch);
            let limit = if error.is::<DeviceGone>() { 0 } else { self.dice.below(length + 1) };
            self.inner.execute_part(batch, limit).and(Err(error))
        } else {
            self.inner.execute(batch).await
        };
        if counts {
            let now = self.led_to();
            self.released.extend(led_to.difference(&now).map(|(_, place)| *place));
        }
        self.check_moments(batch);
        result
    }

    async fn grace_period(&mut self) -> anyhow::Result<()> {
        if self.fault(3) {
            return Err(refusal(libc::ENOMEM, "membarrier"));
        }
        self.released.clear();
        Ok(())
    }
}
