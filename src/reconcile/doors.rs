//! What may ask for the daemon at any time, in the middle of a pass too: signals, clients of the control socket and
//! systemd's watchdog.

use super::control::{self, Answer, Request};
use super::instance::Paths;
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(1);
/// A date that doesn't come.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who knocks.
#[derive(Debug)]
pub(super) enum Knock {
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Hangup,
    /// Somebody on the control socket.
    Client(UnixStream),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Doors {
    listener: UnixListener,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    watchdog: Duration,
    next_beat: Instant,
}

impl Doors {
    /// Opens the socket and listens for signals. The caller holds the instance's lock.
    pub(super) fn open(paths: &Paths) -> Result<Self> {
        crate::private::make(&paths.run)?;
        let watchdog = sd_notify::watchdog_enabled().map_or(NEVER, |period| period / 2);
        Ok(Self {
            listener: control::listen(&paths.socket())?,
            hangup: signal(SignalKind::hangup()).context("listen for SIGHUP")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            watchdog,
            next_beat: Instant::now() + watchdog,
        })
    }

    /// Waits for the next; keeps the watchdog content meanwhile. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Knock {
        loop {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Knock::Terminate,
                _ = self.interrupt.recv() => return Knock::Terminate,
                _ = self.hangup.recv() => return Knock::Hangup,
                client = self.listener.accept() => match client {
                    Ok((stream, _)) => return Knock::Client(stream),
                    Err(error) => tracing::warn!("accept on the control socket: {error}"),
                },
                () = sleep_until(self.next_beat) => {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                    self.next_beat = Instant::now() + self.watchdog;
                }
            }
        }
    }
}

/// What a client wants; `None` where it doesn't say so in time, or nothing that can be understood.
pub(super) async fn request(stream: &mut UnixStream) -> Option<Request> {
    match timeout(PATIENCE, control::receive(stream)).await {
        Ok(Ok(request)) => Some(request),
        Ok(Err(error)) => {
            tracing::warn!("control socket: {error:#}");
            reply(stream, &Answer { error: Some(format!("{error:#}")), ..Answer::default() }).await;
            None
        }
        Err(_) => None,
    }
}

/// Answers a client; one that is gone already is no trouble.
pub(super) async fn reply(stream: &mut UnixStream, answer: &Answer) {
    if let Err(error) = control::reply(stream, answer).await {
        tracing::debug!("control socket: {error:#}");
    }
}

/// Tells systemd.
pub(super) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("sd_notify: {error}");
    }
}
