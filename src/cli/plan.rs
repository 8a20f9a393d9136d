//! `plan`: the difference, shown and not carried out.

use super::apply::list;
use super::show::{plan_text, summary};
use super::{Exit, Format, Global, paint::Paint, print, print_json, refused};
use crate::model::Intent;
use crate::plan::{FORMAT_VERSION, Plan};
use crate::reconcile::Reconciler;
use crate::reconcile::baseline::baseline;
use crate::reconcile::intent::{Removals, intend, same_node};
use crate::reconcile::live::LiveKernel;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::IsTerminal;

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// Exit with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// The plan's JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    format_version: u32,
    revision: &'a str,
    /// Fingerprint of the live state the plan was made from.
    live: String,
    #[serde(flatten)]
    plan: &'a Plan,
    summary: Summary,
    guard: Guard<'a>,
}

#[derive(Debug, Serialize)]
struct Summary {
    create: usize,
    update: usize,
    delete: usize,
    pending: usize,
    operations: usize,
}

#[derive(Debug, Serialize)]
struct Guard<'a> {
    held: &'a BTreeSet<String>,
}

impl PlanArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let paths = global.paths();
        let mut loader = global.loader();
        global.accept(loader.load())?;
        let mut kernel = LiveKernel::open(&paths.pins, global.hook()).await?;
        let accepted = baseline(&mut kernel, &paths.state).await?;
        accepted.iter().for_each(|a| loader.remember(&a.desired));
        let new = global.accept(loader.load())?;
        let before = accepted.as_ref().map(|a| &*a.desired);
        same_node(accepted.as_ref(), &new, false).map_err(refused)?;
        let intent = intend(accepted.as_ref(), new, Removals::default());
        let (observed, plan) = Reconciler::new(kernel).plan(&intent.desired, before).await?;
        match self.format {
            Format::Json => print_json(&output(&intent, &plan, crate::reconcile::fingerprint(&observed)))?,
            Format::Text => print(&text(&intent, &plan, Paint(global.colored(std::io::stdout().is_terminal()))))?,
        }
        Ok(if self.detailed_exitcode && !plan.is_empty() {
            Exit::Changes
        } else if !intent.held.is_empty() {
            Exit::Held
        } else {
            Exit::Done
        })
    }
}

fn output<'a>(intent: &'a Intent, plan: &'a Plan, live: String) -> Output<'a> {
    use crate::plan::ChangeAction::{Create, Delete, Update};
    let count = |action| plan.changes.iter().filter(|c| c.action == action).count();
    Output {
        format_version: FORMAT_VERSION,
        revision: &intent.desired.revision,
        live,
        plan,
        summary: Summary {
            create: count(Create),
            update: count(Update),
            delete: count(Delete),
            pending: plan.pending.len(),
            operations: plan.operations.len(),
        },
        guard: Guard { held: &intent.held },
    }
}

fn text(intent: &Intent, plan: &Plan, paint: Paint) -> String {
    let mut out = plan_text(plan, paint);
    if !intent.held.is_empty() {
        out.push_str(&format!(
            "{} the files remove {} mappings at once, which the deletion guard holds: {}.\n  They stay in force until \
             `tunnel-mesh apply --allow-deletes`.\n",
            paint.yellow("Held:"),
            intent.held.len(),
            list(&intent.held)
        ));
    }
    if !plan.is_empty() {
        out.push_str(&format!("Plan: {}.\n", summary(plan)));
    }
    out
}
