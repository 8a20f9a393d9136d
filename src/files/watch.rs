//! Says when the topology directory may have changed.
//!
//! An event never says *what* changed: inotify shows a ConfigMap swap as `..data` only, a bind mount not at all, and
//! loses events when its queue is full. So an event only wakes the caller, which looks for itself; a rescan every second
//! finds the rest.

use futures::FutureExt;
use notify::event::{EventKind, MetadataKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// Quiet time after the last event.
const QUIET: Duration = Duration::from_millis(20);
/// How exactly tokio waits.
const TICK: Duration = Duration::from_millis(2);
/// Longest wait while events go on.
const LONGEST: Duration = Duration::from_millis(200);
/// Longest wait for a `.git/index.lock` to go, which an aborted git leaves for good.
const LONGEST_GIT: Duration = Duration::from_secs(10);

/// A watch on topology directories.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    woken: Arc<Notify>,
    overflows: Arc<AtomicU64>,
}

impl Watch {
    /// Watches the directories, their parents and where their symlinks lead. Where inotify has reached its limit, it says
    /// so and leaves everything to the caller's rescans.
    pub fn new(paths: &[PathBuf]) -> Self {
        let woken = Arc::new(Notify::new());
        let overflows = Arc::new(AtomicU64::new(0));
        let (wake, overflow) = (Arc::clone(&woken), Arc::clone(&overflows));
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            Ok(event) if event.need_rescan() => {
                overflow.fetch_add(1, Ordering::Relaxed);
                wake.notify_one();
            }
            // Our own reading must not wake us.
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
            Ok(event) if event.kind == EventKind::Modify(ModifyKind::Metadata(MetadataKind::AccessTime)) => {}
            Ok(_) => wake.notify_one(),
            Err(error) => {
                tracing::warn!("watching the topology: {error}");
                wake.notify_one();
            }
        });
        let watcher = match made {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!("the topology can't be watched ({error}): looking every second instead");
                None
            }
        };
        let mut watch = Self { paths: paths.to_vec(), watcher, watched: BTreeSet::new(), woken, overflows };
        watch.renew();
        watch
    }

    /// Events lost because the queue was full.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Resolves when something may have changed.
    pub async fn changed(&mut self) {
        self.woken.notified().await;
    }

    /// Waits until it is quiet, then watches what is there now: directories may have been replaced.
    pub async fn settle(&mut self) {
        let start = Instant::now();
        while start.elapsed() < LONGEST && !self.is_quiet().await {}
        while start.elapsed() < LONGEST_GIT && self.paths.iter().any(|p| git_is_writing(p)) {
            sleep(QUIET).await;
        }
        self.renew();
    }

    /// Whether nothing happens for [`QUIET`].
    async fn is_quiet(&self) -> bool {
        let end = Instant::now() + QUIET;
        if timeout(QUIET - TICK, self.woken.notified()).await.is_ok() {
            return false;
        }
        // tokio counts in whole milliseconds and rounds up: the rest is slept exactly.
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        self.woken.notified().now_or_never().is_none()
    }

    /// Watches every directory that matters and drops those that don't exist any more. A directory that was deleted and
    /// made again is another one to inotify, even under the same name and inode: so all are watched anew.
    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted = BTreeSet::new();
        for path in &self.paths {
            if let Some(parent) = path.parent() {
                wanted.insert(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() });
            }
            gather(path, &mut wanted, 0);
        }
        for path in self.watched.iter().filter(|p| !wanted.contains(*p)) {
            drop(watcher.unwatch(path));
        }
        let mut failed = None;
        for path in &wanted {
            if self.watched.contains(path) {
                drop(watcher.unwatch(path));
            }
            if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            match error.kind {
                notify::ErrorKind::MaxFilesWatch => {
                    tracing::warn!(
                        "inotify's limit is reached (fs.inotify.max_user_watches): looking every second instead"
                    );
                }
                _ => tracing::debug!("watching the topology: {error}"),
            }
        }
        self.watched = wanted;
    }
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

/// Whether git holds the lock of the worktree that this directory is in.
fn git_is_writing(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real.ancestors().any(|p| p.join(".git/index.lock").exists())
}
