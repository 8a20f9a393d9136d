//! Other maps under traffic, larger ones or of today's layout: made beside the old ones, filled, switched to by updating
//! every attachment.
//!
//! All of it is built in `PIN/next`. Until the mark `PIN/next/committed` stands there, a crash means that `next` is
//! thrown away and nothing has happened; from then on it means that the rest is done by the next writer. Both sets hold
//! the same entries while programs are switched one by one, and nobody else writes, so every packet is treated alike.

use super::abi::{META_NAMESPACE, Plain, RawDev, RawMeta};
use super::batch::{Map, RawMap};
use super::dataplane::{Dataplane, pin_program};
use super::maps::{self, Maps};
use super::pins::{self, Pins, UNFINISHED, list, remove_dir, rename, unpin};
use super::{object, sys, tcx};
use crate::model::Program;
use anyhow::{Context, Result, bail};
use std::os::fd::AsFd;

/// What a growth did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The programs on the new maps and their ids. Where they are attached by clsact, the filters still run the old
    /// programs on the old maps: replace them before anything is written to a map.
    pub programs: Vec<(Program, u32)>,
    /// TCX attachments that were switched.
    pub switched: u32,
}

impl Dataplane {
    /// Grows the maps to that many slots under traffic, keeping entries, devices and counters. Maps of an earlier layout
    /// are carried over to today's.
    ///
    /// What the old counters count between being copied and the switch of their program, some milliseconds, is lost;
    /// packets aren't.
    ///
    /// # Errors
    /// Where the maps are larger already. After any other error call [`Self::recover`].
    pub fn grow_maps(&mut self, capacity: u32) -> Result<Growth> {
        let (pins, next) = (self.pins.clone(), self.pins.next());
        if self.half_grown {
            bail!("grow the maps: a growth was interrupted and must be finished first");
        }
        let old = self.maps()?;
        if capacity < old.capacity() {
            bail!("grow the maps to {capacity} slots: they have {} already", old.capacity());
        }
        discard_next(&pins)?;
        next.create()?;
        object::create_maps(&next, capacity)?;
        let new = Maps::open(&next)?.with_context(|| format!("find the maps just made in {}", next.dir.display()))?;
        let namespace = old.meta.get::<u32, RawMeta>(META_NAMESPACE)?.unwrap_or_default();
        new.meta.update_all(&[META_NAMESPACE], &[namespace])?;
        for program in pins.list_programs()? {
            pin_program(&next, &new, program)?;
        }
        for (from, to) in [(&old.conf, &new.conf), (&old.tunkey2if, &new.tunkey2if), (&old.if2tunkey, &new.if2tunkey)] {
            copy(from, to)?;
        }
        copy_devs(&old.devs, &new.devs)?;
        copy(&old.unknown, &new.unknown)?;
        copy(&old.counters, &new.counters)?;

        pins::make_dir(&pins.commit_mark())?;
        self.half_grown = true;
        self.finish_growth()
    }

    /// Puts right what a crash left half done: finishes or throws away a growth, and removes unfinished pins. Does
    /// nothing otherwise. The caller holds the writer's lock.
    pub fn recover(&mut self) -> Result<()> {
        if self.pins.commit_mark().exists() {
            self.half_grown = true;
            self.finish_growth()?;
        }
        discard_next(&self.pins)?;
        self.half_grown = false;
        for name in list(&self.pins.links_dir())?.iter().filter(|name| name.starts_with(UNFINISHED)) {
            tcx::discard(&self.pins.links_dir().join(name))?;
        }
        for name in list(&self.pins.programs_dir())?.iter().filter(|name| name.starts_with(UNFINISHED)) {
            unpin(&self.pins.programs_dir().join(name))?;
        }
        Ok(())
    }

    /// The second half of a growth. Every step may find itself done already.
    fn finish_growth(&mut self) -> Result<Growth> {
        let (pins, next) = (self.pins.clone(), self.pins.next());
        let mut switched = 0;
        for program in next.list_programs()? {
            let path = next.program(program);
            let new = sys::open_pin(&path).with_context(|| format!("open the pinned program {}", path.display()))?;
            // Without a predecessor there is nothing to switch.
            if !pins.program(program).exists() {
                continue;
            }
            let old = self.program_fd(program)?;
            let old = sys::program_info(old.as_fd()).with_context(|| format!("ask about {}", program.name()))?;
            switched += tcx::replace_everywhere(self, old.id, new.as_fd())?;
        }
        // Attachments first, then names: a pinned program tells which attachments still run its predecessor.
        for name in list(&next.dir)?.iter().filter(|name| maps::names().any(|map| map == name.as_str())) {
            rename(&next.map(name), &pins.map(name))?;
        }
        for program in next.list_programs()? {
            rename(&next.program(program), &pins.program(program))?;
        }
        self.open_maps()?;
        remove_next(&pins)?;
        self.half_grown = false;
        let programs = self.programs()?.into_iter().map(|loaded| (loaded.program, loaded.id)).collect();
        Ok(Growth { programs, switched })
    }
}

/// Throws away a growth that hasn't begun to switch.
fn discard_next(pins: &Pins) -> Result<()> {
    let next = pins.next();
    for name in maps::names() {
        unpin(&next.map(name))?;
    }
    for name in list(&next.programs_dir())? {
        unpin(&next.programs_dir().join(name))?;
    }
    remove_next(pins)
}

/// Removes the directories of a growth, the mark last but for the directory that it stands in.
fn remove_next(pins: &Pins) -> Result<()> {
    let next = pins.next();
    remove_dir(&next.programs_dir())?;
    remove_dir(&next.links_dir())?;
    remove_dir(&pins.commit_mark())?;
    remove_dir(&next.dir)
}

fn copy(from: &Map, to: &Map) -> Result<()> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    from.visit(|key, value| {
        keys.extend_from_slice(key);
        values.extend_from_slice(value);
    })?;
    to.update_bytes(&keys, &values).with_context(|| format!("copy {} into another map", from.name)).map(drop)
}

/// Copies devices. A device may go, and a stranger take its index, between being read and being written: so each is
/// read again, for the kernel has then emptied the old slot.
fn copy_devs(from: &Map, to: &Map) -> Result<()> {
    for slot in 0..from.fd.info().max_entries {
        let Some(dev) = from.get::<u32, RawDev>(slot)? else { continue };
        let copied = to.update_each(&[(slot, RawDev { ifindex: dev.ifindex, program: 0 })]);
        if from.get::<u32, RawDev>(slot)? == Some(dev) {
            copied.with_context(|| format!("copy devs[{slot}], ifindex {}", dev.ifindex))?;
        } else {
            to.fd.delete(u32::bytes_of(&[slot])).with_context(|| format!("delete devs[{slot}]"))?;
        }
    }
    Ok(())
}
