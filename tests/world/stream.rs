//! What workloads send each other, as their programs see it.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use super::PATIENCE;
use super::harness::Netns;
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

/// With a timeout set, a read that something interrupts isn't taken up again by itself.
fn uninterrupted<T>(mut read: impl FnMut() -> std::io::Result<T>) -> T {
    loop {
        match read() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read.unwrap(),
        }
    }
}

/// The next datagram: its length and where it came from.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    uninterrupted(|| socket.recv_from(buffer))
}

/// Sends that much over one TCP connection and compares the checksums of both ends.
pub fn transfer(from: &Netns, to: &Netns, address: &str, bytes: u64) {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap();
    let target = listener.local_addr().unwrap();
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut hash, mut total, mut buffer) = (Sha256::new(), 0_u64, vec![0; 256 << 10]);
            loop {
                let length = uninterrupted(|| stream.read(&mut buffer));
                if length == 0 {
                    return (total, hash.finalize());
                }
                hash.update(&buffer[..length]);
                total += length as u64;
            }
        });
        let mut stream = from.enter(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let (mut hash, mut total, mut state) = (Sha256::new(), 0_u64, 0x9e37_79b9_7f4a_7c15_u64);
        let mut chunk = vec![0_u8; 128 << 10];
        while total < bytes {
            for word in chunk.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let length = chunk.len().min(usize::try_from(bytes - total).unwrap());
            hash.update(&chunk[..length]);
            stream.write_all(&chunk[..length]).unwrap();
            total += length as u64;
        }
        drop(stream);
        ((total, hash.finalize()), receiver.join().unwrap())
    });
    assert_eq!(sent.0, bytes);
    assert_eq!(sent, received);
}
