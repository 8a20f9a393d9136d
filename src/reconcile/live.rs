//! The real kernel: the bpf and netlink edges behind one interface.

use super::expedite::Expedite;
use super::kernel::{Batch, Hook, Kernel, Outcome};
use super::meter::Meter;
use super::status::{Traffic, UnknownKey as SeenKey};
use crate::bpf::Dataplane;
use crate::model::*;
use crate::netlink::Netlink;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The kernel of the calling thread's network namespace, with one pin directory.
#[derive(Debug)]
pub struct LiveKernel {
    pub(super) netlink: Netlink,
    instance: Instance,
    pub(super) dataplane: Dataplane,
    hook_kind: HookKind,
    port_kind: Option<PortKind>,
    /// Links that have a filter of ours although TCX is in use; unknown before the first look.
    filtered: Option<BTreeSet<u32>>,
    cookie: u64,
    pins: PathBuf,
    expedite: Option<Expedite>,
    /// Links, addresses and attachments as they were last read; `None` where they must be read anew.
    seen: Option<Surroundings>,
    /// Whether somebody tells of changes, so that `seen` may be kept.
    told: bool,
    /// Whether the links' drop counters are wanted.
    counting: bool,
    /// Held by the thread that attaches.
    attaching: Arc<Mutex<()>>,
    /// Told of each attachment, which takes long.
    meter: Meter,
}

/// What is around the maps.
#[derive(Debug, Clone)]
struct Surroundings {
    links: Vec<Link>,
    addresses: Vec<Address>,
    underlay: Underlay,
    programs: Vec<LoadedProgram>,
    attachments: Vec<Attachment>,
    /// `devs`; `None` where it was written since. Besides us only the kernel changes it, when a link goes: and of that we
    /// are told.
    devs: Option<Vec<(u32, u32)>>,
    /// Whether programs and attachments must be read anew all the same: nobody tells of those.
    hooks_due: bool,
    /// Whether what the fast lane would pass by must be.
    underlay_due: bool,
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
            filtered: None,
            cookie: crate::bpf::netns_cookie()?,
            pins: pins.to_owned(),
            expedite: None,
            seen: None,
            told: false,
            counting: false,
            attaching: Arc::default(),
            meter: Meter::default(),
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

    /// Tells that meter of each attachment.
    pub fn measure(&mut self, meter: Meter) {
        self.meter = meter;
    }

    /// Shortens grace periods while many programs are attached for the first time.
    /// First restores what a killed process left behind.
    pub fn expedite(&mut self, expedite: Expedite) {
        if let Err(error) = expedite.recover() {
            tracing::error!("{error:#}");
        }
        self.expedite = Some(expedite);
    }

    /// Whoever calls this promises to call [`LiveKernel::look_anew`] when links or addresses change. What was read of
    /// them, of `devs`, of programs and of attachments is then kept from one look to the next; the hashes never are.
    pub fn keep_surroundings(&mut self) {
        self.told = true;
    }

    /// Reads everything anew at the next look.
    pub fn look_anew(&mut self) {
        self.seen = None;
    }

    /// Reads what nobody tells of anew at the next look: `devs`, programs and attachments.
    pub fn look_at_hooks(&mut self) {
        if let Some(seen) = &mut self.seen {
            (seen.devs, seen.hooks_due, seen.underlay_due) = (None, true, true);
        }
    }

    /// Reads what the fast lane would pass by anew at the next look.
    pub fn look_at_underlay(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.underlay_due = true;
        }
    }

    /// Whether the next looks, until told otherwise, read the links' drop counters too.
    pub fn count_drops(&mut self, wanted: bool) {
        if wanted {
            self.seen = None;
        }
        self.counting = wanted;
    }

    async fn read_surroundings(&mut self, known: Option<Surroundings>) -> Result<Surroundings> {
        let (links, addresses) = match (known, self.counting) {
            (Some(known), _) => (known.links, known.addresses),
            (None, true) => (self.netlink.links().await?, self.netlink.addresses().await?),
            (None, false) => (self.netlink.links_without_counters().await?, self.netlink.addresses().await?),
        };
        let programs = self.dataplane.programs()?;
        let mut attachments = self.dataplane.tcx_attachments()?;
        // Where TCX is in use, filters of ours are from before this process: after the first look they only get fewer.
        let candidates: Vec<u32> = match &self.filtered {
            Some(known) if self.hook_kind == HookKind::Tcx => {
                known.iter().copied().filter(|i| links.iter().any(|l| l.ifindex == *i)).collect()
            }
            _ => links.iter().map(|l| l.ifindex).collect(),
        };
        let filters = self.netlink.clsact_attachments(&candidates).await?;
        self.filtered = Some(filters.iter().map(|a| a.ifindex).collect());
        attachments.extend(filters);
        attachments.sort_by_key(|a| (a.ifindex, a.direction, a.kind));
        let underlay = self.read_underlay(&links, &addresses).await?;
        Ok(Surroundings {
            links,
            addresses,
            underlay,
            programs,
            attachments,
            devs: None,
            hooks_due: false,
            underlay_due: false,
        })
    }

    /// What the fast lane would pass by. Whatever link has an address that others can reach may be an underlay device.
    async fn read_underlay(&self, links: &[Link], addresses: &[Address]) -> Result<Underlay> {
        let addressed: BTreeSet<u32> =
            addresses.iter().filter(|a| is_reachable(a.address)).map(|a| a.ifindex).collect();
        let candidates: Vec<&Link> = links.iter().filter(|l| addressed.contains(&l.ifindex)).collect();
        let mut underlay = self.netlink.underlay(&candidates).await;
        for link in candidates {
            let first = self.dataplane.foreign_ingress(link.ifindex)?.first().copied();
            underlay.programs.extend(
                first.map(|id| IngressProgram { ifindex: link.ifindex, what: format!("the TCX program {id}") }),
            );
        }
        Ok(underlay)
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
        let name = |index: u32| {
            let conf = observed.maps.as_ref().and_then(|m| m.conf.get(&index));
            conf.map_or_else(|| format!("tunnel index {index}"), |c| c.name.clone())
        };
        let mapped = |key: &TunKey| {
            observed.maps.as_ref().is_some_and(|m| m.tunkey2if.binary_search_by_key(key, |(mapped, _)| *mapped).is_ok())
        };
        // What was mapped meanwhile is unknown no longer.
        let unknown = self.dataplane.unknown()?.into_iter().filter(|seen| !mapped(&seen.key)).map(|seen| SeenKey {
            tunnel: name(seen.key.tunnel),
            id: seen.key.id,
            remote: seen.key.remote,
            packets: seen.packets,
            last_seen_seconds: seen.age_ms / 1000,
            nearest: None,
            why: None,
        });
        Ok((self.traffic()?, unknown.collect()))
    }

    /// Counters by slot.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn traffic(&self) -> Result<BTreeMap<u32, Traffic>> {
        if self.dataplane.capacity().is_none() {
            return Ok(BTreeMap::new());
        }
        Ok(traffic_of(self.dataplane.counters()?))
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

    /// Whether there are devices that we made.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub async fn has_devices(&self) -> Result<bool> {
        let links = self.netlink.links().await?;
        Ok(links.iter().any(|l| self.instance.made(l.alias.as_deref()).is_some()))
    }

    /// Detaches, unpins and deletes everything that is ours, going on after failures.
    ///
    /// # Errors
    ///
    /// Never early: returns what failed.
    pub async fn remove_everything(&mut self) -> Result<Vec<anyhow::Error>> {
        // An abandoned pass may still be attaching; it ends with the interface it is at.
        let attaching = Arc::clone(&self.attaching);
        tokio::task::spawn_blocking(move || drop(attaching.lock())).await.context("wait for the last attach")?;
        self.look_anew();
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
        if !failures.is_empty() {
            // A device that stands without its program would feed the host's own stack.
            failures.push(anyhow!("the programs stay where they are, as some devices do; try again"));
            return Ok(failures);
        }
        for attachment in observed.attachments.iter().filter(|a| a.kind == HookKind::Clsact) {
            let gone = self.netlink.clsact_detach(attachment.ifindex, attachment.direction).await;
            failures.extend(gone.err().filter(|e| !crate::netlink::is_gone(e)));
            if attachment.direction == Direction::Underlay {
                failures.extend(self.netlink.clsact_tidy(attachment.ifindex).await.err());
            }
        }
        let _expedited = self.expedite.as_mut().and_then(|e| e.begin(observed.attachments.len()));
        failures.extend(self.dataplane.remove_all().err());
        Ok(failures)
    }

    /// Attaches each by itself; returns what failed by its place.
    async fn attach(&mut self, hooks: &[Hook]) -> Result<Vec<(usize, anyhow::Error)>> {
        let first = hooks.iter().filter(|h| !h.replace).count();
        let _expedited = self.expedite.as_mut().and_then(|e| e.begin(first));
        let (tcx, clsact): (Vec<_>, Vec<_>) =
            hooks.iter().copied().enumerate().partition(|(_, h)| h.kind == HookKind::Tcx);
        let mut failed = self.attach_tcx(tcx).await?;
        for (place, hook) in clsact {
            self.filtered.get_or_insert_default().insert(hook.ifindex);
            let attached = match self.dataplane.program_fd(hook.program) {
                Ok(fd) => {
                    let name = hook.program.name();
                    self.netlink.clsact_attach(hook.ifindex, hook.direction, fd.as_fd(), name).await
                }
                Err(error) => Err(error),
            };
            failed.extend(attached.err().map(|error| (place, error.context(describe(&hook)))));
        }
        Ok(failed)
    }

    /// On a thread of its own: a first attach waits for a grace period inside the system call. They wait one after the
    /// other (the kernel holds its RTNL lock meanwhile), so more threads would gain nothing.
    async fn attach_tcx(&mut self, hooks: Vec<(usize, Hook)>) -> Result<Vec<(usize, anyhow::Error)>> {
        /// Tells the thread to stop when nobody waits for it any more.
        struct Abandon(Arc<AtomicBool>);
        impl Drop for Abandon {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        if hooks.is_empty() {
            return Ok(Vec::new());
        }
        let abandoned = Arc::new(AtomicBool::new(false));
        let _abandon = Abandon(Arc::clone(&abandoned));
        let (attacher, attaching) = (self.dataplane.attacher(), Arc::clone(&self.attaching));
        let meter = self.meter.clone();
        let attach = move || {
            let _attaching = attaching.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = hooks.iter().take_while(|_| !abandoned.load(Ordering::Relaxed));
            let attached = wanted.map(|(place, h)| {
                let attached = attacher.attach(h.program, h.ifindex, h.direction);
                meter.step();
                (*place, attached.with_context(|| describe(h)))
            });
            attached.filter_map(|(place, attached)| Some((place, attached.err()?))).collect()
        };
        tokio::task::spawn_blocking(attach).await.context("wait for the thread that attaches")
    }
}

fn describe(hook: &Hook) -> String {
    format!("attach {} to ifindex {} {}", hook.program.name(), hook.ifindex, hook.direction)
}

impl Kernel for LiveKernel {
    async fn observe(&mut self, ports: bool) -> Result<Observed> {
        self.check_namespace()?;
        if ports && self.port_kind.is_none() {
            self.port_kind = Some(self.netlink.port_kind().await?);
        }
        let features = Features {
            hook_kind: self.hook_kind,
            port_kind: self.port_kind.unwrap_or(PortKind::Dummy),
            forwarding6: crate::netlink::forwarding6_writable(),
        };
        let mut seen = self.seen.take();
        let maps = self.dataplane.observe_beside(seen.as_mut().and_then(|s| s.devs.take()))?;
        let Surroundings { links, addresses, underlay, programs, attachments, .. } = match seen {
            Some(mut seen) if !seen.hooks_due => {
                if seen.underlay_due {
                    seen.underlay = self.read_underlay(&seen.links, &seen.addresses).await?;
                }
                seen
            }
            seen => self.read_surroundings(seen).await?,
        };
        Ok(Observed {
            instance: self.instance.clone(),
            netns_cookie: self.cookie,
            features,
            links,
            addresses,
            underlay,
            maps,
            outdated_maps: self.dataplane.outdated().map(str::to_owned),
            programs,
            attachments,
        })
    }

    async fn execute(&mut self, batch: &Batch) -> Result<Outcome> {
        let executed = self.carry_out(batch).await;
        let smooth = executed.as_ref().is_ok_and(|o| o.gone.is_empty() && o.failed.is_empty());
        if !smooth || !touches_entries_only(batch) {
            self.seen = None;
        } else if matches!(batch, Batch::SetDevs(_) | Batch::ClearDevs(_))
            && let Some(seen) = &mut self.seen
        {
            seen.devs = None;
        }
        executed
    }

    fn done_with(&mut self, observed: Observed) {
        let Observed { links, addresses, underlay, programs, attachments, maps, .. } = observed;
        let devs = maps.map(|m| m.devs);
        let (hooks_due, underlay_due) = (false, false);
        let seen = Surroundings { links, addresses, underlay, programs, attachments, devs, hooks_due, underlay_due };
        self.seen = self.told.then_some(seen);
    }

    async fn grace_period(&mut self) -> Result<()> {
        crate::bpf::grace_period();
        Ok(())
    }
}

impl LiveKernel {
    async fn carry_out(&mut self, batch: &Batch) -> Result<Outcome> {
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
            Batch::Attach(hooks) => outcome.failed = self.attach(hooks).await?,
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
}

/// Whether others can reach an address, so that tunnels can come from it.
fn is_reachable(address: std::net::IpAddr) -> bool {
    let link_local = matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    !(link_local || address.is_loopback())
}

/// Whether a batch leaves links, programs and attachments as they are.
fn touches_entries_only(batch: &Batch) -> bool {
    matches!(
        batch,
        Batch::ResetCounters(_)
            | Batch::SetDevs(_)
            | Batch::ClearDevs(_)
            | Batch::SetTunkeys(_)
            | Batch::DeleteTunkeys(_)
            | Batch::SetIfs(_)
            | Batch::DeleteIfs(_)
    )
}

/// Counters of slots as `status` and metrics tell them.
pub fn traffic_of(counters: Vec<(u32, Counters)>) -> BTreeMap<u32, Traffic> {
    let traffic = counters.into_iter().map(|(slot, c)| {
        let counted = DropReason::ALL.iter().map(|r| (r.name().to_owned(), c.dropped(*r)));
        let drops = counted.filter(|(_, n)| *n > 0).collect();
        let Counters { rx_packets, rx_bytes, tx_packets, tx_bytes, rx_fast, tx_fast, .. } = c;
        (slot, Traffic { rx_packets, rx_bytes, tx_packets, tx_bytes, rx_fast, tx_fast, drops })
    });
    traffic.collect()
}
