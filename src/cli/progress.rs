//! Progress of long work, on a terminal: one line on stderr, gone when the work is done.

use super::Global;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Work that is done sooner says nothing.
const LONG: Duration = Duration::from_millis(400);
/// Between two lines.
const OFTEN: Duration = Duration::from_millis(100);

/// Waits for the work, and says how far it is.
pub(super) async fn watched<T>(global: &Global, work: impl Future<Output = T>, said: impl Fn() -> String) -> T {
    if global.quiet || !std::io::stderr().is_terminal() {
        return work.await;
    }
    tokio::pin!(work);
    let started = Instant::now();
    let mut shown = false;
    loop {
        tokio::select! {
            biased;
            result = &mut work => {
                if shown {
                    write("\r\x1b[K");
                }
                return result;
            }
            () = sleep(OFTEN) => {}
        }
        if started.elapsed() >= LONG {
            shown = true;
            write(&format!("\r\x1b[K{} ({} s)", said(), started.elapsed().as_secs()));
        }
    }
}

/// Nobody depends on it.
fn write(text: &str) {
    let mut out = std::io::stderr().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
