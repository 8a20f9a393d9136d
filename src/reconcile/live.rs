//! The real kernel: the bpf and netlink edges behind one interface.

use super::kernel::{Batch, Kernel, Outcome};
use super::status::{Traffic, UnknownKey as SeenKey};
use crate::bpf::Dataplane;
use crate::model::*;
use crate::netlink::Netlink;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The kernel of the calling thread's network namespace, with one pin directory.
#[derive(Debug)]
pub struct LiveKernel {
    netlink: Netlink,
    instance: Instance,
    dataplane: Dataplane,
    hook_kind: HookKind,
    port_kind: Option<PortKind>,
    cookie: u64,
    pins: PathBuf,
}

/// The pins belong to another network namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "the pins in {pins} belong to another network namespace (cookie {theirs}, this one is {ours}): run tunnel-mesh in \
     the namespace where they were made, or use another --pin-dir"
)]
pub struct WrongNamespace {
    pins: PathBuf,
    ours: u64,
    theirs: u64,
}

impl LiveKernel {
    /// Opens both edges and probes the kernel. Creates and changes nothing.
    ///
    /// # Errors
    ///
    /// When privileges are missing, when pins have another layout, or when they belong to another namespace.
    pub async fn open(pins: &Path, hook: Option<HookKind>) -> Result<Self> {
        let instance = Instance::of(pins);
        let longest = instance.port_alias("", "").len() + ALTNAME_MAX - 1;
        if longest > ALIAS_MAX {
            bail!(
                "the pin directory {} has a name too long for the aliases of devices; use a shorter one",
                pins.display()
            );
        }
        let netlink = Netlink::open().await?.for_instance(&instance);
        let tcx = crate::bpf::probe_tcx()?;
        let hook_kind = match hook {
            Some(HookKind::Tcx) if !tcx => {
                bail!("this kernel has no TCX (Linux 6.6); use --hook clsact, or leave the choice to tunnel-mesh")
            }
            Some(kind) => kind,
            None if tcx => HookKind::Tcx,
            None => HookKind::Clsact,
        };
        let dataplane = Dataplane::open(pins)?;
        let kernel = Self {
            netlink,
            instance,
            dataplane,
            hook_kind,
            port_kind: None,
            cookie: crate::bpf::netns_cookie()?,
            pins: pins.to_owned(),
        };
        kernel.check_namespace()?;
        Ok(kernel)
    }

    fn check_namespace(&self) -> Result<()> {
        match self.dataplane.namespace()? {
            Some(theirs) if theirs != self.cookie => {
                Err(WrongNamespace { pins: self.pins.clone(), ours: self.cookie, theirs }.into())
            }
            _ => Ok(()),
        }
    }

    /// Counters by slot, and the keys that nobody mapped.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn counters(&self, observed: &Observed) -> Result<(BTreeMap<u32, Traffic>, Vec<SeenKey>)> {
        if self.dataplane.capacity().is_none() {
            return Ok((BTreeMap::new(), Vec::new()));
        }
        let traffic = self.dataplane.counters()?.into_iter().map(|(slot, c)| {
            let counted = DropReason::ALL.iter().map(|r| (r.name().to_owned(), c.dropped(*r)));
            let drops = counted.filter(|(_, n)| *n > 0).collect();
            let Counters { rx_packets, rx_bytes, tx_packets, tx_bytes, .. } = c;
            (slot, Traffic { rx_packets, rx_bytes, tx_packets, tx_bytes, drops })
        });
        let name = |index: u32| {
            let conf = observed.maps.as_ref().and_then(|m| m.conf.get(&index));
            conf.map_or_else(|| format!("tunnel index {index}"), |c| c.name.clone())
        };
        let unknown = self.dataplane.unknown()?.into_iter().map(|seen| SeenKey {
            tunnel: name(seen.key.tunnel),
            id: seen.key.id,
            remote: seen.key.remote,
            packets: seen.packets,
            last_seen_seconds: seen.age_ms / 1000,
        });
        Ok((traffic.collect(), unknown.collect()))
    }

    /// Goes on from what a killed process left, in the pin directory and of devices. Only the holder of the lock may.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub async fn recover(&mut self) -> Result<()> {
        self.netlink.delete_unfinished().await?;
        self.dataplane.recover()?;
        // Killed before it noted the namespace, and so before it wrote an entry: the maps are as good as new.
        if self.dataplane.capacity().is_some() && self.dataplane.namespace()?.is_none() {
            self.dataplane.set_namespace(self.cookie)?;
        }
        Ok(())
    }

    /// Detaches, unpins and deletes everything that is ours, going on after failures.
    ///
    /// # Errors
    ///
    /// Never early: returns what failed.
    pub async fn remove_everything(&mut self) -> Result<Vec<anyhow::Error>> {
        let mut failures = Vec::new();
        failures.extend(self.netlink.delete_unfinished().await.err());
        let observed = self.observe(false).await?;
        // Devices first: while they stand, their programs keep the tenants' packets from the host's stack.
        let ours = observed.links.iter().filter(|l| self.instance.made(l.alias.as_deref()).is_some());
        let (bridges, others): (Vec<&Link>, Vec<&Link>) = ours.partition(|l| l.kind == "bridge");
        let indexes: Vec<u32> = others.iter().map(|l| l.ifindex).collect();
        failures.extend(self.netlink.delete_all(&indexes).await.err());
        for bridge in bridges {
            let foreign = observed
                .links
                .iter()
                .any(|l| l.master == Some(bridge.ifindex) && !others.iter().any(|o| o.ifindex == l.ifindex));
            if foreign {
                tracing::info!(bridge = %bridge.name, "kept: it has ports that tunnel-mesh didn't make");
            } else {
                failures.extend(self.netlink.delete(bridge.ifindex).await.err());
            }
        }
        for attachment in observed.attachments.iter().filter(|a| a.kind == HookKind::Clsact) {
            let gone = self.netlink.clsact_detach(attachment.ifindex, attachment.direction).await;
            failures.extend(gone.err().filter(|e| !crate::netlink::is_gone(e)));
        }
        failures.extend(self.dataplane.remove_all().err());
        Ok(failures)
    }

    async fn attach(&mut self, program: Program, ifindex: u32, direction: Direction, kind: HookKind) -> Result<()> {
        match kind {
            HookKind::Tcx => self.dataplane.tcx_attach(program, ifindex, direction),
            HookKind::Clsact => {
                let fd = self.dataplane.program_fd(program)?;
                self.netlink.clsact_attach(ifindex, direction, fd.as_fd(), program.name()).await
            }
        }
        .with_context(|| format!("attach {} to ifindex {ifindex} {direction}", program.name()))
    }
}

impl Kernel for LiveKernel {
    async fn observe(&mut self, ports: bool) -> Result<Observed> {
        self.check_namespace()?;
        if ports && self.port_kind.is_none() {
            self.port_kind = Some(self.netlink.port_kind().await?);
        }
        let features = Features { hook_kind: self.hook_kind, port_kind: self.port_kind.unwrap_or(PortKind::Dummy) };
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        let maps = self.dataplane.observe()?;
        let programs = self.dataplane.programs()?;
        let mut attachments = self.dataplane.tcx_attachments()?;
        if maps.is_some() || self.hook_kind == HookKind::Clsact {
            let candidates = clsact_candidates(&links, maps.as_ref(), self.hook_kind);
            attachments.extend(self.netlink.clsact_attachments(&candidates).await?);
        }
        attachments.sort_by_key(|a| (a.ifindex, a.direction, a.kind));
        let instance = self.instance.clone();
        Ok(Observed { instance, netns_cookie: self.cookie, features, links, addresses, maps, programs, attachments })
    }

    async fn execute(&mut self, batch: &Batch) -> Result<Outcome> {
        let calls = crate::bpf::calls();
        let mut outcome = Outcome::default();
        let dataplane = &mut self.dataplane;
        if dataplane.is_half_grown() {
            // What runs where is another thing afterwards, so that a plan made before is void.
            dataplane.recover().context("finish the growth of the maps that was interrupted")?;
            bail!("the growth of the maps that was interrupted is finished now; the next pass goes on from there");
        }
        match batch {
            Batch::CreateMaps(capacity) => {
                dataplane.create_maps(*capacity)?;
                dataplane.set_namespace(self.cookie)?;
            }
            Batch::GrowMaps(capacity) => drop(dataplane.grow_maps(*capacity)?),
            Batch::LoadProgram(program) => drop(dataplane.load(*program)?),
            Batch::UnloadProgram(program) => dataplane.unload(*program)?,
            Batch::CreateLink(link) => {
                let made = self.netlink.create(link).await;
                outcome.ifindex = Some(made.with_context(|| format!("make the device {}", link.name()))?);
            }
            Batch::ChangeLink(ifindex, change) => self.netlink.change(*ifindex, change).await?,
            Batch::DeleteLinks(ifindexes) => self.netlink.delete_all(ifindexes).await?,
            Batch::ResetCounters(slots) => drop(dataplane.reset_counters(slots)?),
            Batch::SetConf(entries) => drop(dataplane.write_conf(entries)?),
            Batch::ClearConf(indexes) => drop(dataplane.clear_conf(indexes)?),
            Batch::SetDevs(entries) => {
                // devs has no batch calls, and a device may be gone by now: each stands for itself.
                for (place, (slot, ifindex)) in entries.iter().enumerate() {
                    let what = || format!("set slot {slot} of devs to ifindex {ifindex}");
                    match dataplane.write_devs(&[(*slot, *ifindex)]).with_context(what) {
                        Err(error) if super::is_gone(&error) => outcome.gone.push((place, error)),
                        result => drop(result?),
                    }
                }
            }
            Batch::ClearDevs(slots) => drop(dataplane.clear_devs(slots)?),
            Batch::SetTunkeys(entries) => drop(dataplane.write_tunkey2if(entries)?),
            Batch::DeleteTunkeys(keys) => drop(dataplane.delete_tunkey2if(keys)?),
            Batch::SetIfs(entries) => drop(dataplane.write_if2tunkey(entries)?),
            Batch::DeleteIfs(ifindexes) => drop(dataplane.delete_if2tunkey(ifindexes)?),
            Batch::Attach { program, ifindex, direction, kind } => {
                self.attach(*program, *ifindex, *direction, *kind).await?;
            }
            Batch::Detach { ifindex, direction, kind: HookKind::Tcx } => dataplane.tcx_detach(*ifindex, *direction)?,
            Batch::Detach { ifindex, direction, kind: HookKind::Clsact } => {
                match self.netlink.clsact_detach(*ifindex, *direction).await {
                    Err(e) if !crate::netlink::is_gone(&e) => return Err(e),
                    _ => {}
                }
            }
        }
        tracing::debug!(calls = ?crate::bpf::calls().since(calls), "{batch:?}");
        Ok(outcome)
    }

    async fn grace_period(&mut self) -> Result<()> {
        crate::bpf::grace_period();
        Ok(())
    }
}

/// Links on which a clsact filter of ours may be: in TCX mode only those that are mapped, which costs nothing to ask.
fn clsact_candidates(links: &[Link], maps: Option<&MapState>, hook: HookKind) -> Vec<u32> {
    if hook == HookKind::Clsact {
        return links.iter().map(|l| l.ifindex).collect();
    }
    let known: BTreeMap<u32, ()> = links.iter().map(|l| (l.ifindex, ())).collect();
    let conf = maps.iter().flat_map(|m| m.conf.values().map(|c| c.ifindex));
    let mapped = maps.iter().flat_map(|m| m.if2tunkey.iter().map(|(i, _)| *i));
    conf.chain(mapped).filter(|i| known.contains_key(i)).collect()
}
