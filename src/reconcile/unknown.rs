//! What an unknown key was probably meant to be: the nearest thing that is declared, and why it isn't that. Pure.

use super::status::{MappingStatus, State, UnknownKey};
use crate::model::{Desired, Mapping, Name};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Explains unknown keys by what the topology declares.
pub(super) struct Explainer<'a> {
    desired: &'a Desired,
    statuses: HashMap<&'a str, &'a MappingStatus>,
    by_id: BTreeMap<u32, Vec<&'a Mapping>>,
    by_remote: HashMap<IpAddr, Vec<&'a Mapping>>,
}

impl<'a> Explainer<'a> {
    pub(super) fn new(desired: &'a Desired, statuses: &'a [MappingStatus]) -> Self {
        let mut by_id: BTreeMap<u32, Vec<&Mapping>> = BTreeMap::new();
        let mut by_remote: HashMap<IpAddr, Vec<&Mapping>> = HashMap::new();
        for mapping in desired.mappings.values() {
            by_id.entry(mapping.key.id).or_default().push(mapping);
            by_remote.entry(mapping.key.remote).or_default().push(mapping);
        }
        Self { desired, statuses: statuses.iter().map(|s| (s.interface.as_str(), s)).collect(), by_id, by_remote }
    }

    /// Fills in what is near and why it isn't that.
    pub(super) fn explain(&self, key: &mut UnknownKey) {
        let (near, why) = self.find(key);
        key.nearest = near.map(Mapping::address);
        key.why = Some(why);
    }

    fn find(&self, key: &UnknownKey) -> (Option<&'a Mapping>, String) {
        let same_id = self.by_id.get(&key.id).map_or(&[][..], Vec::as_slice);
        let same_remote = self.by_remote.get(&key.remote).map_or(&[][..], Vec::as_slice);
        if let Some(both) = same_id.iter().find(|m| m.key.remote == key.remote && m.key.tunnel == key.tunnel.as_str()) {
            return (Some(both), self.declared(both));
        }
        if let Some(both) = same_id.iter().find(|m| m.key.remote == key.remote) {
            let why = format!(
                "{} has that id and remote, but on tunnel {}: the far end sends through another",
                both.address(),
                both.key.tunnel
            );
            return (Some(both), why);
        }
        let here: Vec<&Mapping> = same_id.iter().filter(|m| m.key.tunnel == key.tunnel.as_str()).copied().collect();
        let node = self.desired.mesh.nodes.get(&key.remote);
        let tenant = self.desired.mesh.tenant(&key.tunnel, key.id);
        let this = self.desired.node.as_deref().unwrap_or("this host");
        match (tenant, node) {
            (_, Some(node)) if node.as_str() == this => {
                (None, format!("{} is this host's own address: another host uses it", key.remote))
            }
            (Some(tenant), Some(node)) => {
                let member: Vec<&Mapping> = here.iter().filter(|m| m.tenant == *tenant).copied().collect();
                let by_other = member.iter().find(|m| self.desired.mesh.nodes.get(&m.key.remote) == Some(node));
                match (by_other, member.first()) {
                    (Some(other), _) => {
                        let why = format!(
                            "node {node} is a member of tenant {tenant} by its address {}, and sends from another",
                            other.key.remote
                        );
                        (Some(other), why)
                    }
                    (None, Some(first)) => (Some(first), format!("node {node} isn't a member of tenant {tenant}")),
                    (None, None) => (None, format!("this node, {this}, isn't a member of tenant {tenant}")),
                }
            }
            (Some(tenant), None) => (
                here.first().copied(),
                format!("tenant {tenant} has that id, but {} is the address of no node", key.remote),
            ),
            (None, Some(node)) => {
                let near = nearest(same_remote, key.id);
                let tunnel = &key.tunnel;
                let why = match near {
                    Some(near) => format!(
                        "no tenant of tunnel {tunnel} has that id; the nearest from node {node} is {} of {}",
                        near.key.id,
                        near.address()
                    ),
                    None => {
                        format!("no tenant of tunnel {tunnel} has that id, and node {node} shares none with this one")
                    }
                };
                (near, why)
            }
            (None, None) => self.low_level(key, &here, same_remote),
        }
    }

    /// Among mappings that are declared one by one.
    fn low_level(
        &self,
        key: &UnknownKey,
        same_id: &[&'a Mapping],
        same_remote: &[&'a Mapping],
    ) -> (Option<&'a Mapping>, String) {
        if let Some(near) = same_id.first() {
            let more =
                if same_id.len() > 1 { format!(", one of {} with that id", same_id.len()) } else { String::new() };
            return (Some(near), format!("{} has that id with remote {}{more}", near.address(), near.key.remote));
        }
        if let Some(near) = nearest(same_remote, key.id) {
            return (Some(near), format!("{} has that remote with id {}", near.address(), near.key.id));
        }
        let below = self.by_id.range(..key.id).next_back();
        let above = self.by_id.range(key.id..).next();
        let closest = below.into_iter().chain(above).min_by_key(|(id, _)| id.abs_diff(key.id));
        match closest.and_then(|(_, mappings)| mappings.first()) {
            Some(near) => (
                Some(near),
                format!("neither id nor remote is declared; the nearest id is {} of {}", near.key.id, near.address()),
            ),
            None => (None, "nothing is declared".to_owned()),
        }
    }

    fn declared(&self, mapping: &Mapping) -> String {
        let address = mapping.address();
        match self.statuses.get(mapping.interface.as_str()) {
            Some(MappingStatus { state: State::Active, .. }) => format!("declared as {address}, in force since"),
            Some(status) => {
                let why = status.why.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
                format!("declared as {address}, which is {}{why}", status.state)
            }
            None => format!("declared as {address}"),
        }
    }
}

fn nearest<'a>(mappings: &[&'a Mapping], id: u32) -> Option<&'a Mapping> {
    mappings.iter().min_by_key(|m| m.key.id.abs_diff(id)).copied()
}

impl crate::model::Mesh {
    fn tenant(&self, tunnel: &str, id: u32) -> Option<&Name> {
        self.tenants.iter().find(|t| t.id == id && t.tunnel == tunnel).map(|t| &t.name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::topology::{NodeChoice, SourceFile, merge, parse};

    fn desired(text: &str) -> Desired {
        let parsed = parse(&SourceFile { name: "t".to_owned(), text: text.as_bytes().to_vec() });
        merge([&parsed]).unwrap().compile(&NodeChoice::Named("host0".to_owned())).unwrap()
    }

    fn why(desired: &Desired, tunnel: &str, id: u32, remote: &str) -> String {
        let remote = remote.parse().unwrap();
        let mut key = UnknownKey {
            tunnel: tunnel.to_owned(),
            id,
            remote,
            packets: 1,
            last_seen_seconds: 0,
            nearest: None,
            why: None,
        };
        Explainer::new(desired, &[]).explain(&mut key);
        key.why.unwrap()
    }

    #[test]
    fn a_mesh_names_nodes_and_tenants() {
        let mesh = desired(
            "version: 1\n\
             nodes: {host0: [10.0.0.1, 'fd00::1'], host1: [10.0.0.2, 'fd00::2'], host3: 10.0.0.7, host4: 10.0.0.8}\n\
             tunnels: {vx: {kind: vxlan}, ge: {kind: geneve}}\n\
             tenants:\n  blue: {id: 10001, tunnel: vx, bridge: b, members: [host0, host1]}\n  \
             red: {id: 10002, tunnel: vx, bridge: r, members: [host1, host3]}\n",
        );
        assert_eq!(why(&mesh, "vx", 10001, "10.0.0.7"), "node host3 isn't a member of tenant blue");
        assert_eq!(why(&mesh, "vx", 10002, "10.0.0.2"), "this node, host0, isn't a member of tenant red");
        assert!(why(&mesh, "vx", 10001, "fd00::2").contains("by its address 10.0.0.2"));
        assert!(why(&mesh, "vx", 10001, "10.9.9.9").contains("the address of no node"));
        assert!(why(&mesh, "vx", 10003, "10.0.0.2").contains("the nearest from node host1 is 10001"));
        assert!(why(&mesh, "vx", 10003, "10.0.0.8").contains("node host4 shares none"));
        assert!(why(&mesh, "ge", 10001, "10.0.0.2").contains("but on tunnel vx"));
        assert!(why(&mesh, "vx", 10001, "10.0.0.2").starts_with("declared as blue/"));
        assert!(why(&mesh, "vx", 10001, "10.0.0.1").contains("this host's own address"));
    }

    #[test]
    fn mappings_are_found_by_id_then_by_remote_then_by_the_nearest_id() {
        let low = desired(
            "version: 1\ntunnels: {vx: {kind: vxlan, local: 10.0.0.1}}\nmappings:\n  \
             - {tenant: red, interface: e1, id: 100, remote: 10.0.0.2}\n  - {interface: e2, id: 200, remote: 10.0.0.3}\n",
        );
        assert_eq!(why(&low, "vx", 100, "10.0.0.9"), "red/e1 has that id with remote 10.0.0.2");
        assert_eq!(why(&low, "vx", 201, "10.0.0.3"), "e2 has that remote with id 200");
        assert!(why(&low, "vx", 190, "10.0.0.9").contains("the nearest id is 200 of e2"));
        assert_eq!(why(&Desired::default(), "vx", 1, "10.0.0.9"), "nothing is declared");
    }
}
