//! Attachments: which program belongs on which hook, against what is attached.

use super::builder::{Builder, Phase};
use super::live::Hooks;
use super::*;
use std::collections::BTreeMap;

pub(super) fn attachments(b: &mut Builder<'_>) {
    let kind = b.input.observed.features.hook_kind;
    let loaded: BTreeMap<Program, &LoadedProgram> = b.input.observed.programs.iter().map(|p| (p.program, p)).collect();

    // Programs first: one that is missing or comes from another build is loaded, and replaced wherever it runs.
    let tunnels = b.tunnels.values().filter(|t| t.link.is_some());
    let mut programs: BTreeSet<Program> = tunnels.map(|t| Program::HandleIngress { tunnel: t.index }).collect();
    if !b.mappings.is_empty() {
        programs.insert(Program::HandleEgress);
    }
    let needed = programs.clone();
    programs.retain(|p| !b.growing && !loaded.get(p).is_some_and(|l| l.current));
    for program in &programs {
        b.operation(Phase::Programs, "data plane", Step::LoadProgram { program: *program });
        let reason = if loaded.contains_key(program) { Reason::Upgrade } else { Reason::Added };
        let action = if loaded.contains_key(program) { ChangeAction::Update } else { ChangeAction::Create };
        b.device_change(Object::DataPlane, "data plane", action, reason, format!("load {}", describe(*program)));
    }

    let mut hooks = Hooks::of(&b.input.observed.attachments);
    let tunnels = std::mem::take(&mut b.tunnels);
    let mappings = std::mem::take(&mut b.mappings);
    let wanted = tunnels.iter().filter_map(|(name, tunnel)| {
        let link = tunnel.link.as_ref()?;
        let program = Program::HandleIngress { tunnel: tunnel.index };
        Some((program, link.name.as_str(), link.ifindex, Direction::Ingress, Owner::Tunnel(name)))
    });
    let wanted = wanted.chain(mappings.iter().map(|planned| {
        let direction = match planned.mapping.attach {
            Attach::Port => Direction::Egress,
            Attach::Endpoint => Direction::Ingress,
        };
        let interface = planned.mapping.interface.as_str();
        (Program::HandleEgress, interface, planned.ifindex, direction, Owner::Mapping(planned.mapping))
    }));
    for (program, interface, ifindex, direction, owner) in wanted {
        let found = ifindex.and_then(|ifindex| hooks.claim(ifindex, direction, kind));
        let running = found.and_then(|a| a.program);
        let known = loaded.get(&program);
        let id = known.filter(|p| p.current).map(|p| p.id);
        // While maps grow, TCX attachments move along; clsact ones are put on the new maps before anything is written.
        let moved = b.growing && kind == HookKind::Tcx && running.is_some() && running == known.map(|p| p.id);
        let fine = moved || (!b.growing && id.is_some() && running == id);
        if fine && found.is_some_and(|a| a.position == 0) {
            continue;
        }
        let phase = if b.growing && found.is_some() { Phase::Programs } else { Phase::Attach };
        let detail = match found {
            None if ifindex.is_none() => None,
            None => Some(format!("attach {} to {interface} {direction}", program.name())),
            Some(a) if a.program.is_none() => {
                Some(format!("attach {} to {interface} {direction} afresh", program.name()))
            }
            Some(a) if fine && a.position > 0 => Some(format!(
                "move {} on {interface} {direction} back to the head of its chain (it was at position {})",
                program.name(),
                a.position
            )),
            // A replaced build is one change of the data plane, not one of each mapping.
            Some(_) if programs.contains(&program) || b.growing => None,
            Some(_) => Some(format!("replace the program on {interface} {direction}")),
        };
        let replace = found.is_some();
        let address = owner.address();
        let change = if replace && detail.is_none() { "data plane" } else { address.as_str() };
        if let Some(detail) = detail {
            note(b, owner, &address, detail);
        }
        let link = LinkRef { name: interface.to_owned(), ifindex };
        b.operation(phase, change, Step::Attach { program, link, direction, kind, replace });
    }
    b.tunnels = tunnels;
    b.mappings = mappings;

    // What is ours and belongs nowhere any more.
    for attachment in hooks.unclaimed() {
        let link = b.links.indexed(attachment.ifindex);
        if attachment.kind == HookKind::Clsact && (link.is_none() || b.deleted_links.contains(&attachment.ifindex)) {
            continue; // the filter goes with its link
        }
        let link = link.map_or_else(|| LinkRef::gone(attachment.ifindex), LinkRef::of);
        let address = owner_of(b, attachment.ifindex).unwrap_or_else(|| link.to_string());
        let direction = attachment.direction;
        b.operation(Phase::Detach, &address, Step::Detach { link: link.clone(), direction, kind: attachment.kind });
        let object = if b.tunnels.contains_key(address.as_str()) { Object::Tunnel } else { Object::Mapping };
        note_detach(b, object, &address, format!("detach from {link} {direction}"));
    }

    for (program, _) in loaded.iter().filter(|(p, _)| !needed.contains(p)) {
        // handle_egress stays loaded: the next mapping finds it there.
        if matches!(program, Program::HandleIngress { .. }) {
            b.operation(Phase::Unload, "data plane", Step::UnloadProgram { program: *program });
            let detail = format!("unload {}", describe(*program));
            b.device_change(Object::DataPlane, "data plane", ChangeAction::Update, Reason::Removed, detail);
        }
    }
}

fn describe(program: Program) -> String {
    match program {
        Program::HandleEgress => "handle_egress".to_owned(),
        Program::HandleIngress { tunnel } => format!("handle_ingress of tunnel index {tunnel}"),
    }
}

/// The change an attachment of that link belongs to: the mapping's or tunnel's that is or was there.
fn owner_of(b: &Builder<'_>, ifindex: u32) -> Option<String> {
    if let Some(conf) = b.live.conf.values().find(|c| c.ifindex == ifindex) {
        return Some(conf.name.clone());
    }
    b.live.ifs.get(ifindex).map(|entry| super::mappings::address_of(b, ifindex, &entry))
}

/// Whose hook it is.
#[derive(Clone, Copy)]
enum Owner<'a> {
    Tunnel(&'a str),
    Mapping(&'a Mapping),
}

impl Owner<'_> {
    fn address(self) -> String {
        match self {
            Self::Tunnel(name) => name.to_owned(),
            Self::Mapping(mapping) => mapping.address(),
        }
    }
}

fn note(b: &mut Builder<'_>, owner: Owner<'_>, address: &str, detail: String) {
    let mapping = match owner {
        Owner::Tunnel(_) => {
            let reason = if b.tunnel_unchanged(address) { Reason::Drift } else { Reason::Added };
            b.device_change(Object::Tunnel, address, ChangeAction::Update, reason, detail);
            return;
        }
        Owner::Mapping(mapping) => mapping,
    };
    let object = Object::Mapping;
    let origin = Some(mapping.origin.clone());
    let change = b.change(object, address, || Change {
        object,
        address: address.to_owned(),
        action: ChangeAction::Update,
        reason: Reason::Drift,
        before: None,
        after: None,
        details: Vec::new(),
        origin,
    });
    // An entry that is written anyway says enough; a program that is missing by itself needs its own word.
    if change.reason == Reason::Drift {
        change.details.push(detail);
    }
}

fn note_detach(b: &mut Builder<'_>, object: Object, address: &str, detail: String) {
    let change = b.change(object, address, || Change {
        object,
        address: address.to_owned(),
        action: ChangeAction::Delete,
        reason: Reason::Drift,
        before: None,
        after: None,
        details: Vec::new(),
        origin: None,
    });
    if change.action != ChangeAction::Create {
        change.details.push(detail);
    }
}
