//! A desired state as topology YAML: the text that, read again, means that state.

use super::compile::port_name;
use crate::model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A scalar, quoted where YAML would take it for something else.
pub fn scalar(text: &str) -> String {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '@' | '+'));
    let reserved = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    if word && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    let dotted =
        !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') && text.parse::<IpAddr>().is_ok();
    if dotted {
        return text.to_owned();
    }
    // JSON's strings are YAML's, too.
    serde_json::to_string(text).unwrap_or_default()
}

/// An address as a scalar.
pub fn address(address: IpAddr) -> String {
    scalar(&address.to_string())
}

/// One address, or a list.
fn addresses(all: &[IpAddr]) -> String {
    match all {
        [one] => address(*one),
        all => format!("[{}]", all.iter().map(|a| address(*a)).collect::<Vec<_>>().join(", ")),
    }
}

/// `{key: value, …}`.
pub fn flow(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

/// The fields of a tunnel that aren't the usual ones, without its sources.
pub fn tunnel_fields(tunnel: &Tunnel) -> Vec<(&'static str, String)> {
    let mut fields = vec![("kind", tunnel.kind.to_string())];
    if let Some(port) = tunnel.port.filter(|port| Some(*port) != tunnel.kind.default_port()) {
        fields.push(("port", port.to_string()));
    }
    if tunnel.create {
        fields.push(("create", "true".to_owned()));
    }
    if let Some(mtu) = tunnel.mtu {
        fields.push(("mtu", mtu.to_string()));
    }
    if tunnel.ttl != OuterField::Fixed(64) {
        fields.push(("ttl", tunnel.ttl.to_string()));
    }
    if tunnel.tos != OuterField::Fixed(0) {
        fields.push(("tos", tunnel.tos.to_string()));
    }
    if tunnel.df {
        fields.push(("df", "true".to_owned()));
    }
    if let Some(checksum) = tunnel.checksum {
        fields.push(("checksum", checksum.to_string()));
    }
    if tunnel.mark != 1 {
        fields.push(("mark", tunnel.mark.to_string()));
    }
    match tunnel.fast {
        Fast::Auto => {}
        Fast::On => fields.push(("fast", "\"on\"".to_owned())),
        Fast::Off => fields.push(("fast", "\"off\"".to_owned())),
    }
    fields
}

/// A tenant of generated ports, as its ports tell it.
struct Tenant<'a> {
    key: &'a TunnelKey,
    bridge: &'a str,
    /// Far nodes.
    nodes: BTreeSet<&'a str>,
}

/// The topology of one host. Tenants with generated ports come in the mesh form, with this host as `node`; all else comes
/// as mappings. Answers with what could not be said, too.
pub fn topology(desired: &Desired, node: &str) -> (String, Vec<String>) {
    let mut notes = Vec::new();
    let mut nodes: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut tenants: BTreeMap<&str, Tenant<'_>> = BTreeMap::new();
    let mut plain: Vec<&Mapping> = Vec::new();
    for mapping in desired.mappings.values() {
        let Some(port) = &mapping.generated else {
            plain.push(mapping);
            continue;
        };
        let tenant = tenants.entry(mapping.tenant.as_str()).or_insert_with(|| Tenant {
            key: &mapping.key,
            bridge: &port.bridge,
            nodes: BTreeSet::new(),
        });
        let same = (tenant.key.id, tenant.key.tunnel.as_str(), tenant.bridge)
            == (mapping.key.id, mapping.key.tunnel.as_str(), port.bridge.as_str());
        let named = port_name(&mapping.tenant, &port.node, &mapping.key.tunnel) == mapping.interface.as_str();
        if !same || !named {
            notes.push(format!(
                "the generated port {} isn't what tenant {} would have",
                mapping.interface, mapping.tenant
            ));
            continue;
        }
        tenant.nodes.insert(&port.node);
        nodes.entry(node).or_default().insert(mapping.local);
        nodes.entry(&port.node).or_default().insert(mapping.key.remote);
    }
    let meshed: BTreeSet<IpAddr> = nodes.get(node).cloned().unwrap_or_default();
    let both = nodes.values().any(|a| a.iter().any(IpAddr::is_ipv4) && a.iter().any(IpAddr::is_ipv6));

    let mut out = String::from("version: 1\n");
    if !nodes.is_empty() {
        out.push_str("\nnodes:\n");
        for (name, all) in &nodes {
            let all: Vec<IpAddr> = all.iter().copied().collect();
            out.push_str(&format!("  {}: {}\n", scalar(name), addresses(&all)));
        }
    }
    if !desired.tunnels.is_empty() {
        out.push_str("\ntunnels:\n");
        for (name, tunnel) in &desired.tunnels {
            let mut fields = tunnel_fields(tunnel);
            let local: Vec<IpAddr> =
                [tunnel.local.v4.map(IpAddr::V4), tunnel.local.v6.map(IpAddr::V6)].into_iter().flatten().collect();
            // What the nodes say needn't be said again, and other hosts may share the file then.
            if !local.is_empty() && !local.iter().all(|a| meshed.contains(a)) {
                fields.push(("local", addresses(&local)));
            }
            // IPv4 is taken where both ends have both.
            let mut carried = desired.mappings.values().filter(|m| m.key.tunnel == *name && m.generated.is_some());
            if both && carried.clone().next().is_some() && carried.all(|m| m.local.is_ipv6()) {
                fields.push(("family", "ipv6".to_owned()));
            }
            out.push_str(&format!("  {}: {}\n", scalar(name), flow(&fields)));
        }
    }
    if !tenants.is_empty() {
        out.push_str("\ntenants:\n");
        for (name, tenant) in &tenants {
            let members: BTreeSet<&str> = tenant.nodes.iter().copied().chain([node]).collect();
            let members: Vec<String> = members.into_iter().map(scalar).collect();
            let fields = [
                ("id", tenant.key.id.to_string()),
                ("tunnel", scalar(&tenant.key.tunnel)),
                ("bridge", scalar(tenant.bridge)),
                ("members", format!("[{}]", members.join(", "))),
            ];
            out.push_str(&format!("  {}: {}\n", scalar(name), flow(&fields)));
        }
    }
    if !plain.is_empty() {
        out.push_str("\nmappings:\n");
        for mapping in plain {
            out.push_str(&format!("  - {}\n", flow(&mapping_fields(mapping))));
        }
    }
    (out, notes)
}

fn mapping_fields(mapping: &Mapping) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    if !mapping.tenant.is_empty() {
        fields.push(("tenant", scalar(&mapping.tenant)));
    }
    fields.push(("interface", scalar(&mapping.interface)));
    fields.push(("id", mapping.key.id.to_string()));
    fields.push(("remote", address(mapping.key.remote)));
    fields.push(("tunnel", scalar(&mapping.key.tunnel)));
    if mapping.attach != Attach::Port {
        fields.push(("attach", mapping.attach.to_string()));
    }
    fields
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::topology::{NodeChoice, SourceFile, merge, parse};

    fn read(text: &str) -> Desired {
        let parsed = parse(&SourceFile { name: "t".to_owned(), text: text.as_bytes().to_vec() });
        let topology = merge([&parsed]).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
        let mut desired =
            topology.compile(&NodeChoice::Named("a".to_owned())).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
        let nowhere = Origin::default();
        desired.tunnels.values_mut().for_each(|t| t.origin = nowhere.clone());
        desired.bridges.values_mut().for_each(|b| b.origin = nowhere.clone());
        desired.mappings.values_mut().for_each(|m| m.origin = nowhere.clone());
        desired.revision.clear();
        desired
    }

    #[test]
    fn what_is_written_means_the_same_when_it_is_read() {
        let mesh = "
version: 1
nodes: {a: [10.0.0.1, 'fd00::1'], b: [10.0.0.2, 'fd00::2'], c: 10.0.0.3}
tunnels:
  v0: {kind: vxlan, create: true}
  g6: {kind: geneve, create: true, family: ipv6, port: 6082, mtu: 1400, ttl: inherit, tos: 4, checksum: false, mark: 0}
tenants:
  red: {id: 1, tunnel: v0, bridge: br-red}
  blue: {id: 2, tunnel: g6, bridge: br-blue, members: [a, b]}
mappings:
  - {tenant: 'null', interface: 'true', id: 9, remote: 10.9.9.9, tunnel: v0, attach: endpoint}
  - {interface: 'a,b#c', id: 10, remote: 'fd00::9', tunnel: g6}
  - {tenant: '7', interface: '1e3', id: 11, remote: 10.9.9.9, tunnel: v0}
";
        let desired = read(mesh);
        assert_eq!(desired.mappings.len(), 6);
        let (text, notes) = topology(&desired, "a");
        assert_eq!(notes, Vec::<String>::new());
        // Of other families than the node's, sources come with the nodes.
        assert_eq!(read(&text), desired, "{text}");
    }

    #[test]
    fn what_yaml_would_take_for_something_else_is_quoted() {
        for plain in ["eth0", "br-red", "a.b", "10.0.0.1", "x/y"] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in
            ["", "1", "1e3", "null", "Yes", "~", "a b", "a:b", "fd00::1", "#a", "-", "é", "\u{7}", "1.5", "0x10"]
        {
            assert!(scalar(quoted).starts_with('"'), "{quoted}");
            let back: String = serde_yaml::from_str(&scalar(quoted)).unwrap();
            assert_eq!(back, quoted);
        }
    }
}
