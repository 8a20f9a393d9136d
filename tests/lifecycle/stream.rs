//! Numbered UDP packets, as fast as they arrive, and what became of each.

use crate::world::harness::Netns;
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most packets under way at once: fewer than any queue on the way holds, so that one that is missing was lost by us.
const WINDOW: u64 = 200;
/// How long the sender waits for room, and the receiver for the rest once the sender has ended.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that is under way.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<BTreeSet<u64>>,
    at_least: u64,
    name: String,
}

// Every test binary compiles its own copy and uses a part of it.
#[allow(dead_code)]
impl Stream {
    /// Sends from one namespace to that address in another one, until [`Stream::finish`], at least `at_least` packets.
    pub fn start(name: &str, from: &Netns, to: &Netns, address: &str, at_least: u64) -> Self {
        Self::with_pause(name, from, to, address, at_least, Duration::ZERO)
    }

    /// A packet a millisecond: leaves the processors to others.
    pub fn slow(name: &str, from: &Netns, to: &Netns, address: &str) -> Self {
        Self::with_pause(name, from, to, address, 0, Duration::from_millis(1))
    }

    fn with_pause(name: &str, from: &Netns, to: &Netns, address: &str, at_least: u64, pause: Duration) -> Self {
        let inbox = to.enter(|| UdpSocket::bind((address, 0)).unwrap());
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&inbox, 64 << 20).unwrap();
        inbox.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let target = inbox.local_addr().unwrap();
        let outbox = from.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        outbox.connect(target).unwrap();

        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let arrived = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let sender = {
            let (stop, sent, ended) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&ended));
            let arrived = Arc::clone(&arrived);
            std::thread::spawn(move || {
                let mut packet = [0u8; 200];
                let mut number = 0u64;
                while number < at_least || !stop.load(Ordering::Relaxed) {
                    packet[..8].copy_from_slice(&number.to_be_bytes());
                    assert_eq!(outbox.send(&packet).unwrap(), packet.len());
                    number += 1;
                    sent.store(number, Ordering::Relaxed);
                    if !pause.is_zero() {
                        std::thread::sleep(pause);
                    }
                    let full = || number - arrived.load(Ordering::Acquire) >= WINDOW;
                    let since = Instant::now();
                    while full() && since.elapsed() < LINGER {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                    if full() {
                        break;
                    }
                }
                ended.store(true, Ordering::Release);
                number
            })
        };
        let receiver = {
            let sent = Arc::clone(&sent);
            std::thread::spawn(move || {
                let mut seen = BTreeSet::new();
                let mut packet = [0u8; 2048];
                let mut last = Instant::now();
                loop {
                    if inbox.recv(&mut packet).is_ok() {
                        let number = u64::from_be_bytes(packet[..8].try_into().unwrap());
                        assert!(seen.insert(number), "packet {number} arrived twice");
                        arrived.fetch_add(1, Ordering::Release);
                        last = Instant::now();
                    }
                    let over = ended.load(Ordering::Acquire);
                    if over && (seen.len() as u64 == sent.load(Ordering::Relaxed) || last.elapsed() > LINGER) {
                        return seen;
                    }
                }
            })
        };
        Self { stop, sent, sender, receiver, at_least, name: name.to_owned() }
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Lets some more packets pass.
    pub fn flow(&self, packets: u64) {
        let until = self.sent() + packets;
        crate::world::eventually("packets are sent", || self.sent() >= until);
    }

    /// Ends it and expects that every number arrived once; returns how many there were.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        let seen = self.receiver.join().unwrap();
        let missing: Vec<u64> = (0..sent).filter(|n| !seen.contains(n)).collect();
        let few: Vec<&u64> = missing.iter().take(20).collect();
        assert!(missing.is_empty(), "{}: {} of {sent} packets lost: {few:?} ...", self.name, missing.len());
        assert!(sent >= self.at_least, "{}: stalled after {sent} packets", self.name);
        sent
    }
}
