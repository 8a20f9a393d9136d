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
mod mtu;
mod objects;
mod packets;
mod path;
mod picture;
mod profile;
#[path = "../report.rs"]
mod report;
mod sizes;
mod stream;
mod table;
mod ways;

use table::Findings;

type Section = (&'static str, fn(&mut Findings));

const SECTIONS: [Section; 4] = [("ways", ways::run), ("mtu", mtu::run), ("keys", keys::run), ("sizes", sizes::run)];
/// Those that run only when they are asked for.
const ON_DEMAND: [Section; 1] = [("profile", profile::run)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` adds it, `cargo test` doesn't: there all of this is only tried.
    if !arguments.iter().any(|a| a == "--bench") {
        ways::smoke();
        return mtu::smoke();
    }
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let mut findings = Findings::default();
    let asked = |name: &str| wanted.iter().any(|w| *w == name);
    for (_, section) in SECTIONS.iter().filter(|(name, _)| wanted.is_empty() || asked(name)) {
        section(&mut findings);
    }
    for (_, section) in ON_DEMAND.iter().filter(|(name, _)| asked(name)) {
        section(&mut findings);
    }
    if wanted.is_empty() {
        let root = env!("CARGO_MANIFEST_DIR");
        report::store("bench", &findings.markdown);
        std::fs::write(format!("{root}/docs/datapath.svg"), &findings.picture).unwrap();
        std::fs::create_dir_all(format!("{root}/target/bench")).unwrap();
        std::fs::write(format!("{root}/target/bench/datapath.json"), findings.json()).unwrap();
    }
}
