//! The control socket: one JSON request a line, one JSON answer a line.
//!
//! A unix socket in the run directory with mode 0600; only the daemon's user (and root) can use it.

use super::Report;
use super::saved::Expected;
use super::status::Status;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long a client may take to send its request or to read its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests that wait for the daemon; more clients wait to be heard.
const CLIENTS_MAX: usize = 16;
/// Longest request, in bytes.
const REQUEST_MAX: u64 = 64 * 1024;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Read the files and make a pass at once.
    Apply {
        /// Release held deletions.
        allow_deletes: bool,
        /// Only if that is the plan.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        plan: Option<Expected>,
    },
    /// Tell the status.
    Status,
    /// Remove everything and end.
    Down,
}

/// What the daemon answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// What the pass did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub report: Option<Report>,
    /// Mappings whose removal is held.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub held: BTreeSet<String>,
    /// Status.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<Box<Status>>,
    /// Why the topology was not accepted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub config_error: Option<String>,
    /// Why the plan that was to be applied isn't the one that would be made now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stale: Option<String>,
    /// Why the request failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// Whether privileges were missing.
    #[serde(default)]
    pub denied: bool,
}

/// Opens the socket, replacing one that a dead daemon left. The caller holds the instance's lock.
///
/// # Errors
///
/// What the kernel said, naming the socket.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove the old control socket {}", socket.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("open the control socket {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect the control socket {}", socket.display()))?;
    Ok(listener)
}

/// A request that was received, and whom to answer.
#[derive(Debug)]
pub struct Client {
    /// What it asks.
    pub request: Request,
    stream: UnixStream,
}

/// Accepts clients and reads their requests, each in a task of its own: one that says nothing keeps nobody waiting.
pub fn clients(listener: UnixListener) -> mpsc::Receiver<Client> {
    let (sender, receiver) = mpsc::channel(CLIENTS_MAX);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(greet(stream, sender.clone()))),
                Err(error) => {
                    tracing::warn!("accept on the control socket: {error}");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    });
    receiver
}

async fn greet(mut stream: UnixStream, sender: mpsc::Sender<Client>) {
    match tokio::time::timeout(PATIENCE, receive(&mut stream)).await {
        // The daemon ends: nobody is there to answer.
        Ok(Ok(request)) => drop(sender.send(Client { request, stream }).await),
        Ok(Err(error)) => {
            tracing::warn!("control socket: {error:#}");
            reply(stream, &Answer { error: Some(format!("{error:#}")), ..Answer::default() }).await;
        }
        Err(_) => tracing::debug!("control socket: a client sent no request"),
    }
}

async fn receive(stream: &mut UnixStream) -> Result<Request> {
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line).await.context("read a request")?;
    serde_json::from_str(&line).context("understand a request")
}

impl Client {
    /// Answers, in a task of its own: a client that doesn't read keeps nobody waiting. The task may be waited for.
    pub fn answer(self, answer: Answer) -> JoinHandle<()> {
        tokio::spawn(async move { reply(self.stream, &answer).await })
    }
}

async fn reply(mut stream: UnixStream, answer: &Answer) {
    let send = async {
        let mut line = serde_json::to_vec(answer).context("write an answer")?;
        line.push(b'\n');
        stream.write_all(&line).await.context("send an answer")
    };
    match tokio::time::timeout(PATIENCE, send).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("control socket: {error:#}"),
        Err(_) => tracing::debug!("control socket: a client didn't read its answer"),
    }
}

/// Asks the daemon of that socket; `None` where none runs.
///
/// # Errors
///
/// When a daemon is there and doesn't answer, or when this user may not ask.
pub async fn ask(socket: &Path, request: &Request) -> Result<Option<Answer>> {
    let mut stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) => return Err(e).with_context(|| format!("ask the daemon through {}", socket.display())),
    };
    let mut line = serde_json::to_vec(request).context("write a request")?;
    line.push(b'\n');
    stream.write_all(&line).await.context("send a request to the daemon")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.context("read the daemon's answer")?;
    if answer.is_empty() {
        bail!("the daemon ended before it answered; see its log");
    }
    serde_json::from_str(&answer).context("understand the daemon's answer").map(Some)
}
