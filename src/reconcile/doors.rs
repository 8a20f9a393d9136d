//! What may ask for the daemon at any time, in the middle of a pass too: signals, clients of the control socket and
//! systemd's watchdog.

use super::board::Board;
use super::control::{self, Client};
use super::instance::Paths;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// A date that doesn't come.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often the board is given a sign of life.
const SIGN: Duration = Duration::from_secs(1);

/// Who knocks.
#[derive(Debug)]
pub(super) enum Knock {
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Hangup,
    /// A request on the control socket.
    Client(Client),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Doors {
    clients: mpsc::Receiver<Client>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    watchdog: Duration,
    next_beat: Instant,
    board: Arc<Board>,
    next_sign: Instant,
}

impl Doors {
    /// Opens the socket and listens for signals. The caller holds the instance's lock.
    pub(super) fn open(paths: &Paths, board: Arc<Board>) -> Result<Self> {
        crate::private::make(&paths.run)?;
        let watchdog = sd_notify::watchdog_enabled().map_or(NEVER, |period| period / 2);
        Ok(Self {
            clients: control::clients(control::listen(&paths.socket())?),
            hangup: signal(SignalKind::hangup()).context("listen for SIGHUP")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            watchdog,
            next_beat: Instant::now() + watchdog,
            board,
            next_sign: Instant::now(),
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
                // Before what may come all the time.
                () = sleep_until(self.next_beat) => {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                    self.next_beat = Instant::now() + self.watchdog;
                }
                () = sleep_until(self.next_sign) => {
                    self.board.beat();
                    self.next_sign = Instant::now() + SIGN;
                }
                Some(client) = self.clients.recv() => return Knock::Client(client),
            }
        }
    }
}

/// Tells systemd.
pub(super) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("sd_notify: {error}");
    }
}
