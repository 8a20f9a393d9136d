//! Metrics in Prometheus' text format, and health, over HTTP.
//!
//! The server has a thread of its own and reads the pinned maps itself; of the daemon it takes what is put up on the
//! [`Board`](crate::reconcile::board::Board). So neither a scrape nor a stuck client holds up a pass, nor a long pass a
//! scrape. The rule: the number of series is bounded, whatever the topology and whatever is sent to this host.
//!
//! - `traffic`: what the maps say, by slot. `totals`: counters by tenant and remote that never go back. Pure.
//! - `families`: all of it as Prometheus reads it. Pure. `server`: HTTP.

mod families;
mod server;
mod totals;
mod traffic;

pub use families::{FAMILIES, render};
pub use server::{Listener, serve};
pub use totals::{PAIRS_MAX, Totals};
pub use traffic::{Live, Owner, read};
