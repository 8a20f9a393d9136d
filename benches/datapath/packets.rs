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
    /// Packets sent so far, without the first, which only warm up.
    sent: u64,
    before: u64,
}

impl Bench {
    pub fn new(path: &Path) -> Self {
        path.napi(0, "ve0", true);
        let generator = Generator::new(&path.frame(), ifindex(&path.sender, "eth0"), FLOWS);
        Self::of(generator, Sink::new(&path.receiver, "eth0"))
    }

    pub fn of(generator: Generator, sink: Sink) -> Self {
        Self { generator, sink, sent: 0, before: 0 }
    }

    /// Nanoseconds a packet: the tenth percentile of some bursts. The calling thread is in the generator's namespace.
    pub fn round(&mut self) -> f64 {
        cpu::pin();
        self.generator.run(BURST);
        std::thread::sleep(Duration::from_millis(2));
        self.before = self.sink.delivered();
        let mut bursts: Vec<f64> = (0..BURSTS).map(|_| self.burst()).collect();
        bursts.sort_by(f64::total_cmp);
        self.before = self.sink.delivered();
        bursts[BURSTS / 10]
    }

    fn burst(&mut self) -> f64 {
        let before = self.sink.delivered();
        let (thread, softirqs) = (cpu::thread(), cpu::ksoftirqd());
        self.generator.run(BURST);
        let thread = cpu::thread() - thread;
        // What is left over is ksoftirqd's, which only runs while we don't.
        let end = Instant::now() + Duration::from_millis(200);
        let expected = before + u64::from(BURST);
        while self.sink.delivered() < expected && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(50));
        }
        let softirqs = cpu::ksoftirqd() - softirqs;
        let delivered = self.sink.delivered() - before;
        assert_eq!(delivered, u64::from(BURST), "not every packet arrived, or others than were sent");
        self.sent += delivered;
        (thread + softirqs).as_nanos() as f64 / f64::from(BURST)
    }
}
