//! `make bench`: the data plane measured beside its peers, in one run, as ratios.
//!
//! Every way from a sending workload to a receiving one crosses two hosts on this machine, all on one CPU, whose time is
//! what is counted. The ways take turns, round by round. With words as arguments only the sections of those names run,
//! and nothing is written.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod cpu;
mod echo;
#[path = "../../tests/harness/mod.rs"]
mod harness;
mod keys;
mod objects;
mod packets;
mod path;
mod picture;
#[path = "../report.rs"]
mod report;
mod sizes;
mod stream;
mod table;
mod ways;

use table::Findings;

type Section = (&'static str, fn(&mut Findings));

const SECTIONS: [Section; 3] = [("ways", ways::run), ("keys", keys::run), ("sizes", sizes::run)];

fn main() {
    // cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut findings = Findings::default();
    for (name, section) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            section(&mut findings);
        }
    }
    if wanted.is_empty() {
        let root = env!("CARGO_MANIFEST_DIR");
        report::store("bench", &findings.markdown);
        std::fs::write(format!("{root}/docs/datapath.svg"), &findings.picture).unwrap();
        std::fs::create_dir_all(format!("{root}/target/bench")).unwrap();
        std::fs::write(format!("{root}/target/bench/datapath.json"), findings.json()).unwrap();
    }
}
