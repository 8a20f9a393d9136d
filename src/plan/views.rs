//! What is live, in words: mappings as a plan shows them, and how an entry differs from what it should be.

use super::builder::Builder;
use super::*;

pub(super) fn view(mapping: &Mapping) -> MappingView {
    MappingView {
        interface: mapping.interface.to_string(),
        tunnel: mapping.key.tunnel.to_string(),
        id: mapping.key.id,
        remote: mapping.key.remote,
        local: Some(mapping.local),
        attach: mapping.attach,
    }
}

pub(super) fn live_view(b: &Builder<'_>, ifindex: u32, entry: &IfEntry) -> MappingView {
    let link = b.links.indexed(ifindex);
    MappingView {
        interface: link.map_or_else(|| format!("ifindex {ifindex}"), |l| l.name.clone()),
        tunnel: b.live.tunnel_name(entry.key.tunnel),
        id: entry.key.id,
        remote: entry.key.remote,
        local: Some(entry.local),
        attach: if entry.endpoint { Attach::Endpoint } else { Attach::Port },
    }
}

pub(super) fn live_key_view(b: &Builder<'_>, key: TunKey, value: SlotRef) -> MappingView {
    let ifindex = b.live.devs.get(value.slot);
    let link = ifindex.and_then(|i| b.links.indexed(i));
    MappingView {
        interface: link.map_or_else(|| format!("slot {}", value.slot), |l| l.name.clone()),
        tunnel: b.live.tunnel_name(key.tunnel),
        id: key.id,
        remote: key.remote,
        local: None,
        attach: if value.endpoint { Attach::Endpoint } else { Attach::Port },
    }
}

pub(super) fn name_of(b: &Builder<'_>, ifindex: u32) -> String {
    b.links.indexed(ifindex).map_or_else(|| format!("ifindex {ifindex}"), |l| l.name.clone())
}

pub(super) fn kind(endpoint: bool) -> Attach {
    if endpoint { Attach::Endpoint } else { Attach::Port }
}

pub(super) fn differences(live: Option<&IfEntry>, want: &IfEntry) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(live) = live {
        if live.slot != want.slot {
            out.push(format!("slot {} -> {}", live.slot, want.slot));
        }
        if live.ttl != want.ttl {
            out.push(format!("ttl {} -> {}", live.ttl, want.ttl));
        }
        if live.tos != want.tos {
            out.push(format!("tos {} -> {}", live.tos, want.tos));
        }
        if live.df != want.df {
            out.push(format!("df {} -> {}", live.df, want.df));
        }
        if live.checksum != want.checksum {
            out.push(format!("checksum {} -> {}", live.checksum, want.checksum));
        }
        if live.fast != want.fast {
            let lane = |fast: Option<FastHeader>| if fast.is_some() { "fast" } else { "device" };
            out.push(match (live.fast, want.fast) {
                (Some(_), Some(header)) => format!("UDP port {}", header.port),
                _ => format!("lane {} -> {}", lane(live.fast), lane(want.fast)),
            });
        }
        if !live.valid {
            out.push("if2tunkey entry with a wrong check".to_owned());
        }
    } else {
        out.push("if2tunkey entry is missing".to_owned());
    }
    out
}

impl Change {
    /// In one line: what is live and what it becomes, then the details.
    pub fn describe(&self) -> String {
        let entry = match (&self.before, &self.after) {
            (None, None) => None,
            (None, Some(after)) => Some(format!("nothing -> {after}")),
            (Some(before), None) => Some(format!("{before} -> nothing")),
            (Some(before), Some(after)) if before == after => None,
            (Some(before), Some(after)) => Some(format!("{before} -> {after}")),
        };
        entry.into_iter().chain(self.details.iter().cloned()).collect::<Vec<_>>().join("; ")
    }
}

impl std::fmt::Display for MappingView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {{{}, {}, {}}} {}", self.interface, self.tunnel, self.id, self.remote, self.attach)?;
        match self.local {
            Some(local) => write!(f, " from {local}"),
            None => Ok(()),
        }
    }
}
