//! TCX links: pinned, taken over and replaced in place.
//!
//! A pin is named `ingress_IFINDEX` or `egress_IFINDEX`: an index survives renaming, and names in bpffs can't hold dots.

use super::sys;
use crate::model::{Attachment, Direction, HookKind};
use anyhow::{Context, Result};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

fn attach_type(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => sys::TCX_INGRESS,
        Direction::Egress => sys::TCX_EGRESS,
    }
}

fn pin_path(links: &Path, ifindex: u32, direction: Direction) -> PathBuf {
    links.join(format!("{direction}_{ifindex}"))
}

fn parse(name: &str) -> Option<(Direction, u32)> {
    let (direction, ifindex) = name.split_once('_')?;
    let direction = match direction {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return None,
    };
    Some((direction, ifindex.parse().ok()?))
}

/// Whether the kernel has TCX (Linux 6.6), asked of the loopback device and not guessed from a version.
pub(super) fn probe_tcx() -> Result<bool> {
    const LOOPBACK: u32 = 1;
    match sys::query(LOOPBACK, sys::TCX_INGRESS) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Err(e).context("ask the kernel whether it has TCX"),
        // An older kernel doesn't know the attach type. ENOENT and ENODEV come from one that does.
        Err(e) => Ok(matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))),
    }
}

/// Every pinned link with its place in the chain.
pub(super) fn list(links: &Path) -> Result<Vec<Attachment>> {
    let mut out = Vec::new();
    for (path, direction, ifindex) in pins(links)? {
        let fd = match sys::get(&path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("open the pinned link {}", path.display())),
        };
        let info = sys::link_info(fd.as_fd()).with_context(|| format!("ask what {} is", path.display()))?;
        let place = place_of(&info, ifindex, direction);
        out.push(Attachment {
            kind: HookKind::Tcx,
            ifindex,
            direction,
            program: place.map(|_| info.program),
            position: place.unwrap_or(0),
        });
    }
    Ok(out)
}

/// Place in the chain of that link; `None` where the attachment is defunct, because its interface is gone or lives in
/// another namespace now.
fn place_of(info: &sys::LinkInfo, ifindex: u32, direction: Direction) -> Option<u32> {
    if info.ifindex != ifindex {
        return None;
    }
    let (_, ids) = sys::query(ifindex, attach_type(direction)).ok()?;
    ids.iter().position(|id| *id == info.id).map(|place| place as u32)
}

fn pins(links: &Path) -> Result<Vec<(PathBuf, Direction, u32)>> {
    let entries = match std::fs::read_dir(links) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("list the pinned links in {}", links.display())),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list the pinned links in {}", links.display()))?;
        if let Some((direction, ifindex)) = entry.file_name().to_str().and_then(parse) {
            out.push((entry.path(), direction, ifindex));
        }
    }
    out.sort();
    Ok(out)
}

/// Attaches at the head of the chain, or puts the program in the place of the one that is there.
///
/// `spare` makes another instance of the same program: the kernel takes one program only once a chain, so moving a link
/// to the head without a gap needs a second one for a moment.
pub(super) fn attach(
    links: &Path,
    program: BorrowedFd<'_>,
    ifindex: u32,
    direction: Direction,
    spare: impl FnOnce() -> Result<OwnedFd>,
) -> Result<()> {
    let path = pin_path(links, ifindex, direction);
    let existing = match sys::get(&path) {
        Ok(fd) => Some(fd),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("open the pinned link {}", path.display())),
    };
    let Some(link) = existing else { return create(&path, program, ifindex, direction) };
    let info = sys::link_info(link.as_fd()).with_context(|| format!("ask what {} is", path.display()))?;
    match place_of(&info, ifindex, direction) {
        Some(0) => sys::link_update(link.as_fd(), program)
            .with_context(|| format!("replace the program of {}", path.display())),
        Some(_) => {
            let spare = spare()?;
            let head = sys::tcx_create(spare.as_fd(), ifindex, attach_type(direction))
                .context("attach at the head of the chain")?;
            replace_pin(head.as_fd(), &path)?;
            drop(link);
            // The old link is detached once nothing refers to it; then the program itself may come back.
            sys::link_update(head.as_fd(), program).or_else(|e| match e.raw_os_error() {
                Some(libc::EEXIST) => Ok(()),
                _ => Err(e).with_context(|| format!("replace the program of {}", path.display())),
            })
        }
        None => {
            unpin(&path)?;
            drop(link);
            create(&path, program, ifindex, direction)
        }
    }
}

fn create(path: &Path, program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> Result<()> {
    let link = sys::tcx_create(program, ifindex, attach_type(direction)).context("create a TCX link")?;
    sys::pin(link.as_fd(), path).with_context(|| format!("pin the link at {}", path.display()))
}

/// Pins in the place of what is pinned there, at no time leaving nothing there.
pub(super) fn replace_pin(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!("new_{name}"));
    unpin(&temporary)?;
    sys::pin(fd, &temporary).with_context(|| format!("pin at {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("rename {} to {}", temporary.display(), path.display()))
}

/// Removes a pin; gone already is fine.
pub(super) fn unpin(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("unpin {}", path.display())),
        _ => Ok(()),
    }
}

/// Detaches by removing the only reference.
pub(super) fn detach(links: &Path, ifindex: u32, direction: Direction) -> Result<()> {
    unpin(&pin_path(links, ifindex, direction))
}

/// Puts other programs in the place of those that run, by program id. Links that are defunct stay as they are.
pub(super) fn replace_all(links: &Path, by_id: &[(u32, OwnedFd)]) -> Result<()> {
    for (path, ..) in pins(links)? {
        let Ok(fd) = sys::get(&path) else { continue };
        let info = sys::link_info(fd.as_fd()).with_context(|| format!("ask what {} is", path.display()))?;
        if let Some((_, program)) = by_id.iter().find(|(id, _)| *id == info.program) {
            match sys::link_update(fd.as_fd(), program.as_fd()) {
                Err(e) if e.raw_os_error() != Some(libc::ENOLINK) => {
                    return Err(e).with_context(|| format!("replace the program of {}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
