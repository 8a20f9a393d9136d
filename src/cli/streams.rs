//! The two streams: data goes to stdout, everything else to stderr.
//!
//! A reader that has gone (`| head`) is no failure: the command still comes to its end, and its exit code tells the
//! truth.

use anyhow::{Context, Result};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

/// Writes data to stdout in one go.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}

/// Writes a value to stdout as JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("write JSON")?;
    text.push('\n');
    print(&text)
}

/// Writes a line to stderr. Where nobody listens, nothing is lost that somebody wanted to hear.
pub(super) fn tell(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Whether the terminal says that it can do no more than write one line below the other.
pub(super) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Columns of the terminal that a stream goes to; `None` where it is none. One that doesn't tell has 80.
pub(super) fn width(stream: &(impl IsTerminal + AsFd)) -> Option<usize> {
    const USUAL: usize = 80;
    stream.is_terminal().then(|| match rustix::termios::tcgetwinsize(stream) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => USUAL,
    })
}
