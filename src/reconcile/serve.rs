//! The daemon's answers: requests one after the other, and those that come in the middle of a pass.

use super::Report;
use super::control::{Answer, Client, Request};
use super::daemon::{Daemon, removes};
use super::doors::Knock;
use super::intent::Cause;
use super::saved::Expected;
use super::tell::{read_status, status_answer, status_meanwhile, with_health};
use crate::model::{Desired, Intent};
use crate::plan::Plan;
use anyhow::Result;
use std::time::Duration;
use tokio::time::sleep;

/// How long a request for the status waits for the end of a pass.
const SOON: Duration = Duration::from_millis(100);

impl Daemon {
    /// One pass, with the doors open meanwhile: a first attach of many interfaces takes a while. `None` where it was
    /// given up because the daemon is to end; a plan is safe after any prefix.
    pub(super) async fn attended_pass(
        &mut self,
        ahead: Option<Plan>,
        intent: &Intent,
        before: &Desired,
    ) -> Option<Result<Report>> {
        let Self {
            paths, hook, reconciler, doors, waiting, hangup, ending, health, progress, acceptance, memory, ..
        } = self;
        let work = reconciler.pass_from(ahead, &intent.desired, Some(before));
        tokio::pin!(work);
        loop {
            let knock = tokio::select! {
                biased;
                report = &mut work => return Some(report),
                knock = doors.next() => knock,
            };
            let client = match knock {
                Knock::Terminate => {
                    *ending = true;
                    return None;
                }
                Knock::Hangup => {
                    *hangup = true;
                    continue;
                }
                Knock::Client(client) => client,
            };
            match client.request {
                Request::Status => {
                    // A pass that is soon over says more than a look at its middle.
                    tokio::select! {
                        biased;
                        report = &mut work => {
                            waiting.push_back(client);
                            return Some(report);
                        }
                        () = sleep(SOON) => {}
                    }
                    let status = status_meanwhile(&paths.pins, *hook, intent, memory).await;
                    let status = status.map(|status| with_health(status, health, progress, acceptance));
                    client.answer(status_answer(status));
                }
                Request::Down => {
                    waiting.push_front(client);
                    return None;
                }
                Request::Apply { .. } => waiting.push_back(client),
            }
        }
    }

    /// Whether somebody waits for a pass to be given up.
    pub(super) fn interrupted(&self) -> bool {
        self.ending || self.waiting.front().is_some_and(|client| client.request == Request::Down)
    }

    /// Serves one client. Returns whether the daemon is to end.
    pub(super) async fn serve(&mut self, client: Client) -> bool {
        let (answer, end) = match &client.request {
            Request::Apply { allow_deletes, plan: None } => (self.serve_apply(*allow_deletes).await, false),
            Request::Apply { allow_deletes, plan: Some(plan) } => (self.serve_plan(*allow_deletes, plan).await, false),
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

    async fn serve_apply(&mut self, allow_deletes: bool) -> Answer {
        self.reconciler.kernel().look_anew();
        let report = self.reread(Cause::Asked { allow_deletes }).await;
        let held = self.acceptance.intent().map(|i| i.held.clone()).unwrap_or_default();
        if let Some(config_error) = self.acceptance.config_error() {
            return Answer { config_error: Some(config_error.to_owned()), held, ..Answer::default() };
        }
        let error = report.is_none().then(|| self.progress.errors.join("\n"));
        Answer { report, held, error, ..Answer::default() }
    }

    /// A pass, if its plan is the one that was asked for. The daemon reads the files itself: a plan of other files, which
    /// the next pass would undo, is no plan for it.
    async fn serve_plan(&mut self, allow_deletes: bool, asked: &Expected) -> Answer {
        self.reconciler.kernel().look_anew();
        let prepared = match self.acceptance.prepare_asked(allow_deletes) {
            Ok(prepared) => prepared,
            Err(config_error) => return Answer { config_error: Some(config_error), ..Answer::default() },
        };
        let before = prepared.before.clone();
        let known = before.as_ref().map(|b| &b.desired);
        let planned = self.reconciler.plan(&prepared.intent.desired, known).await;
        let (observed, plan) = match planned {
            Ok(planned) => planned,
            Err(error) => {
                self.acceptance.let_be();
                return Answer { error: Some(format!("{error:#}")), ..Answer::default() };
            }
        };
        let now = Expected::now(before.as_deref(), &prepared.intent.desired, &observed, &plan);
        let checked = asked.check(&now).map_err(|stale| stale.0);
        let accepted = checked.and_then(|()| {
            let accepted = self.acceptance.accept_prepared(&prepared);
            accepted.then_some(()).ok_or_else(|| "the files were changed this very moment".to_owned())
        });
        if let Err(why) = accepted {
            self.acceptance.let_be();
            return Answer { stale: Some(why), ..Answer::default() };
        }
        let removes = before.as_deref().is_some_and(|before| removes(before, &prepared.intent));
        let report = self.accepted(Some(plan), before, removes).await;
        let error = report.is_none().then(|| self.progress.errors.join("\n"));
        Answer { report, held: prepared.intent.held.clone(), error, ..Answer::default() }
    }

    async fn serve_status(&mut self) -> Answer {
        let status = read_status(&mut self.reconciler, self.acceptance.intent(), &mut self.memory).await;
        status_answer(status.map(|status| with_health(status, &self.health, &self.progress, &self.acceptance)))
    }
}
