//! The daemon's answers: requests one after the other, and those that come in the middle of a pass.

use super::Report;
use super::control::{Answer, Request};
use super::daemon::Daemon;
use super::doors::{Knock, reply, request};
use super::intent::Removals;
use super::status::Status;
use super::tell::{read_status, status_answer, status_meanwhile, with_health};
use crate::files::accepted::Accepted;
use crate::model::{Desired, Intent};
use anyhow::Result;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::sleep;

/// How long a request for the status waits for the end of a pass.
const SOON: Duration = Duration::from_millis(100);

impl Daemon {
    /// One pass, with the doors open meanwhile: a first attach of many interfaces takes a while. `None` where it was
    /// given up because the daemon is to end; a plan is safe after any prefix.
    pub(super) async fn attended_pass(&mut self, intent: &Intent, before: &Desired) -> Option<Result<Report>> {
        let Self { reconciler, doors, waiting, hangup, ending, .. } = self;
        let work = reconciler.pass(&intent.desired, Some(before));
        tokio::pin!(work);
        loop {
            let knock = tokio::select! {
                biased;
                report = &mut work => return Some(report),
                knock = doors.next() => knock,
            };
            match knock {
                Knock::Terminate => {
                    *ending = true;
                    return None;
                }
                Knock::Hangup => *hangup = true,
                Knock::Client(mut stream) => match request(&mut stream).await {
                    Some(Request::Status) => {
                        // A pass that is soon over says more than a look at its middle.
                        tokio::select! {
                            biased;
                            report = &mut work => {
                                waiting.push_back((stream, Request::Status));
                                return Some(report);
                            }
                            () = sleep(SOON) => {}
                        }
                        let status = status_meanwhile(&self.paths.pins, self.hook, intent).await;
                        let status =
                            status.map(|status| with_health(status, &self.health, &self.config_error, &self.errors));
                        reply(&mut stream, &status_answer(status)).await;
                    }
                    Some(Request::Down) => {
                        waiting.push_front((stream, Request::Down));
                        return None;
                    }
                    Some(request) => waiting.push_back((stream, request)),
                    None => {}
                },
            }
        }
    }

    /// Serves one client. Returns whether the daemon is to end.
    pub(super) async fn serve(&mut self, mut stream: UnixStream, request: Request) -> bool {
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
            && let Err(error) = Accepted::forget(&self.paths.state)
        {
            tracing::warn!("{error:#}");
        }
        reply(&mut stream, &answer).await;
        end
    }

    async fn serve_apply(&mut self, allow: bool) -> Answer {
        self.reconciler.kernel().look_anew();
        let report = self.reread(Removals { allow, delay: false }).await;
        let held = self.intent.as_ref().map(|i| i.held.clone()).unwrap_or_default();
        if let Some(config_error) = &self.config_error {
            return Answer { config_error: Some(config_error.clone()), held, ..Answer::default() };
        }
        let error = report.is_none().then(|| self.errors.join("\n"));
        Answer { report, held, error, ..Answer::default() }
    }

    async fn serve_status(&mut self) -> Answer {
        status_answer(self.status().await)
    }

    async fn status(&mut self) -> Result<Status> {
        let status = read_status(&mut self.reconciler, self.intent.as_deref()).await?;
        Ok(with_health(status, &self.health, &self.config_error, &self.errors))
    }
}
