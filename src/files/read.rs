//! Reads topology directories: recursively, through symlinks, dotfiles ignored.
//!
//! A ConfigMap mount shows its files as symlinks through `..data`, a git worktree keeps `.git`: names that start with a
//! dot are never entered, and everything else is followed to where it leads.

use crate::topology::SourceFile;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a file that changes while it is read is read again.
const TRIES: usize = 5;
/// Age from which a change of a file shows in its times: more than a tick of any kernel's clock.
const SETTLED: Duration = Duration::from_millis(20);
/// Deepest directory.
const DEPTH_MAX: usize = 32;

/// Identity and version of a file, without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long until another change can't have this very stamp: before Linux 6.13, a file that is written twice within
    /// a tick of the clock looks the same afterwards. Times in the future are none of ours.
    fn unsettled(&self) -> Option<Duration> {
        let (seconds, nanos) = (u64::try_from(self.changed.0).ok()?, u32::try_from(self.changed.1).ok()?);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::new(seconds, nanos)).ok()?;
        SETTLED.checked_sub(age)
    }
}

/// What a directory holds, without reading it: the names and stamps of its files.
pub type Listing = Vec<(PathBuf, Stamp)>;

/// Lists the topology files of these directories (or files), sorted.
///
/// # Errors
///
/// When one of them is missing or can't be entered, or when there is no topology file at all.
pub fn list(paths: &[PathBuf]) -> Result<Listing> {
    let mut out = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).with_context(|| {
            format!("look at the topology {}: make the directory, or say --topology DIR", path.display())
        })?;
        if metadata.is_dir() {
            let mut above = BTreeSet::new();
            walk(path, &metadata, &mut above, &mut out)?;
        } else {
            out.push((path.clone(), Stamp::of(&metadata)));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out.dedup_by(|a, b| a.0 == b.0);
    if out.is_empty() {
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        bail!(
            "no *.yaml or *.yml in {}: an empty directory never means \"delete all\"; `tunnel-mesh down` removes everything",
            names.join(", ")
        );
    }
    Ok(out)
}

fn walk(directory: &Path, metadata: &Metadata, above: &mut BTreeSet<(u64, u64)>, out: &mut Listing) -> Result<()> {
    let identity = (metadata.dev(), metadata.ino());
    if above.len() >= DEPTH_MAX || !above.insert(identity) {
        bail!("{} leads back into itself; remove the symlink", directory.display());
    }
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("list the directory {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list the directory {}", directory.display()))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let is_topology = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Gone between two calls, or a symlink to nowhere that nobody would read.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !is_topology => continue,
            Err(e) => return Err(e).with_context(|| format!("look at {}", path.display())),
        };
        if metadata.is_dir() {
            walk(&path, &metadata, above, out)?;
        } else if is_topology {
            out.push((path, Stamp::of(&metadata)));
        }
    }
    above.remove(&identity);
    Ok(())
}

/// Reads one file; one that changes meanwhile is read again. Returns the stamp of what was read.
///
/// # Errors
///
/// When it can't be read, or goes on changing.
pub fn read(path: &Path) -> Result<(SourceFile, Stamp)> {
    let what = || format!("read {}", path.display());
    for attempt in 1..=TRIES {
        let mut file = File::open(path).with_context(what)?;
        let before = Stamp::of(&file.metadata().with_context(what)?);
        if let Some(rest) = before.unsettled().filter(|_| attempt < TRIES) {
            std::thread::sleep(rest);
            continue;
        }
        let mut text = Vec::with_capacity(before.size as usize);
        file.read_to_end(&mut text).with_context(what)?;
        let after = Stamp::of(&file.metadata().with_context(what)?);
        if before == after && text.len() as u64 == after.size {
            return Ok((SourceFile { name: path.display().to_string(), text }, after));
        }
    }
    bail!("{} changes while it is read; write it elsewhere and rename it into place", path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(listing: &Listing) -> Vec<String> {
        listing.iter().map(|(p, _)| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_configmap_and_subdirectories_are_read_and_dotfiles_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("..2026_01");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("a.yaml"), "version: 1").unwrap();
        symlink("..2026_01", dir.path().join("..data")).unwrap();
        symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        std::fs::create_dir_all(dir.path().join("sub/.git")).unwrap();
        std::fs::write(dir.path().join("sub/.git/c.yaml"), "no").unwrap();
        std::fs::write(dir.path().join("sub/b.yml"), "version: 1").unwrap();
        std::fs::write(dir.path().join(".hidden.yaml"), "no").unwrap();
        std::fs::write(dir.path().join("README.md"), "no").unwrap();
        let listing = list(&[dir.path().to_owned()]).unwrap();
        assert_eq!(names(&listing), ["a.yaml", "b.yml"]);
        assert_eq!(read(&listing[0].0).unwrap().0.text, b"version: 1");
    }

    #[test]
    fn empty_missing_and_endless_directories_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        assert!(list(std::slice::from_ref(&path)).unwrap_err().to_string().contains("never means"));
        assert!(list(&[path.join("nowhere")]).unwrap_err().to_string().contains("nowhere"));
        symlink(".", path.join("loop")).unwrap();
        assert!(list(&[path]).unwrap_err().to_string().contains("itself"));
    }

    #[test]
    fn a_file_is_read_once_a_later_change_would_show() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        std::fs::write(&path, "one").unwrap();
        let (file, stamp) = read(&path).unwrap();
        assert_eq!(file.text, b"one");
        assert_eq!(stamp.unsettled(), None);
        std::fs::write(&path, "two").unwrap();
        assert_ne!(read(&path).unwrap().1, stamp);
    }
}
