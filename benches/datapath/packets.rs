//! CPU time of a 64-byte UDP packet on its whole way.

use crate::cpu;
use crate::objects::{Generator, Sink};
use crate::path::{Path, ifindex};
use std::time::{Duration, Instant};

const BURST: u32 = 2048;
const BURSTS: usize = 20;
/// UDP source ports of the packets.
const FLOWS: u32 = 1024;

/// Bursts of packets from a generator to a sink.
pub struct Bench {
    generator: Generator,
    sink: Sink,
}

impl Bench {
    pub fn new(path: &Path) -> Self {
        path.napi(0, "ve0", true);
        let generator = Generator::new(&path.frame(), ifindex(&path.sender, "eth0"), FLOWS);
        Self::of(generator, Sink::new(&path.receiver, "eth0"))
    }

    pub fn of(generator: Generator, sink: Sink) -> Self {
        Self { generator, sink }
    }

    /// Nanoseconds a packet: the tenth percentile of some bursts. The calling thread is in the generator's namespace.
    pub fn round(&self) -> f64 {
        cpu::pin();
        // The first warms up.
        self.burst(BURST);
        let mut bursts: Vec<f64> = (0..BURSTS).map(|_| self.burst(BURST)).collect();
        bursts.sort_by(f64::total_cmp);
        bursts[BURSTS / 10]
    }

    /// Nanoseconds of each packet in a burst, every one of which arrives.
    pub fn burst(&self, frames: u32) -> f64 {
        let before = self.sink.delivered();
        let (thread, softirqs) = (cpu::thread(), cpu::ksoftirqd());
        self.generator.run(frames);
        let thread = cpu::thread() - thread;
        // What is left over is ksoftirqd's, which only runs while we don't.
        let end = Instant::now() + Duration::from_secs(10);
        let expected = before + u64::from(frames);
        while self.sink.delivered() < expected && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(50));
        }
        let softirqs = cpu::ksoftirqd() - softirqs;
        let delivered = self.sink.delivered() - before;
        assert_eq!(delivered, u64::from(frames), "not every packet arrived, or others than were sent");
        (thread + softirqs).as_nanos() as f64 / f64::from(frames)
    }
}
