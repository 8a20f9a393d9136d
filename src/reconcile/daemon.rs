//! The daemon: waits for something to happen, then runs the same pass.
//!
//! Events only set flags; a pass reads everything anew. So an event that is lost costs time, never truth.

use super::control::Request;
use super::doors::{Doors, Knock, notify, request};
use super::expedite::Expedite;
use super::instance::{Lock, Paths};
use super::intent::{Removals, intend};
use super::live::LiveKernel;
use super::loader::Loader;
use super::status::Daemon as Health;
use super::{Reconciler, Report};
use crate::files::accepted::Accepted;
use crate::files::watch::Watch;
use crate::model::{Desired, HookKind, Intent};
use crate::netlink::{LinkEvent, LinkWatch};
use anyhow::{Context, Result};
use futures::FutureExt;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

/// How long link events are gathered before a pass.
const LINK_QUIET: Duration = Duration::from_millis(2);
/// How often the directory is looked over, whatever inotify says.
const RESCAN: Duration = Duration::from_secs(1);
/// Every how many passes links are listed, although the kernel tells when they change.
const LISTED: u64 = 8;
/// First pause before a failed pass is tried again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a failed pass is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How the daemon is to run.
#[derive(Debug)]
pub struct Options {
    /// Directories of the instance.
    pub paths: Paths,
    /// Hook kind asked for; `None`: probed.
    pub hook: Option<HookKind>,
    /// Pause between passes that nothing asked for.
    pub interval: Duration,
    /// What shortens many first attaches.
    pub expedite: Expedite,
}

/// A running daemon.
pub struct Daemon {
    pub(super) paths: Paths,
    pub(super) hook: Option<HookKind>,
    interval: Duration,
    loader: Loader,
    pub(super) reconciler: Reconciler<LiveKernel>,
    pub(super) doors: Doors,
    /// Requests that came in the middle of a pass.
    pub(super) waiting: VecDeque<(UnixStream, Request)>,
    /// Whether SIGHUP came.
    pub(super) hangup: bool,
    /// Whether SIGTERM or SIGINT came.
    pub(super) ending: bool,
    /// What is in force, or to be.
    pub(super) intent: Option<Arc<Intent>>,
    /// Why the files were not accepted.
    pub(super) config_error: Option<String>,
    /// Failures of the last pass.
    pub(super) errors: Vec<String>,
    pub(super) health: Health,
    next_pass: Instant,
    next_rescan: Instant,
    retry: Duration,
    _lock: Lock,
}

/// Why the loop ends.
enum End {
    Signal,
    Down,
}

impl Daemon {
    /// Takes the lock, opens the kernel and reads the state accepted before.
    ///
    /// # Errors
    ///
    /// When another writer runs, privileges are missing, or the pins belong elsewhere.
    pub async fn start(options: Options, loader: Loader) -> Result<Self> {
        let lock = Lock::take(&options.paths.pins)?;
        let mut kernel = LiveKernel::open(&options.paths.pins, options.hook).await?;
        kernel.recover()?;
        kernel.expedite(options.expedite);
        let intent = match Accepted::load(&options.paths.state) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!("{error:#}; starting from the files alone");
                None
            }
        };
        let now = Instant::now();
        Ok(Self {
            doors: Doors::open(&options.paths)?,
            paths: options.paths,
            hook: options.hook,
            interval: options.interval,
            loader,
            reconciler: Reconciler::new(kernel),
            waiting: VecDeque::new(),
            hangup: false,
            ending: false,
            intent: intent.map(Arc::new),
            config_error: None,
            errors: Vec::new(),
            health: Health { running: true, pid: Some(std::process::id()), ..Health::default() },
            next_pass: now,
            next_rescan: now + RESCAN,
            retry: RETRY_MIN,
            _lock: lock,
        })
    }

    /// Runs until a signal or a `down` request. The data plane stays in force after a signal.
    ///
    /// # Errors
    ///
    /// When the socket, the watch or the subscription can't be opened.
    pub async fn run(mut self) -> Result<()> {
        // Subscribe before the first look, so that nothing falls between.
        let mut links = LinkWatch::open().await?;
        self.reconciler.kernel().keep_surroundings();
        let mut files = Watch::new(self.loader.paths());
        // The last accepted state stays in force even where the files are broken.
        self.reread_or_pass().await;
        notify(&[sd_notify::NotifyState::Ready]);
        crate::bpf::trim_heap();

        let mut subscribed = true;
        let end = loop {
            if self.ending {
                break End::Signal;
            }
            if let Some((stream, request)) = self.waiting.pop_front() {
                if self.serve(stream, request).await {
                    break End::Down;
                }
                continue;
            }
            if std::mem::take(&mut self.hangup) {
                tracing::info!("SIGHUP: reading the files and making a pass");
                self.reread_or_pass().await;
                continue;
            }
            self.tell_systemd();
            tokio::select! {
                biased;
                knock = self.doors.next() => match knock {
                    Knock::Terminate => self.ending = true,
                    Knock::Hangup => self.hangup = true,
                    Knock::Client(mut stream) => if let Some(request) = request(&mut stream).await {
                        self.waiting.push_back((stream, request));
                    },
                },
                event = links.next(), if subscribed => subscribed = self.link_event(event).await,
                () = files.changed() => {
                    files.settle().await;
                    // What came in meanwhile counts for this pass already.
                    while subscribed && let Some(event) = links.next().now_or_never() {
                        subscribed = self.link_event(event).await;
                    }
                    // Somebody else's file in a watched directory is no change, and must not put off the rescan that
                    // removals wait for.
                    if !self.loader.unchanged() {
                        self.reread(Removals { allow: false, delay: true }).await;
                        self.next_rescan = Instant::now() + RESCAN;
                    }
                }
                () = sleep_until(self.next_rescan) => {
                    self.rescan().await;
                    self.next_rescan = Instant::now() + RESCAN;
                }
                () = sleep_until(self.next_pass) => {
                    // Links are told of; now and then they are listed all the same.
                    if self.health.passes.is_multiple_of(LISTED) || self.retry > RETRY_MIN || !subscribed {
                        self.reconciler.kernel().look_anew();
                    } else {
                        self.reconciler.kernel().look_at_hooks();
                    }
                    self.pass(None).await;
                    crate::bpf::trim_heap();
                }
            }
            self.health.watch_overflows = files.overflows();
        };
        notify(&[sd_notify::NotifyState::Stopping]);
        if let Err(error) = std::fs::remove_file(self.paths.socket()) {
            tracing::debug!("remove the control socket: {error}");
        }
        match end {
            End::Signal => tracing::info!("stopping; the data plane stays in force"),
            End::Down => tracing::info!("stopping; everything was removed"),
        }
        Ok(())
    }

    /// Returns whether the subscription goes on.
    async fn link_event(&mut self, event: LinkEvent) -> bool {
        self.reconciler.kernel().look_anew();
        match &event {
            LinkEvent::Changed => {}
            LinkEvent::Overrun => {
                self.health.netlink_overruns += 1;
                tracing::warn!("netlink overrun: reading everything anew");
            }
            LinkEvent::Closed => {
                tracing::error!("the netlink subscription ended; passes go on every {:?}", self.interval);
            }
        }
        // Gathered, not answered one by one: a thousand links may be on their way.
        self.next_pass = self.next_pass.min(Instant::now() + LINK_QUIET);
        !matches!(event, LinkEvent::Closed)
    }

    /// Looks the directory over: what inotify doesn't show, and the confirmation that removals wait for.
    async fn rescan(&mut self) {
        if !self.loader.unchanged() {
            self.reread(Removals { allow: false, delay: true }).await;
        } else if self.intent.as_ref().is_some_and(|i| !i.delayed.is_empty()) {
            self.reread(Removals { allow: false, delay: false }).await;
        }
    }

    /// Reads the files and makes a pass, with what was accepted before where they are broken.
    async fn reread_or_pass(&mut self) {
        self.reconciler.kernel().look_anew();
        if self.reread(Removals { allow: false, delay: true }).await.is_none() && !self.interrupted() {
            self.pass(None).await;
        }
    }

    pub(super) async fn reread(&mut self, removals: Removals) -> Option<Report> {
        let before = self.intent.clone().unwrap_or_default();
        if !self.read_files(removals) {
            return None;
        }
        let intent = self.intent.clone()?;
        if Arc::ptr_eq(&before, &intent) {
            return self.pass(Some(&before.desired)).await;
        }
        // The state is stored beside the pass, on another thread; but a removal must be on disk before it is carried out,
        // or a crash in between would bring the mapping back for a while.
        let removes = !before.desired.mappings.keys().all(|i| intent.desired.mappings.contains_key(i));
        let state = self.paths.state.clone();
        let mut store = tokio::task::spawn_blocking(move || Accepted::store(&state, &intent));
        let early = if removes { Some((&mut store).await) } else { None };
        let report = self.pass(Some(&before.desired)).await;
        let stored = match early {
            Some(stored) => stored,
            None => store.await,
        };
        if let Err(error) = stored.context("store the accepted state").and_then(|stored| stored) {
            tracing::error!("{error:#}");
            self.errors.push(format!("{error:#}"));
        }
        crate::bpf::trim_heap();
        report
    }

    /// Whether somebody waits for a pass to be given up.
    fn interrupted(&self) -> bool {
        self.ending || matches!(self.waiting.front(), Some((_, Request::Down)))
    }

    /// Takes the files' state over, if it is valid. Returns whether it was.
    fn read_files(&mut self, removals: Removals) -> bool {
        let new = match self.loader.load() {
            Ok(new) => new,
            Err(rejected) => {
                let text = rejected.to_string();
                if self.config_error.as_deref() != Some(text.as_str()) {
                    tracing::error!("topology not accepted, the last accepted one stays in force:\n{text}");
                }
                self.config_error = Some(text);
                return false;
            }
        };
        self.config_error = None;
        let intent = intend(self.intent.as_deref(), new, removals);
        if self.intent.as_deref() == Some(&intent) {
            return true;
        }
        if !intent.held.is_empty() && self.intent.as_ref().is_none_or(|i| i.held != intent.held) {
            tracing::warn!(
                count = intent.held.len(),
                "deletions held: the files remove too many mappings at once; `tunnel-mesh apply --allow-deletes` releases them"
            );
        }
        tracing::info!(revision = %intent.desired.revision, mappings = intent.desired.mappings.len(), "topology accepted");
        self.intent = Some(Arc::new(intent));
        true
    }

    async fn pass(&mut self, before: Option<&Desired>) -> Option<Report> {
        self.next_pass = Instant::now() + self.interval;
        let intent = Arc::clone(self.intent.as_ref()?);
        self.health.passes += 1;
        let report = self.attended_pass(&intent, before.unwrap_or(&intent.desired)).await?;
        let (failed, report) = match report {
            Ok(report) => {
                self.health.operations += report.operations as u64;
                log(&report);
                self.errors = report.failures.iter().map(|(change, error)| format!("{change}: {error}")).collect();
                if self.errors.is_empty() && report.left > 0 {
                    self.errors = vec![format!("{} operations are left over; the next pass retries", report.left)];
                }
                (!report.converged(), Some(report))
            }
            Err(error) => {
                tracing::error!("pass failed: {error:#}");
                self.errors = vec![format!("{error:#}")];
                (true, None)
            }
        };
        if failed {
            self.health.failed_passes += 1;
            self.next_pass = Instant::now() + self.retry;
            self.retry = (self.retry * 2).min(RETRY_MAX);
        } else {
            self.retry = RETRY_MIN;
        }
        report
    }

    fn tell_systemd(&self) {
        let line = match (&self.intent, &self.config_error) {
            (_, Some(error)) => format!("topology not accepted: {}", error.lines().next().unwrap_or("")),
            (None, None) => "waiting for a topology".to_owned(),
            (Some(intent), None) => format!(
                "revision {}, {} mappings, {} held",
                intent.desired.revision,
                intent.desired.mappings.len(),
                intent.held.len()
            ),
        };
        notify(&[sd_notify::NotifyState::Status(&line)]);
    }
}

fn log(report: &Report) {
    for change in report.plan.changes.iter().filter(|_| report.changed) {
        let why = change.details.join("; ");
        tracing::info!(address = %change.address, action = ?change.action, reason = ?change.reason, "{why}");
    }
    for (change, error) in &report.failures {
        tracing::warn!(change = %change, "{error}");
    }
    for problem in &report.plan.problems {
        tracing::warn!(address = %problem.address, "{}", problem.what);
    }
}
