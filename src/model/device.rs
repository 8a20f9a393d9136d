//! Devices to be made.

use super::{Local, PortKind, TunnelKind};
use serde::{Deserialize, Serialize};

/// A device to be made, administratively down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NewLink {
    /// A tunnel device in collect-metadata mode.
    Tunnel {
        /// Name.
        name: String,
        /// Encapsulation.
        kind: TunnelKind,
        /// UDP port.
        port: Option<u16>,
        /// `ip6gretap` rather than `gretap`.
        ip6: bool,
        /// Underlay sources.
        local: Local,
        /// MTU in bytes.
        mtu: u32,
        /// Alias.
        alias: String,
        /// Accept IPv6 packets with a zero UDP checksum.
        udp6_zero_checksum_rx: bool,
    },
    /// A bridge.
    Bridge {
        /// Name.
        name: String,
        /// MTU in bytes.
        mtu: u32,
        /// Alias.
        alias: String,
    },
    /// A generated port.
    Port {
        /// Name.
        name: String,
        /// What it is made of.
        kind: PortKind,
        /// Alternative name, `tenant/node`.
        altname: String,
        /// Alias.
        alias: String,
        /// MTU in bytes.
        mtu: u32,
    },
}

impl NewLink {
    /// Name of the device.
    pub fn name(&self) -> &str {
        match self {
            Self::Tunnel { name, .. } | Self::Bridge { name, .. } | Self::Port { name, .. } => name,
        }
    }
}
