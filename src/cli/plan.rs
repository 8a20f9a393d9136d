//! `plan`: the difference, shown and not carried out. Against the live state, a snapshot of it, or an earlier revision of
//! the files.

use super::offline::{self, Declared, Found};
use super::show::{self, Guard, Shown, diff, json, markdown, text};
use super::{Exit, Global, fleet, print, print_json, refused};
use crate::model::{Desired, Intent, Observed, Throughput};
use crate::plan::{Input, Plan, declared};
use crate::reconcile::Reconciler;
use crate::reconcile::baseline::baseline;
use crate::reconcile::flow::flows;
use crate::reconcile::intent::{Removals, intend, same_node};
use crate::reconcile::saved::{Saved, accepted};
use crate::topology::{NodeChoice, adopt};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// Exit with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) format: PlanFormat,
    /// Plan with what the deletion guard would hold
    #[arg(long)]
    allow_deletes: bool,
    /// Write the plan to a file, for `apply --plan`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "all_nodes"])]
    out: Option<PathBuf>,
    /// Plan against a snapshot, or a directory of them, instead of this host; `-` is standard input; repeatable
    #[arg(long, value_name = "FILE")]
    pub(super) live: Vec<PathBuf>,
    /// Plan against what an earlier revision of the topology declared; repeatable
    #[arg(long, value_name = "DIR")]
    pub(super) base: Vec<PathBuf>,
    /// Plan for every node, show what it means for each, and check that both ends of every link agree
    #[arg(long)]
    all_nodes: bool,
    /// With --all-nodes: a host whose topology is in a directory of its own; repeatable
    #[arg(long, value_name = "NAME=DIR", requires = "all_nodes", value_parser = fleet::own_topology)]
    pub(super) host: Vec<(String, PathBuf)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PlanFormat {
    Text,
    Json,
    Markdown,
    Diff,
}

/// A plan with everything that it was made from.
pub(super) struct Planned {
    pub(super) intent: Intent,
    pub(super) before: Option<Intent>,
    /// Absent where only declarations were compared.
    pub(super) observed: Option<Observed>,
    pub(super) plan: Plan,
    pub(super) guard: Guard,
    pub(super) flows: BTreeMap<String, Throughput>,
    allow_deletes: bool,
}

/// What a plan is made against, where no kernel is asked.
pub(super) enum Against<'a> {
    /// A host's live state.
    Snapshot(&'a Found),
    /// What was declared before.
    Base(Desired),
    /// Nothing: all of it is new.
    Nothing,
}

impl Planned {
    /// Plans without a kernel.
    pub(super) fn offline(new: impl Into<Arc<Desired>>, against: Against<'_>, allow_deletes: bool) -> Result<Self> {
        let new = new.into();
        let (before, found) = match against {
            Against::Nothing => (None, None),
            Against::Base(desired) => (Some(Intent { desired: desired.into(), ..Intent::default() }), None),
            Against::Snapshot(found) => (accepted_in(found), Some(found)),
        };
        same_node(before.as_ref(), &new, allow_deletes).map_err(refused)?;
        let intent = intend(before.as_ref(), Arc::clone(&new), Removals { allow: allow_deletes, delay: false });
        let guard = Guard::of(before.as_ref(), &new, &intent);
        let known = before.as_ref().map(|b| &*b.desired);
        let nobody = BTreeSet::new();
        let (observed, plan, flows) = match found {
            Some(Found { snapshot, .. }) => {
                let observed = snapshot.observed.clone();
                let input =
                    Input { desired: &intent.desired, observed: &observed, accepted: known, was_pending: &nobody };
                let plan = crate::plan::plan(input);
                let flows = show::flows(&plan, &snapshot.traffic);
                (Some(observed), plan, flows)
            }
            None => {
                let changes = declared::changes(known.unwrap_or(&Desired::default()), &intent.desired);
                (None, Plan { changes, ..Plan::default() }, BTreeMap::new())
            }
        };
        Ok(Self { intent, before, observed, plan, guard, flows, allow_deletes })
    }

    /// Plans against the kernel of this host.
    async fn here(global: &Global, allow_deletes: bool) -> Result<Self> {
        let paths = global.paths();
        let mut loader = global.loader();
        global.accept(loader.load())?;
        let mut kernel = global.live().await?;
        let before = baseline(&mut kernel, &paths.state).await?;
        before.iter().for_each(|a| loader.remember(&a.desired));
        let new = global.accept(loader.load())?;
        same_node(before.as_ref(), &new, allow_deletes).map_err(refused)?;
        let intent = intend(before.as_ref(), Arc::clone(&new), Removals { allow: allow_deletes, delay: false });
        let guard = Guard::of(before.as_ref(), &new, &intent);
        let mut reconciler = Reconciler::new(kernel);
        let known = before.as_ref().map(|b| &*b.desired);
        let (observed, plan) = reconciler.plan(&intent.desired, known).await?;
        // Who changes nothing that carries traffic needn't wait for two looks at the counters.
        let flows = if show::flows(&plan, &BTreeMap::new()).is_empty() {
            BTreeMap::new()
        } else {
            show::flows(&plan, &flows(reconciler.kernel(), &observed).await?)
        };
        Ok(Self { intent, before, observed: Some(observed), plan, guard, flows, allow_deletes })
    }

    pub(super) fn shown<'a>(&'a self, node: Option<&'a str>) -> Shown<'a> {
        Shown {
            node: node.or(self.intent.desired.node.as_deref()),
            desired: &self.intent.desired,
            before: self.before.as_ref().map(|b| &*b.desired),
            observed: self.observed.as_ref(),
            plan: &self.plan,
            guard: &self.guard,
            flows: &self.flows,
        }
    }

    /// Writes it down, in one step.
    fn save(&self, path: &std::path::Path, shown: &Shown<'_>) -> Result<()> {
        #[derive(Serialize)]
        struct File<'a> {
            #[serde(flatten)]
            document: json::Document<'a>,
            saved: Saved,
        }
        let saved = Saved {
            accepted: accepted(self.before.as_ref()),
            allow_deletes: self.allow_deletes,
            intent: self.intent.clone(),
        };
        let text = serde_json::to_vec_pretty(&File { document: json::document(shown), saved })?;
        let what = || format!("write the plan to {}", path.display());
        // A device or a pipe is written to, never replaced.
        if path.exists() && !path.is_file() {
            return std::fs::write(path, text).with_context(what);
        }
        let mut name = path.file_name().with_context(what)?.to_owned();
        name.push(".new");
        let temporary = path.with_file_name(name);
        std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path)).with_context(what)
    }
}

/// What was in force on the host of a snapshot; what is live, where nobody noted it.
fn accepted_in(found: &Found) -> Option<Intent> {
    found.snapshot.accepted.clone().or_else(|| {
        let desired = adopt::adopt(&found.snapshot.observed);
        (!desired.mappings.is_empty()).then(|| Intent { desired: desired.into(), ..Intent::default() })
    })
}

impl PlanArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        if self.all_nodes {
            return fleet::run(self, global, self.allow_deletes, self.detailed_exitcode);
        }
        let planned = match (self.live.is_empty(), self.base.is_empty()) {
            (true, true) => Planned::here(global, self.allow_deletes).await?,
            _ => self.elsewhere(global)?,
        };
        let shown = planned.shown(None);
        if let Some(path) = &self.out {
            planned.save(path, &shown)?;
        }
        match self.format {
            PlanFormat::Json => print_json(&json::document(&shown))?,
            PlanFormat::Text => {
                let page = global.page();
                let mut out = text::plan(&shown, page.paint);
                if let Some(path) = &self.out {
                    out.push_str(&format!(
                        "Saved to {0}; `tunnel-mesh apply --plan {0}` carries it out.\n",
                        path.display()
                    ));
                }
                print(&page.fold(&out))?;
            }
            PlanFormat::Markdown => print(&markdown::plan(&shown, 3))?,
            PlanFormat::Diff => print(&diff::plan(&shown))?,
        }
        Ok(self.exit(!show::nothing(&planned.plan), !planned.intent.held.is_empty()))
    }

    /// Plans for one node without its kernel.
    fn elsewhere(&self, global: &Global) -> Result<Planned> {
        let read = global.accept(Declared::of(&global.topology))?;
        let snapshots = offline::snapshots(&self.live)?;
        let found = match (snapshots.as_slice(), &global.node) {
            ([], _) => None,
            ([one], _) => Some(one),
            (several, Some(node)) => match several.iter().find(|f| f.node() == node.as_str()) {
                None => bail!("none of the {} snapshots is of node {node}", several.len()),
                found => found,
            },
            (several, None) => {
                let nodes: Vec<&str> = several.iter().map(Found::node).collect();
                bail!("there are snapshots of {}: say --node NAME, or --all-nodes", nodes.join(", "))
            }
        };
        let node = match (&global.node, found) {
            (Some(node), _) => NodeChoice::Named(node.clone()),
            (None, Some(found)) => NodeChoice::Host(found.node().to_owned()),
            (None, None) => global.node_choice(),
        };
        let new = global.accept(read.compile(&node))?;
        let base = match self.base.as_slice() {
            [] => None,
            paths => {
                let read = global.accept(Declared::of(paths))?;
                let known = !matches!(&node, NodeChoice::Named(name) if !read.knows(name));
                if known { Some(global.accept(read.compile(&node))?) } else { None }
            }
        };
        let against = match (found, base) {
            (Some(_), Some(_)) => bail!("--live and --base say two different things of one node; leave one out"),
            (Some(found), None) => Against::Snapshot(found),
            (None, Some(base)) => Against::Base(base),
            (None, None) => Against::Nothing,
        };
        Planned::offline(new, against, self.allow_deletes)
    }

    /// The exit code of a plan.
    pub(super) fn exit(&self, changes: bool, held: bool) -> Exit {
        if self.detailed_exitcode && changes {
            Exit::Changes
        } else if held {
            Exit::Held
        } else {
            Exit::Done
        }
    }
}
