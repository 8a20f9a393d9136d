//! What is drawn between whom: a line for each link while that can be read, a hub for tenants with many members.

use super::{Link, Mark, Mesh};
use std::collections::BTreeSet;

/// Most members of a tenant whose links are drawn one by one.
const PAIRWISE: usize = 5;

/// A line.
#[derive(Debug)]
pub(super) enum Edge<'a> {
    /// Between two hosts.
    Link(&'a Link),
    /// Between a tenant and a member.
    Spoke {
        /// Index of the tenant.
        tenant: usize,
        /// Index of the host.
        host: usize,
    },
}

impl Edge<'_> {
    pub(super) fn tenant(&self) -> usize {
        match self {
            Self::Link(link) => link.tenant,
            Self::Spoke { tenant, .. } => *tenant,
        }
    }

    pub(super) fn mark(&self) -> Mark {
        match self {
            Self::Link(link) => link.mark,
            Self::Spoke { .. } => Mark::Declared,
        }
    }
}

/// Tenants that are drawn as hubs, and all lines. Links that stand out are always drawn themselves.
pub(super) fn edges(mesh: &Mesh) -> (Vec<usize>, Vec<Edge<'_>>) {
    let (mut hubs, mut out) = (Vec::new(), Vec::new());
    let mut rest = mesh.links.as_slice();
    for tenant in 0..mesh.tenants.len() {
        let (mine, others) = rest.split_at(rest.partition_point(|link| link.tenant <= tenant));
        rest = others;
        let members: BTreeSet<usize> = mine.iter().flat_map(|link| [link.hosts.0, link.hosts.1]).collect();
        let hub = members.len() > PAIRWISE && mesh.tenants[tenant].bridge.is_some();
        if hub {
            hubs.push(tenant);
            out.extend(members.iter().map(|host| Edge::Spoke { tenant, host: *host }));
        }
        out.extend(mine.iter().filter(|link| !hub || link.mark.stands_out()).map(Edge::Link));
    }
    (hubs, out)
}

impl Mesh {
    /// What stands at a line: the tenant, its interfaces, and its state if that has to be seen.
    pub(super) fn label(&self, link: &Link) -> String {
        let tenant = &self.tenants[link.tenant];
        let mut label = tenant.title().to_owned();
        let interfaces: Vec<&str> =
            [&link.interfaces.0, &link.interfaces.1].into_iter().flatten().map(String::as_str).collect();
        if !interfaces.is_empty() {
            label.push_str(&format!(" {}", interfaces.join(" – ")));
        }
        if link.mark.stands_out() {
            label.push_str(&format!(", {}", link.mark.word()));
        }
        label
    }
}
