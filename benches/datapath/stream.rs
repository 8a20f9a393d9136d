//! TCP: bits a second of CPU time, of both ends and both hosts together.

use crate::cpu;
use crate::path::Path;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Of one read or write.
const CHUNK: usize = 128 * 1024;

/// Gigabits for each second of CPU time, of one transfer.
pub fn round(path: &Path, bytes: u64) -> f64 {
    let listener = path.receiver.enter(|| TcpListener::bind((path.address(1), 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let (softirqs, idle, start) = (cpu::ksoftirqd(), cpu::idle(), Instant::now());
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            cpu::pin();
            receive(&listener.accept().unwrap().0, bytes)
        });
        let sent = path.sender.enter(|| {
            cpu::pin();
            send(&TcpStream::connect(to).unwrap(), bytes)
        });
        (sent, receiver.join().unwrap())
    });
    let spent = sent + received + (cpu::ksoftirqd() - softirqs);
    let idle = (cpu::idle() - idle).as_secs_f64() / start.elapsed().as_secs_f64();
    // Two ticks of a short transfer say nothing.
    assert!(
        idle < 0.1 || start.elapsed() < Duration::from_millis(50),
        "TCP: the CPU was idle for {:.0} % of a transfer: not all work is accounted for",
        idle * 100.0
    );
    bytes as f64 * 8.0 / spent.as_nanos() as f64
}

/// Gigabits a second of one transfer, waits and all.
pub fn pace(path: &Path, bytes: u64) -> f64 {
    let listener = path.receiver.enter(|| TcpListener::bind((path.address(1), 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let start = std::thread::scope(|scope| {
        scope.spawn(|| {
            cpu::pin();
            receive(&listener.accept().unwrap().0, bytes)
        });
        path.sender.enter(|| {
            cpu::pin();
            let start = Instant::now();
            send(&TcpStream::connect(to).unwrap(), bytes);
            start
        })
    });
    bytes as f64 * 8.0 / start.elapsed().as_nanos() as f64
}

fn send(mut stream: &TcpStream, bytes: u64) -> Duration {
    let chunk = vec![0u8; CHUNK];
    let before = cpu::thread();
    for _ in 0..bytes / CHUNK as u64 {
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    cpu::thread() - before
}

fn receive(mut stream: &TcpStream, bytes: u64) -> Duration {
    let mut chunk = vec![0u8; CHUNK];
    let before = cpu::thread();
    let mut got = 0;
    loop {
        match stream.read(&mut chunk).unwrap() {
            0 => break,
            n => got += n as u64,
        }
    }
    assert_eq!(got, bytes, "TCP lost bytes");
    cpu::thread() - before
}
