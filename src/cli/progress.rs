//! Progress of long work, on a terminal: one line on stderr, gone when the work is done.

use super::page::cut;
use super::{Global, streams};
use std::io::Write;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Work that is done sooner says nothing.
const LONG: Duration = Duration::from_millis(400);
/// Between two lines.
const OFTEN: Duration = Duration::from_millis(100);
/// Takes the line away.
const CLEAR: &str = "\r\x1b[K";

/// Waits for the work, and says how far it is.
pub(super) async fn watched<T>(global: &Global, work: impl Future<Output = T>, said: impl Fn() -> String) -> T {
    let Some(columns) = streams::width(&std::io::stderr()).filter(|_| !global.quiet && !streams::is_dumb()) else {
        return work.await;
    };
    // Nobody depends on it.
    let write = |text: &str| {
        let mut out = std::io::stderr().lock();
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    };
    meanwhile(work, said, write, columns).await
}

async fn meanwhile<T>(
    work: impl Future<Output = T>,
    said: impl Fn() -> String,
    write: impl Fn(&str),
    columns: usize,
) -> T {
    tokio::pin!(work);
    let started = Instant::now();
    let mut shown = false;
    loop {
        tokio::select! {
            biased;
            result = &mut work => {
                if shown {
                    write(CLEAR);
                }
                return result;
            }
            () = sleep(OFTEN) => {}
        }
        if started.elapsed() >= LONG {
            shown = true;
            let line = format!("{} ({} s)", said(), started.elapsed().as_secs());
            // What goes on in a second line would stay there.
            write(&format!("{CLEAR}{}", cut(&line, columns.saturating_sub(1))));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn long_work_is_told_and_the_line_goes_away() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let told = RefCell::new(String::new());
        let write = |text: &str| told.borrow_mut().push_str(text);
        // As long as it takes until something is said.
        let work = async {
            while told.borrow().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            7
        };
        let said = || "attaching programs: 3 of 9 operations".to_owned();
        assert_eq!(runtime.block_on(meanwhile(work, said, write, 80)), 7);
        let text = told.borrow().clone();
        assert!(
            text.starts_with("\r\x1b[Kattaching programs: 3 of 9 operations (") && text.ends_with(CLEAR),
            "{text:?}"
        );

        told.borrow_mut().clear();
        assert_eq!(runtime.block_on(meanwhile(async { 8 }, said, write, 80)), 8);
        assert!(told.borrow().is_empty());
    }
}
