//! One topology to the desired state of one node, with everything that is wrong with its meaning.

use super::check::{RENAME, flaw};
use super::diagnostic::{Diagnostic, Place, nearest};
use super::document::{Addresses, MappingDoc, TenantDoc};
use super::doubt::in_order;
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

pub(super) struct Compiler<'a> {
    pub(super) topology: &'a Topology,
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
        let Some(tenant) = self.tenants.values().next().filter(|_| !self.doubt.any_node()) else { return Ok(None) };
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
        let mut desired = compiler.node(node.as_deref());
        // Made one by one, in order, a tree's nodes are half full; made at once they are full.
        desired.mappings = std::mem::take(&mut desired.mappings).into_iter().collect();
        compiler.finish(desired)
    }

    /// Adds the low-level mappings of this topology to the state of one node, which has its tunnels and other mappings
    /// already. `None` where something is wrong with one of them; that no two have one key is for the caller to see.
    pub(super) fn place_mappings(&self, desired: &mut Desired) -> Option<()> {
        let mut compiler = Compiler { topology: self, errors: Vec::new(), any_host: false };
        compiler.low_level(desired, &mut Claims::default());
        compiler.errors.is_empty().then_some(())
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
    fn finish(self, desired: Desired) -> Result<Desired, Vec<Diagnostic>> {
        if self.errors.is_empty() {
            return Ok(desired);
        }
        Err(in_order(self.errors))
    }

    /// How many errors there are by now.
    pub(super) fn count(&self) -> usize {
        self.errors.len()
    }

    pub(super) fn error(&mut self, diagnostic: Diagnostic) {
        self.errors.push(diagnostic);
    }

    /// Two places that can't both be right: the later one is wrong, the first is shown beside it.
    pub(super) fn conflict(&mut self, code: &str, mut places: [(Place, &str); 2], message: String, help: &str) {
        places.sort_by(|a, b| a.0.cmp(&b.0));
        let [(first, first_label), (again, again_label)] = places;
        let (first_label, again_label) = match again_label {
            same if same == first_label => (format!("first {same}"), same.replace(" here", " again here")),
            _ => (first_label.to_owned(), again_label.to_owned()),
        };
        self.error(Diagnostic::new(code, again, message).label(again_label).related(first, first_label).help(help));
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
        desired.mesh = self.mesh();
        desired
    }

    /// Who is who, whether or not this node has to do with it.
    fn mesh(&self) -> Mesh {
        let mut nodes = BTreeMap::new();
        for (name, node) in &self.topology.nodes {
            let name = Name::from(name.as_str());
            nodes.extend(node.value.as_slice().iter().map(|address| (*address, name.clone())));
        }
        let tenants = self.topology.tenants.iter().filter_map(|(name, tenant)| {
            let tunnel = tenant.value.tunnel.as_deref().or_else(|| self.only_tunnel())?;
            Some(MeshTenant { name: name.as_str().into(), tunnel: tunnel.into(), id: tenant.value.id })
        });
        Mesh { nodes, tenants: tenants.collect() }
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
            if let Some(flaw) = flaw(&doc.tenant).filter(|_| !doc.tenant.is_empty()) {
                let message = format!("tenant name `{}` {flaw}", doc.tenant);
                self.error(Diagnostic::new("TM0212", placed.field(&["tenant"]), message).help(RENAME));
            }
            let Some(tunnel) = self.tunnel_of(doc.tunnel.as_deref(), placed, "mapping") else { continue };
            self.check_id(doc.id, tunnel, || placed.field(&["id"]));
            let Some((local, name)) = desired.tunnels.get(tunnel).map(|t| t.local).zip(names.get(tunnel)) else {
                continue;
            };
            let Some(source) = local.for_remote(doc.remote) else {
                let given = self.topology.tunnels.get(tunnel).is_some_and(|t| t.value.local.is_some());
                if !given && self.topology.doubt.any_node() {
                    continue;
                }
                self.no_source(tunnel, doc.remote, placed.field(&["remote"]));
                continue;
            };
            // Where the source is whichever node's this is, nobody is the host itself.
            let given = self.topology.tunnels.get(tunnel).is_some_and(|t| t.value.local.is_some());
            if source == doc.remote && (given || !self.any_host) {
                let message = format!("the remote {} is this host itself", doc.remote);
                let help = "write the underlay address of the host at the other end";
                self.error(Diagnostic::new("TM0208", placed.field(&["remote"]), message).help(help));
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

    fn no_source(&mut self, tunnel: &str, remote: IpAddr, place: Place) {
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
                self.error(diagnostic.help("an interface leads to one place: remove one, or name another interface"));
                return;
            }
            Entry::Vacant(place) => place,
        };
        if desired.tunnels.contains_key(mapping.interface.as_str()) {
            let message = format!("`{}` is a tunnel, so it can't be a tenant's interface", mapping.interface);
            self.error(Diagnostic::new("TM0216", claimed.interface(), message).help("name the tenant's own interface"));
            return;
        }
        match claims.keys.entry(mapping.key.clone()) {
            // Two tenants with one id were told of already.
            hash_map::Entry::Occupied(first) if first.get().is_tenant() && claimed.is_tenant() => {}
            hash_map::Entry::Occupied(first) => {
                let message = format!("the key {} has two mappings", mapping.key);
                let places = [(claimed.key(), "claimed here"), (first.get().key(), "claimed here")];
                let help = "a packet with that key can go to one interface only: give one of them another `id`";
                self.conflict("TM0203", places, message, help);
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
            if tenant.value.bridge.is_none() && members.len() > 2 {
                continue; // a wire with more than two ends: reported already
            }
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
                    let diagnostic = Diagnostic::new("TM0216", tenant.field(&["bridge"]), message);
                    self.error(diagnostic.help("give the bridge another name"));
                    continue;
                }
                desired.bridges.insert(bridge.clone(), made);
                if members.len() - 1 > BRIDGE_PORTS_MAX {
                    let message = format!(
                        "tenant `{name}` needs {} ports on bridge `{bridge}`; a bridge has at most {BRIDGE_PORTS_MAX}",
                        members.len() - 1
                    );
                    let diagnostic = Diagnostic::new("TM0215", tenant.field(&["bridge"]), message);
                    self.error(diagnostic.help("split the tenant, or leave members out"));
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
    fn is_tenant(self) -> bool {
        matches!(self, Self::Tenant(..))
    }

    fn interface(&self) -> Place {
        match self {
            Self::Mapping(mapping) => mapping.field(&["interface"]),
            Self::Tenant(tenant, node) => tenant.field(&["members", node, "interface"]),
        }
    }

    fn key(&self) -> Place {
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

fn origin(place: &Place) -> Origin {
    Origin { file: place.file.as_str().into(), line: place.line, column: place.column }
}
