//! One CPU for all of a measurement, and what was spent on it.
//!
//! Sender, both hosts and receiver share the CPU, so the time of its threads is the time of the whole path. What softirqs
//! do is part of the thread that they interrupt, or of the CPU's ksoftirqd.

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::sync::LazyLock;
use std::time::Duration;

/// The last CPU: others do the rest of the machine's work on the first.
static CPU: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().unwrap().get() - 1);
static KSOFTIRQD: LazyLock<String> = LazyLock::new(|| {
    let wanted = format!("ksoftirqd/{}", *CPU);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let found =
        processes.map(|p| p.path()).find(|p| fs::read_to_string(p.join("comm")).is_ok_and(|c| c.trim() == wanted));
    found.expect("no ksoftirqd of the CPU").join("schedstat").display().to_string()
});

/// Which one it is.
pub fn number() -> usize {
    *CPU
}

/// Keeps the calling thread on the CPU.
pub fn pin() {
    let mut set = CpuSet::new();
    set.set(*CPU);
    sched_setaffinity(None, &set).unwrap();
}

/// CPU time of the calling thread so far.
pub fn thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of the CPU's ksoftirqd so far.
pub fn ksoftirqd() -> Duration {
    let text = fs::read_to_string(&*KSOFTIRQD).unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Time in which the CPU had nothing to do so far. Softirqs that come then are nobody's.
pub fn idle() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let name = format!("cpu{} ", *CPU);
    let line = text.lines().find(|line| line.starts_with(&name)).unwrap();
    // user, nice, system, idle, iowait, in ticks of 10 ms
    let ticks: u64 = line.split_whitespace().skip(4).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
