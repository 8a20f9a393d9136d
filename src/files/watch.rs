//! Says when the topology directory may have changed.
//!
//! An event never says *what* changed: inotify shows a ConfigMap swap as `..data` only, a bind mount not at all, and
//! loses events when its queue is full. So an event only wakes the caller, which looks for itself; a rescan every second
//! finds the rest. Where inotify can be relied on, that looks at the directories, and at each file every fifth time.

use super::read::Stamp;
use futures::FutureExt;
use notify::event::{EventKind, MetadataKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Quiet time after the last event.
const QUIET: Duration = Duration::from_millis(20);
/// How exactly tokio waits.
const TICK: Duration = Duration::from_millis(2);
/// Time after the last event in which most writers have written all they will.
const CALM: Duration = Duration::from_micros(500);
/// Longest wait while events go on.
const LONGEST: Duration = Duration::from_millis(200);
/// Longest wait for a `.git/index.lock` to go, which an aborted git leaves for good.
const LONGEST_GIT: Duration = Duration::from_secs(10);

/// Every how manyth rescan looks at all files, where the directories are as they were and watched.
const WHOLE: u32 = 5;

/// What came of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stir {
    /// Something may have changed, and the writer pauses: time to read ahead. Once before each [`Stir::Quiet`], if at all.
    Calm,
    /// It is quiet again.
    Quiet,
}

/// Tells of events, from the watcher's thread.
#[derive(Debug, Default)]
struct Wake {
    notify: Notify,
    /// When the last one came.
    last: Mutex<Option<Instant>>,
}

impl Wake {
    fn up(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.notify.notify_one();
    }

    /// Waits until one came since the last call, and says when the last one did. Dropping the future loses nothing.
    async fn event(&self) -> Instant {
        self.notify.notified().await;
        self.last.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now)
    }
}

/// A watch on topology directories.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    woken: Arc<Wake>,
    overflows: Arc<AtomicU64>,
    /// Directories that are read, for the watcher's thread.
    inside: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// First and last of the events that are being gathered.
    gathering: Option<(Instant, Instant)>,
    /// Whether the caller knows of them.
    calm: bool,
    /// Whether nothing happened since the directories were looked for.
    renewed: bool,
    /// Since when a `.git/index.lock` stands there.
    git: Option<Instant>,
    trouble: Option<String>,
    /// The watched directories at the last rescan, and how many there were since all files were looked at.
    places: Vec<Option<Stamp>>,
    rescans: u32,
}

impl Watch {
    /// Watches the directories, their parents and where their symlinks lead. Where inotify has reached its limit, it says
    /// so and leaves everything to the caller's rescans.
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut watch = Self {
            paths: paths.to_vec(),
            watcher: None,
            watched: BTreeSet::new(),
            woken: Arc::default(),
            overflows: Arc::new(AtomicU64::new(0)),
            inside: Arc::default(),
            gathering: None,
            calm: false,
            renewed: false,
            git: None,
            trouble: None,
            places: Vec::new(),
            rescans: 0,
        };
        watch.renew();
        watch
    }

    /// Events lost because the queue was full.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Why changes are seen by the rescans only, if they are.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Resolves when something may have changed: when the writer pauses, and when it is quiet again. Dropping the future
    /// loses nothing.
    pub async fn changed(&mut self) -> Stir {
        loop {
            let Some((first, last)) = self.gathering else {
                let event = self.woken.event().await;
                self.gathering = Some((event, event));
                self.renewed = false;
                continue;
            };
            let now = Instant::now();
            if !self.calm && now < (last + QUIET).min(first + LONGEST) && !self.git_is_writing() {
                // Shorter than what tokio can wait for.
                std::thread::sleep((last + CALM).saturating_duration_since(Instant::now()));
                let Some(event) = self.woken.event().now_or_never() else {
                    self.calm = true;
                    self.renew();
                    return Stir::Calm;
                };
                self.gathering = Some((first, event));
                self.renewed = false;
                continue;
            }
            let until = if self.git_is_writing() { now + QUIET } else { (last + QUIET).min(first + LONGEST) };
            if until <= now {
                break;
            }
            let mut event = timeout_at(until - TICK, self.woken.event()).await.ok();
            if event.is_none() {
                // tokio counts in whole milliseconds and rounds up: the rest is slept exactly.
                std::thread::sleep(until.saturating_duration_since(Instant::now()).min(TICK));
                event = self.woken.event().now_or_never();
            }
            if let Some(event) = event {
                self.gathering = Some((first, event));
                self.renewed = false;
            }
        }
        (self.gathering, self.calm) = (None, false);
        if !std::mem::take(&mut self.renewed) {
            self.renew();
        }
        Stir::Quiet
    }

    /// Whether this rescan would find nothing that inotify hasn't told, as far as the directories say: they are the same
    /// ones, unchanged, watched, and on file systems whose changes all come from this machine. What is mounted over a
    /// single file, or written through a memory mapping, they don't say: now and then the answer is no.
    pub fn vouches(&mut self) -> bool {
        let places: Vec<Option<Stamp>> = self.watched.iter().map(|path| Stamp::at(path)).collect();
        let same = places == self.places && self.trouble.is_none() && self.watched.iter().all(|path| is_local(path));
        self.places = places;
        self.rescans = if same { (self.rescans + 1) % WHOLE } else { 0 };
        self.rescans != 0
    }

    /// Whether git is at work in one of the directories. A lock that stands for long is one that an aborted git left.
    pub fn git_is_writing(&mut self) -> bool {
        if !self.paths.iter().any(|p| git_lock(p)) {
            self.git = None;
            return false;
        }
        self.git.get_or_insert_with(Instant::now).elapsed() < LONGEST_GIT
    }

    /// Watches every directory that matters and drops those that don't exist any more. A directory that was deleted and
    /// made again is another one to inotify, even under the same name and inode: so all are watched anew.
    pub fn renew(&mut self) {
        self.renewed = true;
        let trouble = self.watch_all().err();
        if let Some(trouble) = trouble.as_ref().filter(|t| self.trouble.as_ref() != Some(t)) {
            tracing::warn!("{trouble}: looking every second instead");
        } else if trouble.is_none() && self.trouble.is_some() {
            tracing::info!("the topology is watched again");
        }
        self.trouble = trouble;
    }

    fn watch_all(&mut self) -> Result<(), String> {
        if self.watcher.is_none() {
            self.watcher = Some(self.open().map_err(|error| self::trouble(&error))?);
        }
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        let mut wanted = BTreeSet::new();
        self.paths.iter().for_each(|path| gather(path, &mut wanted, 0));
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&wanted);
        for path in &self.paths {
            if let Some(parent) = path.parent() {
                wanted.insert(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() });
            }
        }
        for path in self.watched.iter().filter(|p| !wanted.contains(*p)) {
            drop(watcher.unwatch(path));
        }
        let mut failed = None;
        for path in &wanted {
            if self.watched.contains(path) {
                drop(watcher.unwatch(path));
            }
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                Err(error) if matches!(error.kind, notify::ErrorKind::MaxFilesWatch) => failed = Some(error),
                // Gone this very moment, or not ours to look at: the next look tells.
                Err(error) => tracing::debug!("watching the topology: {error}"),
            }
        }
        self.watched = wanted;
        failed.map_or(Ok(()), |error| Err(self::trouble(&error)))
    }

    fn open(&self) -> notify::Result<RecommendedWatcher> {
        let (wake, overflow) = (Arc::clone(&self.woken), Arc::clone(&self.overflows));
        let (within, named) = (Arc::clone(&self.inside), self.paths.clone());
        notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            Ok(event) if event.need_rescan() => {
                overflow.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("inotify's queue overflowed: reading the topology anew");
                wake.up();
            }
            // Our own reading must not wake us.
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
            Ok(event) if event.kind == EventKind::Modify(ModifyKind::Metadata(MetadataKind::AccessTime)) => {}
            // A directory's parent is watched for that directory only.
            Ok(event) if !event.paths.is_empty() && !event.paths.iter().any(|p| concerns(p, &named, &within)) => {}
            Ok(_) => wake.up(),
            Err(error) => {
                tracing::warn!("watching the topology: {error}");
                wake.up();
            }
        })
    }
}

/// Whether nobody but this machine writes there: inotify doesn't tell what others do to a network's file system.
fn is_local(path: &Path) -> bool {
    // statfs(2): ext4, XFS, Btrfs, tmpfs, ramfs, overlayfs, F2FS, ZFS.
    const LOCAL: [i64; 8] =
        [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x8584_58f6, 0x794c_7630, 0xf2f5_2010, 0x2fc1_2fc1];
    rustix::fs::statfs(path).is_ok_and(|stat| LOCAL.contains(&stat.f_type))
}

/// What keeps inotify from watching, and which limit to raise.
fn trouble(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the topology can't be watched: inotify's limit fs.inotify.max_user_watches is reached".to_owned()
        }
        notify::ErrorKind::Io(io) if io.raw_os_error() == Some(libc::EMFILE) => {
            "the topology can't be watched: inotify's limit fs.inotify.max_user_instances is reached".to_owned()
        }
        _ => format!("the topology can't be watched ({error})"),
    }
}

/// Whether an event at that path may change what is read: it is in a directory that is read, or is one that is named.
fn concerns(path: &Path, named: &[PathBuf], inside: &Mutex<BTreeSet<PathBuf>>) -> bool {
    let inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
    let is_named = || named.iter().any(|n| n == path || (n.file_name().is_some() && n.file_name() == path.file_name()));
    inside.contains(path) || path.parent().is_some_and(|parent| inside.contains(parent)) || is_named()
}

/// The directory, those in it, and those where symlinks of files lead.
fn gather(path: &Path, out: &mut BTreeSet<PathBuf>, depth: usize) {
    const DEPTH_MAX: usize = 16;
    if depth > DEPTH_MAX || !path.is_dir() || !out.insert(path.to_owned()) {
        return;
    }
    if let Ok(real) = path.canonicalize() {
        if let Some(parent) = real.parent().filter(|_| real != path) {
            out.insert(parent.to_owned());
        }
        out.insert(real);
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let Ok(kind) = entry.file_type() else { continue };
        let target = entry.path();
        if kind.is_symlink() {
            let real = target.canonicalize().unwrap_or_default();
            if real.is_dir() && !hidden {
                gather(&real, out, depth + 1);
            } else if let Some(parent) = real.parent().filter(|p| !hidden && p.is_dir()) {
                out.insert(parent.to_owned());
            }
        } else if kind.is_dir() && !hidden {
            gather(&target, out, depth + 1);
        }
    }
}

/// Whether git holds the lock of the worktree that this directory is in. In a linked worktree `.git` is a file that says
/// where its own directory is (gitrepository-layout(5)).
fn git_lock(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some((top, git)) = real.ancestors().map(|p| (p, p.join(".git"))).find(|(_, git)| git.exists()) else {
        return false;
    };
    let directory = if git.is_file() {
        let text = std::fs::read_to_string(&git).unwrap_or_default();
        top.join(text.trim().strip_prefix("gitdir: ").unwrap_or_default())
    } else {
        git
    };
    directory.join("index.lock").exists()
}
