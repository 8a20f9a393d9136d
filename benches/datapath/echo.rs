//! Round trips of a small UDP packet between two workloads that wait for each other.

use crate::cpu;
use crate::path::Path;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// The median of some round trips, in microseconds.
pub fn round(path: &Path, count: usize) -> f64 {
    let server = path.receiver.enter(|| UdpSocket::bind((path.address(1), 0)).unwrap());
    let to = server.local_addr().unwrap();
    let client = path.sender.enter(|| UdpSocket::bind((path.address(0), 0)).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    client.connect(to).unwrap();
    server.connect(client.local_addr().unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cpu::pin();
            let mut packet = [0; 64];
            for _ in 0..count {
                let length = server.recv(&mut packet).expect("a packet of a round trip");
                server.send(&packet[..length]).unwrap();
            }
        });
        let client = scope.spawn(|| {
            cpu::pin();
            let (packet, mut answer) = ([0; 22], [0; 64]);
            let mut trips: Vec<Duration> = (0..count)
                .map(|_| {
                    let start = Instant::now();
                    client.send(&packet).unwrap();
                    client.recv(&mut answer).expect("an answer of a round trip");
                    start.elapsed()
                })
                .collect();
            trips.sort_unstable();
            trips[count / 2].as_nanos() as f64 / 1e3
        });
        client.join().unwrap()
    })
}
