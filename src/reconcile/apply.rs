//! Executes a plan: groups its operations into batches, in order, and says what happened to each change.
//!
//! The rule: a plan is safe after any prefix, so a failure of the maps stops the pass there. A failure that concerns
//! one device or hook freezes only the rest of *its* change; everything else goes on. But a program that could not be put
//! in the place of one that runs on other maps stops the pass, too, while there is something to be written: it would go
//! on with what it knows, however far the topology moves on.

use super::kernel::{Batch, Hook, Kernel};
use super::meter::Meter;
use crate::model::*;
use crate::plan::{DATA_PLANE, LinkEdit, LinkRef, Operation, Plan, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Most operations that travel in one batch.
const BATCH_MAX: usize = 4096;

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Operations carried out.
    pub done: usize,
    /// What failed: address of the change, operation and error.
    pub failures: Vec<Failure>,
    /// Whether slots or tunnel indexes were released, so that a grace period must pass before they are used again.
    pub released: bool,
}

/// A change that could not be carried out in full.
#[derive(Debug)]
pub struct Failure {
    /// Address of the change.
    pub change: String,
    /// What failed, and why.
    pub error: anyhow::Error,
    /// Whether the link merely vanished between two calls: the next pass settles it.
    pub vanished: bool,
}

struct Run {
    /// Devices made by this plan.
    made: BTreeMap<String, u32>,
    frozen: BTreeSet<String>,
    applied: Applied,
}

/// Carries out the operations in order.
pub async fn apply<K: Kernel>(kernel: &mut K, plan: &Plan) -> Applied {
    apply_measured(kernel, plan, &Meter::default()).await
}

/// As [`apply`], for somebody who watches the meter.
pub async fn apply_measured<K: Kernel>(kernel: &mut K, plan: &Plan, meter: &Meter) -> Applied {
    meter.begin(plan.operations.len());
    let mut run = Run { made: BTreeMap::new(), frozen: BTreeSet::new(), applied: Applied::default() };
    let mut rest = plan.operations.as_slice();
    while !rest.is_empty() {
        let length = run_length(rest);
        let (group, tail) = rest.split_at(length);
        meter.reach(plan.operations.len() - rest.len(), group.first().map_or("", |o| doing(&o.step)));
        rest = tail;
        if !execute_group(kernel, &mut run, group, rest).await {
            tracing::warn!(left = rest.len(), "the rest of the plan waits for the next pass");
            break;
        }
    }
    run.applied
}

/// What an operation does, for people.
fn doing(step: &Step) -> &'static str {
    match step {
        Step::CreateMaps { .. } | Step::GrowMaps { .. } => "making maps",
        Step::LoadProgram { .. } | Step::UnloadProgram { .. } => "loading programs",
        Step::CreateLink { .. } | Step::ChangeLink { .. } => "making devices",
        Step::DeleteLink { .. } => "deleting devices",
        Step::Attach { .. } => "attaching programs",
        Step::Detach { .. } => "detaching programs",
        _ => "writing maps",
    }
}

/// How many of the next operations go into one batch.
fn run_length(operations: &[Operation]) -> usize {
    let Some(first) = operations.first() else { return 0 };
    if !batches(&first.step) {
        return 1;
    }
    let kind = std::mem::discriminant(&first.step);
    operations.iter().take(BATCH_MAX).take_while(|o| std::mem::discriminant(&o.step) == kind).count()
}

/// The link without which an operation can't be carried out.
fn needs(step: &Step) -> Option<&LinkRef> {
    match step {
        Step::ChangeLink { link, .. }
        | Step::DeleteLink { link }
        | Step::SetDev { link, .. }
        | Step::SetIf { link, .. }
        | Step::DeleteIf { link, .. }
        | Step::Attach { link, .. }
        | Step::Detach { link, .. } => Some(link),
        _ => None,
    }
}

fn batches(step: &Step) -> bool {
    matches!(
        step,
        Step::DeleteLink { .. }
            | Step::ResetCounters { .. }
            | Step::SetConf { .. }
            | Step::ClearConf { .. }
            | Step::SetDev { .. }
            | Step::ClearDev { .. }
            | Step::SetTunkey { .. }
            | Step::DeleteTunkey { .. }
            | Step::SetIf { .. }
            | Step::DeleteIf { .. }
            | Step::Attach { .. }
    )
}

/// Whether an operation writes a map that programs read.
fn writes_map(step: &Step) -> bool {
    batches(step) && !matches!(step, Step::DeleteLink { .. } | Step::ResetCounters { .. } | Step::Attach { .. })
}

/// Returns whether the pass may go on with the rest.
async fn execute_group<K: Kernel>(kernel: &mut K, run: &mut Run, group: &[Operation], rest: &[Operation]) -> bool {
    // A link that is missing was to be made by an operation that failed, which has said so; what needs it is left out.
    let unresolved = group.iter().filter(|o| !run.frozen.contains(&o.change));
    let unresolved = unresolved.filter(|o| needs(&o.step).is_some_and(|l| l.resolve(&run.made).is_none()));
    let unresolved: Vec<String> = unresolved.map(|o| o.change.clone()).collect();
    run.frozen.extend(unresolved);
    // A tunnel keeps its index even where its device could not be made. Written once: a pass that can only fail again
    // changes nothing. And what nobody wants stops, whatever else could not be done: it must not come back to life with
    // its tunnel.
    let goes_on = |o: &&Operation| {
        let always = matches!(
            o.step,
            Step::SetConf { without_device: true, .. } | Step::DeleteIf { .. } | Step::DeleteTunkey { .. }
        );
        always || !run.frozen.contains(&o.change)
    };
    let live: Vec<&Operation> = group.iter().filter(goes_on).collect();
    let Some(first) = live.first() else { return true };
    let batch = match resolve(&live, &run.made) {
        Ok(batch) => batch,
        Err(error) => {
            tracing::debug!(change = %first.change, "{error:#}");
            run.frozen.insert(first.change.clone());
            return true;
        }
    };
    let writes_follow = || rest.iter().any(|o| writes_map(&o.step));
    let result = kernel.execute(&batch).await;
    // A batch that failed may have been carried out in part.
    run.applied.released |= releases(&batch);
    match result {
        Ok(outcome) => {
            run.applied.done += live.len() - outcome.gone.len() - outcome.failed.len();
            if let (Batch::CreateLink(link), Some(ifindex)) = (&batch, outcome.ifindex) {
                run.made.insert(link.name().to_owned(), ifindex);
            }
            for (place, error) in outcome.gone {
                if let Some(operation) = live.get(place) {
                    run.fail(&operation.change, error, true);
                }
            }
            let mut goes_on = true;
            for (place, error) in outcome.failed {
                if let Some(operation) = live.get(place) {
                    let vanished = super::is_gone(&error);
                    goes_on &= vanished || !writes_follow();
                    run.fail(&operation.change, error, vanished);
                }
            }
            goes_on
        }
        Err(error) => {
            let vanished = super::is_gone(&error);
            // What stands on a link that could not be deleted stays, too.
            run.frozen.extend(live.iter().map(|o| o.change.clone()).filter(|change| change != DATA_PLANE));
            let goes_on = match &first.step {
                Step::CreateLink { .. } | Step::ChangeLink { .. } | Step::DeleteLink { .. } => true,
                // Nothing passes a link that is gone.
                Step::Attach { .. } | Step::Detach { .. } => vanished || !writes_follow(),
                _ => false,
            };
            run.fail(&first.change, error, vanished);
            goes_on
        }
    }
}

impl Run {
    fn fail(&mut self, change: &str, error: anyhow::Error, vanished: bool) {
        // The data plane as a whole doesn't wait for one link that is gone.
        if !(vanished && change == DATA_PLANE) {
            self.frozen.insert(change.to_owned());
        }
        self.applied.failures.push(Failure { change: change.to_owned(), error, vanished });
    }
}

fn releases(batch: &Batch) -> bool {
    matches!(
        batch,
        Batch::ClearConf(_)
            | Batch::ClearDevs(_)
            | Batch::DeleteTunkeys(_)
            | Batch::DeleteIfs(_)
            | Batch::SetTunkeys(_)
            | Batch::SetIfs(_)
    )
}

/// Whether a plan gives a slot or a tunnel index to somebody new.
pub fn claims(plan: &Plan) -> bool {
    plan.operations.iter().any(|o| matches!(o.step, Step::ResetCounters { .. } | Step::SetConf { .. }))
}

fn resolve(group: &[&Operation], made: &BTreeMap<String, u32>) -> anyhow::Result<Batch> {
    let index = |link: &LinkRef| link.resolve(made).ok_or_else(|| anyhow::anyhow!("{} was not made", link.name));
    fn each<T>(group: &[&Operation], f: impl Fn(&Step) -> Option<T>) -> Vec<T> {
        group.iter().filter_map(|o| f(&o.step)).collect()
    }
    let Some(first) = group.first() else { anyhow::bail!("nothing to do") };
    Ok(match &first.step {
        Step::CreateMaps { capacity } => Batch::CreateMaps(*capacity),
        Step::GrowMaps { to, .. } => Batch::GrowMaps(*to),
        Step::LoadProgram { program } => Batch::LoadProgram(*program),
        Step::UnloadProgram { program } => Batch::UnloadProgram(*program),
        Step::CreateLink { link } => Batch::CreateLink(link.clone()),
        Step::ChangeLink { link, edit } => {
            let change = match edit {
                LinkEdit::Up(true) => LinkChange::Up,
                LinkEdit::Up(false) => LinkChange::Down,
                LinkEdit::Mtu(mtu) => LinkChange::Mtu(*mtu),
                LinkEdit::Master(bridge) => LinkChange::Master { bridge: Some(index(bridge)?) },
                LinkEdit::Isolated(on) => LinkChange::Isolated(*on),
                LinkEdit::Learning(on) => LinkChange::Learning(*on),
                LinkEdit::Forward { ipv6 } => LinkChange::Forward { ipv6: *ipv6 },
                LinkEdit::VxlanLocal(local) => LinkChange::VxlanLocal(*local),
                LinkEdit::Alias(alias) => LinkChange::Alias(alias.clone()),
                LinkEdit::Altname(name) => LinkChange::Altname(name.clone()),
            };
            Batch::ChangeLink(index(link)?, change)
        }
        Step::DeleteLink { .. } => Batch::DeleteLinks(each(group, |s| match s {
            Step::DeleteLink { link } => link.resolve(made),
            _ => None,
        })),
        Step::Attach { .. } => Batch::Attach(each(group, |s| match s {
            Step::Attach { program, link, direction, kind, replace } => Some(Hook {
                program: *program,
                ifindex: link.resolve(made).unwrap_or(0),
                direction: *direction,
                kind: *kind,
                replace: *replace,
            }),
            _ => None,
        })),
        Step::Detach { link, direction, kind } => {
            Batch::Detach { ifindex: index(link)?, direction: *direction, kind: *kind }
        }
        Step::ResetCounters { .. } => Batch::ResetCounters(each(group, |s| match s {
            Step::ResetCounters { slot } => Some(*slot),
            _ => None,
        })),
        Step::SetConf { .. } => Batch::SetConf(each(group, |s| match s {
            // A tunnel whose device could not be made keeps its index, without a device.
            Step::SetConf { index, name, link, mark, role, way, .. } => {
                let ifindex = link.as_ref().and_then(|l| l.resolve(made)).unwrap_or(0);
                Some((*index, Conf { ifindex, name: name.clone(), mark: *mark, role: role.clone(), way: *way }))
            }
            _ => None,
        })),
        Step::ClearConf { .. } => Batch::ClearConf(each(group, |s| match s {
            Step::ClearConf { index } => Some(*index),
            _ => None,
        })),
        Step::SetDev { .. } => Batch::SetDevs(each(group, |s| match s {
            Step::SetDev { slot, link } => Some((*slot, link.resolve(made).unwrap_or(0))),
            _ => None,
        })),
        Step::ClearDev { .. } => Batch::ClearDevs(each(group, |s| match s {
            Step::ClearDev { slot } => Some(*slot),
            _ => None,
        })),
        Step::SetTunkey { .. } => Batch::SetTunkeys(each(group, |s| match s {
            Step::SetTunkey { key, value, .. } => Some((*key, *value)),
            _ => None,
        })),
        Step::DeleteTunkey { .. } => Batch::DeleteTunkeys(each(group, |s| match s {
            Step::DeleteTunkey { key, .. } => Some(*key),
            _ => None,
        })),
        Step::SetIf { .. } => Batch::SetIfs(each(group, |s| match s {
            Step::SetIf { link, value, .. } => Some((link.resolve(made).unwrap_or(0), *value)),
            _ => None,
        })),
        Step::DeleteIf { .. } => Batch::DeleteIfs(each(group, |s| match s {
            Step::DeleteIf { link, .. } => link.resolve(made),
            _ => None,
        })),
    })
}
