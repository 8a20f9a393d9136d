//! What the data plane counted: packets, bytes, drops by reason, and keys that nobody mapped.

use super::TunKey;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why the data plane dropped a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Nobody mapped the key that a packet came with.
    UnknownKey,
    /// The packet carried no tunnel key: the tunnel device isn't in external mode.
    NoTunnelKey,
    /// The tunnel has no valid entry in `conf`.
    NoConf,
    /// The device isn't the one that was mapped: another has inherited its index, or it left the namespace.
    WrongDevice,
    /// The interface has no entry in `if2tunkey`.
    NoEntry,
    /// The device to send to is gone.
    TargetGone,
    /// Came in from a tunnel and was about to leave through one.
    SplitHorizon,
    /// An endpoint's program saw a packet that the workload didn't send.
    WrongHook,
    /// The kernel refused the outer header's fields.
    SetTunnelKey,
    /// The kernel refused the redirect.
    Redirect,
    /// A map entry failed its check at every try.
    Inconsistent,
    /// Didn't fit into the tunnel: its sender was told, unless it sends too many.
    TooBig,
    /// The fast lane could not write the outer header.
    Encapsulate,
    /// The fast lane could not remove the outer header.
    Decapsulate,
}

impl DropReason {
    /// Every reason, in the order of the data plane's counters.
    pub const ALL: [Self; 14] = [
        Self::UnknownKey,
        Self::NoTunnelKey,
        Self::NoConf,
        Self::WrongDevice,
        Self::NoEntry,
        Self::TargetGone,
        Self::SplitHorizon,
        Self::WrongHook,
        Self::SetTunnelKey,
        Self::Redirect,
        Self::Inconsistent,
        Self::TooBig,
        Self::Encapsulate,
        Self::Decapsulate,
    ];

    /// Stable name, as in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::NoTunnelKey => "no_tunnel_key",
            Self::NoConf => "no_conf",
            Self::WrongDevice => "wrong_device",
            Self::NoEntry => "no_entry",
            Self::TargetGone => "target_gone",
            Self::SplitHorizon => "split_horizon",
            Self::WrongHook => "wrong_hook",
            Self::SetTunnelKey => "set_tunnel_key",
            Self::Redirect => "redirect",
            Self::Inconsistent => "inconsistent",
            Self::TooBig => "too_big",
            Self::Encapsulate => "encapsulate",
            Self::Decapsulate => "decapsulate",
        }
    }
}

impl DropReason {
    /// The reason with that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// In words, for people.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::UnknownKey => "came with a key that nobody mapped",
            Self::NoTunnelKey => "came without a tunnel key: the tunnel device isn't in external mode",
            Self::NoConf => "the tunnel has no device in force",
            Self::WrongDevice => "the interface isn't the one that was mapped: it was recreated, or left the namespace",
            Self::NoEntry => "the interface isn't mapped",
            Self::TargetGone => "the interface to deliver to, or the tunnel device, is gone",
            Self::SplitHorizon => "came from a tunnel and was about to leave through one",
            Self::WrongHook => "reached an endpoint that its workload didn't send it from",
            Self::SetTunnelKey => "the kernel refused the outer header",
            Self::Redirect => "the kernel refused the redirect",
            Self::Inconsistent => "a map entry failed its check at every try",
            Self::TooBig => "larger than the tunnel has room for",
            Self::Encapsulate => "the outer header could not be written in the fast lane",
            Self::Decapsulate => "the outer header could not be removed in the fast lane",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counters of one slot, summed over CPUs. A GSO packet counts as its segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets decapsulated for the tenant.
    pub rx_packets: u64,
    /// Their bytes, from the inner Ethernet header on.
    pub rx_bytes: u64,
    /// Packets that the tenant sent into the tunnel.
    pub tx_packets: u64,
    /// Their bytes, from the inner Ethernet header on.
    pub tx_bytes: u64,
    /// Of the packets received, those that took the fast lane.
    pub rx_fast: u64,
    /// Of the packets sent, those that took the fast lane.
    pub tx_fast: u64,
    /// Packets dropped, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Packets dropped for that reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Packets dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }
}

/// A key that packets came with and nobody mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownKey {
    /// Tunnel index, id and remote.
    pub key: TunKey,
    /// Packets dropped since the key was first seen.
    pub packets: u64,
    /// Milliseconds since the last of them.
    pub age_ms: u64,
}
