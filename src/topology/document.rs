//! The file format as types: one document of one file.

use crate::model::{Attach, Fast, Name, OuterField, TunnelKind};
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// The version of the format that is read.
pub(super) const VERSION: u64 = 1;

/// Keys of each part, for "did you mean".
pub(super) const TOP: [&str; 5] = ["version", "nodes", "tunnels", "mappings", "tenants"];
pub(super) const TUNNEL: [&str; 12] =
    ["kind", "port", "create", "local", "family", "mtu", "ttl", "tos", "df", "checksum", "mark", "fast"];
pub(super) const MAPPING: [&str; 6] = ["tenant", "interface", "id", "remote", "tunnel", "attach"];
pub(super) const TENANT: [&str; 4] = ["id", "tunnel", "members", "bridge"];
pub(super) const MEMBER: [&str; 2] = ["interface", "attach"];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) version: u64,
    #[serde(default)]
    pub(super) nodes: BTreeMap<String, Addresses>,
    #[serde(default)]
    pub(super) tunnels: BTreeMap<String, TunnelDoc>,
    #[serde(default)]
    pub(super) mappings: Vec<MappingDoc>,
    #[serde(default)]
    pub(super) tenants: BTreeMap<String, TenantDoc>,
}

/// One address, or one of each family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected an IP address or a list of them")]
pub(super) enum Addresses {
    One(IpAddr),
    Many(Vec<IpAddr>),
}

impl Addresses {
    pub(super) fn as_slice(&self) -> &[IpAddr] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Many(list) => list,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(super) fn has(self, address: IpAddr) -> bool {
        (self == Self::Ipv6) == address.is_ipv6()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TunnelDoc {
    pub(super) kind: TunnelKind,
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) create: bool,
    pub(super) local: Option<Addresses>,
    pub(super) family: Option<Family>,
    pub(super) mtu: Option<u32>,
    #[serde(default = "usual_ttl", deserialize_with = "outer_field")]
    pub(super) ttl: OuterField,
    #[serde(default = "usual_tos", deserialize_with = "outer_field")]
    pub(super) tos: OuterField,
    #[serde(default)]
    pub(super) df: bool,
    pub(super) checksum: Option<bool>,
    #[serde(default = "usual_mark")]
    pub(super) mark: u16,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MappingDoc {
    #[serde(default)]
    pub(super) tenant: Name,
    pub(super) interface: Name,
    pub(super) id: u32,
    pub(super) remote: IpAddr,
    pub(super) tunnel: Option<Name>,
    #[serde(default)]
    pub(super) attach: Attach,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantDoc {
    pub(super) id: u32,
    pub(super) tunnel: Option<String>,
    pub(super) members: Option<Members>,
    pub(super) bridge: Option<String>,
}

/// Names, or names with what is particular of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of nodes, or a mapping from node to `{interface, attach}`")]
pub(super) enum Members {
    Names(Vec<String>),
    Detailed(BTreeMap<String, Option<MemberDoc>>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberDoc {
    pub(super) interface: Option<String>,
    #[serde(default)]
    pub(super) attach: Attach,
}
