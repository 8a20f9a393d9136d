//! The daemon: waits for something to happen, then runs the same pass.
//!
//! Events only set flags; a pass reads everything anew. So an event that is lost costs time, never truth.

use super::acceptance::Acceptance;
use super::baseline::baseline;
use super::control::{self, Answer, Client, Request};
use super::instance::{Lock, Paths};
use super::intent::Cause;
use super::live::LiveKernel;
use super::loader::Loader;
use super::progress::Progress;
use super::status::{Daemon as Health, Status};
use super::{Reconciler, Report};
use crate::files::watch::Watch;
use crate::model::{Desired, HookKind, Intent};
use crate::netlink::{LinkEvent, LinkWatch};
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// How long link events are gathered before a pass.
const LINK_QUIET: Duration = Duration::from_millis(2);
/// Longest that link events wait after a failed pass.
const EVENT_PAUSE_MAX: Duration = Duration::from_secs(1);
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
    reconciler: Reconciler<LiveKernel>,
    acceptance: Acceptance,
    progress: Progress,
    health: Health,
    next_pass: Instant,
    /// A pass that failed isn't followed by the next one before, whatever happens.
    not_before: Instant,
    next_rescan: Instant,
    /// Pause between signs of life for systemd.
    beat: Duration,
    /// What systemd was told last.
    told: String,
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
        let before = baseline(&mut kernel, &options.paths.state).await?;
        let acceptance = Acceptance::open(loader, options.paths.state.clone(), before);
        let now = Instant::now();
        Ok(Self {
            options,
            reconciler: Reconciler::new(kernel),
            acceptance,
            progress: Progress::default(),
            health: Health { running: true, pid: Some(std::process::id()), ..Health::default() },
            next_pass: now,
            not_before: now,
            next_rescan: now + RESCAN,
            beat: sd_notify::watchdog_enabled().map_or(NEVER, |period| period / 2),
            told: String::new(),
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
        let mut clients = control::clients(control::listen(&self.options.paths.socket())?);
        // Subscribe before the first look, so that nothing falls between.
        let mut links = LinkWatch::open().await?;
        let mut files = Watch::new(self.acceptance.loader().paths());
        self.note_watch(&files);
        let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let mut next_beat = Instant::now() + self.beat;

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
                // Before what may come all the time.
                () = sleep_until(next_beat) => {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                    next_beat = Instant::now() + self.beat;
                }
                Some(client) = clients.recv() => if self.serve(client).await { break End::Down },
                () = sleep_until(self.next_pass) => drop(self.pass(None).await),
                event = links.next(), if subscribed => subscribed = self.link_event(&event),
                () = files.changed() => {
                    // Somebody else's file in a watched directory is no change, and must not put off the rescan that
                    // removals wait for.
                    if !self.acceptance.unchanged() {
                        self.reread(Cause::Changed).await;
                    }
                }
                () = sleep_until(self.next_rescan) => {
                    self.next_rescan = Instant::now() + RESCAN;
                    self.rescan(&mut files).await;
                    if !subscribed {
                        subscribed = self.subscribe(&mut links).await;
                    }
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

    /// Subscribes to links again. Returns whether that worked.
    async fn subscribe(&mut self, links: &mut LinkWatch) -> bool {
        match LinkWatch::open().await {
            Ok(anew) => {
                *links = anew;
                // Whatever happened meanwhile.
                self.next_pass = Instant::now();
                true
            }
            Err(error) => {
                tracing::debug!("{error:#}");
                false
            }
        }
    }

    /// Returns whether the subscription goes on.
    fn link_event(&mut self, event: &LinkEvent) -> bool {
        match event {
            LinkEvent::Changed => {}
            LinkEvent::Overrun => {
                self.health.netlink_overruns += 1;
                tracing::warn!("netlink overrun: reading everything anew");
            }
            LinkEvent::Closed => {
                tracing::error!("the netlink subscription ended; trying to subscribe again");
            }
        }
        // Gathered, not answered one by one: a thousand links may be on their way.
        // And a pass that fails may make events of its own, to which the answer mustn't be the next one at once.
        self.next_pass = self.next_pass.min((Instant::now() + LINK_QUIET).max(self.not_before));
        !matches!(event, LinkEvent::Closed)
    }

    /// Looks the directory over: what inotify doesn't show, and the confirmation that removals wait for.
    async fn rescan(&mut self, files: &mut Watch) {
        if files.git_is_writing() {
            return;
        }
        if let Some(cause) = self.acceptance.due() {
            if cause == Cause::Changed {
                // inotify said nothing: it watches something that isn't there any more.
                files.renew();
            }
            self.reread(cause).await;
        }
    }

    async fn reread(&mut self, cause: Cause) -> Option<Report> {
        // Whoever asks, what removals wait for is a full second without a change.
        self.next_rescan = Instant::now() + RESCAN;
        let before = self.acceptance.intent().map(|i| i.desired.clone()).unwrap_or_default();
        if !self.acceptance.read(cause) {
            return None;
        }
        self.pass(Some(&before)).await
    }

    fn note_watch(&mut self, files: &Watch) {
        self.health.watch_overflows = files.overflows();
        self.health.watch_error = files.trouble().map(str::to_owned);
    }

    async fn pass(&mut self, before: Option<&Desired>) -> Option<Report> {
        self.next_pass = Instant::now() + self.options.interval;
        let intent = self.acceptance.intent()?;
        let before = before.unwrap_or(&intent.desired);
        let result = beating(self.beat, self.reconciler.pass(&intent.desired, Some(before))).await;
        if let Some(pause) = self.progress.note(&result) {
            self.next_pass = Instant::now() + pause;
            self.not_before = Instant::now() + pause.min(EVENT_PAUSE_MAX);
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
    async fn serve(&mut self, client: Client) -> bool {
        let (answer, end) = match client.request {
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
            && let Err(error) = self.acceptance.forget()
        {
            tracing::warn!("{error:#}");
        }
        let sent = client.answer(answer);
        if end {
            drop(sent.await);
        }
        end
    }

    async fn serve_apply(&mut self, allow: bool) -> Answer {
        let report = self.reread(Cause::Asked { allow_deletes: allow }).await;
        let held = self.acceptance.intent().map(|i| i.held.clone()).unwrap_or_default();
        if let Some(config_error) = self.acceptance.config_error() {
            return Answer { config_error: Some(config_error.to_owned()), held, ..Answer::default() };
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
        let mut status = read_status(&mut self.reconciler, self.acceptance.intent()).await?;
        let Progress { passes, failed_passes, operations, .. } = self.progress;
        status.daemon = Health { passes, failed_passes, operations, ..self.health.clone() };
        status.config_error = self.acceptance.config_error().map(str::to_owned);
        let unsaved = self.acceptance.unsaved().map(str::to_owned);
        status.errors = unsaved.into_iter().chain(self.progress.errors.iter().cloned()).collect();
        status.in_force &= status.config_error.is_none() && status.errors.is_empty();
        Ok(status)
    }

    fn tell_systemd(&mut self) {
        let line = match (self.acceptance.intent(), self.acceptance.config_error()) {
            (_, Some(error)) => format!("topology not accepted: {}", error.lines().next().unwrap_or("")),
            (None, None) => "waiting for a topology".to_owned(),
            (Some(intent), None) => format!(
                "revision {}, {} mappings, {} held",
                intent.desired.revision,
                intent.desired.mappings.len(),
                intent.held.len()
            ),
        };
        if self.told != line {
            notify(&[sd_notify::NotifyState::Status(&line)]);
            self.told = line;
        }
    }
}

/// Does something that may take long, and tells the watchdog meanwhile that it goes on.
async fn beating<T>(beat: Duration, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            () = tokio::time::sleep(beat) => notify(&[sd_notify::NotifyState::Watchdog]),
        }
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
        delayed: intent.map_or(&nothing, |i| &i.delayed),
        observed: &observed,
        plan: intent.is_some().then_some(&plan),
        traffic: &traffic,
        unknown,
    }))
}
