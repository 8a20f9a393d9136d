//! `apply`: one pass, by the daemon where one runs. With a saved plan: exactly that plan, or nothing.

use super::progress::watched;
use super::show::{self, Guard, Shown, Summary, text};
use super::{Attaching, Exit, Format, Global, exit::Told, offline, paint::Paint, print, print_json, refused, tell};
use crate::files::accepted::Accepted;
use crate::model::{Desired, Intent};
use crate::reconcile::baseline::baseline;
use crate::reconcile::control::{Answer, Request, ask};
use crate::reconcile::history::History;
use crate::reconcile::instance::Lock;
use crate::reconcile::intent::{Removals, intend, same_node};
use crate::reconcile::live::LiveKernel;
use crate::reconcile::meter::Meter;
use crate::reconcile::saved::{Expected, SavedPlan, Stale};
use crate::reconcile::{Reconciler, Report};
use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    /// Carry out deletions that the guard would hold
    #[arg(long)]
    allow_deletes: bool,
    /// Carry out exactly the plan in this file, of `plan --out`; refused when the live state has moved on since
    #[arg(long, value_name = "FILE", conflicts_with = "allow_deletes")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    attaching: Attaching,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Output<'a> {
    format_version: u32,
    /// Hash of the content of the topology files.
    revision: &'a str,
    held: &'a BTreeSet<String>,
    #[serde(flatten)]
    report: &'a Report,
}

impl ApplyArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let saved = self.plan.as_deref().map(|path| {
            let parsed = SavedPlan::parse(&offline::bytes(path)?);
            parsed.map_err(|why| anyhow!("{}: {why}", path.display()))
        });
        let saved = saved.transpose()?;
        let request = Request::Apply {
            allow_deletes: saved.as_ref().map_or(self.allow_deletes, |s| s.saved.allow_deletes),
            plan: saved.as_ref().map(SavedPlan::expected),
        };
        let socket = global.paths().socket();
        let waiting = || "waiting for the daemon's pass".to_owned();
        if let Some(answer) = watched(global, ask(&socket, &request), waiting).await? {
            return self.finish(global, answer);
        }
        match saved {
            Some(saved) => self.carry_out(global, &saved).await,
            None => self.apply(global).await,
        }
    }

    fn finish(&self, global: &Global, answer: Answer) -> Result<Exit> {
        if let Some(why) = answer.stale {
            return Err(Stale(why).into());
        }
        if let Some(error) = answer.config_error {
            tell(&error);
            return Err(Told(Exit::Invalid).into());
        }
        match (answer.report, answer.error) {
            (Some(report), _) => {
                // For the words only: the daemon has just stored it.
                let accepted = Accepted::load(&global.paths().state).ok().flatten().unwrap_or_default();
                self.tell(global, &report, &Intent { held: answer.held, ..accepted })
            }
            (None, Some(error)) if error.contains("Operation not permitted") => {
                tell(&format!("error: the daemon failed: {error}"));
                Err(Told(Exit::Denied).into())
            }
            (None, Some(error)) => bail!("the daemon failed: {error}"),
            (None, None) => bail!("the daemon made no pass"),
        }
    }

    /// Opens the kernel as the only writer.
    async fn open(&self, global: &Global, meter: &Meter) -> Result<(Lock, LiveKernel)> {
        let paths = global.paths();
        paths.check_pins()?;
        let lock = Lock::take(&paths.pins)?;
        let mut kernel = LiveKernel::open(&paths.pins, global.hook()).await?;
        kernel.expedite(self.attaching.expedite(&paths));
        kernel.measure(meter.clone());
        kernel.recover().await?;
        Ok((lock, kernel))
    }

    async fn apply(&self, global: &Global) -> Result<Exit> {
        let paths = global.paths();
        let mut loader = global.loader();
        global.accept(loader.load())?;
        let meter = Meter::default();
        let (_lock, mut kernel) = self.open(global, &meter).await?;
        let accepted = baseline(&mut kernel, &paths.state).await?;
        accepted.iter().for_each(|a| loader.remember(&a.desired));
        // Again under the lock, which costs nothing: of two at a time the later reading must win.
        let new = global.accept(loader.load())?;
        same_node(accepted.as_ref(), &new, self.allow_deletes).map_err(refused)?;
        let before = accepted.as_ref().map(|a| &*a.desired);
        let intent = intend(accepted.as_ref(), new, Removals { allow: self.allow_deletes, delay: false });
        Accepted::store(&paths.state, &intent)?;
        let mut reconciler = Reconciler::new(kernel);
        reconciler.measure(meter.clone());
        let report = watched(global, reconciler.pass(&intent.desired, before), || said(&meter)).await?;
        self.done(global, &report, &intent)
    }

    /// Carries a saved plan out, if it is the plan that would be made now.
    async fn carry_out(&self, global: &Global, saved: &SavedPlan) -> Result<Exit> {
        let paths = global.paths();
        let meter = Meter::default();
        let (_lock, mut kernel) = self.open(global, &meter).await?;
        let accepted = baseline(&mut kernel, &paths.state).await?;
        let before = accepted.as_ref().map(|a| &*a.desired);
        let intent = &saved.saved.intent;
        let mut reconciler = Reconciler::new(kernel);
        reconciler.measure(meter.clone());
        let (observed, plan) = reconciler.plan(&intent.desired, before).await?;
        let now = Expected::now(accepted.as_ref(), &intent.desired, &observed, &plan);
        saved.expected().check(&now).map_err(|stale| {
            let moved = saved.differences(&plan);
            if moved.is_empty() { stale } else { Stale(format!("{} ({})", stale.0, show::list(&moved))) }
        })?;
        Accepted::store(&paths.state, intent)?;
        let pass = reconciler.pass_from(Some(plan), &intent.desired, before);
        let report = watched(global, pass, || said(&meter)).await?;
        self.done(global, &report, intent)
    }

    fn done(&self, global: &Global, report: &Report, intent: &Intent) -> Result<Exit> {
        let paths = global.paths();
        let mut history = History::load(&paths.state);
        history.note(report, &intent.desired, SystemTime::now().into());
        if let Some(Err(error)) = history.unsaved().map(|history| history.store(&paths.state)) {
            tracing::warn!("{error:#}");
        }
        for directory in [&paths.pins, &paths.state] {
            crate::private::give_to_owner(directory).context("hand over what was made")?;
        }
        self.tell(global, report, intent)
    }

    fn tell(&self, global: &Global, report: &Report, intent: &Intent) -> Result<Exit> {
        let Intent { desired, held, .. } = intent;
        match self.format {
            Format::Json => {
                let revision = &desired.revision;
                print_json(&Output { format_version: crate::plan::FORMAT_VERSION, revision, held, report })?;
            }
            Format::Text => {
                let page = global.page();
                print(&page.fold(&told(report, desired, held, page.paint)))?;
            }
        }
        for (change, error) in &report.failures {
            tell(&format!("error: {change}: {error}"));
        }
        for problem in &report.plan.problems {
            tell(&format!("error: {}: {}", problem.address, problem.what));
        }
        Ok(if report.failures.iter().any(|(_, e)| e.contains("Operation not permitted")) && !report.changed {
            Exit::Denied
        } else if !report.converged() || !report.plan.problems.is_empty() {
            if report.changed || report.converged() { Exit::Partly } else { Exit::Failed }
        } else if !held.is_empty() {
            Exit::Held
        } else {
            Exit::Done
        })
    }
}

/// What was done, and what wasn't.
fn told(report: &Report, desired: &Desired, held: &BTreeSet<String>, paint: Paint) -> String {
    let guard = Guard { verdict: show::Verdict::Nothing, removed: 0, of: 0, held: held.clone() };
    let flows = BTreeMap::new();
    let shown =
        Shown { node: None, desired, before: None, observed: None, plan: &report.plan, guard: &guard, flows: &flows };
    let mut out = text::changes(&shown, paint);
    if show::nothing(&report.plan) {
        out.push_str("No changes.\n");
    } else if report.converged() {
        out.push_str(&format!("{} {}.\n", paint.green("Applied:"), Summary::of(&report.plan)));
    } else {
        out.push_str(&format!(
            "{} {} operations done, {} left: {}.\n",
            paint.yellow("Partly applied:"),
            report.operations,
            report.left,
            Summary::of(&report.plan)
        ));
    }
    if !held.is_empty() {
        out.push_str(&format!(
            "{} {} deletions ({}); `tunnel-mesh apply --allow-deletes` releases them.\n",
            paint.yellow("Held:"),
            held.len(),
            show::list(held)
        ));
    }
    out
}

/// How far it is.
fn said(meter: &Meter) -> String {
    let (done, of, doing) = meter.read();
    if of == 0 { "reading the live state".to_owned() } else { format!("{doing}: {done} of {of} operations") }
}
