//! `apply`: one pass, by the daemon where one runs.

use super::show::{plan_text, summary};
use super::{Attaching, Exit, Format, Global, exit::Told, paint::Paint, print, print_json, refused, tell};
use crate::files::accepted::Accepted;
use crate::reconcile::baseline::baseline;
use crate::reconcile::control::{Answer, Request, ask};
use crate::reconcile::history::History;
use crate::reconcile::instance::Lock;
use crate::reconcile::intent::{Removals, intend, same_node};
use crate::reconcile::live::LiveKernel;
use crate::reconcile::{Reconciler, Report};
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::SystemTime;

#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    /// Carry out deletions that the guard would hold
    #[arg(long)]
    allow_deletes: bool,
    #[command(flatten)]
    attaching: Attaching,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Output<'a> {
    format_version: u32,
    held: &'a BTreeSet<String>,
    #[serde(flatten)]
    report: &'a Report,
}

impl ApplyArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let request = Request::Apply { allow_deletes: self.allow_deletes };
        if let Some(answer) = ask(&global.paths().socket(), &request).await? {
            return self.finish(global, answer);
        }
        self.apply(global).await
    }

    fn finish(&self, global: &Global, answer: Answer) -> Result<Exit> {
        if let Some(error) = answer.config_error {
            tell(&error);
            return Err(Told(Exit::Invalid).into());
        }
        match (answer.report, answer.error) {
            (Some(report), _) => self.tell(global, &report, &answer.held),
            (None, Some(error)) if error.contains("Operation not permitted") => {
                tell(&format!("error: the daemon failed: {error}"));
                Err(Told(Exit::Denied).into())
            }
            (None, Some(error)) => bail!("the daemon failed: {error}"),
            (None, None) => bail!("the daemon made no pass"),
        }
    }

    async fn apply(&self, global: &Global) -> Result<Exit> {
        let paths = global.paths();
        let mut loader = global.loader();
        global.accept(loader.load())?;
        let _lock = Lock::take(&paths.pins)?;
        let mut kernel = LiveKernel::open(&paths.pins, global.hook()).await?;
        let expedite = self.attaching.expedite(&paths);
        kernel.expedite(expedite);
        kernel.recover().await?;
        let accepted = baseline(&mut kernel, &paths.state).await?;
        accepted.iter().for_each(|a| loader.remember(&a.desired));
        // Again under the lock, which costs nothing: of two at a time the later reading must win.
        let new = global.accept(loader.load())?;
        same_node(accepted.as_ref(), &new, self.allow_deletes).map_err(refused)?;
        let before = accepted.as_ref().map(|a| &a.desired);
        let intent = intend(accepted.as_ref(), new, Removals { allow: self.allow_deletes, delay: false });
        Accepted::store(&paths.state, &intent)?;
        let report = Reconciler::new(kernel).pass(&intent.desired, before).await?;
        let mut history = History::load(&paths.state);
        history.note(&report, &intent.desired, SystemTime::now().into());
        if let Some(Err(error)) = history.unsaved().map(|history| history.store(&paths.state)) {
            tracing::warn!("{error:#}");
        }
        for directory in [&paths.pins, &paths.state] {
            crate::private::give_to_owner(directory)?;
        }
        self.tell(global, &report, &intent.held)
    }

    fn tell(&self, global: &Global, report: &Report, held: &BTreeSet<String>) -> Result<Exit> {
        match self.format {
            Format::Json => {
                let output = Output { format_version: crate::plan::FORMAT_VERSION, held, report };
                print_json(&output)?;
            }
            Format::Text => {
                let paint = Paint(global.colored(std::io::stdout().is_terminal()));
                let mut text = plan_text(&report.plan, paint);
                if report.changed {
                    text.push_str(&format!("Applied: {}.\n", summary(&report.plan)));
                }
                if !held.is_empty() {
                    text.push_str(&format!("Held: {} deletions ({}).\n", held.len(), list(held)));
                }
                print(&text)?;
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

/// The first few names.
pub(super) fn list(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 10;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
