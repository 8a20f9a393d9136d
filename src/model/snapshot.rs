//! A live state that was written down: to be planned against elsewhere, without root and without that kernel.

use super::{Intent, Observed, SLOT_LIMIT, TUNNEL_INDEXES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the snapshot's JSON.
pub const SNAPSHOT_VERSION: u32 = 1;

/// A host's live state and what explains it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of the format.
    pub format_version: u32,
    /// Name of the host.
    pub host: String,
    /// The node that the host took itself for; absent where no topology with nodes was accepted or named.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// What was to be in force: tells changes of the files from drift.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accepted: Option<Intent>,
    /// Traffic by slot; slots that nothing passed are left out.
    #[serde(default)]
    pub traffic: BTreeMap<u32, Throughput>,
    /// Maps, programs, attachments, links and addresses.
    pub observed: Observed,
}

/// What passed a slot since its mapping was made, and what passed it while it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throughput {
    /// Packets that arrived through the tunnel.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets sent into the tunnel.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets that arrive in a second.
    pub rx_packets_per_second: u64,
    /// Packets that are sent in a second.
    pub tx_packets_per_second: u64,
    /// Bytes of both in a second.
    pub bytes_per_second: u64,
}

impl Throughput {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.saturating_add(other.rx_packets),
            rx_bytes: self.rx_bytes.saturating_add(other.rx_bytes),
            tx_packets: self.tx_packets.saturating_add(other.tx_packets),
            tx_bytes: self.tx_bytes.saturating_add(other.tx_bytes),
            rx_packets_per_second: self.rx_packets_per_second.saturating_add(other.rx_packets_per_second),
            tx_packets_per_second: self.tx_packets_per_second.saturating_add(other.tx_packets_per_second),
            bytes_per_second: self.bytes_per_second.saturating_add(other.bytes_per_second),
        }
    }

    /// Packets of both directions in a second.
    pub fn packets_per_second(&self) -> u64 {
        self.rx_packets_per_second.saturating_add(self.tx_packets_per_second)
    }

    /// Packets of both directions.
    pub fn packets(&self) -> u64 {
        self.rx_packets.saturating_add(self.tx_packets)
    }
}

impl Snapshot {
    /// Reads one, whatever the bytes are.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let version: Version = serde_json::from_slice(text).map_err(|e| format!("not a snapshot: {e}"))?;
        if version.format_version != SNAPSHOT_VERSION {
            return Err(format!(
                "the snapshot has format {}, this version reads {SNAPSHOT_VERSION}",
                version.format_version
            ));
        }
        let snapshot: Self = serde_json::from_slice(text).map_err(|e| format!("not a snapshot: {e}"))?;
        snapshot.observed.check()?;
        Ok(snapshot)
    }
}

impl Observed {
    /// Refuses what no kernel of ours could show.
    ///
    /// # Errors
    ///
    /// What is impossible.
    pub fn check(&self) -> Result<(), String> {
        let index = |index: u32| {
            let possible = (1..TUNNEL_INDEXES).contains(&index);
            possible.then_some(()).ok_or_else(|| format!("there is no tunnel index {index}"))
        };
        let Some(maps) = &self.maps else { return Ok(()) };
        if maps.capacity > SLOT_LIMIT {
            return Err(format!("maps of {} slots are impossible; at most {SLOT_LIMIT} are", maps.capacity));
        }
        let slots = maps.tunkey2if.iter().map(|(_, value)| value.slot);
        let slots = slots.chain(maps.if2tunkey.iter().map(|(_, entry)| entry.slot));
        if let Some(slot) = slots.chain(maps.devs.iter().map(|(slot, _)| *slot)).find(|slot| *slot >= SLOT_LIMIT) {
            return Err(format!("there is no slot {slot}; slots are below {SLOT_LIMIT}"));
        }
        maps.conf.keys().try_for_each(|i| index(*i))
    }
}
