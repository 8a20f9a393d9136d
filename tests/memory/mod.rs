//! A kernel in memory: carries batches out as the real one does, and answers what its data plane would do.

use std::collections::BTreeMap;
use tunnel_mesh::model::*;
use tunnel_mesh::reconcile::kernel::{Batch, Hook, Kernel, Outcome};

/// The kernel.
#[derive(Debug, Clone, Default)]
pub struct MemoryKernel {
    /// Its state.
    pub state: Observed,
    next_ifindex: u32,
    next_program: u32,
    /// Batches carried out.
    pub log: Vec<Batch>,
}

impl MemoryKernel {
    /// A kernel with plain links of these names, indexes from 10 up.
    pub fn with_links(names: &[&str]) -> Self {
        let mut kernel = Self { next_ifindex: 10, next_program: 100, ..Self::default() };
        for name in names {
            kernel.add_link(name);
        }
        kernel
    }

    /// Adds a link as somebody else would.
    pub fn add_link(&mut self, name: &str) -> u32 {
        self.next_ifindex += 1;
        let ifindex = self.next_ifindex;
        let link =
            Link { ifindex, name: name.to_owned(), kind: "veth".to_owned(), mtu: 1500, up: true, ..Link::default() };
        self.state.links.push(link);
        ifindex
    }

    /// Adds a tunnel device in external mode as somebody else would.
    pub fn add_vxlan(&mut self, name: &str, port: u16) -> u32 {
        let ifindex = self.add_link(name);
        if let Some(link) = self.state.links.iter_mut().find(|l| l.ifindex == ifindex) {
            link.kind = "vxlan".to_owned();
            link.tunnel = Some(TunnelDevice {
                kind: TunnelKind::Vxlan,
                ip6: false,
                external: true,
                port: Some(port),
                learning: false,
                local: Local::default(),
                udp6_zero_checksum_rx: false,
            });
        }
        ifindex
    }

    /// Removes a link: the kernel itself takes it out of `devs` and detaches what is on it.
    pub fn remove_link(&mut self, ifindex: u32) {
        self.state.links.retain(|l| l.ifindex != ifindex);
        for link in self.state.links.iter_mut().filter(|l| l.master == Some(ifindex)) {
            link.master = None;
            link.isolated = None;
        }
        if let Some(maps) = &mut self.state.maps {
            maps.devs.retain(|(_, i)| *i != ifindex);
        }
        self.state.attachments.retain(|a| a.ifindex != ifindex || a.kind == HookKind::Tcx);
        for attachment in self.state.attachments.iter_mut().filter(|a| a.ifindex == ifindex) {
            attachment.program = None;
        }
    }

    fn link(&mut self, ifindex: u32) -> anyhow::Result<&mut Link> {
        let found = self.state.links.iter_mut().find(|l| l.ifindex == ifindex);
        found.ok_or_else(|| anyhow::anyhow!("no link has ifindex {ifindex}"))
    }

    fn maps(&mut self) -> anyhow::Result<&mut MapState> {
        self.state.maps.as_mut().ok_or_else(|| anyhow::anyhow!("no maps"))
    }

    fn load(&mut self, program: Program) {
        self.next_program += 1;
        let id = self.next_program;
        self.state.programs.retain(|p| p.program != program);
        self.state.programs.push(LoadedProgram { program, id, current: true });
    }

    /// Where a packet with that key is delivered, by ifindex.
    pub fn delivers(&self, key: TunKey) -> Option<u32> {
        let maps = self.state.maps.as_ref()?;
        let conf = maps.conf.get(&key.tunnel)?;
        let dev = |slot: u32| maps.devs.iter().find(|(s, _)| *s == slot).map(|(_, i)| *i);
        if conf.ifindex == 0 || dev(key.tunnel) != Some(conf.ifindex) {
            return None;
        }
        self.runs(conf.ifindex, Direction::Ingress).then_some(())?;
        let value = maps.tunkey2if.iter().find(|(k, _)| *k == key)?.1;
        if value.valid { dev(value.slot) } else { None }
    }

    /// With which key what is sent from that interface leaves; the outer `None` means that no program is there.
    pub fn sends(&self, ifindex: u32) -> Option<Option<TunKey>> {
        let maps = self.state.maps.as_ref()?;
        if !self.runs(ifindex, Direction::Egress) && !self.runs(ifindex, Direction::Ingress) {
            return None;
        }
        let dev = |slot: u32| maps.devs.iter().find(|(s, _)| *s == slot).map(|(_, i)| *i);
        let sends = || {
            let entry = maps.if2tunkey.iter().find(|(i, _)| *i == ifindex)?.1;
            let conf = maps.conf.get(&entry.key.tunnel)?;
            let own = entry.valid && dev(entry.slot) == Some(ifindex);
            let out = conf.ifindex != 0 && dev(entry.key.tunnel) == Some(conf.ifindex);
            (own && out).then_some(entry.key)
        };
        Some(sends())
    }

    fn runs(&self, ifindex: u32, direction: Direction) -> bool {
        let mut here = self.state.attachments.iter().filter(|a| a.ifindex == ifindex && a.direction == direction);
        here.any(|a| a.program.is_some())
    }

    fn create_link(&mut self, new: &NewLink) -> u32 {
        let name = new.name().to_owned();
        let ifindex = self.add_link(&name);
        let Some(link) = self.state.links.iter_mut().find(|l| l.ifindex == ifindex) else { return ifindex };
        link.up = false;
        match new {
            NewLink::Tunnel { kind, port, ip6, local, mtu, alias, udp6_zero_checksum_rx, .. } => {
                link.kind = kind.to_string();
                link.mtu = *mtu;
                link.alias = Some(alias.clone());
                link.tunnel = Some(TunnelDevice {
                    kind: *kind,
                    ip6: *ip6,
                    external: true,
                    port: *port,
                    learning: false,
                    local: *local,
                    udp6_zero_checksum_rx: *udp6_zero_checksum_rx,
                });
            }
            NewLink::Bridge { mtu, alias, .. } => {
                link.kind = "bridge".to_owned();
                link.mtu = *mtu;
                link.alias = Some(alias.clone());
            }
            NewLink::Port { altname, alias, mtu, .. } => {
                link.kind = "dummy".to_owned();
                link.mtu = *mtu;
                link.alias = Some(alias.clone());
                link.altnames.push(altname.clone());
            }
        }
        ifindex
    }
}

impl MemoryKernel {
    fn attach(&mut self, hook: &Hook) -> anyhow::Result<()> {
        let Hook { program, ifindex, direction, kind, .. } = *hook;
        self.link(ifindex)?;
        let loaded = self.state.programs.iter().find(|p| p.program == program).map(|p| p.id);
        let id = loaded.ok_or_else(|| anyhow::anyhow!("{program:?} isn't loaded"))?;
        let same = |a: &Attachment| a.ifindex == ifindex && a.direction == direction && a.kind == kind;
        self.state.attachments.retain(|a| !same(a));
        self.state.attachments.push(Attachment { kind, ifindex, direction, program: Some(id), position: 0 });
        Ok(())
    }
}

fn put<K: Ord + Copy, V: Copy>(list: &mut Vec<(K, V)>, key: K, value: V) {
    let mut map: BTreeMap<K, V> = list.iter().copied().collect();
    map.insert(key, value);
    *list = map.into_iter().collect();
}

impl Kernel for MemoryKernel {
    async fn observe(&mut self, _ports: bool) -> anyhow::Result<Observed> {
        Ok(self.state.clone())
    }

    async fn execute(&mut self, batch: &Batch) -> anyhow::Result<Outcome> {
        self.log.push(batch.clone());
        let mut outcome = Outcome::default();
        match batch {
            Batch::CreateMaps(capacity) => {
                self.state.maps = Some(MapState { capacity: *capacity, ..MapState::default() })
            }
            Batch::GrowMaps(capacity) => {
                self.maps()?.capacity = *capacity;
                let old: Vec<LoadedProgram> = self.state.programs.clone();
                for program in old {
                    self.load(program.program);
                    let new = self.next_program;
                    let moving = self.state.attachments.iter_mut();
                    for a in moving.filter(|a| a.kind == HookKind::Tcx && a.program == Some(program.id)) {
                        a.program = Some(new);
                    }
                }
            }
            Batch::LoadProgram(program) => self.load(*program),
            Batch::UnloadProgram(program) => self.state.programs.retain(|p| p.program != *program),
            Batch::CreateLink(link) => outcome.ifindex = Some(self.create_link(link)),
            Batch::ChangeLink(ifindex, change) => {
                let link = self.link(*ifindex)?;
                match change {
                    LinkChange::Up => link.up = true,
                    LinkChange::Down => link.up = false,
                    LinkChange::Mtu(mtu) => link.mtu = *mtu,
                    LinkChange::Master { bridge } => {
                        link.master = *bridge;
                        link.isolated = bridge.map(|_| false);
                    }
                    LinkChange::Isolated(on) => link.isolated = Some(*on),
                    LinkChange::Alias(alias) => link.alias = Some(alias.clone()),
                    LinkChange::Altname(name) => link.altnames.push(name.clone()),
                }
            }
            Batch::DeleteLinks(ifindexes) => ifindexes.iter().for_each(|i| self.remove_link(*i)),
            Batch::ResetCounters(_) => {}
            Batch::SetConf(entries) => self.maps()?.conf.extend(entries.iter().cloned()),
            Batch::ClearConf(indexes) => self.maps()?.conf.retain(|i, _| !indexes.contains(i)),
            Batch::SetDevs(entries) => {
                for (place, (slot, ifindex)) in entries.iter().enumerate() {
                    if self.link(*ifindex).is_err() {
                        outcome.gone.push((place, anyhow::anyhow!("no such device")));
                        continue;
                    }
                    anyhow::ensure!(*slot < self.maps()?.capacity, "slot {slot} is beyond the capacity");
                    put(&mut self.maps()?.devs, *slot, *ifindex);
                }
            }
            Batch::ClearDevs(slots) => self.maps()?.devs.retain(|(s, _)| !slots.contains(s)),
            Batch::SetTunkeys(entries) => {
                for (key, value) in entries {
                    put(&mut self.maps()?.tunkey2if, *key, *value);
                }
                let maps = self.maps()?;
                anyhow::ensure!(maps.tunkey2if.len() <= maps.capacity as usize, "tunkey2if is full");
            }
            Batch::DeleteTunkeys(keys) => self.maps()?.tunkey2if.retain(|(k, _)| !keys.contains(k)),
            Batch::SetIfs(entries) => {
                for (ifindex, value) in entries {
                    put(&mut self.maps()?.if2tunkey, *ifindex, *value);
                }
                let maps = self.maps()?;
                anyhow::ensure!(maps.if2tunkey.len() <= maps.capacity as usize, "if2tunkey is full");
            }
            Batch::DeleteIfs(ifindexes) => self.maps()?.if2tunkey.retain(|(i, _)| !ifindexes.contains(i)),
            Batch::Attach(hooks) => {
                for (place, hook) in hooks.iter().enumerate() {
                    if let Err(error) = self.attach(hook) {
                        outcome.failed.push((place, error));
                    }
                }
            }
            Batch::Detach { ifindex, direction, kind } => {
                let same = |a: &Attachment| a.ifindex == *ifindex && a.direction == *direction && a.kind == *kind;
                self.state.attachments.retain(|a| !same(a));
            }
        }
        Ok(outcome)
    }

    async fn grace_period(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}
