//! The data plane of one pin directory: opens, creates, loads, grows, removes.
//!
//! Programs are pinned as `programs/NAME-BUILD`, with the build that they come from, so that another version of
//! tunnel-mesh is seen and replaced.

use super::abi::{DROP_REASONS, LAYOUT, RawMeta};
use super::attach::{replace_pin, unpin};
use super::maps::{Maps, NAMES, SIZED};
use super::{BUILD, attach, sys};
use crate::model::*;
use anyhow::{Context, Result, anyhow, bail};
use aya::programs::SchedClassifier;
use aya::{EbpfLoader, include_bytes_aligned};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tunnel_mesh.bpf.o"));

/// Magic number of bpffs (`BPF_FS_MAGIC` of linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The data plane of one pin directory.
#[derive(Debug)]
pub struct Dataplane {
    directory: PathBuf,
    maps: Option<Maps>,
}

/// Counters of one slot, summed over all CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotCounters {
    /// Slot.
    pub slot: u32,
    /// Packets received through the tunnel; GSO packets count their segments.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Packets sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Drops: reason and packets, reasons that never occurred left out.
    pub drops: Vec<(&'static str, u64)>,
}

/// A key that nobody mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenKey {
    /// The key.
    pub key: TunKey,
    /// Packets.
    pub packets: u64,
    /// When the last one came, nanoseconds of the boot-time clock.
    pub last_seen: u64,
}

impl Dataplane {
    /// Opens what is pinned there and goes on from what a killed process left. Creates nothing.
    ///
    /// # Errors
    ///
    /// [`super::LayoutMismatch`] when the pins are of another layout; else what the kernel said.
    pub fn open(directory: &Path) -> Result<Self> {
        let mut dataplane = Self { directory: directory.to_owned(), maps: None };
        dataplane.maps = Maps::open(directory)?;
        Ok(dataplane)
    }

    /// Whether the kernel has TCX.
    ///
    /// # Errors
    ///
    /// EPERM when privileges are missing.
    pub fn probe_tcx() -> Result<bool> {
        attach::probe_tcx()
    }

    fn maps(&self) -> Result<&Maps> {
        self.maps.as_ref().ok_or_else(|| anyhow!("no maps are pinned in {}", self.directory.display()))
    }

    fn programs_directory(&self) -> PathBuf {
        self.directory.join("programs")
    }

    fn links_directory(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// The network namespace that the pins belong to; `None` where there are no pins.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn namespace(&self) -> Result<Option<u64>> {
        let Some(maps) = &self.maps else { return Ok(None) };
        Ok(Some(maps.meta()?.netns_cookie).filter(|cookie| *cookie != 0))
    }

    /// Notes the network namespace that the pins belong to.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn set_namespace(&mut self, netns_cookie: u64) -> Result<()> {
        self.maps()?.set_meta(RawMeta { netns_cookie, layout: LAYOUT, reasons: DROP_REASONS.len() as u32 })
    }

    /// Contents of the maps; `None` where none are pinned.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn observe(&self) -> Result<Option<MapState>> {
        self.maps.as_ref().map(Maps::observe).transpose()
    }

    /// Creates and pins the maps.
    ///
    /// # Errors
    ///
    /// When the directory isn't on bpffs, or what the kernel said.
    pub fn create_maps(&mut self, capacity: u32) -> Result<()> {
        check_bpffs(&self.directory)?;
        self.recover()?;
        let directory = self.directory.clone();
        load_object(|_| directory.clone(), Some(capacity), 0).context("create the maps")?;
        self.maps = Maps::open(&self.directory)?;
        Ok(())
    }

    /// Loads a program on the pinned maps and pins it. Returns the kernel's id of it.
    ///
    /// # Errors
    ///
    /// What the kernel, or its verifier, said.
    pub fn load(&mut self, program: Program) -> Result<u32> {
        let fd = self.load_unpinned(program)?;
        let (id, _) = sys::program_info(fd.as_fd()).context("ask for the program's id")?;
        let directory = self.programs_directory();
        crate::private::make(&directory)?;
        replace_pin(fd.as_fd(), &directory.join(pin_name(program, BUILD)))?;
        // Other builds of it go; what is attached keeps running until it is replaced.
        for (path, other, build) in self.pinned_programs()? {
            if other == program && build != BUILD {
                unpin(&path)?;
            }
        }
        Ok(id)
    }

    fn load_unpinned(&self, program: Program) -> Result<OwnedFd> {
        self.maps()?;
        load_program(|_| self.directory.clone(), program)
    }

    /// Unpins a program.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn unload(&mut self, program: Program) -> Result<()> {
        for (path, other, _) in self.pinned_programs()? {
            if other == program {
                unpin(&path)?;
            }
        }
        Ok(())
    }

    fn pinned_programs(&self) -> Result<Vec<(PathBuf, Program, String)>> {
        let directory = self.programs_directory();
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("list the pinned programs in {}", directory.display())),
        };
        let mut out = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("list the pinned programs in {}", directory.display()))?;
            if let Some((program, build)) = entry.file_name().to_str().and_then(parse_pin_name) {
                out.push((entry.path(), program, build));
            }
        }
        out.sort();
        Ok(out)
    }

    /// The pinned programs.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn programs(&self) -> Result<Vec<LoadedProgram>> {
        let mut out: Vec<LoadedProgram> = Vec::new();
        for (path, program, build) in self.pinned_programs()? {
            let fd = match sys::get(&path) {
                Ok(fd) => fd,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("open the pinned program {}", path.display())),
            };
            let (id, maps) =
                sys::program_info(fd.as_fd()).with_context(|| format!("ask what {} is", path.display()))?;
            let current = build == BUILD && self.maps.as_ref().is_some_and(|m| maps.contains(&m.id) || maps.is_empty());
            out.retain(|p| p.program != program || !current);
            if !out.iter().any(|p| p.program == program) {
                out.push(LoadedProgram { program, id, current });
            }
        }
        out.sort_by_key(|p| p.program);
        Ok(out)
    }

    /// Descriptor of the pinned program, for attaching it as a clsact filter.
    ///
    /// # Errors
    ///
    /// When it isn't loaded, or what the kernel said.
    pub fn program_fd(&self, program: Program) -> Result<OwnedFd> {
        let path = self.programs_directory().join(pin_name(program, BUILD));
        sys::get(&path).with_context(|| format!("open the pinned program {}", path.display()))
    }

    /// Our TCX attachments, defunct ones included.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn tcx_attachments(&self) -> Result<Vec<Attachment>> {
        attach::list(&self.links_directory())
    }

    /// Attaches a program at the head of a TCX hook and pins the link, or replaces the program of the link that is there
    /// in place.
    ///
    /// # Errors
    ///
    /// What the kernel said; ENODEV when the link is gone.
    pub fn tcx_attach(&mut self, program: Program, ifindex: u32, direction: Direction) -> Result<()> {
        let fd = self.program_fd(program)?;
        let links = self.links_directory();
        crate::private::make(&links)?;
        attach::attach(&links, fd.as_fd(), ifindex, direction, || self.load_unpinned(program))
    }

    /// Detaches from a TCX hook; detached already is fine.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn tcx_detach(&mut self, ifindex: u32, direction: Direction) -> Result<()> {
        attach::detach(&self.links_directory(), ifindex, direction)
    }

    /// Writes entries of `conf`; returns how many calls of bpf(2) it took, as the following do.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn set_conf(&mut self, entries: &[(u32, Conf)]) -> Result<usize> {
        self.maps()?.set_conf(entries)
    }

    /// Zeroes entries of `conf`.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn clear_conf(&mut self, indexes: &[u32]) -> Result<usize> {
        self.maps()?.clear_conf(indexes)
    }

    /// Writes entries of `devs`: slot and ifindex, as this thread's network namespace knows it.
    ///
    /// # Errors
    ///
    /// EINVAL when no device has that index; what was written before it stays.
    pub fn set_devs(&mut self, entries: &[(u32, u32)]) -> Result<usize> {
        self.maps()?.set_devs(entries)
    }

    /// Deletes entries of `devs`.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn clear_devs(&mut self, slots: &[u32]) -> Result<usize> {
        self.maps()?.clear_devs(slots)
    }

    /// Inserts or overwrites entries of `tunkey2if`.
    ///
    /// # Errors
    ///
    /// E2BIG when the map is full; what was written until then stays.
    pub fn set_tunkey2if(&mut self, entries: &[(TunKey, SlotRef)]) -> Result<usize> {
        self.maps()?.set_tunkey2if(entries)
    }

    /// Deletes entries of `tunkey2if`; those that are gone already count as deleted.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn delete_tunkey2if(&mut self, keys: &[TunKey]) -> Result<usize> {
        self.maps()?.delete_tunkey2if(keys)
    }

    /// Inserts or overwrites entries of `if2tunkey`.
    ///
    /// # Errors
    ///
    /// E2BIG when the map is full; what was written until then stays.
    pub fn set_if2tunkey(&mut self, entries: &[(u32, IfEntry)]) -> Result<usize> {
        self.maps()?.set_if2tunkey(entries)
    }

    /// Deletes entries of `if2tunkey`; those that are gone already count as deleted.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn delete_if2tunkey(&mut self, ifindexes: &[u32]) -> Result<usize> {
        self.maps()?.delete_if2tunkey(ifindexes)
    }

    /// Zeroes the counters of slots, on every CPU.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn reset_counters(&mut self, slots: &[u32]) -> Result<usize> {
        self.maps()?.reset_counters(slots)
    }

    /// Counters of the slots that counted anything.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn counters(&self) -> Result<Vec<SlotCounters>> {
        let Some(maps) = &self.maps else { return Ok(Vec::new()) };
        let all = maps.counters()?;
        let named = |drops: [u64; DROP_REASONS.len()]| {
            DROP_REASONS.iter().zip(drops).filter(|(_, n)| *n > 0).map(|(reason, n)| (*reason, n)).collect()
        };
        Ok(all
            .into_iter()
            .map(|(slot, c)| SlotCounters {
                slot,
                rx_packets: c.rx_packets,
                rx_bytes: c.rx_bytes,
                tx_packets: c.tx_packets,
                tx_bytes: c.tx_bytes,
                drops: named(c.drops),
            })
            .collect())
    }

    /// Keys that nobody mapped, those last seen first.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn unknown(&self) -> Result<Vec<SeenKey>> {
        let Some(maps) = &self.maps else { return Ok(Vec::new()) };
        let mut out: Vec<SeenKey> = maps
            .unknown()?
            .into_iter()
            .map(|(key, value)| SeenKey { key: key.into(), packets: value.packets, last_seen: value.last_seen })
            .collect();
        out.sort_by_key(|seen| std::cmp::Reverse(seen.last_seen));
        Ok(out)
    }

    /// Moves everything into maps of that capacity while packets flow: new maps are filled, programs loaded on them, each
    /// TCX link updated in place, the pins renamed. clsact filters are left to the caller, which attaches anew.
    ///
    /// Killed before the first link is updated, nothing has happened; later, the next process completes it.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn grow_maps(&mut self, capacity: u32) -> Result<()> {
        self.recover()?;
        let next = self.directory.join("next");
        crate::private::make(&next.join("programs"))?;
        let home = |name: &str| if SIZED.contains(&name) { next.clone() } else { self.directory.clone() };
        load_object(home, Some(capacity), 0).context("create larger maps")?;
        // The new maps, opened together with those that stay.
        for name in NAMES.iter().filter(|n| !SIZED.contains(n)) {
            let fd = sys::get(&self.directory.join(name)).with_context(|| format!("open the pinned map {name}"))?;
            replace_pin(fd.as_fd(), &next.join(name))?;
        }
        let larger = Maps::open(&next)?.ok_or_else(|| anyhow!("the larger maps are gone"))?;
        self.maps()?.copy_to(&larger)?;
        for program in self.programs()? {
            let fd = load_program(|_| next.clone(), program.program)?;
            replace_pin(fd.as_fd(), &next.join("programs").join(pin_name(program.program, BUILD)))?;
        }
        // From here on it goes forward only.
        let switch = self.directory.join("switch");
        std::fs::rename(&next, &switch)
            .with_context(|| format!("rename {} to {}", next.display(), switch.display()))?;
        self.recover()
    }

    /// Completes or discards what a killed process began. Only the holder of the instance's lock may.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn recover(&mut self) -> Result<()> {
        let next = self.directory.join("next");
        if next.exists() {
            remove_tree(&next)?;
        }
        let switch = self.directory.join("switch");
        if !switch.exists() {
            return Ok(());
        }
        let mut by_id = Vec::new();
        let old = self.pinned_programs()?;
        let fresh = Self { directory: switch.clone(), maps: None };
        for (path, program, build) in fresh.pinned_programs()? {
            for (before, ..) in old.iter().filter(|(_, p, _)| *p == program) {
                let Ok(fd) = sys::get(before) else { continue };
                let (id, _) = sys::program_info(fd.as_fd()).context("ask for the program's id")?;
                let new = sys::get(&path).with_context(|| format!("open the pinned program {}", path.display()))?;
                by_id.push((id, new));
            }
            drop(build);
        }
        attach::replace_all(&self.links_directory(), &by_id)?;
        for name in NAMES {
            rename_over(&switch.join(name), &self.directory.join(name))?;
        }
        for (path, program, build) in fresh.pinned_programs()? {
            for (before, ..) in old.iter().filter(|(_, p, b)| *p == program && *b != build) {
                unpin(before)?;
            }
            rename_over(&path, &self.programs_directory().join(pin_name(program, &build)))?;
        }
        remove_tree(&switch)?;
        self.maps = Maps::open(&self.directory)?;
        Ok(())
    }

    /// Detaches every TCX link and unpins everything.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn remove_all(&mut self) -> Result<()> {
        self.maps = None;
        for part in ["links", "programs", "next", "switch"] {
            remove_tree(&self.directory.join(part))?;
        }
        for name in NAMES {
            unpin(&self.directory.join(name))?;
        }
        // The directory itself may have been made by tmpfiles for an unprivileged user, so it may stay.
        if let Err(error) = std::fs::remove_dir(&self.directory) {
            tracing::debug!("the pin directory stays: {error}");
        }
        Ok(())
    }
}

fn rename_over(from: &Path, to: &Path) -> Result<()> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("rename {} to {}", from.display(), to.display()))
        }
        _ => Ok(()),
    }
}

fn remove_tree(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn pin_name(program: Program, build: &str) -> String {
    match program {
        Program::HandleEgress => format!("handle_egress-{build}"),
        Program::HandleIngress { tunnel } => format!("handle_ingress_{tunnel}-{build}"),
    }
}

fn parse_pin_name(name: &str) -> Option<(Program, String)> {
    let (name, build) = name.split_once('-')?;
    let program = match name.strip_prefix("handle_ingress_") {
        Some(tunnel) => Program::HandleIngress { tunnel: tunnel.parse().ok()? },
        None if name == "handle_egress" => Program::HandleEgress,
        None => return None,
    };
    Some((program, build.to_owned()))
}

fn check_bpffs(directory: &Path) -> Result<()> {
    let stat =
        rustix::fs::statfs(directory).with_context(|| format!("look at the pin directory {}", directory.display()))?;
    if stat.f_type as u64 != BPF_FS_MAGIC {
        bail!(
            "the pin directory {} isn't on a bpf file system: mount one (`mount -t bpf bpf /sys/fs/bpf`) or use another --pin-dir",
            directory.display()
        );
    }
    Ok(())
}

/// Parses the object and creates or opens its maps; `home` says in which directory each is pinned.
fn load_object(home: impl Fn(&str) -> PathBuf, capacity: Option<u32>, tunnel: u32) -> Result<aya::Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("tunnel_index", &tunnel, true);
    for name in NAMES {
        loader.map_pin_path(name, home(name).join(name));
    }
    if let Some(capacity) = capacity {
        for name in SIZED {
            loader.map_max_entries(name, capacity);
        }
    }
    Ok(loader.load(OBJECT)?)
}

fn load_program(home: impl Fn(&str) -> PathBuf, program: Program) -> Result<OwnedFd> {
    let tunnel = match program {
        Program::HandleEgress => 0,
        Program::HandleIngress { tunnel } => tunnel,
    };
    let mut object = load_object(home, None, tunnel)?;
    let found = object.program_mut(program.name()).ok_or_else(|| anyhow!("the object has no {}", program.name()))?;
    let classifier: &mut SchedClassifier = found.try_into().context("the object's program isn't a classifier")?;
    classifier.load().with_context(|| format!("load {}", program.name()))?;
    let fd = classifier.fd().with_context(|| format!("load {}", program.name()))?;
    fd.as_fd().try_clone_to_owned().context("keep the program")
}
