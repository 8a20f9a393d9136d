//! Counters by tenant and remote that only grow, made of counters by slot that come and go. Pure.
//!
//! Prometheus takes a counter that goes back for one that started anew. The sum over a tenant's slots goes back when a
//! mapping leaves. So what is added is what each slot counted since the last look; what a slot counted between the last
//! look and its end is lost.

use super::traffic::Owner;
use crate::reconcile::status::Traffic;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Most pairs of tenant and remote that have series of their own. Where there are more, remotes are put together as `*`;
/// where there are more tenants than that, too, those beyond are put together as tenant `*`.
pub const PAIRS_MAX: usize = 2000;

/// Stands for all those that have no series of their own.
const ALL: &str = "*";

/// How finely traffic is told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grain {
    /// By tenant and remote.
    #[default]
    Pairs,
    /// By tenant.
    Tenants,
}

/// Labels of a series of traffic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// Tenant; empty where a mapping names none.
    pub tenant: String,
    /// Far underlay address, or `*`.
    pub remote: String,
}

/// Packets and bytes received, packets and bytes sent, and packets of those that took the fast lane, each way.
pub type Amounts = [u64; 6];

/// The sums so far.
#[derive(Debug, Default)]
pub struct Totals {
    /// How finely they are told apart.
    pub grain: Grain,
    /// Traffic.
    pub traffic: BTreeMap<Pair, Amounts>,
    /// Drops by tenant and reason; those that belong to no mapping have no tenant.
    pub drops: BTreeMap<(String, String), u64>,
    before: HashMap<u32, Slot>,
}

#[derive(Debug)]
struct Slot {
    owner: Option<Owner>,
    amounts: Amounts,
    drops: BTreeMap<String, u64>,
}

fn amounts(traffic: &Traffic) -> Amounts {
    let Traffic { rx_packets, rx_bytes, tx_packets, tx_bytes, rx_fast, tx_fast, .. } = *traffic;
    [rx_packets, rx_bytes, tx_packets, tx_bytes, rx_fast, tx_fast]
}

/// What was counted since; all of it where the counter began anew.
fn since(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

impl Totals {
    /// Adds what was counted since the last look. `owners` says whose slots are.
    pub fn add(&mut self, owners: &HashMap<u32, Owner>, counted: &BTreeMap<u32, Traffic>) {
        self.choose_grain(owners);
        let tenants: BTreeSet<&str> = owners.values().map(|o| o.tenant.as_str()).collect();
        let named: BTreeSet<&str> = tenants.into_iter().take(PAIRS_MAX).collect();
        let grain = self.grain;
        let tenant =
            |owner: &Owner| if named.contains(owner.tenant.as_str()) { owner.tenant.as_str() } else { ALL }.to_owned();
        let pair = |owner: &Owner| {
            let remote = if grain == Grain::Pairs { owner.remote.to_string() } else { ALL.to_owned() };
            Pair { tenant: tenant(owner), remote }
        };
        // A series is there as long as a mapping is, from its first packet or before.
        let present: BTreeSet<Pair> = owners.values().map(pair).collect();
        self.traffic.retain(|pair, _| present.contains(pair));
        for pair in present {
            self.traffic.entry(pair).or_default();
        }
        let mut after = HashMap::with_capacity(counted.len());
        for (slot, traffic) in counted {
            let owner = owners.get(slot);
            let now = amounts(traffic);
            let before = self.before.get(slot).filter(|before| before.owner.as_ref() == owner);
            if let Some(total) = owner.and_then(|owner| self.traffic.get_mut(&pair(owner))) {
                let was = before.map(|b| b.amounts).unwrap_or_default();
                for ((total, was), now) in total.iter_mut().zip(was).zip(now) {
                    *total += since(was, now);
                }
            }
            for (reason, now) in &traffic.drops {
                let was = before.and_then(|b| b.drops.get(reason)).copied().unwrap_or_default();
                let key = (owner.map(&tenant).unwrap_or_default(), reason.clone());
                *self.drops.entry(key).or_default() += since(was, *now);
            }
            after.insert(*slot, Slot { owner: owner.cloned(), amounts: now, drops: traffic.drops.clone() });
        }
        self.before = after;
        self.drops.retain(|(tenant, _), _| tenant.is_empty() || tenant == ALL || named.contains(tenant.as_str()));
    }

    /// Coarser when there are too many pairs, finer again when there are half of that.
    fn choose_grain(&mut self, owners: &HashMap<u32, Owner>) {
        let pairs: BTreeSet<(&str, IpAddr)> = owners.values().map(|o| (o.tenant.as_str(), o.remote)).collect();
        let grain = match self.grain {
            Grain::Pairs if pairs.len() > PAIRS_MAX => Grain::Tenants,
            Grain::Tenants if pairs.len() <= PAIRS_MAX / 2 => Grain::Pairs,
            grain => grain,
        };
        if grain != self.grain {
            self.grain = grain;
            self.traffic.clear();
            self.before.values_mut().for_each(|slot| slot.amounts = Amounts::default());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(tenant: &str, remote: u32) -> Owner {
        Owner { tenant: tenant.to_owned(), remote: std::net::Ipv4Addr::from(0x0a00_0000 + remote).into() }
    }

    fn counted(packets: u64, drops: u64) -> Traffic {
        let drops = (drops > 0).then(|| ("no_entry".to_owned(), drops)).into_iter().collect();
        Traffic { rx_packets: packets, rx_bytes: packets * 10, drops, ..Traffic::default() }
    }

    fn received(totals: &Totals) -> BTreeMap<(String, String), u64> {
        totals.traffic.iter().map(|(p, a)| ((p.tenant.clone(), p.remote.clone()), a[0])).collect()
    }

    #[test]
    fn what_a_mapping_counted_stays_when_it_leaves() {
        let mut totals = Totals::default();
        let both: HashMap<u32, Owner> = [(64, owner("red", 1)), (65, owner("red", 1))].into();
        totals.add(&both, &[(64, counted(100, 0)), (65, counted(50, 3))].into());
        let one: HashMap<u32, Owner> = [(64, owner("red", 1))].into();
        totals.add(&one, &[(64, counted(101, 0))].into());
        assert_eq!(received(&totals).into_values().collect::<Vec<_>>(), [151]);
        assert_eq!(totals.drops[&("red".to_owned(), "no_entry".to_owned())], 3);
        // The slot goes to another tenant, its counters start anew: the other's packets aren't red's.
        let blue: HashMap<u32, Owner> = [(64, owner("blue", 1))].into();
        totals.add(&blue, &[(64, counted(7, 0))].into());
        assert_eq!(received(&totals), [(("blue".to_owned(), "10.0.0.1".to_owned()), 7)].into());
    }

    #[test]
    fn ten_thousand_mappings_have_a_bounded_number_of_series() {
        let mut totals = Totals::default();
        let owners: HashMap<u32, Owner> =
            (0..10_000).map(|n| (64 + n, owner(&format!("t{}", n % 100), n / 100))).collect();
        let counts: BTreeMap<u32, Traffic> = owners.keys().map(|slot| (*slot, counted(1, 1))).collect();
        totals.add(&owners, &counts);
        assert_eq!((totals.grain, totals.traffic.len()), (Grain::Tenants, 100));
        assert!(received(&totals).values().all(|n| *n == 100));
        let tenants: HashMap<u32, Owner> = (0..10_000).map(|n| (64 + n, owner(&format!("t{n}"), n))).collect();
        totals.add(&tenants, &counts);
        assert_eq!(totals.traffic.len(), PAIRS_MAX + 1);
        assert!(totals.drops.len() <= PAIRS_MAX + 2, "{}", totals.drops.len());
        // Back to pairs only once there are clearly few enough.
        let few: HashMap<u32, Owner> = owners.into_iter().filter(|(slot, _)| *slot < 64 + 1500).collect();
        totals.add(&few, &counts);
        assert_eq!(totals.grain, Grain::Tenants);
        let fewer: HashMap<u32, Owner> = few.into_iter().filter(|(slot, _)| *slot < 64 + 900).collect();
        totals.add(&fewer, &counts);
        assert_eq!((totals.grain, totals.traffic.len()), (Grain::Pairs, 900));
    }

    proptest! {
        #[test]
        fn no_counter_goes_back_as_long_as_its_series_is_there(
            looks in proptest::collection::vec(proptest::collection::vec((0u32..6, 0u32..3, 0u32..2, 0u64..100, 0u64..5), 0..8), 1..12),
        ) {
            let mut totals = Totals::default();
            for look in looks {
                let before = received(&totals);
                let dropped = totals.drops.clone();
                let owners = look.iter().map(|(slot, tenant, remote, ..)| (64 + slot, owner(&tenant.to_string(), *remote))).collect();
                let counts = look.iter().map(|(slot, _, _, packets, drops)| (64 + slot, counted(*packets, *drops))).collect();
                totals.add(&owners, &counts);
                let after = received(&totals);
                for (pair, packets) in before {
                    prop_assert!(after.get(&pair).is_none_or(|now| *now >= packets));
                }
                for (key, packets) in dropped {
                    prop_assert!(totals.drops.get(&key).is_none_or(|now| *now >= packets));
                }
            }
        }
    }
}
