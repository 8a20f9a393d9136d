//! `make bench-control`: the control plane measured beside its peers, in one run, as ratios.
//!
//! Every measurement and what it is compared with take turns, several rounds of them, on the same machine in the same
//! minute: ratios carry over to other machines, absolute figures don't. With words as arguments only the sections of
//! those names run, and docs/benchmarks.md stays as it is.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod engine;
mod lab;
mod live;
mod peers;
#[path = "../report.rs"]
mod report;
mod table;

use table::Table;

type Section = (&'static str, fn(&mut Table));

const SECTIONS: [Section; 4] =
    [("engine", engine::run), ("peers", peers::run), ("attach", live::attach), ("live", live::run)];

fn main() {
    // cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut table = Table::default();
    for (name, section) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            section(&mut table);
        }
    }
    println!("\n{}", table.markdown());
    if wanted.is_empty() {
        report::store("bench-control", &table.markdown());
    }
}
