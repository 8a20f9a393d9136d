//! Plain data: what the files ask for, what the kernel has, and the vocabulary they share.
//!
//! A *mapping* ties one local interface to one tunnel key: `{tunnel, id, remote} <-> interface`.
//! Nothing in here performs I/O, reads a clock or knows about `aya` or `rtnetlink`.

mod chain;
mod counters;
mod desired;
mod device;
mod lane;
mod moment;
mod name;
mod observed;
mod prefix;
mod snapshot;
mod underlay;

pub use chain::*;
pub use counters::*;
pub use desired::*;
pub use device::*;
pub use lane::LaneReason;
pub use moment::Moment;
pub use name::{Name, share};
pub use observed::*;
pub use prefix::Prefix;
pub use snapshot::*;
pub use underlay::*;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Longest interface name in bytes, without the terminating NUL (`IFNAMSIZ` - 1).
pub const INTERFACE_NAME_MAX: usize = 15;

/// Number of entries of `conf`. Index 0 is never a tunnel (as in the BCC example, where `conf[1]` is the tunnel
/// device), so at most 63 tunnels exist at once.
pub const TUNNEL_INDEXES: u32 = 64;

/// First slot of a mapping. Slots below are tunnel indexes; slot 0 counts drops that belong to no tunnel or mapping.
pub const FIRST_MAPPING_SLOT: u32 = TUNNEL_INDEXES;

/// Highest slot number plus one: slots travel in 28 bits of a map value.
pub const SLOT_LIMIT: u32 = 1 << 28;

/// Most ports that the kernel lets a bridge have (`BR_MAX_PORTS` - 1).
pub const BRIDGE_PORTS_MAX: usize = 1023;

/// Encapsulation of a tunnel device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// VXLAN, RFC 7348.
    Vxlan,
    /// Geneve, RFC 8926.
    Geneve,
    /// Ethernet over GRE with a key, RFC 2784 and RFC 2890 (`gretap`, over IPv6 `ip6gretap`).
    Gretap,
}

impl TunnelKind {
    /// Largest tunnel id: 24 bits for VXLAN and Geneve, 32 for GRE.
    pub fn max_id(self) -> u32 {
        match self {
            Self::Vxlan | Self::Geneve => (1 << 24) - 1,
            Self::Gretap => u32::MAX,
        }
    }

    /// IANA's UDP port of the encapsulation; `None` for GRE.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Self::Vxlan => Some(4789),
            Self::Geneve => Some(6081),
            Self::Gretap => None,
        }
    }

    /// Bytes that the encapsulation takes from the underlay's MTU, the inner Ethernet header included.
    ///
    /// UDP kinds: IP + 8 (UDP) + 8 (VXLAN or Geneve without options) + 14. GRE: IP + 8 (GRE with key) + 14; in
    /// external mode the device adds no tunnel encapsulation limit option (RFC 2473) over IPv6.
    pub fn overhead(self, underlay_is_ipv6: bool) -> u32 {
        match (self, underlay_is_ipv6) {
            (Self::Vxlan | Self::Geneve, false) => 50,
            (Self::Vxlan | Self::Geneve, true) => 70,
            (Self::Gretap, false) => 42,
            (Self::Gretap, true) => 62,
        }
    }
}

impl fmt::Display for TunnelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Gretap => "gretap",
        })
    }
}

/// How a mapping's interface is attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// A bridge port, or what stands in for one: TC egress; decapsulated packets arrive as if received on it.
    #[default]
    Port,
    /// The host side of a workload's veth: TC ingress; decapsulated packets go straight to the peer.
    Endpoint,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Endpoint => "endpoint",
        })
    }
}

/// A field of the outer header that is either copied from the inner packet or fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OuterField {
    /// Taken from the inner IP header; 0 (the kernel's default) where the inner packet isn't IP.
    Inherit,
    /// This value. A TTL of 0 means the route's default.
    Fixed(u8),
}

impl fmt::Display for OuterField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inherit => f.write_str("inherit"),
            Self::Fixed(value) => write!(f, "{value}"),
        }
    }
}

/// What identifies a mapping on the wire: tunnel device, tunnel id and the far underlay address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TunnelKey {
    /// Name of the tunnel, which is the name of its device.
    pub tunnel: Name,
    /// Tunnel id (VNI or GRE key).
    pub id: u32,
    /// Underlay address of the far host.
    pub remote: IpAddr,
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}, {}, {}}}", self.tunnel, self.id, self.remote)
    }
}

/// Where in the topology files something was said. In JSON it is the text `file:line:column`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Origin {
    /// Path as given to the reader.
    pub file: Name,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.to_string()
    }
}

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut parts = text.rsplitn(3, ':');
        let (column, line, file) = (parts.next(), parts.next(), parts.next());
        let number = |part: Option<&str>| part.and_then(|p| p.parse().ok());
        match (file, number(line), number(column)) {
            (Some(file), Some(line), Some(column)) => Ok(Self { file: file.into(), line, column }),
            _ => Err(format!("{text:?} isn't file:line:column")),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
