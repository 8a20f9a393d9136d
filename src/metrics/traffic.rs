//! What the pinned maps say, by slot.

use crate::bpf::Dataplane;
use crate::model::{Desired, DropReason, FIRST_MAPPING_SLOT};
use crate::reconcile::live::traffic_of;
use crate::reconcile::status::Traffic;
use anyhow::Result;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;

/// Whose slot it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Tenant; empty where the mapping names none.
    pub tenant: String,
    /// Far underlay address.
    pub remote: IpAddr,
}

/// What the maps say.
#[derive(Debug, Default)]
pub struct Live {
    /// Counters by slot.
    pub counted: BTreeMap<u32, Traffic>,
    /// Owners of slots.
    pub owners: HashMap<u32, Owner>,
    /// Entries of each map.
    pub entries: BTreeMap<&'static str, u64>,
    /// Entries that each map has room for.
    pub capacities: BTreeMap<&'static str, u64>,
}

/// Reads them; empty where nothing is pinned.
///
/// # Errors
///
/// What the kernel said.
pub fn read(pins: &Path, desired: Option<&Desired>) -> Result<Live> {
    let dataplane = Dataplane::open(pins)?;
    let Some(capacity) = dataplane.capacity() else { return Ok(Live::default()) };
    let conf = dataplane.tunnel_names()?;
    let (tunkey2if, if2tunkey) = dataplane.read_hashes()?;
    let unknown = dataplane.unknown()?.len();
    let tenants: HashMap<(&str, u32, IpAddr), &str> = desired
        .iter()
        .flat_map(|d| d.mappings.values())
        .map(|m| ((m.key.tunnel.as_str(), m.key.id, m.key.remote), m.tenant.as_str()))
        .collect();
    let mut owners = HashMap::with_capacity(if2tunkey.len());
    let keys =
        tunkey2if.iter().map(|(key, value)| (value.slot, key)).chain(if2tunkey.iter().map(|(_, e)| (e.slot, &e.key)));
    for (slot, key) in keys.filter(|(slot, _)| *slot >= FIRST_MAPPING_SLOT) {
        let tunnel = conf.get(&key.tunnel).map_or("", String::as_str);
        let tenant = tenants.get(&(tunnel, key.id, key.remote)).copied().unwrap_or_default();
        owners.insert(slot, Owner { tenant: tenant.to_owned(), remote: key.remote });
    }
    let slots = u64::from(capacity);
    let number = |n: usize| n as u64;
    Ok(Live {
        counted: traffic_of(dataplane.counters()?),
        owners,
        entries: [
            ("conf", number(conf.len())),
            ("tunkey2if", number(tunkey2if.len())),
            ("if2tunkey", number(if2tunkey.len())),
            ("unknown", number(unknown)),
        ]
        .into(),
        capacities: [
            ("conf", u64::from(crate::model::TUNNEL_INDEXES - 1)),
            ("tunkey2if", slots),
            ("if2tunkey", slots),
            ("unknown", u64::from(dataplane.unknown_capacity()?)),
        ]
        .into(),
    })
}

/// Every reason for a drop, so that each has a series from the start.
pub(super) fn reasons() -> impl Iterator<Item = &'static str> {
    DropReason::ALL.into_iter().map(DropReason::name)
}
