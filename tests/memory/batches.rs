//! What a batch does: one write after the other, and the refusals of the real kernel.

use super::{Growth, MemoryKernel};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::Error;
use tunnel_mesh::bpf::{DeviceGone, MapFull, NoMaps};
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::kernel::{Batch, Hook, Outcome};

/// `E2BIG`, `ENOMEM` and the like, as an error of the bpf edge carries it.
pub fn refusal(errno: i32, what: &str) -> anyhow::Error {
    anyhow!(Error::from_raw_os_error(errno)).context(what.to_owned())
}

/// Single writes of a batch, in order.
pub fn singles(batch: &Batch) -> Vec<Batch> {
    fn each<T: Clone>(list: &[T], f: impl Fn(Vec<T>) -> Batch) -> Vec<Batch> {
        list.iter().map(|item| f(vec![item.clone()])).collect()
    }
    match batch {
        Batch::DeleteLinks(list) => each(list, Batch::DeleteLinks),
        Batch::ResetCounters(list) => each(list, Batch::ResetCounters),
        Batch::SetConf(list) => each(list, Batch::SetConf),
        Batch::ClearConf(list) => each(list, Batch::ClearConf),
        Batch::SetDevs(list) => each(list, Batch::SetDevs),
        Batch::ClearDevs(list) => each(list, Batch::ClearDevs),
        Batch::SetTunkeys(list) => each(list, Batch::SetTunkeys),
        Batch::DeleteTunkeys(list) => each(list, Batch::DeleteTunkeys),
        Batch::SetIfs(list) => each(list, Batch::SetIfs),
        Batch::DeleteIfs(list) => each(list, Batch::DeleteIfs),
        Batch::Attach(list) => each(list, Batch::Attach),
        other => vec![other.clone()],
    }
}

/// Whether a write can change what becomes of a packet.
fn matters(single: &Batch) -> bool {
    match single {
        Batch::CreateMaps(_) | Batch::LoadProgram(_) | Batch::UnloadProgram(_) | Batch::ResetCounters(_) => false,
        Batch::ChangeLink(_, change) => matches!(change, LinkChange::Up | LinkChange::Down),
        _ => true,
    }
}

/// Inserts or overwrites in a sorted list of limited length.
fn put<K: Ord + Copy, V>(map: &'static str, list: &mut Vec<(K, V)>, limit: u32, key: K, value: V) -> Result<()> {
    match list.binary_search_by_key(&key, |(k, _)| *k) {
        Ok(place) => list[place].1 = value,
        Err(_) if list.len() >= limit as usize => return Err(MapFull { map, capacity: limit }.into()),
        Err(place) => list.insert(place, (key, value)),
    }
    Ok(())
}

impl MemoryKernel {
    /// Carries a batch out, but stops before the single write with that number.
    ///
    /// # Errors
    /// What the kernel refused; the writes before it were carried out.
    pub fn execute_part(&mut self, batch: &Batch, limit: usize) -> Result<Outcome> {
        self.log.push(batch.clone());
        if self.growth.is_some() {
            self.finish_growth();
            bail!("the growth of the maps that was interrupted is finished now");
        }
        if let Batch::GrowMaps(capacity) = batch {
            self.grow(*capacity, limit)?;
            return Ok(Outcome::default());
        }
        let mut outcome = Outcome::default();
        for (place, single) in singles(batch).iter().enumerate().take(limit) {
            match self.single(single) {
                Ok(ifindex) => outcome.ifindex = ifindex,
                Err(error) if matches!(single, Batch::SetDevs(_)) && error.is::<DeviceGone>() => {
                    outcome.gone.push((place, error));
                }
                Err(error) if matches!(single, Batch::Attach(_)) => outcome.failed.push((place, error)),
                Err(error) => return Err(error),
            }
            if matters(single) {
                self.moment();
            }
        }
        Ok(outcome)
    }

    fn link(&mut self, ifindex: u32) -> Result<&mut Link> {
        let found = self.state.links.iter_mut().find(|l| l.ifindex == ifindex);
        found.ok_or_else(|| DeviceGone { ifindex }.into())
    }

    /// The maps, to write to.
    fn maps(&mut self) -> Result<&mut MapState> {
        ensure!(self.state.outdated_maps.is_none(), "the maps must be carried over first");
        self.state.maps.as_mut().ok_or_else(|| NoMaps { dir: "/memory".into() }.into())
    }

    fn single(&mut self, batch: &Batch) -> Result<Option<u32>> {
        match batch {
            Batch::CreateMaps(capacity) => {
                ensure!(self.state.maps.is_none(), "there are maps already");
                let capacity = (*capacity).max(FIRST_MAPPING_SLOT);
                self.generation = self.newest_generation() + 1;
                self.state.maps = Some(MapState { capacity, ..MapState::default() });
                self.state.programs.iter_mut().for_each(|p| p.current = false);
            }
            Batch::GrowMaps(_) => {}
            Batch::LoadProgram(program) => {
                self.maps()?;
                self.state.programs.retain(|p| p.program != *program);
                let loaded = self.load(*program, self.generation);
                self.state.programs.push(loaded);
            }
            Batch::UnloadProgram(program) => self.state.programs.retain(|p| p.program != *program),
            Batch::CreateLink(link) => return self.create_link(link).map(Some),
            Batch::ChangeLink(ifindex, change) => self.change_link(*ifindex, change)?,
            Batch::DeleteLinks(list) => list.iter().for_each(|i| self.remove_link(*i)),
            Batch::ResetCounters(list) => {
                let capacity = self.maps()?.capacity;
                for slot in list {
                    ensure!(*slot < capacity, MapFull { map: "counters", capacity });
                }
            }
            Batch::SetConf(list) => self.maps()?.conf.extend(list.iter().cloned()),
            Batch::ClearConf(list) => self.maps()?.conf.retain(|i, _| !list.contains(i)),
            Batch::SetDevs(list) => {
                for (slot, ifindex) in list {
                    let capacity = self.maps()?.capacity;
                    ensure!(*slot < capacity, MapFull { map: "devs", capacity });
                    self.link(*ifindex)?;
                    put("devs", &mut self.maps()?.devs, u32::MAX, *slot, *ifindex)?;
                }
            }
            Batch::ClearDevs(list) => {
                let maps = self.maps()?;
                for slot in list {
                    ensure!(*slot < maps.capacity, refusal(libc::EINVAL, "delete from devs"));
                    maps.devs.retain(|(s, _)| s != slot);
                }
            }
            Batch::SetTunkeys(list) => {
                for (key, value) in list {
                    let maps = self.maps()?;
                    put("tunkey2if", &mut maps.tunkey2if, maps.capacity, *key, *value)?;
                }
            }
            Batch::DeleteTunkeys(list) => self.maps()?.tunkey2if.retain(|(k, _)| !list.contains(k)),
            Batch::SetIfs(list) => {
                for (ifindex, value) in list {
                    let maps = self.maps()?;
                    put("if2tunkey", &mut maps.if2tunkey, maps.capacity, *ifindex, *value)?;
                }
            }
            Batch::DeleteIfs(list) => self.maps()?.if2tunkey.retain(|(i, _)| !list.contains(i)),
            Batch::Attach(hooks) => hooks.iter().try_for_each(|hook| self.attach(hook))?,
            Batch::Detach { ifindex, direction, kind } => {
                let same = |a: &Attachment| a.ifindex == *ifindex && a.direction == *direction && a.kind == *kind;
                self.state.attachments.retain(|a| !same(a));
            }
        }
        Ok(None)
    }

    fn attach(&mut self, hook: &Hook) -> Result<()> {
        let Hook { program, ifindex, direction, kind, .. } = *hook;
        let loaded = self.state.programs.iter().find(|p| p.program == program).map(|p| p.id);
        let id = loaded.with_context(|| format!("{program:?} isn't loaded"))?;
        let same = |a: &Attachment| a.ifindex == ifindex && a.direction == direction && a.kind == kind;
        // A defunct one is unpinned first, and then there may be nothing to attach to.
        self.state.attachments.retain(|a| !same(a) || a.program.is_some());
        self.link(ifindex)?;
        self.state.attachments.retain(|a| !same(a));
        self.state.attachments.push(Attachment { kind, ifindex, direction, program: Some(id), position: 0 });
        Ok(())
    }

    fn load(&mut self, program: Program, generation: u32) -> LoadedProgram {
        self.next_program += 1;
        let id = self.next_program;
        self.programs.insert(id, (program, generation));
        LoadedProgram { program, id, current: true }
    }

    fn newest_generation(&self) -> u32 {
        self.older.keys().copied().chain([self.generation]).max().unwrap_or_default()
    }

    /// Grows, but stops after so many switched attachments; before the first, nothing has happened.
    fn grow(&mut self, capacity: u32, limit: usize) -> Result<()> {
        let maps = self.state.maps.as_ref().ok_or_else(|| NoMaps { dir: "/memory".into() })?;
        ensure!(capacity >= maps.capacity, "they have {} slots already", maps.capacity);
        let copy = MapState { capacity, ..maps.clone() };
        if limit == 0 {
            return Ok(());
        }
        let generation = self.newest_generation() + 1;
        let mut programs = self.state.programs.clone();
        programs.sort_by_key(|p| p.program);
        let programs = programs.iter().map(|p| self.load(p.program, generation)).collect();
        self.growth = Some(Growth { maps: copy, generation, programs });
        if self.switch(limit - 1) {
            self.finish_growth();
        }
        Ok(())
    }

    /// Switches attachments of the live programs to those of the growth, so many at most. Returns whether all are.
    fn switch(&mut self, limit: usize) -> bool {
        let Some(growth) = self.growth.clone() else { return true };
        let mut done = 0;
        for new in &growth.programs {
            let Some(old) = self.state.programs.iter().find(|p| p.program == new.program).map(|p| p.id) else {
                continue;
            };
            for place in 0..self.state.attachments.len() {
                let attachment = &mut self.state.attachments[place];
                if attachment.kind != HookKind::Tcx || attachment.program != Some(old) {
                    continue;
                }
                if done == limit {
                    return false;
                }
                attachment.program = Some(new.id);
                done += 1;
                self.moment();
            }
        }
        true
    }

    fn finish_growth(&mut self) {
        self.switch(usize::MAX);
        let Some(growth) = self.growth.take() else { return };
        if let Some(old) = self.state.maps.replace(growth.maps) {
            self.older.insert(self.generation, old);
        }
        self.generation = growth.generation;
        self.state.programs = growth.programs;
        self.state.outdated_maps = None;
        self.moment();
    }

    fn create_link(&mut self, new: &NewLink) -> Result<u32> {
        let name = new.name().to_owned();
        if self.state.links.iter().any(|l| l.name == name || l.altnames.contains(&name)) {
            return Err(refusal(libc::EEXIST, "make the device"));
        }
        let ifindex = self.add_link(&name);
        let link = self.link(ifindex)?;
        link.up = false;
        link.peer_in_other_netns = false;
        match new {
            NewLink::Tunnel { kind, port, ip6, local, mtu, alias, udp6_zero_checksum_rx, .. } => {
                link.kind = kind.to_string().into();
                link.mtu = *mtu;
                link.alias = Some(alias.clone());
                link.tunnel = Some(Box::new(TunnelDevice {
                    kind: *kind,
                    ip6: *ip6,
                    external: true,
                    port: *port,
                    learning: false,
                    local: device_local(*kind, *local),
                    udp6_zero_checksum_rx: *udp6_zero_checksum_rx,
                }));
            }
            NewLink::Bridge { mtu, alias, .. } => {
                link.kind = "bridge".into();
                link.mtu = *mtu;
                link.alias = Some(alias.clone());
            }
            NewLink::Port { altname, alias, mtu, .. } => {
                link.kind = "dummy".into();
                link.mtu = *mtu;
                link.alias = Some(alias.clone());
                link.altnames.push(altname.clone());
            }
        }
        Ok(ifindex)
    }

    fn change_link(&mut self, ifindex: u32, change: &LinkChange) -> Result<()> {
        self.links_changed += u64::from(matches!(change, LinkChange::Up | LinkChange::Down));
        if let LinkChange::Master { bridge: Some(bridge) } = change {
            let is_bridge = self.link(*bridge)?.kind == "bridge";
            ensure!(is_bridge, refusal(libc::EOPNOTSUPP, "join the bridge"));
            ensure!(self.link(ifindex)?.kind != "bridge", refusal(libc::ELOOP, "join the bridge"));
        }
        if let LinkChange::Altname(name) = change {
            self.link(ifindex)?;
            let taken = |l: &Link| l.ifindex != ifindex && (l.name == *name || l.altnames.contains(name));
            ensure!(!self.state.links.iter().any(taken), refusal(libc::EEXIST, "give it the alternative name"));
        }
        let link = self.link(ifindex)?;
        match change {
            LinkChange::Up => link.up = true,
            LinkChange::Down => link.up = false,
            LinkChange::Mtu(mtu) => link.mtu = *mtu,
            LinkChange::Forward { ipv6: false } => link.forwards.v4 = true,
            LinkChange::Forward { ipv6: true } => link.forwards.v6 = true,
            LinkChange::Learning(on) => {
                let device = link.tunnel.as_mut();
                device.ok_or_else(|| refusal(libc::EOPNOTSUPP, "set learning"))?.learning = *on;
            }
            LinkChange::VxlanLocal(local) => {
                let device = link.tunnel.as_mut();
                let device = device.ok_or_else(|| refusal(libc::EOPNOTSUPP, "set the local address"))?;
                device.local = Local::default();
                match local {
                    std::net::IpAddr::V4(v4) => device.local.v4 = Some(*v4),
                    std::net::IpAddr::V6(v6) => device.local.v6 = Some(*v6),
                }
            }
            LinkChange::Master { bridge } => {
                // Joining the bridge that it is in changes nothing.
                if link.master != *bridge {
                    link.master = *bridge;
                    link.isolated = bridge.map(|_| false);
                }
            }
            LinkChange::Isolated(on) => {
                ensure!(link.master.is_some(), refusal(libc::EOPNOTSUPP, "isolate the port"));
                link.isolated = Some(*on);
            }
            LinkChange::Alias(alias) => link.alias = Some(alias.clone()),
            LinkChange::Altname(name) => {
                if !link.altnames.contains(name) {
                    link.altnames.push(name.clone());
                }
            }
        }
        Ok(())
    }
}
