//! The daemon: waits for something to happen, then runs the same pass.
//!
//! Events only set flags; a pass reads everything anew. So an event that is lost costs time, never truth.

use super::control::{self, Answer, Request};
use super::instance::{Lock, Paths};
use super::intent::{Cause, intend};
use super::live::LiveKernel;
use super::loader::Loader;
use super::progress::Progress;
use super::status::{Daemon as Health, Status};
use super::{Reconciler, Report};
use crate::files::accepted::Accepted;
use crate::files::watch::Watch;
use crate::model::{Desired, HookKind, Intent};
use crate::netlink::{LinkEvent, LinkWatch};
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// How long link events are gathered before a pass.
const LINK_QUIET: Duration = Duration::from_millis(2);
/// How often the directory is looked over, whatever inotify says.
const RESCAN: Duration = Duration::from_secs(1);
/// A date that doesn't come.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How the daemon is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directories of the instance.
    pub paths: Paths,
    /// Hook kind asked for; `None`: probed.
    pub hook: Option<HookKind>,
    /// Pause between passes that nothing asked for.
    pub interval: Duration,
}

/// A running daemon.
pub struct Daemon {
    options: Options,
    loader: Loader,
    reconciler: Reconciler<LiveKernel>,
    /// What is in force, or to be.
    intent: Option<Intent>,
    /// Why the files were not accepted.
    config_error: Option<String>,
    /// Why the accepted state is not on disk, where it should be.
    unsaved: Option<String>,
    progress: Progress,
    health: Health,
    next_pass: Instant,
    next_rescan: Instant,
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
        kernel.recover().await?;
        let intent = match Accepted::load(&options.paths.state) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!("{error:#}; starting from the files alone");
                None
            }
        };
        let now = Instant::now();
        Ok(Self {
            options,
            loader,
            reconciler: Reconciler::new(kernel),
            intent,
            config_error: None,
            unsaved: None,
            progress: Progress::default(),
            health: Health { running: true, pid: Some(std::process::id()), ..Health::default() },
            next_pass: now,
            next_rescan: now + RESCAN,
            _lock: lock,
        })
    }

    /// Runs until a signal or a `down` request. The data plane stays in force after a signal.
    ///
    /// # Errors
    ///
    /// When the socket, the watch or the subscription can't be opened.
    pub async fn run(mut self) -> Result<()> {
        crate::private::make(&self.options.paths.run)?;
        let listener = control::listen(&self.options.paths.socket())?;
        // Subscribe before the first look, so that nothing falls between.
        let mut links = LinkWatch::open().await?;
        let mut files = Watch::new(self.loader.paths());
        self.note_watch(&files);
        let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let watchdog = sd_notify::watchdog_enabled().map(|period| period / 2);
        let mut next_beat = Instant::now() + watchdog.unwrap_or(NEVER);

        if self.reread(Cause::Changed).await.is_none() {
            // The last accepted state stays in force although the files are broken.
            self.pass(None).await;
        }
        notify(&[sd_notify::NotifyState::Ready]);

        let mut subscribed = true;
        let end = loop {
            self.tell_systemd();
            tokio::select! {
                biased;
                _ = terminate.recv() => break End::Signal,
                _ = interrupt.recv() => break End::Signal,
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: reading the files and making a pass");
                    if self.reread(Cause::Changed).await.is_none() {
                        self.pass(None).await;
                    }
                }
                client = listener.accept() => match client {
                    Ok((stream, _)) => if self.serve(stream).await { break End::Down },
                    Err(error) => tracing::warn!("accept on the control socket: {error}"),
                },
                event = links.next(), if subscribed => subscribed = self.link_event(event).await,
                () = files.changed() => {
                    // Somebody else's file in a watched directory is no change, and must not put off the rescan that
                    // removals wait for.
                    if !self.loader.unchanged() {
                        self.reread(Cause::Changed).await;
                    }
                }
                () = sleep_until(self.next_rescan) => {
                    self.next_rescan = Instant::now() + RESCAN;
                    self.rescan(&mut files).await;
                }
                () = sleep_until(self.next_pass) => drop(self.pass(None).await),
                () = sleep_until(next_beat) => {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                    next_beat = Instant::now() + watchdog.unwrap_or(NEVER);
                }
            }
            self.note_watch(&files);
        };
        notify(&[sd_notify::NotifyState::Stopping]);
        if let Err(error) = std::fs::remove_file(self.options.paths.socket()) {
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
        match &event {
            LinkEvent::Changed => {}
            LinkEvent::Overrun => {
                self.health.netlink_overruns += 1;
                tracing::warn!("netlink overrun: reading everything anew");
            }
            LinkEvent::Closed => {
                tracing::error!("the netlink subscription ended; passes go on every {:?}", self.options.interval);
            }
        }
        // Gathered, not answered one by one: a thousand links may be on their way.
        self.next_pass = self.next_pass.min(Instant::now() + LINK_QUIET);
        !matches!(event, LinkEvent::Closed)
    }

    /// Looks the directory over: what inotify doesn't show, and the confirmation that removals wait for.
    async fn rescan(&mut self, files: &mut Watch) {
        if self.unsaved.is_some() {
            self.save();
        }
        if files.git_is_writing() {
            return;
        }
        if !self.loader.unchanged() {
            // inotify said nothing: it watches something that isn't there any more.
            files.renew();
            self.reread(Cause::Changed).await;
        } else if self.intent.as_ref().is_some_and(|i| !i.delayed.is_empty()) {
            self.reread(Cause::Confirm).await;
        }
    }

    async fn reread(&mut self, cause: Cause) -> Option<Report> {
        let before = self.intent.as_ref().map(|i| i.desired.clone()).unwrap_or_default();
        if !self.read_files(cause) {
            return None;
        }
        self.pass(Some(&before)).await
    }

    fn note_watch(&mut self, files: &Watch) {
        self.health.watch_overflows = files.overflows();
        self.health.watch_error = files.trouble().map(str::to_owned);
    }

    /// Takes the files' state over, if it is valid. Returns whether it was.
    fn read_files(&mut self, cause: Cause) -> bool {
        // Whoever asks, what removals wait for is a full second without a change.
        self.next_rescan = Instant::now() + RESCAN;
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
        let intent = intend(self.intent.as_ref(), new, cause.removals(self.loader.steady()));
        if self.intent.as_ref() == Some(&intent) {
            return true;
        }
        if !intent.held.is_empty() && self.intent.as_ref().is_none_or(|i| i.held != intent.held) {
            tracing::warn!(
                count = intent.held.len(),
                "deletions held: the files remove too many mappings at once; `tunnel-mesh apply --allow-deletes` releases them"
            );
        }
        tracing::info!(revision = %intent.desired.revision, mappings = intent.desired.mappings.len(), "topology accepted");
        self.intent = Some(intent);
        self.save();
        true
    }

    /// Puts the accepted state on disk. Until that succeeds, `status` says why, and each rescan tries again: a restart
    /// with broken files would bring back what was accepted before.
    fn save(&mut self) {
        let Some(intent) = &self.intent else { return };
        let failure = Accepted::store(&self.options.paths.state, intent).err().map(|error| format!("{error:#}"));
        if let Some(text) = failure.as_ref().filter(|text| self.unsaved.as_ref() != Some(text)) {
            tracing::error!("{text}");
        }
        self.unsaved = failure;
    }

    async fn pass(&mut self, before: Option<&Desired>) -> Option<Report> {
        self.next_pass = Instant::now() + self.options.interval;
        let intent = self.intent.as_ref()?;
        let before = before.unwrap_or(&intent.desired);
        let result = self.reconciler.pass(&intent.desired, Some(before)).await;
        if let Some(pause) = self.progress.note(&result) {
            self.next_pass = Instant::now() + pause;
        }
        match result {
            Ok(report) => {
                log(&report);
                Some(report)
            }
            Err(error) => {
                tracing::error!("pass failed: {error:#}");
                None
            }
        }
    }

    /// Serves one client. Returns whether the daemon is to end.
    async fn serve(&mut self, mut stream: UnixStream) -> bool {
        let request = match tokio::time::timeout(RESCAN, control::receive(&mut stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => {
                tracing::warn!("control socket: {error:#}");
                let answer = Answer { error: Some(format!("{error:#}")), ..Answer::default() };
                drop(control::reply(&mut stream, &answer).await);
                return false;
            }
            Err(_) => return false,
        };
        let (answer, end) = match request {
            Request::Apply { allow_deletes } => (self.serve_apply(allow_deletes).await, false),
            Request::Status => (self.serve_status().await, false),
            Request::Down => match self.reconciler.kernel().remove_everything().await {
                Ok(failures) if failures.is_empty() => (Answer::default(), true),
                Ok(failures) => {
                    let list: Vec<String> = failures.iter().map(|e| format!("{e:#}")).collect();
                    (Answer { error: Some(list.join("\n")), ..Answer::default() }, true)
                }
                Err(error) => (Answer { error: Some(format!("{error:#}")), ..Answer::default() }, false),
            },
        };
        if end
            && answer.error.is_none()
            && let Err(error) = Accepted::forget(&self.options.paths.state)
        {
            tracing::warn!("{error:#}");
        }
        if let Err(error) = control::reply(&mut stream, &answer).await {
            tracing::debug!("control socket: {error:#}");
        }
        end
    }

    async fn serve_apply(&mut self, allow: bool) -> Answer {
        let report = self.reread(Cause::Asked { allow_deletes: allow }).await;
        let held = self.intent.as_ref().map(|i| i.held.clone()).unwrap_or_default();
        if let Some(config_error) = &self.config_error {
            return Answer { config_error: Some(config_error.clone()), held, ..Answer::default() };
        }
        let error = report.is_none().then(|| self.progress.errors.join("\n"));
        Answer { report, held, error, ..Answer::default() }
    }

    async fn serve_status(&mut self) -> Answer {
        match self.status().await {
            Ok(status) => Answer { status: Some(Box::new(status)), ..Answer::default() },
            Err(error) => Answer { error: Some(format!("{error:#}")), ..Answer::default() },
        }
    }

    async fn status(&mut self) -> Result<Status> {
        let mut status = read_status(&mut self.reconciler, self.intent.as_ref()).await?;
        let Progress { passes, failed_passes, operations, .. } = self.progress;
        status.daemon = Health { passes, failed_passes, operations, ..self.health.clone() };
        status.config_error.clone_from(&self.config_error);
        status.errors = self.unsaved.iter().chain(&self.progress.errors).cloned().collect();
        status.in_force &= self.config_error.is_none() && status.errors.is_empty();
        Ok(status)
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

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("sd_notify: {error}");
    }
}

fn log(report: &Report) {
    for change in report.plan.changes.iter().filter(|_| report.changed) {
        let what = change.describe();
        tracing::info!(address = %change.address, action = ?change.action, reason = ?change.reason, "{what}");
    }
    for (change, error) in &report.failures {
        tracing::warn!(change = %change, "{error}");
    }
    for problem in &report.plan.problems {
        tracing::warn!(address = %problem.address, "{}", problem.what);
    }
}

/// Reads the live state and counters and puts the status together.
///
/// # Errors
///
/// When the live state can't be read.
pub async fn read_status(reconciler: &mut Reconciler<LiveKernel>, intent: Option<&Intent>) -> Result<Status> {
    let empty = Desired::default();
    let desired = intent.map_or(&empty, |i| &i.desired);
    let (observed, plan) = reconciler.plan(desired, Some(desired)).await?;
    let (traffic, unknown) = reconciler.kernel().counters(&observed)?;
    let nothing = std::collections::BTreeSet::new();
    Ok(Status::of(super::status::Sources {
        accepted: intent.map(|i| &i.desired),
        held: intent.map_or(&nothing, |i| &i.held),
        observed: &observed,
        plan: intent.is_some().then_some(&plan),
        traffic: &traffic,
        unknown,
    }))
}
