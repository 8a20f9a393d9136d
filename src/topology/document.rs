//! The file format as types: one document of one file.
//!
//! The JSON Schema is made from these types, too: what their comments say is what an editor shows.

use super::schema::{address, empty_is_nothing, name, names, optional_name, outer};
use crate::model::{Attach, Fast, Name, OuterField, TunnelKind};
use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// The version of the format that is read.
pub(super) const VERSION: u64 = 1;

/// What tunnel-mesh carries, and between whom. Files of a directory merge.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "document")]
pub(super) struct Document {
    /// Version of the format.
    #[schemars(extend("const" = VERSION))]
    pub(super) version: u64,
    /// Hosts of the mesh, by the names they go by, with their underlay addresses.
    #[serde(default)]
    #[schemars(transform = empty_is_nothing)]
    pub(super) nodes: BTreeMap<String, Addresses>,
    /// Tunnel devices, by their names.
    #[serde(default)]
    #[schemars(transform = empty_is_nothing)]
    pub(super) tunnels: BTreeMap<String, TunnelDoc>,
    /// One host's own list: which interface goes with which tunnel key.
    #[serde(default)]
    #[schemars(transform = empty_is_nothing)]
    pub(super) mappings: Vec<MappingDoc>,
    /// Tenants of the mesh, by name: each host derives its own mappings from them.
    #[serde(default)]
    #[schemars(transform = empty_is_nothing)]
    pub(super) tenants: BTreeMap<String, TenantDoc>,
}

/// One address, or one of each family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Addresses {
    /// An address.
    One(#[schemars(schema_with = "address")] IpAddr),
    /// One of each family, the preferred one first.
    Many(#[schemars(with = "Vec<Address>", length(min = 1, max = 2))] Vec<IpAddr>),
}

/// Stands for `IpAddr` in the schema.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct Address(
    #[schemars(schema_with = "address")]
    #[allow(dead_code)]
    IpAddr,
);

impl Addresses {
    pub(super) fn as_slice(&self) -> &[IpAddr] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Many(list) => list,
        }
    }
}

// By hand: serde's own way through a buffer loses how a name was written, and with it names that look like numbers.
impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Addresses;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address or a list of them")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Addresses, E> {
                let address = value.parse().map_err(|_| E::invalid_value(Unexpected::Str(value), &self))?;
                Ok(Addresses::One(address))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Addresses, A::Error> {
                let mut list = Vec::new();
                while let Some(address) = items.next_element()? {
                    list.push(address);
                }
                Ok(Addresses::Many(list))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Address family of the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    pub(super) fn has(self, address: IpAddr) -> bool {
        (self == Self::Ipv6) == address.is_ipv6()
    }
}

/// A tunnel device in collect-metadata ("external") mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tunnel")]
pub(super) struct TunnelDoc {
    /// Encapsulation.
    pub(super) kind: TunnelKind,
    /// UDP port; default: 4789 for vxlan, 6081 for geneve. GRE has none.
    #[schemars(range(min = 1))]
    pub(super) port: Option<u16>,
    /// Make and repair the device. Otherwise it must exist, in external mode.
    #[serde(default)]
    pub(super) create: bool,
    /// Underlay source, or one of each family; default: the addresses of this host under `nodes`.
    pub(super) local: Option<Addresses>,
    /// Underlay family; default: the first that both ends have.
    pub(super) family: Option<Family>,
    /// MTU of the device in bytes; default: what the underlay leaves.
    #[schemars(range(min = 68, max = 65535))]
    pub(super) mtu: Option<u32>,
    /// Outer TTL or hop limit.
    #[serde(default = "usual_ttl", deserialize_with = "outer_field")]
    #[schemars(schema_with = "outer")]
    pub(super) ttl: OuterField,
    /// Outer DSCP and ECN octet.
    #[serde(default = "usual_tos", deserialize_with = "outer_field")]
    #[schemars(schema_with = "outer")]
    pub(super) tos: OuterField,
    /// Set "don't fragment" on the outer IPv4 header.
    #[serde(default)]
    pub(super) df: bool,
    /// Send outer UDP checksums; default: as the kernel does, over IPv6 only.
    pub(super) checksum: Option<bool>,
    /// What decapsulated packets get as `tc_index` in port mode; 0 turns it off.
    #[serde(default = "usual_mark")]
    pub(super) mark: u16,
    /// Which lane packets take.
    #[serde(default)]
    pub(super) fast: Fast,
}

fn usual_ttl() -> OuterField {
    OuterField::Fixed(64)
}

fn usual_tos() -> OuterField {
    OuterField::Fixed(0)
}

fn usual_mark() -> u16 {
    1
}

/// `inherit`, or a number from 0 to 255.
fn outer_field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OuterField, D::Error> {
    struct Field;
    impl Visitor<'_> for Field {
        type Value = OuterField;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`inherit` or a number from 0 to 255")
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<OuterField, E> {
            u8::try_from(value).map(OuterField::Fixed).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<OuterField, E> {
            u8::try_from(value).map(OuterField::Fixed).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<OuterField, E> {
            if value == "inherit" {
                Ok(OuterField::Inherit)
            } else {
                Err(E::invalid_value(Unexpected::Str(value), &self))
            }
        }
    }
    deserializer.deserialize_any(Field)
}

/// One interface and the tunnel key that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "mapping")]
pub(super) struct MappingDoc {
    /// A label for people and metrics.
    #[serde(default)]
    #[schemars(schema_with = "optional_name")]
    pub(super) tenant: Name,
    /// The local interface.
    #[schemars(schema_with = "name")]
    pub(super) interface: Name,
    /// Tunnel id: VNI, or GRE key.
    pub(super) id: u32,
    /// Underlay address of the host at the other end.
    #[schemars(schema_with = "address")]
    pub(super) remote: IpAddr,
    /// The tunnel; may be left out where only one is declared.
    #[serde(default)]
    #[schemars(schema_with = "optional_name")]
    pub(super) tunnel: Option<Name>,
    /// How the interface is attached.
    #[serde(default)]
    pub(super) attach: Attach,
}

/// A network of one customer, project or purpose: a bridge on each member, or a wire between two interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tenant")]
pub(super) struct TenantDoc {
    /// Tunnel id: VNI, or GRE key.
    pub(super) id: u32,
    /// The tunnel; may be left out where only one is declared.
    #[serde(default)]
    #[schemars(schema_with = "optional_name")]
    pub(super) tunnel: Option<String>,
    /// The nodes that take part; default: all.
    pub(super) members: Option<Members>,
    /// The bridge on each member, made if missing.
    #[serde(default)]
    #[schemars(schema_with = "optional_name")]
    pub(super) bridge: Option<String>,
}

/// Names, or names with what is particular of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Members {
    /// Nodes.
    Names(#[schemars(schema_with = "names")] Vec<String>),
    /// Nodes, with the interface of each.
    Detailed(BTreeMap<String, Option<MemberDoc>>),
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of nodes, or a mapping from node to `{interface, attach}`")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Members, A::Error> {
                let mut list = Vec::new();
                while let Some(name) = items.next_element()? {
                    list.push(name);
                }
                Ok(Members::Names(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Members, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((name, member)) = entries.next_entry()? {
                    map.insert(name, member);
                }
                Ok(Members::Detailed(map))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What is particular of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "member")]
pub(super) struct MemberDoc {
    /// The interface at this end of a wire.
    #[serde(default)]
    #[schemars(schema_with = "optional_name")]
    pub(super) interface: Option<String>,
    /// How the interface is attached.
    #[serde(default)]
    pub(super) attach: Attach,
}
