//! The pinned data plane of one pin directory: opening it, reading it, its programs, taking it down.

use super::abi::{
    ABI_VERSION, META_NAMESPACE, Plain, RawConf, RawCounters, RawDev, RawIfEntry, RawMeta, RawSlotRef, RawTunKey,
    RawUnknown,
};
use super::batch::RawMap;
use super::maps::{self, Maps};
use super::object::{self, Loaded};
use super::pins::{self, Pins, UNFINISHED, list, remove_dir, unpin};
use super::{LayoutMismatch, NoMaps, sys};
use crate::model::{
    Counters, Direction, FIRST_MAPPING_SLOT, IfEntry, LoadedProgram, MapState, Program, SlotRef, TunKey, UnknownKey,
};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

/// Entries of `tunkey2if` and of `if2tunkey`.
type Hashes = (Vec<(TunKey, SlotRef)>, Vec<(u32, IfEntry)>);

/// Slots of `devs` that are always read, which takes a millisecond.
pub const SLOTS_READ: u32 = 4096;

/// The pinned data plane of one pin directory.
///
/// Interfaces and `devs` are resolved in the network namespace of the thread that calls.
#[derive(Debug)]
pub struct Dataplane {
    pub(super) pins: Pins,
    pub(super) maps: Option<Maps>,
    /// What another version of this program pinned instead: it is made anew.
    pub(super) outdated: Option<String>,
    /// A growth was interrupted after it had begun to switch programs: see [`Dataplane::recover`].
    pub(super) half_grown: bool,
    /// Ids of the pinned attachments that were found live, by hook. An id is never given twice.
    pub(super) known_links: Mutex<HashMap<(u32, Direction), u32>>,
}

impl Dataplane {
    /// Opens what is pinned in a directory. Makes and changes nothing; the directory needn't exist.
    ///
    /// Maps that another version pinned with another layout count as none: [`Self::create_maps`] makes them anew, beside
    /// what runs on the old ones.
    ///
    /// # Errors
    /// [`LayoutMismatch`] where something else than our maps is pinned under their names.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let pins = Pins::new(pin_dir);
        let half_grown = pins.commit_mark().exists();
        let mut dataplane = Self { pins, maps: None, outdated: None, half_grown, known_links: Mutex::default() };
        dataplane.open_maps()?;
        Ok(dataplane)
    }

    /// Opens the maps that are pinned now.
    pub(super) fn open_maps(&mut self) -> Result<()> {
        (self.maps, self.outdated) = match Maps::open(&self.pins) {
            // Only what has our `meta` beside it is ours to make anew.
            Err(error) if error.is::<LayoutMismatch>() && matches!(Maps::open_meta(&self.pins), Ok(Some(_))) => {
                (None, Some(format!("{error:#}")))
            }
            maps => (maps?, None),
        };
        Ok(())
    }

    /// What is wrong with the layout of the maps that are pinned, where another version made them.
    pub fn outdated(&self) -> Option<&str> {
        self.outdated.as_deref()
    }

    /// Opens for writing, and first puts right what a crash left half done. The caller holds the writer's lock.
    ///
    /// # Errors
    /// Those of [`Self::open`] and [`Self::recover`].
    pub fn open_writer(pin_dir: &Path) -> Result<Self> {
        let mut dataplane = Self::open(pin_dir)?;
        dataplane.recover()?;
        Ok(dataplane)
    }

    /// Cookie of the network namespace that the pins belong to; `None` where there are none, or it was never noted.
    pub fn namespace(&self) -> Result<Option<u64>> {
        let meta = match &self.maps {
            Some(maps) => maps.meta.get::<u32, RawMeta>(META_NAMESPACE)?,
            None => match Maps::open_meta(&self.pins) {
                Ok(Some(meta)) => meta.get::<u32, RawMeta>(META_NAMESPACE)?,
                Ok(None) => None,
                Err(error) if error.is::<LayoutMismatch>() => None,
                Err(error) => return Err(error),
            },
        };
        let meta = meta.unwrap_or_default();
        Ok(Some(meta.build).filter(|cookie| *cookie != 0))
    }

    /// Notes the network namespace that the pins belong to.
    pub fn set_namespace(&mut self, cookie: u64) -> Result<()> {
        let meta = RawMeta { build: cookie, program: 0, abi: ABI_VERSION };
        self.writable_maps()?.meta.update_all(&[META_NAMESPACE], &[meta]).map(drop)
    }

    /// The pin directory.
    pub fn pin_dir(&self) -> &Path {
        &self.pins.dir
    }

    /// Number of slots, where maps are pinned.
    pub fn capacity(&self) -> Option<u32> {
        self.maps.as_ref().map(Maps::capacity)
    }

    /// Whether a growth was interrupted and has to be finished, with [`Self::recover`], before anything is written.
    pub fn is_half_grown(&self) -> bool {
        self.half_grown
    }

    /// The maps, to read from.
    pub(super) fn maps(&self) -> Result<&Maps> {
        self.maps.as_ref().ok_or_else(|| NoMaps { dir: self.pins.dir.clone() }.into())
    }

    /// The maps, to write to.
    pub(super) fn writable_maps(&self) -> Result<&Maps> {
        if self.half_grown {
            bail!("a growth of the maps in {} was interrupted and must be finished first", self.pins.dir.display());
        }
        self.maps()
    }

    /// The contents of the maps, sorted; `None` where none are pinned.
    ///
    /// Of `devs`, which must be read slot by slot, the first [`SLOTS_READ`] slots are read, and those up to the highest
    /// that an entry names: one beyond them is not in use whatever it holds.
    pub fn observe(&self) -> Result<Option<MapState>> {
        self.observe_beside(None)
    }

    /// As [`Self::observe`], with `devs`, which takes a call for each slot, as it was read before.
    pub fn observe_beside(&self, devs: Option<Vec<(u32, u32)>>) -> Result<Option<MapState>> {
        let Some(maps) = &self.maps else { return Ok(None) };
        let conf = maps.conf.read_all::<u32, RawConf>()?;
        let (tunkey2if, if2tunkey) = self.read_hashes()?;
        let capacity = maps.capacity();
        let named = tunkey2if.iter().map(|(_, v)| v.slot).chain(if2tunkey.iter().map(|(_, v)| v.slot));
        let end = named.filter(|slot| *slot < capacity).max().map_or(FIRST_MAPPING_SLOT, |s| s + 1);
        let devs = match devs {
            Some(devs) => devs,
            None => read_devs(maps, end.max(SLOTS_READ).min(capacity))?,
        };
        Ok(Some(MapState {
            capacity,
            conf: conf.iter().filter_map(|(index, raw)| Some((*index, raw.decode()?))).collect(),
            tunkey2if,
            if2tunkey,
            devs,
        }))
    }

    /// The contents of both hashes, sorted.
    #[doc(hidden)]
    pub fn read_hashes(&self) -> Result<Hashes> {
        let maps = self.maps()?;
        let mut tunkey2if = Vec::new();
        maps.tunkey2if.visit(|key, value| {
            let key = RawTunKey::from_bytes(key);
            tunkey2if.push((TunKey::from(&key), RawSlotRef::from_bytes(value).decode(&key)));
        })?;
        let mut if2tunkey = Vec::new();
        maps.if2tunkey.visit(|key, value| {
            let ifindex = u32::from_bytes(key);
            if2tunkey.push((ifindex, RawIfEntry::from_bytes(value).decode(ifindex)));
        })?;
        tunkey2if.sort_unstable_by_key(|(key, _)| *key);
        if2tunkey.sort_unstable_by_key(|(ifindex, _)| *ifindex);
        Ok((tunkey2if, if2tunkey))
    }

    /// Counters by slot, summed over CPUs; slots that counted nothing are left out.
    pub fn counters(&self) -> Result<Vec<(u32, Counters)>> {
        let mut counters = Vec::new();
        self.maps()?.counters.visit(|key, value| {
            let per_cpu = value.chunks_exact(size_of::<RawCounters>()).map(RawCounters::from_bytes);
            counters.extend(RawCounters::sum(per_cpu).map(|sum| (u32::from_bytes(key), sum)));
        })?;
        Ok(counters)
    }

    /// Names of tunnels by index, from `conf`.
    pub fn tunnel_names(&self) -> Result<BTreeMap<u32, String>> {
        let conf = self.maps()?.conf.read_all::<u32, RawConf>()?;
        Ok(conf.iter().filter_map(|(index, raw)| Some((*index, raw.decode()?.name))).collect())
    }

    /// Keys that `unknown` has room for; the least recently seen make room for new ones.
    pub fn unknown_capacity(&self) -> Result<u32> {
        Ok(self.maps()?.unknown.fd.info().max_entries)
    }

    /// Keys that packets came with and nobody mapped, the last seen first.
    pub fn unknown(&self) -> Result<Vec<UnknownKey>> {
        let entries = self.maps()?.unknown.read_all::<RawTunKey, RawUnknown>()?;
        let now_ns = sys::monotonic_ns();
        let mut keys: Vec<_> = entries.iter().map(|(key, value)| value.decode(key, now_ns)).collect();
        keys.sort_unstable_by_key(|unknown| (unknown.age_ms, unknown.key));
        Ok(keys)
    }

    /// Makes and pins the maps, empty, with that many slots; the hashes hold as many entries. Makes the pin directory.
    ///
    /// Where only some maps are pinned, or another version's, all are made anew: the programs on the old ones go on, and
    /// are no longer current.
    ///
    /// # Errors
    /// Where maps are pinned already, or the directory isn't on a BPF file system.
    pub fn create_maps(&mut self, capacity: u32) -> Result<()> {
        if self.maps.is_some() {
            bail!("make maps in {}: there are maps already", self.pins.dir.display());
        }
        self.pins.create()?;
        for name in maps::names() {
            unpin(&self.pins.map(name))?;
        }
        let made = object::create_maps(&self.pins, capacity.max(FIRST_MAPPING_SLOT)).and_then(|()| {
            let maps = Maps::open(&self.pins)?;
            let maps = maps.with_context(|| format!("find the maps just made in {}", self.pins.dir.display()))?;
            let unmarked = RawMeta { abi: ABI_VERSION, ..RawMeta::default() };
            maps.meta.update_all(&[0], &[unmarked])?;
            Ok(maps)
        });
        match made {
            Ok(maps) => (self.maps, self.outdated) = (Some(maps), None),
            Err(error) => {
                // Half a set would only be in the way. What can't be removed either is found by the next attempt.
                maps::names().for_each(|name| drop(unpin(&self.pins.map(name))));
                return Err(error);
            }
        }
        Ok(())
    }

    /// The programs that are pinned, sorted.
    pub fn programs(&self) -> Result<Vec<LoadedProgram>> {
        let mut programs = Vec::new();
        for program in self.pins.list_programs()? {
            let path = self.pins.program(program);
            let fd = match sys::open_pin(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                fd => fd.with_context(|| format!("open the pinned program {}", path.display()))?,
            };
            let info = sys::program_info(fd.as_fd()).with_context(|| format!("ask about {}", path.display()))?;
            let current = match &self.maps {
                None => false,
                Some(maps) => {
                    let used = uses(maps, program).iter().all(|id| info.maps.contains(id));
                    let meta = maps.meta.get::<u32, RawMeta>(object::meta_index(program))?;
                    used && meta == Some(object::meta(info.id))
                }
            };
            programs.push(LoadedProgram { program, id: info.id, current });
        }
        Ok(programs)
    }

    /// Loads a program of the embedded object on the pinned maps and pins it, in the place of the one pinned before.
    /// Returns its id. What runs of the old one goes on until its attachment is updated.
    pub fn load(&mut self, program: Program) -> Result<u32> {
        let maps = self.writable_maps()?;
        // A map whose pin somebody removed would be made anew, and the program run on another one than we write to.
        maps.restore_pins(&self.pins)?;
        pin_program(&self.pins, maps, program)
    }

    /// Unpins a program. It goes on running where it is attached.
    pub fn unload(&mut self, program: Program) -> Result<()> {
        unpin(&self.pins.program(program))
    }

    /// The pinned program, to attach it by clsact.
    pub fn program_fd(&self, program: Program) -> Result<OwnedFd> {
        let path = self.pins.program(program);
        sys::open_pin(&path).with_context(|| format!("open the pinned program {}", path.display()))
    }

    /// Names in the pin directory that aren't ours, sorted.
    pub fn foreign_pins(&self) -> Result<Vec<String>> {
        let ours = |name: &str| maps::names().any(|map| map == name) || matches!(name, "programs" | "links" | "next");
        let mut names = list(&self.pins.dir)?;
        names.retain(|name| !ours(name));
        names.sort_unstable();
        Ok(names)
    }

    /// Detaches, unpins and removes all of it: TCX attachments, programs, maps, directories. Goes on after failures
    /// and reports all of them. What isn't ours stays, and so does the directory then.
    pub fn remove_all(&mut self) -> Result<()> {
        self.maps = None;
        self.half_grown = false;
        let mut failures = Vec::new();
        let mut attempt = |result: Result<()>| failures.extend(result.err());
        for set in [self.pins.clone(), self.pins.next()] {
            for name in ours(&list(&set.links_dir())?, |name| matches!(name, "ingress" | "egress" | "underlay")) {
                attempt(super::tcx::discard(&set.links_dir().join(name)));
            }
            for name in ours(&list(&set.programs_dir())?, |name| name == "handle") {
                attempt(unpin(&set.programs_dir().join(name)));
            }
            for name in maps::names() {
                attempt(unpin(&set.map(name)));
            }
            attempt(pins::remove_empty_dir(&set.links_dir()));
            attempt(pins::remove_empty_dir(&set.programs_dir()));
        }
        attempt(remove_dir(&self.pins.commit_mark()));
        attempt(pins::remove_empty_dir(&self.pins.next().dir));
        attempt(pins::remove_empty_dir(&self.pins.dir));
        if failures.is_empty() {
            return Ok(());
        }
        let all: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
        bail!("remove the pins in {}: {}", self.pins.dir.display(), all.join("; "))
    }
}

/// The slots below `end` that hold a device.
fn read_devs(maps: &Maps, end: u32) -> Result<Vec<(u32, u32)>> {
    let mut devs = Vec::new();
    let mut value = [0; size_of::<RawDev>()];
    for slot in 0..end {
        let found = maps.devs.fd.lookup(&slot.to_ne_bytes(), &mut value).context("look devs up")?;
        let ifindex = RawDev::from_bytes(&value).ifindex;
        if found && ifindex != 0 {
            devs.push((slot, ifindex));
        }
    }
    Ok(devs)
}

/// Names of ours in a directory: those whose first word (behind the prefix of unfinished pins) is one of ours.
fn ours(names: &[String], first_word: impl Fn(&str) -> bool) -> impl Iterator<Item = &String> {
    names.iter().filter(move |name| {
        let name = name.strip_prefix(UNFINISHED).unwrap_or(name);
        name.split_once('_').is_some_and(|(word, _)| first_word(word))
    })
}

/// Ids of the maps that a program on this set must use.
fn uses(maps: &Maps, program: Program) -> Vec<u32> {
    let both = [&maps.conf, &maps.devs, &maps.counters].into_iter();
    let own = match program {
        Program::HandleEgress => vec![&maps.if2tunkey],
        Program::HandleIngress { .. } => vec![&maps.tunkey2if, &maps.unknown],
        Program::HandleUnderlay { .. } => vec![&maps.tunkey2if],
    };
    both.chain(own).map(|map| map.fd.info().id).collect()
}

/// Loads a program on the maps in `pins` and pins it there, in the place of the one pinned before. Returns its id.
pub(super) fn pin_program(pins: &Pins, maps: &Maps, program: Program) -> Result<u32> {
    let mut loaded = Loaded::new(pins, program)?;
    let classifier = loaded.classifier()?;
    let fd = classifier.fd()?.as_fd();
    let id = sys::program_info(fd).with_context(|| format!("ask about {}", program.name()))?.id;
    let (unfinished, path) = (pins.unfinished_program(program), pins.program(program));
    pins.create()?;
    unpin(&unfinished)?;
    sys::pin(fd, &unfinished).with_context(|| format!("pin {} as {}", program.name(), unfinished.display()))?;
    // The record first: should we stop in between, it doesn't fit the program pinned, which is then loaded again.
    maps.meta.update_all(&[object::meta_index(program)], &[object::meta(id)])?;
    pins::rename(&unfinished, &path)?;
    Ok(id)
}
