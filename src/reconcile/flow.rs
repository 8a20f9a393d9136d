//! What flows through each mapping now: the counters, looked at twice.

use super::live::LiveKernel;
use super::status::Traffic;
use crate::model::{Observed, Throughput};
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between the two looks.
const BETWEEN: Duration = Duration::from_millis(200);

/// Traffic by slot, with rates.
///
/// # Errors
///
/// When the counters can't be read.
pub async fn flows(kernel: &LiveKernel, observed: &Observed) -> Result<BTreeMap<u32, Throughput>> {
    let (first, _) = kernel.counters(observed)?;
    let started = Instant::now();
    if !first.is_empty() {
        tokio::time::sleep(BETWEEN).await;
    }
    let (second, _) = kernel.counters(observed)?;
    let took = started.elapsed();
    let nothing = Traffic::default();
    let of = |(slot, now): (u32, Traffic)| (slot, flow(first.get(&slot).unwrap_or(&nothing), &now, took));
    Ok(second.into_iter().map(of).collect())
}

fn flow(then: &Traffic, now: &Traffic, took: Duration) -> Throughput {
    // A counter that was reset meanwhile tells no rate.
    let rate = |then: u64, now: u64| (now.saturating_sub(then) as f64 / took.as_secs_f64().max(0.001)).round() as u64;
    let bytes = |t: &Traffic| t.rx_bytes.saturating_add(t.tx_bytes);
    Throughput {
        rx_packets: now.rx_packets,
        rx_bytes: now.rx_bytes,
        tx_packets: now.tx_packets,
        tx_bytes: now.tx_bytes,
        rx_packets_per_second: rate(then.rx_packets, now.rx_packets),
        tx_packets_per_second: rate(then.tx_packets, now.tx_packets),
        bytes_per_second: rate(bytes(then), bytes(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_two_looks() {
        let at = |packets, bytes| Traffic { rx_packets: packets, tx_bytes: bytes, ..Traffic::default() };
        let seen = flow(&at(100, 1000), &at(300, 2000), Duration::from_millis(500));
        assert_eq!((seen.rx_packets, seen.rx_packets_per_second, seen.bytes_per_second), (300, 400, 2000));
        assert_eq!(flow(&at(300, 0), &at(1, 0), Duration::from_secs(1)).rx_packets_per_second, 0);
    }
}
