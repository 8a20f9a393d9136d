//! Where things are pinned, and the rules of that directory.
//!
//! ```text
//! PIN/conf, tunkey2if, if2tunkey, devs, counters, unknown, meta      maps, by their own names
//! PIN/programs/handle_egress, handle_<ingress|underlay>_<index>      programs
//! PIN/links/<ingress|egress|underlay>_<ifindex>                      TCX attachments
//! PIN/next/                                                          maps and programs of a growth under way
//! ```
//!
//! bpffs allows no `.` in names. A pin being made that is to replace another carries the prefix `next_`.

use crate::model::{Direction, Program};
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Prefix of pins that are being made.
pub(super) const UNFINISHED: &str = "next_";

/// A directory with pins in the layout above: the pin directory itself, or the `next` in it.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    pub(super) dir: PathBuf,
}

impl Pins {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The pins of a growth under way.
    pub(super) fn next(&self) -> Self {
        Self { dir: self.dir.join("next") }
    }

    /// Its existence says that a growth has copied everything and must be finished, not discarded.
    pub(super) fn commit_mark(&self) -> PathBuf {
        self.dir.join("next").join("committed")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn programs_dir(&self) -> PathBuf {
        self.dir.join("programs")
    }

    pub(super) fn links_dir(&self) -> PathBuf {
        self.dir.join("links")
    }

    pub(super) fn program(&self, program: Program) -> PathBuf {
        self.programs_dir().join(program_file(program))
    }

    pub(super) fn unfinished_program(&self, program: Program) -> PathBuf {
        self.programs_dir().join(format!("{UNFINISHED}{}", program_file(program)))
    }

    pub(super) fn link(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.links_dir().join(link_file(ifindex, direction))
    }

    pub(super) fn unfinished_link(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.links_dir().join(format!("{UNFINISHED}{}", link_file(ifindex, direction)))
    }

    /// The programs that are pinned, sorted.
    pub(super) fn list_programs(&self) -> Result<Vec<Program>> {
        let mut programs: Vec<_> = list(&self.programs_dir())?.iter().filter_map(|name| parse_program(name)).collect();
        programs.sort_unstable();
        Ok(programs)
    }

    /// The attachments that are pinned, sorted.
    pub(super) fn list_links(&self) -> Result<Vec<(u32, Direction)>> {
        let mut links: Vec<_> = list(&self.links_dir())?.iter().filter_map(|name| parse_link(name)).collect();
        links.sort_unstable();
        Ok(links)
    }

    /// Makes the directories, private to this user, where they are missing.
    ///
    /// # Errors
    /// Where the directory isn't on a BPF file system.
    pub(super) fn create(&self) -> Result<()> {
        for dir in [self.dir.clone(), self.programs_dir(), self.links_dir()] {
            make_dir(&dir)?;
        }
        Ok(())
    }
}

/// Makes a directory of mode 0700, and those above it, on a BPF file system.
pub(super) fn make_dir(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        crate::fault_point::reach();
        check_place(dir)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(dir)
            .with_context(|| format!("make the pin directory {}", dir.display()))?;
    }
    check_bpffs(dir)
}

/// Checks that a directory is on a BPF file system, or would be: where it is yet to be made, the nearest one above tells.
///
/// # Errors
/// Where it isn't, with what to do about it.
pub fn check_place(dir: &Path) -> Result<()> {
    dir.ancestors().find(|a| a.is_dir()).map_or(Ok(()), check_bpffs)
}

fn check_bpffs(dir: &Path) -> Result<()> {
    let path = dir.display();
    let opened = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open the pin directory {path}"))?;
    let kind = rustix::fs::fstatfs(&opened).with_context(|| format!("ask for the file system of {path}"))?.f_type;
    if kind as u64 & 0xffff_ffff != BPF_FS_MAGIC {
        bail!(
            "{path} isn't on a BPF file system; mount one (mount -t bpf bpf /sys/fs/bpf) or give another --pin-dir; \
             inside `ip netns exec`, which hides it, use nsenter --net= instead"
        );
    }
    Ok(())
}

/// Names in a directory; none where it doesn't exist.
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", dir.display()))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().with_context(|| format!("list {}", dir.display()))
}

/// Removes a pin; one that is missing is removed already.
pub(super) fn unpin(path: &Path) -> Result<()> {
    crate::fault_point::reach();
    missing_is_fine(fs::remove_file(path)).with_context(|| format!("unpin {}", path.display()))
}

/// Removes an empty directory; one that is missing is removed already.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    crate::fault_point::reach();
    missing_is_fine(fs::remove_dir(path)).with_context(|| format!("remove the directory {}", path.display()))
}

/// Removes a directory unless something that isn't ours is in it, or another user made it.
pub(super) fn remove_empty_dir(path: &Path) -> Result<()> {
    crate::fault_point::reach();
    match std::fs::remove_dir(path) {
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::PermissionDenied) => Ok(()),
        result => missing_is_fine(result).with_context(|| format!("remove the directory {}", path.display())),
    }
}

/// Gives a pin another name, in one step, replacing what had that name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    crate::fault_point::reach();
    fs::rename(from, to).with_context(|| format!("rename the pin {} to {}", from.display(), to.display()))
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn program_file(program: Program) -> String {
    match program {
        Program::HandleEgress => "handle_egress".to_owned(),
        Program::HandleIngress { tunnel } => format!("handle_ingress_{tunnel}"),
        Program::HandleUnderlay { index } => format!("handle_underlay_{index}"),
    }
}

fn parse_program(name: &str) -> Option<Program> {
    if name == "handle_egress" {
        return Some(Program::HandleEgress);
    }
    if let Some(index) = name.strip_prefix("handle_underlay_") {
        return index.parse().ok().map(|index| Program::HandleUnderlay { index });
    }
    name.strip_prefix("handle_ingress_")?.parse().ok().map(|tunnel| Program::HandleIngress { tunnel })
}

fn link_file(ifindex: u32, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("ingress_{ifindex}"),
        Direction::Egress => format!("egress_{ifindex}"),
        Direction::Underlay => format!("underlay_{ifindex}"),
    }
}

fn parse_link(name: &str) -> Option<(u32, Direction)> {
    let (direction, ifindex) = name.split_once('_')?;
    let direction = match direction {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        "underlay" => Direction::Underlay,
        _ => return None,
    };
    Some((ifindex.parse().ok()?, direction))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_went() {
        let (ingress, underlay) = (Program::HandleIngress { tunnel: 63 }, Program::HandleUnderlay { index: 7 });
        for program in [Program::HandleEgress, ingress, underlay] {
            assert_eq!(parse_program(&program_file(program)), Some(program));
        }
        for direction in [Direction::Ingress, Direction::Egress, Direction::Underlay] {
            assert_eq!(parse_link(&link_file(4_000_000_000, direction)), Some((4_000_000_000, direction)));
        }
        for stranger in ["next_handle_egress", "handle_ingress_", "handle_ingress_x", "other"] {
            assert_eq!(parse_program(stranger), None, "{stranger}");
        }
        for stranger in ["next_egress_7", "egress_", "egress", "forward_7"] {
            assert_eq!(parse_link(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn another_file_system_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = make_dir(&dir.path().join("pins")).unwrap_err();
        assert!(error.to_string().contains("mount -t bpf"), "{error:#}");
        assert!(!dir.path().join("pins").exists());
    }
}
