//! Reads topology directories: recursively, through symlinks, dotfiles ignored.
//!
//! A ConfigMap mount shows its files as symlinks through `..data`, a git worktree keeps `.git`: names that start with a
//! dot are never entered, and everything else is followed to where it leads.

use crate::topology::SourceFile;
use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often a file that changes while it is read is read again.
const TRIES: usize = 5;
/// Largest file, in bytes.
const SIZE_MAX: u64 = crate::topology::SIZE_MAX as u64;
/// Deepest directory.
const DEPTH_MAX: usize = 32;

/// Identity and version of a file, without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Stamp {
    /// That of whatever is at a path now; `None` where nothing is, or it can't be looked at.
    pub(super) fn at(path: &Path) -> Option<Self> {
        rustix::fs::stat(path).ok().map(|stat| Self::of(&stat))
    }

    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// Longest that a file system's clock stands still: within one tick a file may change and keep its stamp.
const TICK: Duration = Duration::from_millis(10);

impl Stamp {
    /// Whether the file may still change without its stamp showing it: it was written this very moment.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified.max(self.changed);
        let Ok(seconds) = u64::try_from(seconds) else { return false };
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
        now.duration_since(written).is_ok_and(|age| age < TICK)
    }
}

/// What a directory holds, without reading it: the names and stamps of its files.
pub type Listing = Vec<(PathBuf, Stamp)>;

/// Where topology files are read from; tests put one in between that changes under the reader's hands.
pub trait Disk {
    /// Lists the topology files of these directories (or files), sorted by the bytes of their paths.
    ///
    /// # Errors
    ///
    /// When one of them is missing or can't be entered, or when there is no topology file at all.
    fn list(&self, paths: &[PathBuf]) -> Result<Listing>;

    /// Reads one file, with the stamp of what was read.
    ///
    /// # Errors
    ///
    /// When it can't be read, or goes on changing.
    fn read(&self, path: &Path) -> Result<(SourceFile, Stamp)>;

    /// The time, for comparing with stamps.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files;

impl Disk for Files {
    fn list(&self, paths: &[PathBuf]) -> Result<Listing> {
        list(paths)
    }

    fn read(&self, path: &Path) -> Result<(SourceFile, Stamp)> {
        read(path)
    }
}

/// Lists the topology files of these directories (or files), sorted.
///
/// # Errors
///
/// When one of them is missing or can't be entered, or when there is no topology file at all.
pub fn list(paths: &[PathBuf]) -> Result<Listing> {
    let mut out = Vec::new();
    for path in paths {
        let stat = rustix::fs::stat(path).with_context(|| {
            format!("look at the topology {}: make the directory, or say --topology DIR", path.display())
        })?;
        if is(&stat, FileType::Directory) {
            let mut above = BTreeSet::new();
            walk(path, &stat, &mut above, &mut out)?;
        } else {
            check_regular(path, &stat)?;
            out.push((path.clone(), Stamp::of(&stat)));
        }
    }
    out.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
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

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

fn walk(directory: &Path, stat: &Stat, above: &mut BTreeSet<(u64, u64)>, out: &mut Listing) -> Result<()> {
    let identity = (stat.st_dev, stat.st_ino);
    if above.len() >= DEPTH_MAX || !above.insert(identity) {
        bail!("{} leads back into itself; remove the symlink", directory.display());
    }
    let what = || format!("list the directory {}", directory.display());
    // Names are looked up from the directory and not from the root: this is done every few seconds.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).with_context(what)?;
    let entries = rustix::fs::Dir::read_from(&opened).with_context(what)?;
    for entry in entries {
        let entry = entry.with_context(what)?;
        let name = entry.file_name().to_bytes();
        let is_topology = [".yaml", ".yml"].iter().any(|suffix| name.ends_with(suffix.as_bytes()));
        if name.starts_with(b".") || (entry.file_type() == FileType::RegularFile && !is_topology) {
            continue;
        }
        let path = directory.join(OsStr::from_bytes(name));
        let stat = match rustix::fs::statat(&opened, entry.file_name(), AtFlags::empty()) {
            Ok(stat) => stat,
            // Gone between two calls. A symlink to nowhere may be a directory that is about to be mounted.
            Err(Errno::NOENT) if !is_topology && !path.is_symlink() => continue,
            Err(e) => return Err(e).with_context(|| format!("look at {}", path.display())),
        };
        if is(&stat, FileType::Directory) {
            walk(&path, &stat, above, out)?;
        } else if is_topology {
            check_regular(&path, &stat)?;
            out.push((path, Stamp::of(&stat)));
        }
    }
    above.remove(&identity);
    Ok(())
}

/// A pipe or a device would never end, or never begin.
fn check_regular(path: &Path, stat: &Stat) -> Result<()> {
    if !is(stat, FileType::RegularFile) {
        bail!("read {}: it is neither a file nor a directory; remove it", path.display());
    }
    let size = stat.st_size.cast_unsigned();
    if size > SIZE_MAX {
        bail!("read {}: it has {size} bytes; a topology file has at most {SIZE_MAX}", path.display());
    }
    Ok(())
}

/// Reads one file; one that changes meanwhile is read again. Returns the stamp of what was read.
///
/// # Errors
///
/// When it can't be read, or goes on changing.
pub fn read(path: &Path) -> Result<(SourceFile, Stamp)> {
    read_while(path, |_| {})
}

/// As [`read`]; says before each look at the content that now somebody could change it.
fn read_while(path: &Path, mut meanwhile: impl FnMut(usize)) -> Result<(SourceFile, Stamp)> {
    let what = || format!("read {}", path.display());
    for attempt in 0..TRIES {
        // Opening a pipe would wait for somebody to write.
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).with_context(what)?;
        let stat = rustix::fs::fstat(&file).with_context(what)?;
        check_regular(path, &stat)?;
        let before = Stamp::of(&stat);
        meanwhile(attempt);
        let mut text = Vec::with_capacity(before.size as usize);
        file.by_ref().take(SIZE_MAX + 1).read_to_end(&mut text).with_context(what)?;
        let after = Stamp::of(&rustix::fs::fstat(&file).with_context(what)?);
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
    fn a_file_that_changes_while_it_is_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let begin = "version: 1\nmappings: [";
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        // Truncated and written anew, as a shell's `>` does it.
        write("old and long enough");
        let changes = [begin, "version: 1"];
        let (file, stamp) = read_while(&path, |n| changes.get(n).into_iter().for_each(|text| write(text))).unwrap();
        assert_eq!(file.text, b"version: 1");
        assert_eq!(stamp, list(std::slice::from_ref(&path)).unwrap()[0].1);
        // One that never stops is an error, with the remedy.
        let error = read_while(&path, |n| write(&"x".repeat(n + 1))).unwrap_err();
        assert!(error.to_string().contains("rename it into place"), "{error:#}");
        // Replaced or removed meanwhile: what was opened is whole, and its stamp tells that it is the old one.
        let other = dir.path().join("b");
        write("whole");
        std::fs::write(&other, "new").unwrap();
        let (file, stamp) = read_while(&path, |n| {
            if n == 0 {
                std::fs::rename(&other, &path).unwrap()
            }
        })
        .unwrap();
        let now = list(std::slice::from_ref(&path)).unwrap()[0].1.clone();
        assert!((file.text.as_slice() == b"new") == (stamp == now), "{stamp:?} {now:?}");
        // Truncated, then gone.
        let gone = |n| if n == 0 { write("") } else { std::fs::remove_file(&path).unwrap() };
        let error = read_while(&path, gone);
        assert!(error.is_err() || error.unwrap().0.text.is_empty());
    }

    #[test]
    fn a_stamp_is_fresh_for_a_tick() {
        let at = |milliseconds| SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
        let stamp = Stamp { device: 1, inode: 2, size: 3, modified: (4, 0), changed: (5, 500_000_000) };
        let fresh = [5_499, 5_500, 5_509, 5_510, 60_000].map(|now| stamp.is_fresh(at(now)));
        // One from the future comes from another clock and says nothing.
        assert_eq!(fresh, [false, true, true, false, false]);
    }

    #[test]
    fn empty_missing_and_endless_directories_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        assert!(list(std::slice::from_ref(&path)).unwrap_err().to_string().contains("never means"));
        assert!(list(&[path.join("nowhere")]).unwrap_err().to_string().contains("nowhere"));
        symlink("nowhere", path.join("later")).unwrap();
        std::fs::write(path.join("a.yaml"), "version: 1").unwrap();
        assert!(format!("{:#}", list(std::slice::from_ref(&path)).unwrap_err()).contains("later"));
        std::fs::remove_file(path.join("later")).unwrap();
        assert_eq!(list(std::slice::from_ref(&path)).unwrap().len(), 1);
        symlink(".", path.join("loop")).unwrap();
        assert!(list(&[path]).unwrap_err().to_string().contains("itself"));
    }

    #[test]
    fn what_never_ends_or_never_begins_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let refused = |part: &str| {
            let error = format!("{:#}", list(&[dir.path().to_owned()]).unwrap_err());
            assert!(error.contains(part), "{error}");
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(part), "{error}");
            std::fs::remove_file(&path).unwrap();
        };
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        refused("neither a file");
        symlink("/dev/zero", &path).unwrap();
        refused("neither a file");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        refused("at most");
    }
}
