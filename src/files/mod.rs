//! Edge: the topology directory and the accepted state on disk.
//!
//! The rule: what is read is one consistent look at the directory, or an error; nothing here decides what it means.

pub mod accepted;
pub mod read;
pub mod record;
pub mod watch;
