//! As a graph for Graphviz.

use super::layout::{Edge, edges};
use super::{Mark, Mesh};

/// The text of the graph.
pub fn render(mesh: &Mesh) -> String {
    let mut out = String::from(
        "graph \"tunnel-mesh\" {\n  layout=neato; overlap=false; overlap_shrink=false; splines=true; sep=\"+18\"; fontname=\"sans-serif\";\n  \
         node [shape=box, style=\"rounded,filled\", fillcolor=\"#f5f7fa\", color=\"#5f6b7a\", fontname=\"sans-serif\"];\n  \
         edge [fontname=\"sans-serif\", fontsize=10, penwidth=2];\n",
    );
    for (n, host) in mesh.hosts.iter().enumerate() {
        let lines = std::iter::once(host.name.clone()).chain(host.addresses.iter().map(ToString::to_string));
        let label: Vec<String> = lines.map(|line| escape(&line)).collect();
        let here = if host.here { ", penwidth=3" } else { "" };
        out.push_str(&format!("  h{n} [label=\"{}\"{here}];\n", label.join("\\n")));
    }
    let (hubs, edges) = edges(mesh);
    for t in &hubs {
        let tenant = &mesh.tenants[*t];
        out.push_str(&format!(
            "  t{t} [shape=ellipse, fillcolor=white, color=\"{0}\", fontcolor=\"{0}\", penwidth=2, label=\"{1}\\n{2}\"];\n",
            tenant.color,
            escape(tenant.title()),
            escape(&tenant.key())
        ));
    }
    // Room for the longest label between two hosts, in inches.
    let label = |edge: &Edge<'_>| match edge {
        Edge::Link(link) => mesh.label(link).chars().count(),
        Edge::Spoke { .. } => 0,
    };
    let len = 2.5 + 0.075 * edges.iter().map(label).max().unwrap_or(0).min(60) as f64;
    for edge in &edges {
        let color = mesh.tenants[edge.tenant()].color;
        match edge {
            Edge::Spoke { tenant, host } => {
                out.push_str(&format!("  t{tenant} -- h{host} [color=\"{color}\", len=2];\n"))
            }
            Edge::Link(link) => {
                let style = match link.mark {
                    Mark::Pending => ", style=dashed",
                    Mark::Held => ", style=dotted",
                    Mark::Broken => ", style=dashed, penwidth=4",
                    Mark::Declared | Mark::Active => "",
                };
                out.push_str(&format!(
                    "  h{} -- h{} [color=\"{color}\", fontcolor=\"{color}\", len={len:.1}, label=\"{}\"{style}];\n",
                    link.hosts.0,
                    link.hosts.1,
                    escape(&mesh.label(link))
                ));
            }
        }
    }
    out + "}\n"
}

/// Text inside quotes.
fn escape(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    shown.collect::<String>().replace('\\', "\\\\").replace('"', "\\\"")
}
