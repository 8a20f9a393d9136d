//! Packets and bytes per second: two looks at the counters, and the time between them. Pure.
//!
//! The daemon keeps a look from each periodic pass and from each question for the status; a rate is taken against the
//! newest one that is at least [`SHORTEST`] old. Asked every second, it tells the last second; asked once in a while, the
//! mean since the last pass. Without a daemon whoever asks must look twice.

use super::status::Traffic;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Shortest time that a rate is taken over: less would make a single packet a flood.
pub const SHORTEST: Duration = Duration::from_millis(900);

/// What passes in a second, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Packets received.
    pub rx_packets: f64,
    /// Bytes received.
    pub rx_bytes: f64,
    /// Packets sent.
    pub tx_packets: f64,
    /// Bytes sent.
    pub tx_bytes: f64,
    /// Packets dropped, for whatever reason.
    pub drops: f64,
    /// Seconds between the two looks.
    pub seconds: f64,
}

#[derive(Debug)]
struct Look {
    at: Duration,
    /// By slot; without those that counted nothing, of which there may be many.
    slots: Vec<(u32, [u64; 5])>,
}

impl Look {
    fn of(&self, slot: u32) -> [u64; 5] {
        let place = self.slots.binary_search_by_key(&slot, |(slot, _)| *slot);
        place.ok().and_then(|n| self.slots.get(n)).map(|(_, numbers)| *numbers).unwrap_or_default()
    }
}

/// The looks that are kept.
#[derive(Debug, Default)]
pub struct Looks(VecDeque<Look>);

fn numbers(traffic: &Traffic) -> [u64; 5] {
    let drops = traffic.drops.values().sum();
    [traffic.rx_packets, traffic.rx_bytes, traffic.tx_packets, traffic.tx_bytes, drops]
}

impl Looks {
    /// Rates by slot at `now`, on any clock that doesn't go back; keeps the look for those to come. Empty at the first.
    /// A slot whose counters went back has a new owner, and no rate yet.
    pub fn look(&mut self, now: Duration, traffic: &BTreeMap<u32, Traffic>) -> BTreeMap<u32, Rates> {
        let old = |look: &Look| now.saturating_sub(look.at) >= SHORTEST;
        let base = self.0.iter().rposition(old);
        if let Some(base) = base {
            self.0.drain(..base);
        }
        let rates = base.and(self.0.front()).map(|base| {
            let seconds = (now - base.at).as_secs_f64();
            let of = |(slot, traffic): (&u32, &Traffic)| {
                let before = base.of(*slot);
                let mut per_second = [0.0; 5];
                for ((rate, before), after) in per_second.iter_mut().zip(before).zip(numbers(traffic)) {
                    *rate = rounded(after.checked_sub(before)? as f64 / seconds);
                }
                let [rx_packets, rx_bytes, tx_packets, tx_bytes, drops] = per_second;
                Some((*slot, Rates { rx_packets, rx_bytes, tx_packets, tx_bytes, drops, seconds: rounded(seconds) }))
            };
            traffic.iter().filter_map(of).collect()
        });
        if self.0.back().is_none_or(old) {
            let mut slots: Vec<_> = traffic.iter().map(|(slot, t)| (*slot, numbers(t))).collect();
            slots.retain(|(_, numbers)| *numbers != [0; 5]);
            slots.shrink_to_fit();
            self.0.push_back(Look { at: now, slots });
        }
        rates.unwrap_or_default()
    }

    /// Whether a look is due that nobody asked for.
    pub fn is_due(&self, now: Duration, pause: Duration) -> bool {
        self.0.back().is_none_or(|look| now.saturating_sub(look.at) >= pause)
    }

    /// Forgets slots whose counters were zeroed.
    pub fn forget(&mut self, forgotten: &BTreeSet<u32>) {
        for look in self.0.iter_mut().filter(|_| !forgotten.is_empty()) {
            look.slots.retain(|(slot, _)| !forgotten.contains(slot));
        }
    }
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(packets: u64) -> BTreeMap<u32, Traffic> {
        let traffic = Traffic { rx_packets: packets, rx_bytes: packets * 100, ..Traffic::default() };
        [(64, traffic)].into()
    }

    fn rate(looks: &mut Looks, seconds: f64, packets: u64) -> Option<(f64, f64)> {
        let rates = looks.look(Duration::from_secs_f64(seconds), &counted(packets));
        rates.get(&64).map(|r| (r.rx_packets, r.seconds))
    }

    #[test]
    fn a_rate_needs_two_looks_a_second_apart() {
        let mut looks = Looks::default();
        assert_eq!(rate(&mut looks, 100.0, 10), None);
        assert_eq!(rate(&mut looks, 100.2, 20), None);
        assert_eq!(rate(&mut looks, 102.0, 30), Some((10.0, 2.0)));
        // Asked every 50 ms, it is against the look of two seconds ago until that of 102.0 is old enough, and then against
        // one of a second ago.
        for n in 1..=100 {
            let at = 102.0 + f64::from(n) * 0.05;
            let (per_second, over) = rate(&mut looks, at, 30 + n as u64).unwrap_or_default();
            let most = if at < 102.95 { 3.0 } else { 1.9 };
            assert!((0.9..most).contains(&over), "{over} at {at}");
            assert!((9.0..22.0).contains(&per_second), "{per_second} at {at}");
        }
        assert!(looks.0.len() <= 4, "{}", looks.0.len());
    }

    #[test]
    fn a_counter_that_began_anew_has_no_rate() {
        let mut looks = Looks::default();
        rate(&mut looks, 0.0, 1000);
        assert_eq!(rate(&mut looks, 1.0, 5), None);
        assert_eq!(rate(&mut looks, 2.0, 7), Some((2.0, 1.0)));
        looks.forget(&[64].into());
        assert_eq!(rate(&mut looks, 3.0, 1), Some((1.0, 1.0)));
    }
}
