//! One topology to the desired state of one node, with everything that is wrong with its meaning.

use super::diagnostic::{Diagnostic, nearest};
use super::document::{Addresses, MappingDoc, MemberDoc, Members, TenantDoc, TunnelDoc};
use super::merge::{Placed, Topology, hex};
use crate::model::*;
use sha2::{Digest, Sha256};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, hash_map};
use std::net::IpAddr;

/// Which node to compile for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeChoice {
    /// This one.
    Named(String),
    /// The one with this host name, exactly or by its first label.
    Host(String),
    /// None: only what doesn't depend on a node.
    Unknown,
}

struct Compiler<'a> {
    topology: &'a Topology,
    errors: Vec<Diagnostic>,
    /// Whether the low-level mappings are checked for no host in particular.
    any_host: bool,
}

/// Name of the port that is generated for a remote member: `tm` and 12 hex digits of a hash of what it stands for.
pub fn port_name(tenant: &str, node: &str, tunnel: &str) -> String {
    format!("tm{}", hex(&Sha256::digest(format!("{tenant}/{node}/{tunnel}")), 6))
}

impl Topology {
    /// Which node of the topology that choice means; `None` where no tenants are declared and none matches.
    ///
    /// # Errors
    ///
    /// TM0217 where tenants are declared and no node matches.
    pub fn choose(&self, choice: &NodeChoice) -> Result<Option<String>, Vec<Diagnostic>> {
        let found = match choice {
            NodeChoice::Named(name) => self.nodes.get_key_value(name),
            NodeChoice::Host(name) => self
                .nodes
                .get_key_value(name)
                .or_else(|| self.nodes.get_key_value(name.split('.').next().unwrap_or(name))),
            NodeChoice::Unknown => None,
        };
        if let Some((name, _)) = found {
            return Ok(Some(name.clone()));
        }
        let Some(tenant) = self.tenants.values().next() else { return Ok(None) };
        let (asked, how) = match choice {
            NodeChoice::Named(name) => (name.as_str(), "--node names a node that isn't declared"),
            NodeChoice::Host(name) => (name.as_str(), "no node has the name of this host"),
            NodeChoice::Unknown => ("", "it isn't known which node this is"),
        };
        let place = self.nodes.values().next().map_or_else(|| tenant.place(), Placed::place);
        let names: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        let mut diagnostic = Diagnostic::new("TM0217", place, format!("{how}: `{asked}`"));
        let near = nearest(asked, names.iter().copied()).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        diagnostic = diagnostic.help(format!("say --node NAME; the nodes are {}{near}", names.join(", ")));
        Err(vec![diagnostic])
    }

    /// Compiles the desired state of one node.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the topology's meaning, seen from that node and as a whole.
    pub fn compile(&self, choice: &NodeChoice) -> Result<Desired, Vec<Diagnostic>> {
        let mut compiler = Compiler { topology: self, errors: Vec::new(), any_host: false };
        compiler.check_whole();
        let node = match self.choose(choice) {
            Ok(node) => node,
            Err(errors) => {
                compiler.errors.extend(errors);
                None
            }
        };
        let desired = compiler.node(node.as_deref());
        compiler.finish(desired)
    }

    /// Checks the topology for every node, and the low-level mappings by themselves.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with its meaning.
    pub fn check(&self) -> Result<(), Vec<Diagnostic>> {
        let mut compiler = Compiler { topology: self, errors: Vec::new(), any_host: true };
        compiler.check_whole();
        compiler.node(None);
        if !self.tenants.is_empty() {
            for node in self.nodes.keys() {
                compiler.tenants_of(node);
            }
        }
        compiler.finish(Desired::default()).map(drop)
    }
}

impl<'a> Compiler<'a> {
    fn finish(mut self, desired: Desired) -> Result<Desired, Vec<Diagnostic>> {
        if self.errors.is_empty() {
            return Ok(desired);
        }
        self.errors.sort_by(|a, b| (&a.place, &a.code, &a.message).cmp(&(&b.place, &b.code, &b.message)));
        self.errors.dedup();
        Err(self.errors)
    }

    fn error(&mut self, diagnostic: Diagnostic) {
        self.errors.push(diagnostic);
    }

    /// What is wrong whichever node this is.
    fn check_whole(&mut self) {
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
            self.error(Diagnostic::new("TM0222", tunnel.place(), message));
        }
        self.check_ports();
        let mut owners: BTreeMap<IpAddr, (&str, &Placed<Addresses>)> = BTreeMap::new();
        for (name, node) in &topology.nodes {
            if name.is_empty() || name.contains('/') || name.contains(char::is_whitespace) {
                let message = format!("node name `{name}` is empty or holds a slash or a space");
                self.error(Diagnostic::new("TM0212", node.place(), message));
            }
            self.check_families(node, node.value.as_slice(), &format!("node `{name}`"), &[]);
            for address in node.value.as_slice() {
                self.check_unicast(*address, || node.place());
                if let Some((other, place)) = owners.insert(*address, (name, node)) {
                    let message = format!("nodes `{other}` and `{name}` have the same address {address}");
                    let diagnostic = Diagnostic::new("TM0221", node.place(), message).label("this node");
                    self.error(diagnostic.related(place.place(), "and this one"));
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
                let diagnostic = Diagnostic::new("TM0209", tenant.field(&["id"]), message).label("used again here");
                self.error(
                    diagnostic
                        .related(first.field(&["id"]), "first used here")
                        .help("give each tenant of a tunnel an id of its own"),
                );
            }
            if let Some(bridge) = &tenant.value.bridge
                && let Some((other, first)) = bridges.insert(bridge, (name, tenant))
            {
                let message =
                    format!("tenants `{other}` and `{name}` share the bridge `{bridge}`: their traffic would mix");
                let diagnostic = Diagnostic::new("TM0216", tenant.field(&["bridge"]), message).label("used again here");
                self.error(diagnostic.related(first.field(&["bridge"]), "first used here"));
            }
        }
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
            self.error(Diagnostic::new("TM0220", tunnel.field(&["port"]), "port 0 can't be used"));
        }
        if let Some(mtu) = doc.mtu.filter(|mtu| !(68..=65535).contains(mtu)) {
            let message = format!("an MTU of {mtu} isn't possible; it is from 68 to 65535");
            self.error(Diagnostic::new("TM0220", tunnel.field(&["mtu"]), message));
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
                let diagnostic = Diagnostic::new("TM0218", tunnel.field(&["port"]), message).label("this one");
                self.error(
                    diagnostic.related(first.field(&["port"]), "and this one").help("give one of them another `port`"),
                );
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
            self.error(Diagnostic::new("TM0213", placed.field(path), message));
        }
    }

    fn check_unicast(&mut self, address: IpAddr, place: impl FnOnce() -> super::Place) {
        let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        let why = if address.is_unspecified() {
            "is no address of a host"
        } else if address.is_multicast() || broadcast {
            "isn't unicast: a mapping leads to one host"
        } else if mapped {
            "is an IPv4-mapped IPv6 address; write the IPv4 address"
        } else {
            return;
        };
        self.error(Diagnostic::new("TM0213", place(), format!("{address} {why}")));
    }

    fn check_interface(&mut self, name: &str, place: impl FnOnce() -> super::Place, what: &str) {
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
            self.error(Diagnostic::new("TM0212", place(), format!("{what} name `{name}` {bad}")));
        }
    }

    fn check_tenant(&mut self, name: &str, tenant: &Placed<TenantDoc>) {
        if name.is_empty() || name.contains('/') || name.contains(char::is_whitespace) {
            let message = format!("tenant name `{name}` is empty or holds a slash or a space");
            self.error(Diagnostic::new("TM0212", tenant.place(), message));
        }
        if let Some(bridge) = &tenant.value.bridge {
            self.check_interface(bridge, || tenant.field(&["bridge"]), "bridge");
        }
        if let Some(tunnel) = tenant.value.tunnel.as_deref().or_else(|| self.only_tunnel()) {
            self.check_id(tenant.value.id, tunnel, || tenant.field(&["id"]));
        }
        let members = self.members(tenant);
        for (n, (node, _)) in members.iter().enumerate() {
            if self.topology.nodes.contains_key(*node) {
                continue;
            }
            let place = match &tenant.value.members {
                Some(Members::Names(_)) => tenant.field(&["members", &n.to_string()]),
                _ => tenant.key(&["members", node]),
            };
            let near = nearest(node, self.topology.nodes.keys().map(String::as_str));
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
        if members.len() < 2 {
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

    fn members<'b>(&self, tenant: &'b Placed<TenantDoc>) -> Vec<(&'b str, MemberDoc)>
    where
        'a: 'b,
    {
        match &tenant.value.members {
            None => self.topology.nodes.keys().map(|n| (n.as_str(), MemberDoc::default())).collect(),
            Some(Members::Names(names)) => {
                let mut list: Vec<(&str, MemberDoc)> = Vec::new();
                for name in names {
                    if !list.iter().any(|(n, _)| n == name) {
                        list.push((name, MemberDoc::default()));
                    }
                }
                list
            }
            Some(Members::Detailed(map)) => {
                map.iter().map(|(n, m)| (n.as_str(), m.clone().unwrap_or_default())).collect()
            }
        }
    }

    fn only_tunnel(&self) -> Option<&'a str> {
        let mut names = self.topology.tunnels.keys();
        match (names.next(), names.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    fn check_id(&mut self, id: u32, tunnel: &str, place: impl FnOnce() -> super::Place) {
        let Some(doc) = self.topology.tunnels.get(tunnel) else { return };
        let kind = doc.value.kind;
        if id > kind.max_id() {
            let message = format!("id {id} is too large for {kind}: at most {}", kind.max_id());
            self.error(Diagnostic::new("TM0204", place(), message));
        }
    }

    /// The tunnel that something names, or the only one.
    fn tunnel_of<T>(&mut self, named: Option<&str>, placed: &Placed<T>, what: &str) -> Option<&'a str> {
        let tunnels = &self.topology.tunnels;
        match named {
            Some(name) => {
                if let Some((known, _)) = tunnels.get_key_value(name) {
                    return Some(known);
                }
                let near = nearest(name, tunnels.keys().map(String::as_str));
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

    /// The desired state of one node.
    fn node(&mut self, node: Option<&'a str>) -> Desired {
        let mut desired = self.tunnels_of(node);
        let mut claims = Claims::default();
        self.low_level(&mut desired, &mut claims);
        if let Some(node) = node {
            let own = self.own_of(Some(node));
            self.tenants(node, &own, &mut desired, &mut claims);
        }
        desired
    }

    /// Underlay addresses of a node; of all of them where it may be any.
    fn own_of(&self, node: Option<&str>) -> Vec<IpAddr> {
        let topology = self.topology;
        match node.and_then(|n| topology.nodes.get(n)) {
            Some(node) => node.value.as_slice().to_vec(),
            None if self.any_host => topology.nodes.values().flat_map(|n| n.value.as_slice().to_vec()).collect(),
            None => Vec::new(),
        }
    }

    /// The tunnels, as one node has them.
    fn tunnels_of(&self, node: Option<&str>) -> Desired {
        let topology = self.topology;
        let mut desired =
            Desired { revision: topology.revision.clone(), node: node.map(str::to_owned), ..Desired::default() };
        let own = self.own_of(node);
        // Every host must come to the same family of a tunnel that carries one only.
        let v6_first = topology.nodes.values().all(|n| n.value.as_slice().first().is_some_and(IpAddr::is_ipv6));
        for (name, tunnel) in &topology.tunnels {
            let doc = &tunnel.value;
            let sources = doc.local.as_ref().map_or(own.as_slice(), Addresses::as_slice);
            let mut local = Local::default();
            for address in sources.iter().filter(|a| doc.family.is_none_or(|f| f.has(**a))) {
                match address {
                    IpAddr::V4(v4) if local.v4.is_none() => local.v4 = Some(*v4),
                    IpAddr::V6(v6) if local.v6.is_none() => local.v6 = Some(*v6),
                    _ => {}
                }
            }
            if doc.kind == TunnelKind::Gretap && local.v4.is_some() && local.v6.is_some() {
                // One family only: the first that the tunnel names, or that all nodes name.
                let v6 = if doc.local.is_some() { sources.first().is_some_and(IpAddr::is_ipv6) } else { v6_first };
                if v6 { local.v4 = None } else { local.v6 = None }
            }
            let place = tunnel.place();
            desired.tunnels.insert(
                name.clone(),
                Tunnel {
                    name: name.clone(),
                    kind: doc.kind,
                    port: doc.port.or(doc.kind.default_port()),
                    create: doc.create,
                    local,
                    mtu: doc.mtu,
                    ttl: doc.ttl,
                    tos: doc.tos,
                    df: doc.df,
                    checksum: doc.checksum,
                    mark: doc.mark,
                    fast: doc.fast,
                    origin: origin(&place),
                },
            );
        }
        desired
    }

    /// Checks what the tenants mean for one node; what the low-level mappings, which are one host's own, say of
    /// themselves was checked before.
    fn tenants_of(&mut self, node: &'a str) {
        let mut desired = self.tunnels_of(Some(node));
        let own = self.own_of(Some(node));
        self.tenants(node, &own, &mut desired, &mut Claims::default());
    }

    fn low_level(&mut self, desired: &mut Desired, claims: &mut Claims<'a>) {
        let topology = self.topology;
        let names: BTreeMap<&str, Name> = topology.tunnels.keys().map(|n| (n.as_str(), n.as_str().into())).collect();
        claims.keys.reserve(topology.mappings.len());
        for placed in &topology.mappings {
            let doc = &placed.value;
            self.check_interface(&doc.interface, || placed.field(&["interface"]), "interface");
            self.check_unicast(doc.remote, || placed.field(&["remote"]));
            if doc.tenant.contains('/') || doc.tenant.contains(char::is_whitespace) {
                let message = format!("tenant name `{}` holds a slash or a space", doc.tenant);
                self.error(Diagnostic::new("TM0212", placed.field(&["tenant"]), message));
            }
            let Some(tunnel) = self.tunnel_of(doc.tunnel.as_deref(), placed, "mapping") else { continue };
            self.check_id(doc.id, tunnel, || placed.field(&["id"]));
            let Some((local, name)) = desired.tunnels.get(tunnel).map(|t| t.local).zip(names.get(tunnel)) else {
                continue;
            };
            let Some(source) = local.for_remote(doc.remote) else {
                self.no_source(tunnel, doc.remote, placed.field(&["remote"]));
                continue;
            };
            // Where the source is whichever node's this is, nobody is the host itself.
            let given = self.topology.tunnels.get(tunnel).is_some_and(|t| t.value.local.is_some());
            if source == doc.remote && (given || !self.any_host) {
                let message = format!("the remote {} is this host itself", doc.remote);
                self.error(Diagnostic::new("TM0208", placed.field(&["remote"]), message));
            }
            let mapping = Mapping {
                tenant: doc.tenant.clone(),
                interface: doc.interface.clone(),
                key: TunnelKey { tunnel: name.clone(), id: doc.id, remote: doc.remote },
                local: source,
                attach: doc.attach,
                node: None,
                generated: None,
                origin: placed.origin(),
            };
            self.claim(desired, claims, mapping, Claimed::Mapping(placed));
        }
    }

    fn no_source(&mut self, tunnel: &str, remote: IpAddr, place: super::Place) {
        let family = if remote.is_ipv6() { "IPv6" } else { "IPv4" };
        let message = format!("tunnel `{tunnel}` has no {family} source address for the remote {remote}");
        let help =
            format!("give the tunnel `local:` with an {family} address of this host, or the node one under `nodes:`");
        self.error(Diagnostic::new("TM0205", place, message).help(help));
    }

    fn claim(&mut self, desired: &mut Desired, claims: &mut Claims<'a>, mapping: Mapping, claimed: Claimed<'a>) {
        let place = match desired.mappings.entry(mapping.interface.clone()) {
            Entry::Occupied(there) => {
                let message = format!("interface `{}` has two mappings", mapping.interface);
                let mut diagnostic =
                    Diagnostic::new("TM0202", claimed.interface(), message).label("claimed again here");
                if let Some(first) = claims.keys.get(&there.get().key) {
                    diagnostic = diagnostic.related(first.interface(), "first claimed here");
                }
                self.error(diagnostic);
                return;
            }
            Entry::Vacant(place) => place,
        };
        if desired.tunnels.contains_key(mapping.interface.as_str()) {
            let message = format!("`{}` is a tunnel, so it can't be a tenant's interface", mapping.interface);
            self.error(Diagnostic::new("TM0216", claimed.interface(), message));
            return;
        }
        match claims.keys.entry(mapping.key.clone()) {
            hash_map::Entry::Occupied(first) => {
                let message = format!("the key {} has two mappings", mapping.key);
                let diagnostic = Diagnostic::new("TM0203", claimed.key(), message).label("claimed again here");
                self.error(
                    diagnostic
                        .related(first.get().key(), "first claimed here")
                        .help("a packet with that key can go to one interface only"),
                );
            }
            hash_map::Entry::Vacant(key) => {
                key.insert(claimed);
                place.insert(mapping);
            }
        }
    }

    fn tenants(&mut self, node: &'a str, own: &[IpAddr], desired: &mut Desired, claims: &mut Claims<'a>) {
        let topology = self.topology;
        for (name, tenant) in &topology.tenants {
            let members = self.members(tenant);
            let Some((_, mine)) = members.iter().find(|(n, _)| *n == node) else { continue };
            // Reported by check_whole already.
            let named = tenant.value.tunnel.as_deref().or_else(|| self.only_tunnel());
            let Some(tunnel) = named.and_then(|t| desired.tunnels.get(t)).cloned() else { continue };
            let (label, tunnel_name) = (Name::from(name.as_str()), Name::from(tunnel.name.as_str()));
            let origin = tenant.origin();
            if let Some(bridge) = &tenant.value.bridge {
                let made =
                    Bridge { name: bridge.clone(), tenant: name.clone(), mtu: tunnel.mtu, origin: origin.clone() };
                if desired.tunnels.contains_key(bridge) {
                    let message = format!("`{bridge}` is a tunnel, so it can't be a tenant's bridge");
                    self.error(Diagnostic::new("TM0216", tenant.field(&["bridge"]), message));
                    continue;
                }
                desired.bridges.insert(bridge.clone(), made);
                if members.len() - 1 > BRIDGE_PORTS_MAX {
                    let message = format!(
                        "tenant `{name}` needs {} ports on bridge `{bridge}`; a bridge has at most {BRIDGE_PORTS_MAX}",
                        members.len() - 1
                    );
                    self.error(Diagnostic::new("TM0215", tenant.field(&["bridge"]), message));
                    continue;
                }
            }
            for (other, _) in members.iter().filter(|(n, _)| *n != node) {
                let Some(theirs) = topology.nodes.get(*other) else { continue };
                let Some((source, remote)) = ends(&tunnel, own, theirs.value.as_slice()) else {
                    let message = format!(
                        "nodes `{node}` and `{other}` of tenant `{name}` have no address family in common on tunnel `{}`",
                        tunnel.name
                    );
                    self.error(Diagnostic::new("TM0205", tenant.place(), message).related(theirs.place(), "this node").help("give both an address of the same family under `nodes:`, or another `family:` to the tunnel"));
                    continue;
                };
                if source == remote {
                    continue; // two nodes with one address: reported already
                }
                let (interface, attach, generated) = match (&tenant.value.bridge, &mine.interface) {
                    (Some(bridge), _) => {
                        let port = GeneratedPort { bridge: bridge.clone(), node: (*other).to_owned() };
                        (port_name(name, other, &tunnel.name), Attach::Port, Some(port))
                    }
                    (None, Some(interface)) => (interface.clone(), mine.attach, None),
                    (None, None) => continue,
                };
                let mapping = Mapping {
                    tenant: label.clone(),
                    interface: interface.into(),
                    key: TunnelKey { tunnel: tunnel_name.clone(), id: tenant.value.id, remote },
                    local: source,
                    attach,
                    node: Some((*other).into()),
                    generated: generated.map(Box::new),
                    origin: origin.clone(),
                };
                self.claim(desired, claims, mapping, Claimed::Tenant(tenant, node));
            }
        }
    }
}

/// Both underlay addresses of a link between two nodes: of the first family that both have, in this host's order.
fn ends(tunnel: &Tunnel, own: &[IpAddr], theirs: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    let mut sources: Vec<IpAddr> = own.iter().copied().filter(|a| tunnel.local.contains(*a)).collect();
    // A tunnel with sources of its own speaks from those.
    sources.extend(tunnel.local.v4.map(IpAddr::V4).into_iter().chain(tunnel.local.v6.map(IpAddr::V6)));
    // Both ends must come to the same family: that of the lower of both orders would do, IPv4 before IPv6 is the rule
    // where the orders differ.
    let common = |v6: bool| {
        let source = sources.iter().find(|a| a.is_ipv6() == v6)?;
        let remote = theirs.iter().find(|a| a.is_ipv6() == v6)?;
        Some((*source, *remote))
    };
    let first_is_v6 = own.first().is_some_and(IpAddr::is_ipv6) && theirs.first().is_some_and(IpAddr::is_ipv6);
    common(first_is_v6).or_else(|| common(!first_is_v6))
}

/// What claims an interface and a key. Their places are worked out only where two claim the same.
#[derive(Clone, Copy)]
enum Claimed<'a> {
    Mapping(&'a Placed<MappingDoc>),
    /// A tenant, on that node.
    Tenant(&'a Placed<TenantDoc>, &'a str),
}

impl Claimed<'_> {
    fn interface(&self) -> super::Place {
        match self {
            Self::Mapping(mapping) => mapping.field(&["interface"]),
            Self::Tenant(tenant, node) => tenant.field(&["members", node, "interface"]),
        }
    }

    fn key(&self) -> super::Place {
        match self {
            Self::Mapping(mapping) => mapping.place(),
            Self::Tenant(tenant, _) => tenant.place(),
        }
    }
}

#[derive(Default)]
struct Claims<'a> {
    keys: HashMap<TunnelKey, Claimed<'a>>,
}

fn origin(place: &super::Place) -> Origin {
    Origin { file: place.file.as_str().into(), line: place.line, column: place.column }
}
