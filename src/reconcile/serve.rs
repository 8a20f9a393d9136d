//! The daemon's answers: requests one after the other, and those that come in the middle of a pass.

use super::Report;
use super::control::{Answer, Client, Request};
use super::daemon::Daemon;
use super::doors::Knock;
use super::intent::Cause;
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

    async fn serve_status(&mut self) -> Answer {
        let status = read_status(&mut self.reconciler, self.acceptance.intent(), &mut self.memory).await;
        status_answer(status.map(|status| with_health(status, &self.health, &self.progress, &self.acceptance)))
    }
}
