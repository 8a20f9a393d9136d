//! The control socket: one JSON request a line, one JSON answer a line.
//!
//! A unix socket in the run directory with mode 0600; only the daemon's user (and root) can use it.

use super::Report;
use super::status::Status;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

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

/// Reads the request of one client.
///
/// # Errors
///
/// When the client sends no request within a line of bounded length.
pub async fn receive(stream: &mut UnixStream) -> Result<Request> {
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line).await.context("read a request")?;
    serde_json::from_str(&line).context("understand a request")
}

/// Sends the answer.
///
/// # Errors
///
/// When the client is gone.
pub async fn reply(stream: &mut UnixStream, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer).context("write an answer")?;
    line.push(b'\n');
    stream.write_all(&line).await.context("send an answer")?;
    Ok(())
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
