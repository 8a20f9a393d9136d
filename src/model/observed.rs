//! What the kernel has: links, map contents, programs and attachments, read in one sweep.

use super::{Instance, Local, Name, OuterField, TunnelKind, Underlay};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The live state of one network namespace and one pin directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Whose live state it is: tells our devices from those of others.
    #[serde(default)]
    pub instance: Instance,
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// What the kernel offers.
    pub features: Features,
    /// Every link of the namespace.
    pub links: Vec<Link>,
    /// Every address of the namespace.
    pub addresses: Vec<Address>,
    /// What the fast lane would pass by.
    #[serde(default)]
    pub underlay: Underlay,
    /// Our maps; `None` where none are pinned that can be read.
    pub maps: Option<MapState>,
    /// What is wrong with the layout of what is pinned, where another version pinned it.
    #[serde(default)]
    pub outdated_maps: Option<String>,
    /// Our pinned programs.
    pub programs: Vec<LoadedProgram>,
    /// Our attachments, and what stands beside them.
    pub attachments: Vec<Attachment>,
}

impl Observed {
    /// The link of that name, or that alternative name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    /// The link with that index.
    pub fn link_by_index(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.ifindex == ifindex)
    }
}

/// What was probed of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// How programs are attached.
    pub hook_kind: HookKind,
    /// What a generated port is made of.
    pub port_kind: PortKind,
    /// Whether IPv6 forwarding of a link can be switched on here (`/proc/sys` is writable).
    #[serde(default)]
    pub forwarding6: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self { hook_kind: HookKind::Tcx, port_kind: PortKind::Dummy, forwarding6: true }
    }
}

/// How programs are attached to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookKind {
    /// A pinned TCX bpf_link (Linux 6.6).
    Tcx,
    /// A filter of the `clsact` qdisc with a fixed priority and handle.
    Clsact,
}

/// The device kinds a generated port can be made of, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// `dummy`.
    Dummy,
    /// `ifb`.
    Ifb,
    /// One end of a veth pair whose other end is up (a port needs a carrier) and silent, named like the port with a
    /// trailing `p`.
    Veth,
}

/// A network interface as rtnetlink reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Interface index in this namespace.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// `IFLA_INFO_KIND`: `veth`, `vxlan`, `bridge`, …; empty for physical devices. Links of a listing share
    /// the text.
    pub kind: Name,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Whether its frames are Ethernet's (`ARPHRD_ETHER`).
    #[serde(default)]
    pub ethernet: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Index of the bridge or other master.
    pub master: Option<u32>,
    /// Bridge port option `isolated`; `None` where it isn't a bridge port.
    pub isolated: Option<bool>,
    /// For a veth: whether its peer lives in another namespace (`IFLA_LINK_NETNSID` is present).
    pub peer_in_other_netns: bool,
    /// Whether the link forwards IPv4 and IPv6 (`net.ipv4.conf.*.forwarding`): the kernel looks routes up for such links.
    #[serde(default)]
    pub forwards: Forwarding,
    /// What the kernel says of a tunnel device.
    pub tunnel: Option<Box<TunnelDevice>>,
    /// The device's own drop counters: received and sent packets dropped.
    pub dropped: (u64, u64),
}

/// What a link forwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Configuration of a tunnel device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelDevice {
    /// Encapsulation.
    pub kind: TunnelKind,
    /// Whether the device is `ip6gretap` rather than `gretap`.
    pub ip6: bool,
    /// Collect-metadata mode.
    pub external: bool,
    /// UDP port; `None` for GRE.
    pub port: Option<u16>,
    /// Whether a vxlan device learns addresses.
    pub learning: bool,
    /// Local address that the device was made with.
    pub local: Local,
    /// Whether IPv6 packets with a zero UDP checksum are accepted (`udp6zerocsumrx`).
    pub udp6_zero_checksum_rx: bool,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The link.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
}

/// Contents of our maps, each sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapState {
    /// Number of slots that `devs` and the counters have; the hashes hold as many entries.
    pub capacity: u32,
    /// Entries of `conf` that are in use, by tunnel index.
    pub conf: BTreeMap<u32, Conf>,
    /// Entries of `tunkey2if`.
    pub tunkey2if: Vec<(TunKey, SlotRef)>,
    /// Entries of `if2tunkey`, by ifindex.
    pub if2tunkey: Vec<(u32, IfEntry)>,
    /// Slots of `devs` that hold a device: slot and ifindex.
    pub devs: Vec<(u32, u32)>,
}

impl MapState {
    /// Index of a tunnel: by its name in `conf` or, where that entry was lost, by its device in `devs`.
    pub fn tunnel_index(&self, name: &str, device: Option<u32>) -> Option<u32> {
        let tunnel = |c: &Conf| c.name == name && matches!(c.role, Role::Tunnel(_));
        let named = self.conf.iter().find(|(_, c)| tunnel(c)).map(|(index, _)| *index);
        named.or_else(|| {
            let lost = |slot: u32| slot < super::TUNNEL_INDEXES && !self.conf.contains_key(&slot);
            self.devs.iter().find(|(slot, holder)| lost(*slot) && Some(*holder) == device).map(|(slot, _)| *slot)
        })
    }
}

/// Entry of `conf`: one tunnel, or one underlay device on which tunnels are decapsulated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conf {
    /// Index of the device.
    pub ifindex: u32,
    /// Name of the tunnel or underlay device, which keeps the index stable while its device comes and goes.
    pub name: String,
    /// Value written into `tc_index` in port mode; 0: not written.
    pub mark: u16,
    /// What the entry is for.
    #[serde(default)]
    pub role: Role,
    /// Of a tunnel: what is known of the way to its remotes.
    #[serde(default, alias = "room")]
    pub way: Way,
}

/// What is known of the way to a tunnel's remotes, by address family, from the underlay device with our address. `None`:
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// GRE; else VXLAN or Geneve.
    pub gre: bool,
    /// Over IPv4: the largest packet that the underlay device has room for, whatever the MTU of the tunnel's own device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub v4: Option<u16>,
    /// Over IPv6.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub v6: Option<u16>,
    /// Over IPv4: index of the device where it is an Ethernet one, whose frames may be written whole.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ethernet4: Option<u32>,
    /// Over IPv6.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ethernet6: Option<u32>,
}

/// What an entry of `conf` is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A tunnel. Where its packets may be decapsulated on the underlay, how they are told.
    Tunnel(Option<Decap>),
    /// An underlay device: the tunnels decapsulated on it.
    Underlay(Vec<TunnelPort>),
}

impl Default for Role {
    fn default() -> Self {
        Self::Tunnel(None)
    }
}

/// How the packets of a tunnel are told on the underlay, beside their UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decap {
    /// Geneve; else VXLAN.
    pub geneve: bool,
    /// Our addresses, to which they come.
    pub local: Local,
    /// Whether IPv6 packets without a UDP checksum are taken.
    pub zero_checksum6: bool,
}

/// A tunnel and the UDP port that its packets come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TunnelPort {
    /// Tunnel index.
    pub tunnel: u32,
    /// UDP port.
    pub port: u16,
}

/// Most tunnels that one underlay device decapsulates (`TM_UNDERLAY_PORTS`).
pub const UNDERLAY_PORTS_MAX: usize = 8;

/// Key of `tunkey2if`. An IPv4 remote is stored IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TunKey {
    /// Tunnel index.
    pub tunnel: u32,
    /// Tunnel id.
    pub id: u32,
    /// Far underlay address.
    pub remote: IpAddr,
}

/// Value of `tunkey2if`: the mapping's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRef {
    /// Slot.
    pub slot: u32,
    /// Whether decapsulated packets go to the peer of the interface.
    pub endpoint: bool,
    /// Whether the check word in the live value is the right one for its key. Always true in what we write.
    pub valid: bool,
}

/// Value of `if2tunkey`: what is sent from an interface goes where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IfEntry {
    /// Slot.
    pub slot: u32,
    /// Whether the interface is an endpoint.
    pub endpoint: bool,
    /// Tunnel, id and remote.
    pub key: TunKey,
    /// Underlay source.
    pub local: IpAddr,
    /// Outer TTL.
    pub ttl: OuterField,
    /// Outer DSCP and ECN octet.
    pub tos: OuterField,
    /// Outer "don't fragment".
    pub df: bool,
    /// Outer checksum.
    pub checksum: bool,
    /// Set where packets take the fast lane if they can.
    #[serde(default)]
    pub fast: Option<FastHeader>,
    /// Whether the check word in the live value is the right one. Always true in what we write.
    pub valid: bool,
}

/// What the fast lane needs to know of the outer header, besides what the tunnel device is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastHeader {
    /// Geneve; else VXLAN.
    pub geneve: bool,
    /// UDP port of the far side.
    pub port: u16,
}

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// `handle_egress`, for ports and endpoints.
    HandleEgress,
    /// `handle_ingress`, loaded once for each tunnel index.
    HandleIngress {
        /// Tunnel index, a constant of the program.
        tunnel: u32,
    },
    /// `handle_underlay`, loaded once for each underlay device.
    HandleUnderlay {
        /// Index of the device in `conf`, a constant of the program.
        index: u32,
    },
}

impl Program {
    /// The kernel's name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::HandleEgress => "handle_egress",
            Self::HandleIngress { .. } => "handle_ingress",
            Self::HandleUnderlay { .. } => "handle_underlay",
        }
    }
}

/// A program of ours that is loaded and pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedProgram {
    /// Which.
    pub program: Program,
    /// The kernel's id of the program.
    pub id: u32,
    /// Whether it comes from the object embedded in this binary, on the maps now pinned.
    pub current: bool,
}

/// A TC hook of a link, by its direction as the kernel means it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What the link receives.
    Ingress,
    /// What the link sends.
    Egress,
    /// What the link receives, where it carries tunnels and other traffic: a place of its own beside `Ingress`, since
    /// what isn't ours passes there.
    Underlay,
}

/// An attachment of ours: a pinned TCX link or a clsact filter with our priority and handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// TCX or clsact.
    pub kind: HookKind,
    /// The link it was made for (from the pin's name, or the link the filter was found on).
    pub ifindex: u32,
    /// Hook.
    pub direction: Direction,
    /// Id of the program that runs; `None` where the attachment is defunct (its link is gone from this namespace).
    pub program: Option<u32>,
    /// Place in the chain, from 0; foreign programs before ours make it larger.
    pub position: u32,
}

impl Direction {
    /// The side of the link that the hook is on: `Ingress` or `Egress`.
    pub fn side(self) -> Self {
        if self == Self::Egress { Self::Egress } else { Self::Ingress }
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Underlay => "underlay",
        })
    }
}
