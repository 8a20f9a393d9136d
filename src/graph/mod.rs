//! The mesh as a picture: hosts, tenants by colour, mappings and their states. Pure.
//!
//! A *link* joins two hosts for one tenant: a mapping at each end. What a host's own mappings are doing is known only
//! where its status is; everything else is drawn as the files say it.

pub mod dot;
mod layout;
pub mod mermaid;
pub mod svg;

use crate::model::{Desired, Mapping};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// State of a link, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// As the files say it; nobody looked.
    #[default]
    Declared,
    /// In force.
    Active,
    /// Waits for an interface or a tunnel.
    Pending,
    /// Removed by the files, held by the deletion guard.
    Held,
    /// The live state isn't what it should be.
    Broken,
}

impl Mark {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Broken => "broken",
        }
    }

    /// Whether it has to be seen at once.
    pub fn stands_out(self) -> bool {
        matches!(self, Self::Pending | Self::Held | Self::Broken)
    }
}

/// What is known of one mapping of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// State.
    pub mark: Mark,
    /// Why it isn't active.
    pub why: Option<String>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name of the node, or the address where no node has it.
    pub name: String,
    /// Underlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether this is the host that was looked at.
    pub here: bool,
}

/// A tenant and its colour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Name; empty where mappings name none.
    pub name: String,
    /// Tunnel ids.
    pub ids: BTreeSet<u32>,
    /// Tunnels.
    pub tunnels: BTreeSet<String>,
    /// Bridge, where it has one.
    pub bridge: Option<String>,
    /// `#rrggbb`.
    pub color: &'static str,
}

impl Tenant {
    /// What it is called in a picture.
    pub fn title(&self) -> &str {
        if self.name.is_empty() { "(no tenant)" } else { &self.name }
    }

    /// "id 10000 over vxlan0".
    pub fn key(&self) -> String {
        let ids: Vec<String> = self.ids.iter().map(u32::to_string).collect();
        let tunnels: Vec<&str> = self.tunnels.iter().map(String::as_str).collect();
        let noun = if ids.len() == 1 { "id" } else { "ids" };
        let ids = if ids.len() > 3 { format!("{} … {}", ids[0], ids[ids.len() - 1]) } else { ids.join(", ") };
        format!("{noun} {ids} over {}", tunnels.join(", "))
    }
}

/// Two hosts that a tenant joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index of the tenant.
    pub tenant: usize,
    /// Indexes of the hosts, the lower one first.
    pub hosts: (usize, usize),
    /// Interfaces at both ends, where they aren't generated ports of a bridge and are known.
    pub interfaces: (Option<String>, Option<String>),
    /// State, seen from this host.
    pub mark: Mark,
    /// Why it isn't active.
    pub why: Option<String>,
}

/// The whole picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mesh {
    /// Hosts, in order of their names.
    pub hosts: Vec<Host>,
    /// Tenants, in order of their names.
    pub tenants: Vec<Tenant>,
    /// Links, by tenant and hosts.
    pub links: Vec<Link>,
}

/// One host's part of the mesh.
#[derive(Debug)]
pub struct Part<'a> {
    /// Name of the node; `None` for a host that isn't one.
    pub node: Option<String>,
    /// What is asked of it.
    pub desired: &'a Desired,
    /// Whether its own list of mappings is meant too, which is one host's own.
    pub own: bool,
    /// What its mappings are doing, by interface, where that is known.
    pub live: Option<BTreeMap<String, Live>>,
}

impl Mesh {
    /// Puts the parts together. `nodes` are the hosts that the files declare; `own` the interfaces of low-level mappings;
    /// `only` restricts it to these tenants, where any is given.
    pub fn of(nodes: &[(String, Vec<IpAddr>)], own: &BTreeSet<String>, parts: &[Part<'_>], only: &[String]) -> Self {
        let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
        for (name, addresses) in nodes {
            hosts.insert(name.clone(), Host { name: name.clone(), addresses: addresses.clone(), here: false });
        }
        let owner: BTreeMap<IpAddr, String> =
            nodes.iter().flat_map(|(name, all)| all.iter().map(|a| (*a, name.clone()))).collect();
        let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
        let mut links: BTreeMap<(String, String, String, String, u32), Link> = BTreeMap::new();
        for part in parts {
            let meant = |m: &&Mapping| {
                (part.own || !own.contains(m.interface.as_str()))
                    && (only.is_empty() || only.iter().any(|t| t == m.tenant.as_str()))
            };
            for mapping in part.desired.mappings.values().filter(meant) {
                let near = part.node.clone().unwrap_or_else(|| "this host".to_owned());
                let far = match &mapping.generated {
                    Some(port) => port.node.clone(),
                    None => owner.get(&mapping.key.remote).cloned().unwrap_or_else(|| mapping.key.remote.to_string()),
                };
                for (name, address) in [(&near, mapping.local), (&far, mapping.key.remote)] {
                    let host = hosts.entry(name.clone()).or_insert_with(|| Host {
                        name: name.clone(),
                        addresses: Vec::new(),
                        here: false,
                    });
                    if !host.addresses.contains(&address) && host.name != address.to_string() {
                        host.addresses.push(address);
                    }
                }
                let tenant = tenants.entry(mapping.tenant.to_string()).or_insert_with(|| Tenant {
                    name: mapping.tenant.to_string(),
                    ids: BTreeSet::new(),
                    tunnels: BTreeSet::new(),
                    bridge: None,
                    color: "",
                });
                tenant.ids.insert(mapping.key.id);
                tenant.tunnels.insert(mapping.key.tunnel.to_string());
                if let Some(port) = mapping.generated.as_ref().filter(|port| !port.bridge.is_empty()) {
                    tenant.bridge = Some(port.bridge.clone());
                }
                let live = part.live.as_ref().map(|live| {
                    live.get(mapping.interface.as_str())
                        .cloned()
                        .unwrap_or_else(|| Live { mark: Mark::Pending, why: Some("not applied yet".to_owned()) })
                });
                add(&mut links, mapping, near, far, live);
            }
            if part.live.is_some()
                && let Some(host) = hosts.get_mut(part.node.as_deref().unwrap_or("this host"))
            {
                host.here = true;
            }
        }
        if !only.is_empty() {
            let named: BTreeSet<&String> = links.keys().flat_map(|(_, a, b, ..)| [a, b]).collect();
            hosts.retain(|name, _| named.contains(name));
        }
        number(hosts, tenants, links)
    }

    /// Links that have to be seen at once.
    pub fn notable(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.mark.stands_out())
    }

    /// "red: host0 - host1 (eth1): pending, eth1 doesn't exist".
    pub fn describe(&self, link: &Link) -> String {
        let (a, b) = link.hosts;
        let interfaces: Vec<&str> =
            [&link.interfaces.0, &link.interfaces.1].into_iter().flatten().map(String::as_str).collect();
        let interfaces = if interfaces.is_empty() { String::new() } else { format!(" ({})", interfaces.join(", ")) };
        let why = link.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!(
            "{}: {} – {}{interfaces}, {}{why}",
            self.tenants[link.tenant].title(),
            self.hosts[a].name,
            self.hosts[b].name,
            link.mark.word()
        )
    }

    /// Whether somebody looked at the live state of a host.
    pub fn looked(&self) -> bool {
        self.hosts.iter().any(|host| host.here)
    }
}

type Links = BTreeMap<(String, String, String, String, u32), Link>;

/// Adds one end of a link.
fn add(links: &mut Links, mapping: &Mapping, near: String, far: String, live: Option<Live>) {
    let turned = far < near;
    let (a, b) = if turned { (far, near) } else { (near, far) };
    let key = (mapping.tenant.to_string(), a, b, mapping.key.tunnel.to_string(), mapping.key.id);
    let link = links.entry(key).or_insert_with(|| Link {
        tenant: 0,
        hosts: (0, 0),
        interfaces: (None, None),
        mark: Mark::Declared,
        why: None,
    });
    let interface = mapping.generated.is_none().then(|| mapping.interface.to_string());
    if turned {
        link.interfaces.1 = interface
    } else {
        link.interfaces.0 = interface
    }
    if let Some(live) = live
        && live.mark >= link.mark
    {
        (link.mark, link.why) = (live.mark, live.why);
    }
}

/// A name as people sort it: host2 before host10.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut out = vec![(String::new(), 0u64)];
    let mut digits = false;
    for c in name.chars() {
        let Some(last) = out.last_mut() else { break };
        match c.to_digit(10) {
            Some(digit) => last.1 = last.1.saturating_mul(10).saturating_add(digit.into()),
            None if digits => out.push((c.to_string(), 0)),
            None => last.0.push(c),
        }
        digits = c.is_ascii_digit();
    }
    out
}

/// Names to indexes, and a colour for each tenant.
fn number(hosts: BTreeMap<String, Host>, tenants: BTreeMap<String, Tenant>, links: Links) -> Mesh {
    let mut hosts: Vec<Host> = hosts.into_values().collect();
    hosts.sort_by_cached_key(|host| (natural(&host.name), host.name.clone()));
    let host_of: BTreeMap<String, usize> = hosts.iter().enumerate().map(|(n, h)| (h.name.clone(), n)).collect();
    let tenant_of: BTreeMap<String, usize> = tenants.keys().enumerate().map(|(n, name)| (name.clone(), n)).collect();
    let links = links
        .into_iter()
        .map(|((tenant, a, b, ..), link)| {
            let (tenant, (a, b)) = (tenant_of[&tenant], (host_of[&a], host_of[&b]));
            if a <= b {
                Link { tenant, hosts: (a, b), ..link }
            } else {
                Link { tenant, hosts: (b, a), interfaces: (link.interfaces.1, link.interfaces.0), ..link }
            }
        })
        .collect();
    let mut tenants: Vec<Tenant> = tenants.into_values().collect();
    let colors = colors(tenants.iter().map(|t| t.name.as_str()));
    tenants.iter_mut().zip(colors).for_each(|(tenant, color)| tenant.color = color);
    Mesh { hosts, tenants, links }
}

/// Colours that are told apart by most eyes (after Okabe and Ito), on white.
const PALETTE: [&str; 10] =
    ["#0072b2", "#d55e00", "#009e73", "#b5478f", "#c58a00", "#3a9ad9", "#7b5ea7", "#8c6d31", "#5f6b7a", "#b5172f"];

/// A tenant that is named as a colour has it; the others get what is left.
fn colors<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'static str> {
    const NAMED: [(&str, &str); 11] = [
        ("red", "#c62828"),
        ("blue", "#1565c0"),
        ("green", "#2e7d32"),
        ("orange", "#d55e00"),
        ("yellow", "#b8860b"),
        ("purple", "#7b5ea7"),
        ("violet", "#7b5ea7"),
        ("pink", "#c2578f"),
        ("brown", "#8c6d31"),
        ("grey", "#5f6b7a"),
        ("black", "#222222"),
    ];
    let named = |name: &str| NAMED.iter().find(|(word, _)| *word == name).map(|(_, color)| *color);
    let names: Vec<&str> = names.collect();
    let near = |color: &&&str| match **color {
        "#0072b2" => names.contains(&"blue"),
        "#b5172f" => names.contains(&"red"),
        "#009e73" => names.contains(&"green"),
        other => names.iter().any(|name| named(name) == Some(other)),
    };
    let free: Vec<&str> = PALETTE.iter().filter(|color| !near(color)).copied().collect();
    let mut next = free.iter().copied().cycle();
    names.iter().map(|name| named(name).or_else(|| next.next()).unwrap_or(PALETTE[0])).collect()
}
