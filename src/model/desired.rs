//! What the topology files ask of one node.

use super::{Attach, Name, Origin, OuterField, TunnelKey, TunnelKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The desired state of one node, compiled from the topology files by pure code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Hash of the content of the files, independent of their names' order: the topology revision.
    pub revision: String,
    /// The node this was compiled for; `None` where only `mappings` were declared.
    pub node: Option<String>,
    /// Tunnels by name.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Bridges that tenants of this node join, by name.
    pub bridges: BTreeMap<String, Bridge>,
    /// Mappings by interface name: an interface has at most one.
    pub mappings: BTreeMap<Name, Mapping>,
    /// Nodes and tenants of the whole topology.
    #[serde(skip_serializing_if = "Mesh::is_empty", default)]
    pub mesh: Mesh,
}

/// What the topology says beyond this node's own mappings: names for what comes from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Nodes by their underlay addresses.
    pub nodes: BTreeMap<IpAddr, Name>,
    /// Tenants, those of other nodes too, by name.
    pub tenants: Vec<MeshTenant>,
}

impl Mesh {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A tenant of the topology, whether or not this node is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshTenant {
    /// Name.
    pub name: Name,
    /// Its tunnel.
    pub tunnel: Name,
    /// Its id.
    pub id: u32,
}

impl Desired {
    /// The mappings whose interfaces another state doesn't map: both are walked side by side.
    pub fn mappings_not_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Mapping> {
        let mut others = other.mappings.keys().peekable();
        self.mappings.iter().filter_map(move |(interface, mapping)| {
            while others.next_if(|o| *o < interface).is_some() {}
            (others.peek() != Some(&interface)).then_some(mapping)
        })
    }
}

/// What is to be in force, and what of it the files no longer have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The state to reach.
    pub desired: Desired,
    /// Interfaces whose mappings the guard holds.
    #[serde(default)]
    pub held: BTreeSet<String>,
    /// Interfaces whose removal waits for one more unchanged rescan.
    #[serde(default)]
    pub delayed: BTreeSet<String>,
}

/// Underlay source addresses of this host, one of each family at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// IPv4 source.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 source.
    pub v6: Option<Ipv6Addr>,
}

impl Local {
    /// The source address for a remote of that family.
    pub fn for_remote(&self, remote: IpAddr) -> Option<IpAddr> {
        match remote {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Whether it is one of this host's sources.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.for_remote(address) == Some(address)
    }
}

/// Which lane the packets of a tunnel take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fast {
    /// The daemon decides.
    #[default]
    Auto,
    /// Always the fast lane, where the packet allows it.
    On,
    /// Always the tunnel device.
    Off,
}

/// A tunnel device in collect-metadata ("external") mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Name of the device.
    pub name: String,
    /// Encapsulation.
    pub kind: TunnelKind,
    /// UDP destination port; `None` for GRE.
    pub port: Option<u16>,
    /// Whether the daemon makes and repairs the device. Otherwise it must exist.
    pub create: bool,
    /// Underlay sources of this node.
    pub local: Local,
    /// MTU of the device in bytes; `None`: computed from the underlay.
    pub mtu: Option<u32>,
    /// Outer TTL or hop limit.
    pub ttl: OuterField,
    /// Outer DSCP and ECN octet.
    pub tos: OuterField,
    /// Sets "don't fragment" on the outer IPv4 header.
    pub df: bool,
    /// Outer UDP (or GRE) checksum; `None`: off over IPv4, on over IPv6 for UDP kinds, off for GRE.
    pub checksum: Option<bool>,
    /// Value written into `tc_index` in port mode; 0 turns it off.
    pub mark: u16,
    /// Lane.
    pub fast: Fast,
    /// Where it was declared.
    pub origin: Origin,
}

impl Tunnel {
    /// Outer checksum of what is sent to a remote: what the files say, else the kernel's own habit for family and kind.
    pub fn checksum_for(&self, remote: IpAddr) -> bool {
        self.checksum.unwrap_or(remote.is_ipv6() && self.kind != TunnelKind::Gretap)
    }
}

/// A bridge that a tenant's generated ports join. Made if missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Name of the device.
    pub name: String,
    /// The tenant that named it.
    pub tenant: String,
    /// MTU in bytes of a bridge that we make, when the tunnels say one; `None`: computed from the underlay.
    pub mtu: Option<u32>,
    /// Where it was declared.
    pub origin: Origin,
}

/// A port that the daemon makes for one remote member of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedPort {
    /// The bridge it joins, isolated.
    pub bridge: String,
    /// The remote node.
    pub node: String,
}

/// One mapping: a local interface and its tunnel key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Label for people and metrics; empty where a low-level mapping names none.
    pub tenant: Name,
    /// Interface name.
    pub interface: Name,
    /// Tunnel, id and remote.
    pub key: TunnelKey,
    /// Underlay source of what is sent.
    pub local: IpAddr,
    /// How the interface is attached.
    pub attach: Attach,
    /// The remote node, where the mapping comes from a tenant: its far end is made from the same files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<Name>,
    /// Set where the daemon makes the interface itself.
    pub generated: Option<Box<GeneratedPort>>,
    /// Where it was declared.
    pub origin: Origin,
}

impl Mapping {
    /// Stable address of the mapping in plans: `tenant/interface`, or the interface alone.
    pub fn address(&self) -> String {
        if self.tenant.is_empty() { self.interface.to_string() } else { format!("{}/{}", self.tenant, self.interface) }
    }
}

/// Prefix that every alias (`IFLA_IFALIAS`) of ours has.
const ALIAS_PREFIX: &str = "tunnel-mesh ";

/// Longest alias in bytes, without the terminating NUL (`IFALIASZ` - 1).
pub const ALIAS_MAX: usize = 255;

/// Which tunnel-mesh made a device: several may run in one network namespace, each with a pin directory of its own.
///
/// The alias of a device marks it as ours. It ends in ` in PIN-DIRECTORY`, unless that is the default one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

impl Instance {
    /// Where pins are unless one says otherwise.
    pub const DEFAULT_PINS: &str = "/sys/fs/bpf/tunnel-mesh";

    /// The instance with that pin directory.
    pub fn of(pins: &std::path::Path) -> Self {
        if pins == std::path::Path::new(Self::DEFAULT_PINS) {
            return Self::default();
        }
        Self(format!(" in {}", pins.display()))
    }

    /// What the alias of one of our devices says it is: `tunnel NAME`, `bridge NAME` or `port TENANT/NODE`. `None` where
    /// the device is somebody else's, another instance's too.
    pub fn made<'a>(&self, alias: Option<&'a str>) -> Option<&'a str> {
        let what = alias?.strip_prefix(ALIAS_PREFIX)?.strip_suffix(self.0.as_str())?;
        // Names hold no spaces: what follows a second one is another instance's directory.
        (what.matches(' ').count() == 1).then_some(what)
    }

    /// Alias of a tunnel device.
    pub fn tunnel_alias(&self, tunnel: &str) -> String {
        format!("{ALIAS_PREFIX}tunnel {tunnel}{}", self.0)
    }

    /// Alias of a bridge.
    pub fn bridge_alias(&self, bridge: &str) -> String {
        format!("{ALIAS_PREFIX}bridge {bridge}{}", self.0)
    }

    /// Alias of a generated port.
    pub fn port_alias(&self, tenant: &str, node: &str) -> String {
        format!("{ALIAS_PREFIX}port {tenant}/{node}{}", self.0)
    }
}
