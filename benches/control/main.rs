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
        store(&table.markdown());
    }
}

/// Puts the table between the markers of docs/benchmarks.md.
fn store(markdown: &str) {
    const BEGIN: &str = "<!-- bench-control -->\n";
    const END: &str = "<!-- end of bench-control -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("docs/benchmarks.md has lost its markers");
    let (_, tail) = rest.split_once(END).expect("docs/benchmarks.md has lost its markers");
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let version = release.split('-').next().unwrap_or(&release);
    let machine = format!("Linux {version}, {} CPUs.", std::thread::available_parallelism().unwrap());
    std::fs::write(path, format!("{head}{BEGIN}\n{machine}\n\n{markdown}\n{END}{tail}")).unwrap();
}
