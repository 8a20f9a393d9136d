//! Where the CPU time of a packet goes: a profile by `perf` of every way, shown and not stored.

use crate::cpu;
use crate::packets::Bench;
use crate::path::{Mode, Path};
use crate::table::Findings;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TIME: Duration = Duration::from_secs(3);
/// Symbols shown.
const SYMBOLS: usize = 70;

pub fn run(_: &mut Findings) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("perf.data");
    for mode in Mode::ALL {
        let path = Path::new(mode);
        let bench = Bench::new(&path);

        let mut perf = Command::new("perf")
            .args(["record", "-q", "-a", "-g", "-F", "5000", "-C", &cpu::number().to_string(), "-o"])
            .arg(&file)
            .args(["sleep", &TIME.as_secs().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("run perf");
        let start = Instant::now();
        while start.elapsed() < TIME {
            path.sender.enter(|| bench.round());
        }
        assert!(perf.wait().unwrap().success(), "perf record failed");
        for (what, children) in [("by itself", "--no-children"), ("with what it calls", "--children")] {
            let report = Command::new("perf")
                .args(["report", "--stdio", children, "-g", "none", "-s", "symbol", "-i"])
                .arg(&file)
                .output()
                .unwrap();
            println!("\n{}: share of the time, {what}", mode.name());
            let text = String::from_utf8_lossy(&report.stdout).into_owned();
            for line in text.lines().filter(|line| line.contains('%')).take(SYMBOLS) {
                let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "-").collect();
                println!("  {}", words.join(" "));
            }
        }
    }
}
