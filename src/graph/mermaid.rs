//! As a Mermaid flowchart, which GitHub, GitLab and many wikis draw.

use super::layout::{Edge, edges};
use super::{Mark, Mesh};

/// The text of the chart.
pub fn render(mesh: &Mesh) -> String {
    let mut out = String::from("flowchart LR\n");
    for (n, host) in mesh.hosts.iter().enumerate() {
        let addresses: Vec<String> = host.addresses.iter().map(|a| format!("<br/>{a}")).collect();
        let here = if host.here { "<br/>(looked at)" } else { "" };
        out.push_str(&format!("  h{n}[\"{}{}{here}\"]\n", escape(&host.name), addresses.concat()));
    }
    let (hubs, edges) = edges(mesh);
    for t in &hubs {
        let tenant = &mesh.tenants[*t];
        out.push_str(&format!("  t{t}((\"{}<br/>{}\"))\n", escape(tenant.title()), escape(&tenant.key())));
        out.push_str(&format!("  style t{t} stroke:{},stroke-width:3px\n", tenant.color));
    }
    let mut styles = String::new();
    for (n, edge) in edges.iter().enumerate() {
        let (line, from, to, label) = match edge {
            Edge::Spoke { tenant, host } => ("---", format!("t{tenant}"), format!("h{host}"), String::new()),
            Edge::Link(link) => {
                let line = if link.mark.stands_out() { "-.-" } else { "---" };
                (line, format!("h{}", link.hosts.0), format!("h{}", link.hosts.1), mesh.label(link))
            }
        };
        let label = if label.is_empty() { label } else { format!("|\"{}\"|", escape(&label)) };
        out.push_str(&format!("  {from} {line}{label} {to}\n"));
        let color = mesh.tenants[edge.tenant()].color;
        let width = if edge.mark() == Mark::Broken { 4 } else { 2 };
        styles.push_str(&format!("  linkStyle {n} stroke:{color},stroke-width:{width}px\n"));
    }
    out + &styles
}

/// Text inside quotes: what means something to Mermaid or to HTML goes by its code.
fn escape(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || " .,:;-_/()–…".contains(c);
    text.chars().map(|c| if plain(c) { c.to_string() } else { format!("#{};", c as u32) }).collect()
}
