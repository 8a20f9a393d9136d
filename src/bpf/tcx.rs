//! TCX attachments: pinned bpf_links, taken over and updated in place.
//!
//! A pinned link survives us, renames and even a move of its interface to another namespace; when the interface is
//! deleted, the pin stays and is *defunct*. So a pin counts only when the kernel's chain on that ifindex, in this
//! namespace, contains its link.

use super::dataplane::Dataplane;
use super::object::Loaded;
use super::pins::{Pins, rename, unpin};
use super::sys::{self, LINK_TYPE_TCX, LinkInfo, TCX_EGRESS, TCX_INGRESS};
use super::{DeviceGone, pins};
use crate::model::{Attachment, Direction, HookKind, Program};
use anyhow::{Context, Result, anyhow};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

/// Loopback, which every namespace has.
const LOOPBACK: u32 = 1;

/// Whether the kernel attaches by TCX, by asking it about a hook.
///
/// # Errors
/// Where the kernel doesn't let us ask: privileges are missing.
pub fn probe_tcx() -> Result<bool> {
    match sys::tcx_chain(LOOPBACK, TCX_INGRESS) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error).context("ask for the TCX programs of the loopback device"),
    }
}

/// A pinned attachment.
struct Pinned {
    link: OwnedFd,
    info: LinkInfo,
    /// Place in the chain of its interface; `None` where it is defunct.
    position: Option<u32>,
}

impl Pinned {
    /// What is pinned for a hook, if anything.
    fn open(path: &Path, ifindex: u32, direction: Direction) -> Result<Option<Self>> {
        let link = match sys::open_pin(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            link => link.with_context(|| format!("open the pinned attachment {}", path.display()))?,
        };
        let info = sys::link_info(link.as_fd()).with_context(|| format!("ask about {}", path.display()))?;
        let here = info.kind == LINK_TYPE_TCX && info.ifindex == ifindex && info.attach_type == attach_type(direction);
        let position = if here {
            let chain = chain(ifindex, direction)?;
            chain.iter().position(|(_, link)| *link == info.id).map(|position| position as u32)
        } else {
            None
        };
        Ok(Some(Self { link, info, position }))
    }
}

impl Dataplane {
    /// Our TCX attachments by their pins, defunct ones too (`program` is `None`), with their place in the chain.
    pub fn tcx_attachments(&self) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        let mut known = self.known_links.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *known);
        for (ifindex, direction) in self.pins.list_links()? {
            // A pin whose link's id is known from before needs no opening: the chain of its hook tells everything.
            if let Some(link) = before.get(&(ifindex, direction))
                && let chain = chain(ifindex, direction)?
                && let Some(position) = chain.iter().position(|(_, id)| id == link)
            {
                known.insert((ifindex, direction), *link);
                attachments.push(Attachment {
                    kind: HookKind::Tcx,
                    ifindex,
                    direction,
                    program: chain.get(position).map(|(program, _)| *program),
                    position: position as u32,
                });
                continue;
            }
            let Some(pinned) = Pinned::open(&self.pins.link(ifindex, direction), ifindex, direction)? else {
                continue;
            };
            if pinned.position.is_some() {
                known.insert((ifindex, direction), pinned.info.id);
            }
            attachments.push(Attachment {
                kind: HookKind::Tcx,
                ifindex,
                direction,
                program: pinned.position.map(|_| pinned.info.program),
                position: pinned.position.unwrap_or_default(),
            });
        }
        Ok(attachments)
    }

    /// Programs on the TCX ingress of a link that aren't behind one of our pins, in order.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn foreign_ingress(&self, ifindex: u32) -> Result<Vec<u32>> {
        let chain = chain(ifindex, Direction::Ingress)?;
        if chain.is_empty() {
            return Ok(Vec::new());
        }
        let mut ours = Vec::new();
        for hook in [Direction::Ingress, Direction::Underlay] {
            ours.extend(Pinned::open(&self.pins.link(ifindex, hook), ifindex, hook)?.map(|pinned| pinned.info.id));
        }
        Ok(chain.into_iter().filter(|(_, link)| !ours.contains(link)).map(|(program, _)| program).collect())
    }

    /// Attaches a pinned program at the head of a hook's chain, and pins the attachment.
    ///
    /// A live attachment of ours is updated in place; one that others have put themselves before is moved to the head
    /// without a gap; a defunct one is made anew.
    ///
    /// # Errors
    /// [`DeviceGone`] where the interface doesn't exist in this thread's network namespace.
    pub fn tcx_attach(&mut self, program: Program, ifindex: u32, direction: Direction) -> Result<()> {
        self.attacher().attach(program, ifindex, direction)
    }

    /// What attaches from another thread than this data plane's: a first attach waits for an RCU grace period.
    pub fn attacher(&self) -> Attacher {
        Attacher { pins: self.pins.clone() }
    }

    /// Detaches what we attached to a hook. Nothing there is fine.
    pub fn tcx_detach(&mut self, ifindex: u32, direction: Direction) -> Result<()> {
        discard(&self.pins.link(ifindex, direction))
            .with_context(|| format!("detach from {}", hook(ifindex, direction)))
    }
}

/// Attaches the pinned programs of one pin directory. The caller sees to it that nobody else writes there.
#[derive(Debug)]
pub struct Attacher {
    pins: Pins,
}

impl Attacher {
    /// As [`Dataplane::tcx_attach`].
    ///
    /// # Errors
    /// As [`Dataplane::tcx_attach`].
    pub fn attach(&self, program: Program, ifindex: u32, direction: Direction) -> Result<()> {
        let path = self.pins.program(program);
        let fd = sys::open_pin(&path).with_context(|| format!("open the pinned program {}", path.display()))?;
        let id = sys::program_info(fd.as_fd()).with_context(|| format!("ask about {}", program.name()))?.id;
        let path = self.pins.link(ifindex, direction);
        let attach = || -> Result<()> {
            match Pinned::open(&path, ifindex, direction)? {
                None => self.attach_anew(fd.as_fd(), &path, ifindex, direction),
                Some(Pinned { position: None, .. }) => {
                    unpin(&path)?;
                    self.attach_anew(fd.as_fd(), &path, ifindex, direction)
                }
                Some(pinned @ Pinned { position: Some(0), .. }) => {
                    if pinned.info.program == id {
                        return Ok(());
                    }
                    match sys::link_update(pinned.link.as_fd(), fd.as_fd()) {
                        // The interface went this very moment.
                        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Err(DeviceGone { ifindex }.into()),
                        // It is in the chain already, by an attachment whose pin was removed.
                        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                            self.give_way(&pinned, fd.as_fd(), ifindex, direction)
                        }
                        result => result.context("replace the program in place"),
                    }
                }
                Some(pinned) => self.move_to_head(&pinned, program, fd.as_fd(), ifindex, direction),
            }
        };
        attach().with_context(|| format!("attach {} to {}", program.name(), hook(ifindex, direction)))
    }

    fn attach_anew(&self, program: BorrowedFd<'_>, path: &Path, ifindex: u32, direction: Direction) -> Result<()> {
        pins::make_dir(&self.pins.links_dir())?;
        let link = create_or_adopt(program, ifindex, direction)?;
        sys::pin(link.as_fd(), path).with_context(|| format!("pin it as {}", path.display()))
    }

    /// Puts another attachment of this program in the place of a live one, without a gap: one that is there without a pin,
    /// or where that went meanwhile, a new one.
    fn give_way(&self, old: &Pinned, program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> Result<()> {
        discard(&self.pins.unfinished_link(ifindex, direction))?;
        self.replace_link(old, &create_or_adopt(program, ifindex, direction)?, ifindex, direction)
    }

    /// Pins an attachment in the place of another one, and then detaches that.
    fn replace_link(&self, old: &Pinned, link: &OwnedFd, ifindex: u32, direction: Direction) -> Result<()> {
        let (path, unfinished) = (self.pins.link(ifindex, direction), self.pins.unfinished_link(ifindex, direction));
        sys::pin(link.as_fd(), &unfinished).with_context(|| format!("pin it as {}", unfinished.display()))?;
        rename(&unfinished, &path)?;
        detach(old.link.as_fd()).context("detach the old attachment")
    }

    /// Moves a live attachment to the head. The kernel has no call for that, and refuses a program that is in the
    /// chain already; so the old attachment gets a twin of the program, the program itself goes to the head, and only
    /// then the old attachment goes.
    fn move_to_head(
        &self,
        old: &Pinned,
        program: Program,
        fd: BorrowedFd<'_>,
        ifindex: u32,
        direction: Direction,
    ) -> Result<()> {
        discard(&self.pins.unfinished_link(ifindex, direction))?;
        let mut twin = Loaded::new(&self.pins, program)?;
        sys::link_update(old.link.as_fd(), twin.classifier()?.fd()?.as_fd()).context("update the old attachment")?;
        self.replace_link(old, &create(fd, ifindex, direction)?, ifindex, direction)
    }
}

/// Replaces the program of every live attachment that runs `old` by `new`. Returns how many those were.
pub(super) fn replace_everywhere(dataplane: &Dataplane, old: u32, new: BorrowedFd<'_>) -> Result<u32> {
    let mut replaced = 0;
    for (ifindex, direction) in dataplane.pins.list_links()? {
        let path = dataplane.pins.link(ifindex, direction);
        let Some(pinned) = Pinned::open(&path, ifindex, direction)? else { continue };
        if pinned.info.program != old || pinned.info.ifindex == 0 {
            continue;
        }
        match sys::link_update(pinned.link.as_fd(), new) {
            Ok(()) => replaced += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("replace the program on {}", hook(ifindex, direction)));
            }
        }
    }
    Ok(replaced)
}

/// Detaches and unpins an attachment. One that is missing is gone already.
pub(super) fn discard(path: &Path) -> Result<()> {
    match sys::open_pin(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(link) => detach(link.as_fd()).with_context(|| format!("detach {}", path.display()))?,
        Err(error) => return Err(error).with_context(|| format!("open the pinned attachment {}", path.display())),
    }
    unpin(path)
}

/// Detaches at once: dropping the last reference would do it some time later.
fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    match sys::link_detach(link) {
        // Defunct: there is nothing to detach from.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

/// As [`create`]; where the program is in the chain by an attachment whose pin was removed, takes that one over. Without
/// the privilege for it, waits a little: the kernel detaches some time after the pin went.
fn create_or_adopt(program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> Result<OwnedFd> {
    const TRIES: u32 = 20;
    let id = sys::program_info(program).context("ask about the program")?.id;
    for _ in 0..TRIES {
        match sys::link_create_tcx(program, ifindex, attach_type(direction)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Ok(link) => return Ok(link),
            Err(_) => break,
        }
        let there = chain(ifindex, direction)?.into_iter().find(|(program, _)| *program == id);
        if let Some(Ok(link)) = there.map(|(_, link)| sys::link_by_id(link)) {
            return Ok(link);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    create(program, ifindex, direction)
}

fn create(program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> Result<OwnedFd> {
    sys::link_create_tcx(program, ifindex, attach_type(direction)).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => DeviceGone { ifindex }.into(),
        Some(libc::EEXIST) => anyhow!(error)
            .context("the program is in the chain already, by an attachment that isn't pinned here; detach that one"),
        _ => anyhow!(error).context("put it at the head of the TCX chain"),
    })
}

pub(super) fn chain(ifindex: u32, direction: Direction) -> Result<Vec<(u32, u32)>> {
    match sys::tcx_chain(ifindex, attach_type(direction)) {
        // No such interface here, or no TCX in this kernel: nothing is attached.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => Ok(Vec::new()),
        chain => chain.with_context(|| format!("ask for the programs on {}", hook(ifindex, direction))),
    }
}

fn attach_type(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress | Direction::Underlay => TCX_INGRESS,
        Direction::Egress => TCX_EGRESS,
    }
}

fn hook(ifindex: u32, direction: Direction) -> String {
    format!("the TC {direction} of ifindex {ifindex}")
}
