//! tunnel-mesh keeps an eBPF tunnel data plane equal to a directory of YAML files.
//!
//! The data flows one way, and the modules follow it:
//!
//! ```text
//! YAML files ──> topology ──> Desired ─┐
//! live maps, programs, links ─> Observed ─┴─> plan (pure) ──> batches ──> maps / programs / devices
//! link event, file event, timer ──> "something changed" ──> the same pass
//! ```
//!
//! - [`model`]: plain data that everything else speaks in. Pure.
//! - [`topology`]: files' text to [`model::Desired`], with every error placed at file, line and column. Pure.
//! - [`plan`]: [`model::Desired`] against [`model::Observed`] to an ordered list of operations. Pure.
//! - [`graph`]: the mesh as Mermaid, DOT and SVG. Pure.
//! - [`files`]: reads and watches the topology directory, keeps the accepted state. Edge.
//! - [`bpf`]: maps, programs, pins and attachments. The only user of `aya` and of raw `bpf(2)`. Edge.
//! - [`netlink`]: links, devices and clsact filters. The only user of `rtnetlink`. Edge.
//! - [`reconcile`]: observe, plan, apply, observe again; the daemon's loop and its control socket.
//! - [`metrics`]: Prometheus' text format and health, over HTTP, on a thread of its own.
//! - [`doctor`]: what on this host is in the way, each finding with its remedy.
//! - [`cli`]: one file a command, exit codes, rendering. Edge.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod bpf;
pub mod cli;
pub mod doctor;
mod fault_point;
pub mod files;
pub mod graph;
pub mod metrics;
pub mod model;
mod named;
pub mod netlink;
pub mod plan;
mod private;
pub mod reconcile;
pub mod topology;
