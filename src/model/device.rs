//! What can be asked of a network device: how one is made, and what may change on one that exists.

use super::{Local, PortKind, TunnelKind};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A device to make. All of them are made administratively down, and none speaks on its own: IPv6 link-local
/// addresses aren't generated (`addr_gen_mode none`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewLink {
    /// A tunnel device in collect-metadata ("external") mode. A vxlan device doesn't learn addresses.
    Tunnel {
        /// Name.
        name: String,
        /// Encapsulation.
        kind: TunnelKind,
        /// UDP port, for UDP kinds; `None`: the kind's default.
        port: Option<u16>,
        /// `ip6gretap` instead of `gretap`; without meaning for the UDP kinds, which carry both families.
        ip6: bool,
        /// Underlay sources.
        local: Local,
        /// MTU in bytes.
        mtu: u32,
        /// Alias, which marks the device as ours.
        alias: String,
        /// Accept IPv6 packets whose UDP checksum is zero (`udp6zerocsumrx`), for UDP kinds.
        udp6_zero_checksum_rx: bool,
    },
    /// A bridge, without multicast snooping (or it would report memberships of its own into the segment) and with
    /// an MTU that its ports don't change.
    Bridge {
        /// Name.
        name: String,
        /// MTU in bytes.
        mtu: u32,
        /// Alias, which marks the device as ours.
        alias: String,
    },
    /// A generated port.
    Port {
        /// Name; at most 14 bytes where it is a veth, whose other end has one more.
        name: String,
        /// What it is made of.
        kind: PortKind,
        /// Alternative name: `tenant/node`.
        altname: String,
        /// Alias, which marks the device as ours.
        alias: String,
        /// MTU in bytes.
        mtu: u32,
    },
}

/// The local address that a tunnel device of that kind is made with, of those that the node has.
///
/// In external mode it informs people and no packet: sources come with each packet's tunnel key. A vxlan device
/// takes one address, so none where the node has one of each family; Geneve (before Linux 6.19) and GRE in external
/// mode take none.
pub fn device_local(kind: TunnelKind, local: Local) -> Local {
    match (kind, local) {
        (TunnelKind::Vxlan, Local { v4: Some(_), v6: None } | Local { v4: None, v6: Some(_) }) => local,
        _ => Local::default(),
    }
}

/// Longest alternative name in bytes, without the terminating NUL (`ALTIFNAMSIZ` - 1).
pub const ALTNAME_MAX: usize = 127;

impl NewLink {
    /// Name of the device.
    pub fn name(&self) -> &str {
        match self {
            Self::Tunnel { name, .. } | Self::Bridge { name, .. } | Self::Port { name, .. } => name,
        }
    }
}

/// One change of a device that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkChange {
    /// Administratively up.
    Up,
    /// Administratively down.
    Down,
    /// MTU in bytes.
    Mtu(u32),
    /// Joins a bridge or, with none, leaves the one it is in.
    Master {
        /// Index of the bridge.
        bridge: Option<u32>,
    },
    /// Bridge port option `isolated`: it reaches only ports that aren't. The link must be a bridge port.
    Isolated(bool),
    /// Whether a vxlan device learns addresses.
    Learning(bool),
    /// Forwards IPv4 (`ipv6` false) or IPv6.
    Forward {
        /// IPv6.
        ipv6: bool,
    },
    /// Local address of a vxlan device, which has one of the same family.
    VxlanLocal(IpAddr),
    /// Alias.
    Alias(String),
    /// Alternative name, added to those it has; already there is success.
    Altname(String),
}
