//! The daemon: waits for something to happen, then runs the same pass.
//!
//! Events only set flags; a pass reads everything anew that may have changed. So an event that is lost costs time, never
//! truth.

use super::acceptance::{Acceptance, Prepared};
use super::baseline::baseline;
use super::board::{Board, Durations, News};
use super::control::Client;
use super::doors::{Doors, Knock, notify};
use super::expedite::Expedite;
use super::instance::{Lock, Paths};
use super::intent::Cause;
use super::live::LiveKernel;
use super::loader::Loader;
use super::progress::Progress;
use super::status::{Daemon as Health, LastPass, State};
use super::tell::Memory;
use super::{Reconciler, Report};
use crate::files::watch::{Stir, Watch};
use crate::model::{Desired, HookKind, Intent, Moment};
use crate::netlink::{LinkEvent, LinkWatch, UnderlayWatch};
use crate::plan::{Plan, Step};
use anyhow::Result;
use futures::FutureExt;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep_until};

/// How long link events are gathered before a pass.
const LINK_QUIET: Duration = Duration::from_millis(2);
/// How long changes of rules, policies and chains are gathered before a pass: whoever loads a firewall makes many.
const UNDERLAY_QUIET: Duration = Duration::from_millis(50);
/// Shortest time between two passes that such changes ask for: some firewalls are rewritten all the time.
const UNDERLAY_PAUSE: Duration = Duration::from_secs(1);
/// Longest that link events wait after a failed pass.
const EVENT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the directory is looked over, whatever inotify says.
const RESCAN: Duration = Duration::from_secs(1);
/// How often the counters are looked at for rates, while nobody asks.
const LOOK: Duration = Duration::from_secs(10);
/// Every how many passes links are listed, although the kernel tells when they change.
const LISTED: u64 = 8;

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
    /// Where it puts up how it is.
    pub board: Arc<Board>,
}

/// A running daemon.
pub struct Daemon {
    pub(super) paths: Paths,
    pub(super) hook: Option<HookKind>,
    interval: Duration,
    pub(super) reconciler: Reconciler<LiveKernel>,
    pub(super) acceptance: Acceptance,
    pub(super) progress: Progress,
    pub(super) health: Health,
    pub(super) memory: Memory,
    board: Arc<Board>,
    durations: Durations,
    accepted_at: Option<Moment>,
    states: BTreeMap<State, u64>,
    pub(super) doors: Doors,
    /// Requests that came in the middle of a pass.
    pub(super) waiting: VecDeque<Client>,
    /// Whether SIGHUP came.
    pub(super) hangup: bool,
    /// Whether SIGTERM or SIGINT came.
    pub(super) ending: bool,
    /// What is accepted next if nothing else happens before, and the plan for it.
    ahead: Option<Ahead>,
    next_pass: Instant,
    /// A pass that failed isn't followed by the next one before, whatever happens.
    not_before: Instant,
    /// Nor is there a pass before for the sake of rules, policies and chains.
    not_before_underlay: Instant,
    next_rescan: Instant,
    /// What systemd was told last.
    told: String,
    _lock: Lock,
}

/// A pass that was worked out ahead.
struct Ahead {
    prepared: Prepared,
    /// Whether it takes a mapping away.
    removes: bool,
    plan: Plan,
}

/// Why the loop ends.
enum End {
    Signal,
    Down,
}

impl Daemon {
    /// Takes the lock, opens the kernel and the control socket, and reads the state accepted before.
    ///
    /// # Errors
    ///
    /// When another writer runs, privileges are missing, or the pins belong elsewhere.
    pub async fn start(options: Options, loader: Loader) -> Result<Self> {
        let Options { paths, hook, interval, expedite, board } = options;
        let lock = Lock::take(&paths.pins)?;
        let mut kernel = LiveKernel::open(&paths.pins, hook).await?;
        kernel.expedite(expedite);
        kernel.recover().await?;
        let before = baseline(&mut kernel, &paths.state).await?;
        let acceptance = Acceptance::open(loader, paths.state.clone(), before);
        let now = Instant::now();
        Ok(Self {
            doors: Doors::open(&paths, Arc::clone(&board))?,
            memory: Memory::open(&paths.state),
            board,
            durations: Durations::default(),
            accepted_at: None,
            states: BTreeMap::new(),
            paths,
            hook,
            interval,
            reconciler: Reconciler::new(kernel),
            acceptance,
            progress: Progress::default(),
            health: Health {
                running: true,
                pid: Some(std::process::id()),
                started: Some(SystemTime::now().into()),
                ..Health::default()
            },
            waiting: VecDeque::new(),
            hangup: false,
            ending: false,
            ahead: None,
            next_pass: now,
            not_before: now,
            not_before_underlay: now,
            next_rescan: now + RESCAN,
            told: String::new(),
            _lock: lock,
        })
    }

    /// Runs until a signal or a `down` request. The data plane stays in force after a signal.
    ///
    /// # Errors
    ///
    /// When the watch or the subscription can't be opened.
    pub async fn run(mut self) -> Result<()> {
        // Subscribe before the first look, so that nothing falls between.
        let mut links = LinkWatch::open().await?;
        let mut underlay = UnderlayWatch::open().await;
        self.reconciler.kernel().keep_surroundings();
        let mut files = Watch::new(self.acceptance.loader().paths());
        self.note_watch(&files);
        self.reread_or_pass().await;
        self.look();
        notify(&[sd_notify::NotifyState::Ready]);
        crate::bpf::trim_heap();

        let mut subscribed = true;
        let end = loop {
            if self.ending {
                break End::Signal;
            }
            if let Some(client) = self.waiting.pop_front() {
                if self.serve(client).await {
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
            self.tell_board();
            tokio::select! {
                biased;
                knock = self.doors.next() => match knock {
                    Knock::Terminate => self.ending = true,
                    Knock::Hangup => self.hangup = true,
                    Knock::Client(client) => self.waiting.push_back(client),
                },
                () = sleep_until(self.next_pass) => self.usual_pass(subscribed).await,
                event = links.next(), if subscribed => subscribed = self.link_event(&event),
                () = underlay.changed() => self.underlay_event(),
                stir = files.changed() => {
                    // What came in meanwhile counts for this pass already.
                    while subscribed && let Some(event) = links.next().now_or_never() {
                        subscribed = self.link_event(&event);
                    }
                    match stir {
                        Stir::Calm => self.prepare().await,
                        Stir::Quiet => self.files_changed().await,
                    }
                }
                () = sleep_until(self.next_rescan) => {
                    self.next_rescan = Instant::now() + RESCAN;
                    self.rescan(&mut files).await;
                    self.store_history();
                    if !subscribed {
                        subscribed = self.subscribe(&mut links).await;
                    }
                }
            }
            self.note_watch(&files);
        };
        notify(&[sd_notify::NotifyState::Stopping]);
        if matches!(end, End::Signal)
            && let Some(history) = self.memory.history.unsaved()
            && let Err(error) = history.store(&self.paths.state)
        {
            tracing::warn!("{error:#}");
        }
        if let Err(error) = std::fs::remove_file(self.paths.socket()) {
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
                self.reconciler.kernel().look_anew();
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
        self.reconciler.kernel().look_anew();
        self.ahead = None;
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

    /// Something changed that decides which lane packets take.
    fn underlay_event(&mut self) {
        self.reconciler.kernel().look_at_underlay();
        self.ahead = None;
        let soonest = (Instant::now() + UNDERLAY_QUIET).max(self.not_before).max(self.not_before_underlay);
        if soonest < self.next_pass {
            self.next_pass = soonest;
            self.not_before_underlay = soonest + UNDERLAY_PAUSE;
        }
    }

    /// Works out what a change means while it is waited for that no other follows.
    async fn prepare(&mut self) {
        self.ahead = None;
        let Some(prepared) = self.acceptance.prepare() else { return };
        let before = prepared.before.clone().unwrap_or_default();
        match self.reconciler.plan_ahead(&prepared.intent.desired, Some(&before.desired)).await {
            Ok(plan) => {
                let removes = removes(&before, &prepared.intent);
                self.ahead = Some(Ahead { prepared, removes, plan });
            }
            Err(error) => tracing::debug!("plan ahead: {error:#}"),
        }
    }

    async fn files_changed(&mut self) {
        if let Some(Ahead { prepared, removes, plan }) = self.ahead.take()
            && self.acceptance.accept_prepared(&prepared)
        {
            self.next_rescan = Instant::now() + RESCAN;
            self.accepted_at = Some(SystemTime::now().into());
            self.accepted(Some(plan), prepared.before, removes).await;
        } else if !self.acceptance.unchanged() {
            // Somebody else's file in a watched directory is no change, and must not put off the rescan that removals
            // wait for.
            self.reread(Cause::Changed).await;
        }
    }

    /// Looks the directory over: what inotify doesn't show, and the confirmation that removals wait for.
    async fn rescan(&mut self, files: &mut Watch) {
        if files.git_is_writing() || (self.acceptance.is_at_rest() && files.vouches()) {
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

    /// Reads the files and makes a pass; with what was accepted before, which stays in force, where they are broken.
    async fn reread_or_pass(&mut self) {
        self.reconciler.kernel().look_anew();
        if self.reread(Cause::Changed).await.is_none() && !self.interrupted() {
            self.pass(None).await;
        }
    }

    pub(super) async fn reread(&mut self, cause: Cause) -> Option<Report> {
        // Whoever asks, what removals wait for is a full second without a change.
        self.next_rescan = Instant::now() + RESCAN;
        let before = self.acceptance.shared_intent();
        if !self.acceptance.accept(cause) {
            return None;
        }
        self.accepted_at = Some(SystemTime::now().into());
        let after = self.acceptance.shared_intent();
        let removes = before.as_deref().zip(after.as_deref()).is_some_and(|(before, after)| removes(before, after));
        self.accepted(None, before, removes).await
    }

    /// Brings what was just accepted into force, and puts it on disk.
    pub(super) async fn accepted(
        &mut self,
        ahead: Option<Plan>,
        before: Option<Arc<Intent>>,
        removes: bool,
    ) -> Option<Report> {
        let intent = self.acceptance.shared_intent()?;
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, &intent)) {
            return self.pass_from(ahead, Some(&intent.desired)).await;
        }
        let before = before.unwrap_or_default();
        // The state is stored beside the pass, on another thread; but a removal must be on disk before it is carried out,
        // or a crash in between would bring the mapping back for a while.
        let mut store = self.acceptance.begin_save()?;
        let early = if removes { Some((&mut store).await) } else { None };
        let report = self.pass_from(ahead, Some(&before.desired)).await;
        let stored = match early {
            Some(stored) => stored,
            None => store.await,
        };
        self.acceptance.end_save(stored);
        report
    }

    /// Stores when mappings were changed, on another thread, where that is new.
    fn store_history(&mut self) {
        let Some(history) = self.memory.history.unsaved() else { return };
        let state = self.paths.state.clone();
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = history.store(&state) {
                tracing::warn!("{error:#}");
            }
        }));
    }

    fn note_watch(&mut self, files: &Watch) {
        self.health.watch_overflows = files.overflows();
        self.health.watch_error = files.trouble().map(str::to_owned);
    }

    /// The pass that comes from time to time, or after link events.
    async fn usual_pass(&mut self, subscribed: bool) {
        // Links are told of; now and then they are listed all the same.
        if self.progress.passes.is_multiple_of(LISTED) || !self.progress.errors.is_empty() || !subscribed {
            self.reconciler.kernel().look_anew();
        } else {
            self.reconciler.kernel().look_at_hooks();
        }
        self.pass(None).await;
        self.look();
        crate::bpf::trim_heap();
    }

    /// Looks at the counters for rates, unless that was a while ago only.
    fn look(&mut self) {
        let now = self.memory.now();
        if self.memory.looks.is_due(now, LOOK)
            && let Ok(traffic) = self.reconciler.kernel().traffic()
        {
            self.memory.looks.look(now, &traffic);
        }
    }

    async fn pass(&mut self, before: Option<&Desired>) -> Option<Report> {
        self.pass_from(None, before).await
    }

    async fn pass_from(&mut self, ahead: Option<Plan>, before: Option<&Desired>) -> Option<Report> {
        self.ahead = None;
        self.next_pass = Instant::now() + self.interval;
        let intent = self.acceptance.shared_intent()?;
        let began = Instant::now();
        let result = self.attended_pass(ahead, &intent, before.unwrap_or(&intent.desired)).await?;
        self.note_pass(began, &result, &intent);
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

    fn note_pass(&mut self, began: Instant, result: &Result<Report>, intent: &Intent) {
        let at = Moment::from(SystemTime::now());
        self.health.last_pass = Some(LastPass {
            at,
            milliseconds: began.elapsed().as_millis() as u64,
            operations: result.as_ref().map_or(0, |report| report.operations as u64),
            good: result.as_ref().is_ok_and(Report::converged),
        });
        self.durations.note(began.elapsed());
        let Ok(report) = result else { return };
        self.states = self.reconciler.states(intent, report);
        self.memory.history.note(report, &intent.desired, at);
        let reset = |step: &Step| if let Step::ResetCounters { slot } = step { Some(*slot) } else { None };
        self.memory.looks.forget(&report.plan.operations.iter().filter_map(|o| reset(&o.step)).collect());
    }

    fn tell_board(&self) {
        self.board.put(News {
            health: self.health.clone(),
            progress: self.progress.clone(),
            durations: self.durations,
            intent: self.acceptance.shared_intent(),
            config_error: self.acceptance.config_error().map(str::to_owned),
            accepted_at: self.accepted_at,
            files: self.acceptance.loader().files(),
            unsaved: self.acceptance.unsaved().is_some(),
            states: self.states.clone(),
        });
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

/// Whether a mapping goes.
pub(super) fn removes(before: &Intent, after: &Intent) -> bool {
    before.desired.mappings_not_in(&after.desired).next().is_some()
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
