//! What is wrong with a topology whichever node reads it: names, ranges, references, what is claimed twice.

use super::compile::Compiler;
use super::diagnostic::{Diagnostic, Place, nearest};
use super::document::{Addresses, MemberDoc, Members, TenantDoc, TunnelDoc};
use super::merge::Placed;
use crate::model::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// What to do about a name.
pub(super) const RENAME: &str = "give it another name";

/// What is wrong with the name of a node or a tenant: addresses are made of it, and it is shown on terminals.
pub(super) fn flaw(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.contains('/') || name.contains(char::is_whitespace) {
        Some("is empty or holds a slash or a space")
    } else if name.contains(char::is_control) {
        Some("holds a control character")
    } else {
        None
    }
}

impl<'a> Compiler<'a> {
    /// What is wrong whichever node this is.
    pub(super) fn check_whole(&mut self) {
        let topology = self.topology;
        for (name, tunnel) in &topology.tunnels {
            self.check_tunnel(name, tunnel);
        }
        if topology.tunnels.len() >= TUNNEL_INDEXES as usize
            && let Some(tunnel) = topology.tunnels.values().last()
        {
            let message = format!(
                "{} tunnels are declared; at most {} exist at once",
                topology.tunnels.len(),
                TUNNEL_INDEXES - 1
            );
            let help = "carry several tenants over one tunnel: each has an id of its own";
            self.error(Diagnostic::new("TM0222", tunnel.place(), message).help(help));
        }
        self.check_ports();
        let mut owners: BTreeMap<IpAddr, (&str, &Placed<Addresses>)> = BTreeMap::new();
        for (name, node) in &topology.nodes {
            if let Some(flaw) = flaw(name) {
                let message = format!("node name `{name}` {flaw}");
                self.error(Diagnostic::new("TM0212", node.place(), message).help(RENAME));
            }
            self.check_families(node, node.value.as_slice(), &format!("node `{name}`"), &[]);
            for address in node.value.as_slice() {
                self.check_unicast(*address, || node.place());
                if let Some((other, place)) = owners.insert(*address, (name, node)) {
                    let message = format!("nodes `{other}` and `{name}` have the same address {address}");
                    let places = [(node.place(), "this node"), (place.place(), "and this one")];
                    self.conflict("TM0221", places, message, "give each node an address of its own");
                }
            }
        }
        let mut ids: BTreeMap<(String, u32), (&str, &Placed<TenantDoc>)> = BTreeMap::new();
        let mut bridges: BTreeMap<&str, (&str, &Placed<TenantDoc>)> = BTreeMap::new();
        for (name, tenant) in &topology.tenants {
            self.check_tenant(name, tenant);
            if let Some(tunnel) = self.tunnel_of(tenant.value.tunnel.as_deref(), tenant, "tenant")
                && let Some((other, first)) = ids.insert((tunnel.to_owned(), tenant.value.id), (name, tenant))
            {
                let message =
                    format!("tenants `{other}` and `{name}` share id {} on tunnel `{tunnel}`", tenant.value.id);
                let places = [tenant, first].map(|t| (t.field(&["id"]), "used here"));
                self.conflict("TM0209", places, message, "give each tenant of a tunnel an id of its own");
            }
            if let Some(bridge) = &tenant.value.bridge
                && let Some((other, first)) = bridges.insert(bridge, (name, tenant))
            {
                let message =
                    format!("tenants `{other}` and `{name}` share the bridge `{bridge}`: their traffic would mix");
                let places = [tenant, first].map(|t| (t.field(&["bridge"]), "used here"));
                self.conflict("TM0216", places, message, "give each tenant a bridge of its own");
            }
        }
    }

    /// A declared name that is near to an undeclared one. Among very many errors nobody looks for it.
    fn near<'b>(&self, name: &str, known: impl Iterator<Item = &'b String>) -> Option<&'b str> {
        const ERRORS: usize = 100;
        if self.count() < ERRORS { nearest(name, known.map(String::as_str)) } else { None }
    }

    fn check_tunnel(&mut self, name: &str, tunnel: &Placed<TunnelDoc>) {
        self.check_interface(name, || tunnel.place(), "tunnel");
        let doc = &tunnel.value;
        if let Some(local) = &doc.local {
            self.check_families(tunnel, local.as_slice(), &format!("tunnel `{name}`"), &["local"]);
            for address in local.as_slice() {
                self.check_unicast(*address, || tunnel.field(&["local"]));
            }
        }
        if doc.kind == TunnelKind::Gretap {
            if doc.port.is_some() {
                let diagnostic = Diagnostic::new("TM0214", tunnel.field(&["port"]), "GRE has no port");
                self.error(diagnostic.help("remove `port`, or use kind vxlan or geneve"));
            }
            if doc.local.as_ref().is_some_and(|l| l.as_slice().len() > 1) && doc.family.is_none() {
                let message = "a gretap device carries one family only";
                let diagnostic = Diagnostic::new("TM0214", tunnel.field(&["local"]), message);
                self.error(diagnostic.help("give one address, or say `family`"));
            }
        } else if doc.port == Some(0) {
            let diagnostic = Diagnostic::new("TM0220", tunnel.field(&["port"]), "port 0 can't be used");
            self.error(diagnostic.help("leave it out for the usual one, or say 1 to 65535"));
        }
        if let Some(mtu) = doc.mtu.filter(|mtu| !(68..=65535).contains(mtu)) {
            let message = format!("an MTU of {mtu} isn't possible; it is from 68 to 65535");
            let diagnostic = Diagnostic::new("TM0220", tunnel.field(&["mtu"]), message);
            self.error(diagnostic.help("leave it out for what the underlay leaves"));
        }
        if doc.ttl == OuterField::Fixed(0) {
            let diagnostic = Diagnostic::new("TM0220", tunnel.field(&["ttl"]), "a TTL of 0 reaches nobody");
            self.error(diagnostic.help("leave it out for 64, or say 1 to 255 or inherit"));
        }
    }

    /// Two external devices can't receive on one port: the kernel refuses the second.
    fn check_ports(&mut self) {
        let mut used: BTreeMap<(TunnelKind, u16), (&str, &Placed<TunnelDoc>)> = BTreeMap::new();
        let topology = self.topology;
        for (name, tunnel) in &topology.tunnels {
            let Some(port) = tunnel.value.port.or(tunnel.value.kind.default_port()) else { continue };
            if let Some((other, first)) = used.insert((tunnel.value.kind, port), (name, tunnel)) {
                let message = format!("tunnels `{other}` and `{name}` both receive on UDP port {port}");
                let places = [(tunnel.field(&["port"]), "this one"), (first.field(&["port"]), "and this one")];
                self.conflict("TM0218", places, message, "give one of them another `port`");
            }
        }
    }

    fn check_families<T>(&mut self, placed: &Placed<T>, addresses: &[IpAddr], what: &str, path: &[&str]) {
        let v4 = addresses.iter().filter(|a| a.is_ipv4()).count();
        if v4 > 1 || addresses.len() - v4 > 1 || addresses.is_empty() {
            let message = format!(
                "{what} has {} IPv4 and {} IPv6 addresses; one of each family at most, one at least",
                v4,
                addresses.len() - v4
            );
            let diagnostic = Diagnostic::new("TM0213", placed.field(path), message);
            self.error(diagnostic.help("write one address, or one of each family: [10.0.0.3, 'fd00::3']"));
        }
    }

    pub(super) fn check_unicast(&mut self, address: IpAddr, place: impl FnOnce() -> Place) {
        let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        let (why, help) = if address.is_unspecified() {
            ("is no address of a host", "write the underlay address of the host")
        } else if address.is_multicast() || broadcast {
            ("isn't unicast", "a mapping leads to one host: write its underlay address")
        } else if mapped {
            ("is an IPv4-mapped IPv6 address", "write the IPv4 address")
        } else {
            return;
        };
        self.error(Diagnostic::new("TM0213", place(), format!("{address} {why}")).help(help));
    }

    pub(super) fn check_interface(&mut self, name: &str, place: impl FnOnce() -> Place, what: &str) {
        let bad = if name.is_empty() || name.len() > INTERFACE_NAME_MAX {
            Some(format!("has {} bytes; a device's name has 1 to {INTERFACE_NAME_MAX}", name.len()))
        } else if name == "."
            || name == ".."
            || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        {
            Some("holds a character that a device's name can't have".to_owned())
        } else {
            None
        };
        if let Some(bad) = bad {
            self.error(Diagnostic::new("TM0212", place(), format!("{what} name `{name}` {bad}")).help(RENAME));
        }
    }

    fn check_tenant(&mut self, name: &str, tenant: &Placed<TenantDoc>) {
        if let Some(flaw) = flaw(name) {
            let message = format!("tenant name `{name}` {flaw}");
            self.error(Diagnostic::new("TM0212", tenant.place(), message).help(RENAME));
        }
        if let Some(bridge) = &tenant.value.bridge {
            self.check_interface(bridge, || tenant.field(&["bridge"]), "bridge");
        }
        if let Some(tunnel) = tenant.value.tunnel.as_deref().or_else(|| self.only_tunnel()) {
            self.check_id(tenant.value.id, tunnel, || tenant.field(&["id"]));
        }
        let members = self.members(tenant);
        let known = |node: &str| self.topology.nodes.contains_key(node) || self.topology.doubt.node(node);
        let unknown: Vec<&str> = members.iter().map(|(node, _)| *node).filter(|node| !known(node)).collect();
        let places = if unknown.is_empty() { HashMap::new() } else { tenant.names(&["members"]) };
        for node in unknown {
            let place = places.get(node).cloned().unwrap_or_else(|| tenant.place());
            let near = self.near(node, self.topology.nodes.keys());
            let help = near.map_or_else(
                || "declare it under `nodes:`".to_owned(),
                |near| format!("did you mean `{near}`? Otherwise declare it under `nodes:`"),
            );
            self.error(Diagnostic::new("TM0207", place, format!("node `{node}` isn't declared")).help(help));
        }
        if tenant.value.bridge.is_some()
            && let Some((node, _)) = members.iter().find(|(node, _)| name.len() + 1 + node.len() > ALTNAME_MAX)
        {
            let message =
                format!("`{name}/{node}` is too long to name a port: at most {ALTNAME_MAX} bytes (ALTIFNAMSIZ)");
            self.error(
                Diagnostic::new("TM0212", tenant.place(), message).help("shorten the tenant's or the node's name"),
            );
        }
        self.check_members(name, tenant, &members);
    }

    /// A tenant is a bridge on each member, or a wire between two interfaces; nothing in between.
    fn check_members(&mut self, name: &str, tenant: &Placed<TenantDoc>, members: &[(&str, MemberDoc)]) {
        let with: Vec<&str> = members.iter().filter(|(_, m)| m.interface.is_some()).map(|(n, _)| *n).collect();
        let place = || tenant.key(&["members"]);
        if members.len() < 2 && tenant.value.members.is_none() && self.topology.doubt.any_node() {
            // Nobody knows yet how many there are.
        } else if members.len() < 2 {
            let message = format!("tenant `{name}` has {} member: nobody is at the other end", members.len());
            self.error(Diagnostic::new("TM0210", place(), message).help("add the node at the other end"));
        } else if tenant.value.bridge.is_some() {
            if let Some(node) = with.first() {
                let message = format!("tenant `{name}` has a bridge, so member `{node}` can't name an interface");
                let diagnostic = Diagnostic::new("TM0219", tenant.key(&["members", node]), message);
                self.error(
                    diagnostic.help("remove the interface (put it into the bridge yourself), or remove `bridge`"),
                );
            }
        } else if with.is_empty() {
            let message = format!("tenant `{name}` has neither a bridge nor members with an interface");
            let diagnostic = Diagnostic::new("TM0219", tenant.place(), message);
            self.error(diagnostic.help("name a `bridge`, or give both members an `interface`"));
        } else if with.len() < members.len() {
            let lone = members.iter().find(|(_, m)| m.interface.is_none()).map_or("", |(n, _)| *n);
            let message =
                format!("member `{lone}` of tenant `{name}` has no interface, so `{}` has no counterpart", with[0]);
            let diagnostic = Diagnostic::new("TM0210", tenant.key(&["members", lone]), message);
            self.error(diagnostic.help("a wire needs an interface at both ends"));
        } else if members.len() > 2 {
            let message =
                format!("tenant `{name}` is a wire between {} interfaces; a wire has two ends", members.len());
            self.error(Diagnostic::new("TM0219", place(), message).help("use a `bridge` for more than two members"));
        } else {
            for (node, member) in members {
                let interface = member.interface.clone().unwrap_or_default();
                self.check_interface(&interface, || tenant.field(&["members", node, "interface"]), "interface");
            }
        }
    }

    pub(super) fn members<'b>(&self, tenant: &'b Placed<TenantDoc>) -> Vec<(&'b str, MemberDoc)>
    where
        'a: 'b,
    {
        match &tenant.value.members {
            None => self.topology.nodes.keys().map(|n| (n.as_str(), MemberDoc::default())).collect(),
            Some(Members::Names(names)) => {
                let mut seen: HashSet<&str> = HashSet::with_capacity(names.len());
                let once = names.iter().map(String::as_str).filter(|name| seen.insert(name));
                once.map(|name| (name, MemberDoc::default())).collect()
            }
            Some(Members::Detailed(map)) => {
                map.iter().map(|(n, m)| (n.as_str(), m.clone().unwrap_or_default())).collect()
            }
        }
    }

    pub(super) fn only_tunnel(&self) -> Option<&'a str> {
        if self.topology.doubt.any_tunnel() {
            return None;
        }
        let mut names = self.topology.tunnels.keys();
        match (names.next(), names.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    pub(super) fn check_id(&mut self, id: u32, tunnel: &str, place: impl FnOnce() -> Place) {
        let Some(doc) = self.topology.tunnels.get(tunnel) else { return };
        let kind = doc.value.kind;
        if id > kind.max_id() {
            let message = format!("id {id} is too large for {kind}: at most {}", kind.max_id());
            let help = match kind {
                TunnelKind::Gretap => "choose a smaller one",
                _ => "choose a smaller one, or a gretap tunnel, whose ids have 32 bits",
            };
            self.error(Diagnostic::new("TM0204", place(), message).help(help));
        }
    }

    /// The tunnel that something names, or the only one.
    pub(super) fn tunnel_of<T>(&mut self, named: Option<&str>, placed: &Placed<T>, what: &str) -> Option<&'a str> {
        let tunnels = &self.topology.tunnels;
        match named {
            Some(name) => {
                if let Some((known, _)) = tunnels.get_key_value(name) {
                    return Some(known);
                }
                if self.topology.doubt.tunnel(name) {
                    return None;
                }
                let near = self.near(name, tunnels.keys());
                let help = near.map_or_else(
                    || "declare it under `tunnels:`".to_owned(),
                    |near| format!("did you mean `{near}`? Otherwise declare it under `tunnels:`"),
                );
                self.error(
                    Diagnostic::new("TM0206", placed.field(&["tunnel"]), format!("tunnel `{name}` isn't declared"))
                        .help(help),
                );
            }
            None => {
                if let Some(only) = self.only_tunnel() {
                    return Some(only);
                }
                if self.topology.doubt.any_tunnel() {
                    return None;
                }
                let message = if tunnels.is_empty() {
                    "no tunnel is declared".to_owned()
                } else {
                    format!("this {what} must say which tunnel: {} are declared", tunnels.len())
                };
                let names: Vec<&str> = tunnels.keys().map(String::as_str).collect();
                let help = if names.is_empty() {
                    "declare one under `tunnels:`".to_owned()
                } else {
                    format!("`tunnel:` one of {}", names.join(", "))
                };
                self.error(Diagnostic::new("TM0211", placed.place(), message).help(help));
            }
        }
        None
    }
}
