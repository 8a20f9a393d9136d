//! Attachments: which program belongs on which hook, against what is attached.

use super::builder::{Builder, Phase};
use super::*;
use std::collections::BTreeMap;

pub(super) fn attachments(b: &mut Builder<'_>) {
    let kind = b.input.observed.features.hook_kind;
    let loaded: BTreeMap<Program, &LoadedProgram> = b.input.observed.programs.iter().map(|p| (p.program, p)).collect();

    // What belongs where, each with the change it would belong to.
    let mut wanted: Vec<(Program, LinkRef, Direction, Object, String)> = Vec::new();
    for (name, tunnel) in &b.tunnels {
        if let Some(link) = &tunnel.link {
            let program = Program::HandleIngress { tunnel: tunnel.index };
            wanted.push((program, link.clone(), Direction::Ingress, Object::Tunnel, (*name).to_owned()));
        }
    }
    for planned in &b.mappings {
        let direction = match planned.mapping.attach {
            Attach::Port => Direction::Egress,
            Attach::Endpoint => Direction::Ingress,
        };
        wanted.push((
            Program::HandleEgress,
            planned.link.clone(),
            direction,
            Object::Mapping,
            planned.mapping.address(),
        ));
    }

    wanted.extend(held_fast(b, &wanted));

    // Runs, but perhaps on other maps than those that are about to be written: of an unknown program nobody knows, and a
    // growth takes along what is attached by TCX only.
    let (present, growing) = (b.live.present, b.growing);
    let left_behind = |a: &Attachment| {
        let known = loaded.values().any(|l| Some(l.id) == a.program && l.current);
        present && a.program.is_some() && (!known || (growing && a.kind == HookKind::Clsact))
    };
    let wanted_at = |a: &Attachment| wanted.iter().any(|w| w.1.ifindex == Some(a.ifindex) && w.2 == a.direction);
    let hook_left_behind = |link: &LinkRef, direction: Direction| {
        let mut here = b.input.observed.attachments.iter();
        here.any(|a| Some(a.ifindex) == link.ifindex && a.direction == direction && left_behind(a))
    };

    // Programs first: one that is missing or comes from another build is loaded, and replaced wherever it runs.
    let mut programs: BTreeSet<Program> = wanted.iter().map(|w| w.0).collect();
    let needed = programs.clone();
    if b.input.observed.attachments.iter().any(|a| left_behind(a) && !wanted_at(a)) {
        programs.insert(Program::HandleEgress);
    }
    // A growth loads every program that is pinned.
    programs.retain(|p| loaded.get(p).is_none_or(|l| !b.growing && !l.current));
    for program in &programs {
        b.operation(Phase::Programs, DATA_PLANE, Step::LoadProgram { program: *program });
        let reason = if loaded.contains_key(program) { Reason::Upgrade } else { Reason::Added };
        let action = if loaded.contains_key(program) { ChangeAction::Update } else { ChangeAction::Create };
        b.device_change(Object::DataPlane, DATA_PLANE, action, reason, format!("load {}", describe(*program)));
    }

    let find = |link: &LinkRef, direction: Direction, kind: HookKind| {
        let ifindex = link.ifindex?;
        b.input.observed.attachments.iter().find(|a| a.ifindex == ifindex && a.direction == direction && a.kind == kind)
    };
    let mut kept: BTreeSet<(u32, Direction)> = BTreeSet::new();
    let mut steps = Vec::new();
    for (program, link, direction, object, address) in &wanted {
        if let Some(ifindex) = link.ifindex {
            kept.insert((ifindex, *direction));
        }
        let found = find(link, *direction, kind);
        let running = found.and_then(|a| a.program);
        let id = loaded.get(program).filter(|p| p.current).map(|p| p.id);
        // While maps grow, TCX attachments move along; clsact ones are put on the new maps before anything is written.
        let moved =
            b.growing && kind == HookKind::Tcx && running.is_some() && running == loaded.get(program).map(|p| p.id);
        let fine = moved || (!b.growing && id.is_some() && running == id);
        if fine && found.is_some_and(|a| a.position == 0) {
            continue;
        }
        let phase = if hook_left_behind(link, *direction) { Phase::Programs } else { Phase::Attach };
        let detail = match found {
            None if link.ifindex.is_none() => None,
            None => Some(format!("attach {} to {} {direction}", program.name(), link.name)),
            Some(a) if a.program.is_none() => {
                Some(format!("attach {} to {} {direction} afresh", program.name(), link.name))
            }
            Some(a) if fine && a.position > 0 => Some(format!(
                "move {} on {} {direction} back to the head of its chain (it was at position {})",
                program.name(),
                link.name,
                a.position
            )),
            // A replaced build is one change of the data plane, not one of each mapping.
            Some(_) if programs.contains(program) || b.growing => None,
            Some(_) => Some(format!("replace the program on {} {direction}", link.name)),
        };
        let replace = found.is_some();
        let belongs = replace && detail.is_none();
        steps.push((phase, program, link, *direction, *object, address, replace, detail, belongs));
    }
    for (phase, program, link, direction, object, address, replace, detail, belongs) in steps {
        let change = if belongs { DATA_PLANE } else { address.as_str() };
        if let Some(detail) = detail {
            note(b, object, address, detail);
        }
        let step = Step::Attach { program: *program, link: link.clone(), direction, kind, replace };
        b.operation(phase, change, step);
    }

    // What is ours and belongs nowhere any more.
    for attachment in &b.input.observed.attachments {
        let wanted_here = kept.contains(&(attachment.ifindex, attachment.direction));
        let right_kind = attachment.kind == kind;
        if wanted_here && right_kind {
            continue;
        }
        // Where TCX is in use, a filter is looked for only where an entry leads: it goes before its entry does.
        let hidden_soon = attachment.kind == HookKind::Clsact && kind == HookKind::Tcx && !wanted_here;
        let link = b.input.observed.link_by_index(attachment.ifindex);
        if left_behind(attachment) && !wanted_here && !hidden_soon {
            // Nobody is to be heard there any more, but until it is detached nothing may reach the host's stack:
            // handle_egress drops what has no entry.
            let link = link.map_or_else(|| LinkRef::gone(attachment.ifindex), LinkRef::of);
            let Attachment { direction, kind, .. } = *attachment;
            let step = Step::Attach { program: Program::HandleEgress, link, direction, kind, replace: true };
            b.operation(Phase::Programs, DATA_PLANE, step);
        }
        if attachment.kind == HookKind::Clsact && (link.is_none() || b.deleted_links.contains_key(&attachment.ifindex))
        {
            continue; // the filter goes with its link
        }
        let link = link.map_or_else(|| LinkRef::gone(attachment.ifindex), LinkRef::of);
        // Of the same change as its link, if that goes: where the link can't be deleted, the program stays.
        let doomed = b.deleted_links.get(&attachment.ifindex).cloned();
        let address = doomed.or_else(|| owner_of(b, attachment.ifindex)).unwrap_or_else(|| link.to_string());
        let direction = attachment.direction;
        let replaced = wanted_here && left_behind(attachment);
        let phase = if hidden_soon || replaced { Phase::Programs } else { Phase::Detach };
        b.operation(phase, &address, Step::Detach { link: link.clone(), direction, kind: attachment.kind });
        let object = if b.tunnels.contains_key(address.as_str()) { Object::Tunnel } else { Object::Mapping };
        note_detach(b, object, &address, format!("detach from {link} {direction}"));
    }

    for (program, _) in loaded.iter().filter(|(p, _)| !needed.contains(p)) {
        // handle_egress stays loaded: the next mapping finds it there.
        if matches!(program, Program::HandleIngress { .. }) {
            b.operation(Phase::Unload, DATA_PLANE, Step::UnloadProgram { program: *program });
            let detail = format!("unload {}", describe(*program));
            b.device_change(Object::DataPlane, DATA_PLANE, ChangeAction::Update, Reason::Removed, detail);
        }
    }
}

/// Hooks of ours on devices that the files name and that can't be used as they are: the program stays there and drops,
/// or a tenant's packets would fall to the host's own stack.
fn held_fast(
    b: &Builder<'_>,
    wanted: &[(Program, LinkRef, Direction, Object, String)],
) -> Vec<(Program, LinkRef, Direction, Object, String)> {
    let observed = b.input.observed;
    let mut hooks = Vec::new();
    for attachment in &observed.attachments {
        let Attachment { ifindex, direction, .. } = *attachment;
        let Some(link) = observed.link_by_index(ifindex).filter(|_| !b.deleted_links.contains_key(&ifindex)) else {
            continue;
        };
        // A clsact filter and a TCX attachment on one hook are one wish.
        let known = wanted.iter().chain(&hooks).any(|(_, l, d, ..)| l.ifindex == Some(ifindex) && *d == direction);
        let planned = b.mappings.iter().any(|m| m.link.ifindex == Some(ifindex));
        if known || planned {
            continue;
        }
        if let Some((name, tunnel)) = b.tunnels.get_key_value(link.name.as_str()) {
            if direction == Direction::Ingress && tunnel.link.is_none() {
                let program = Program::HandleIngress { tunnel: tunnel.index };
                hooks.push((program, LinkRef::of(link), direction, Object::Tunnel, (*name).to_owned()));
            }
        } else if let Some(mapping) = b.input.desired.mappings.get(&link.name) {
            hooks.push((Program::HandleEgress, LinkRef::of(link), direction, Object::Mapping, mapping.address()));
        }
    }
    hooks
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
    b.live.ifs.get(&ifindex).map(|entry| super::mappings::address_of(b, ifindex, entry))
}

fn note(b: &mut Builder<'_>, object: Object, address: &str, detail: String) {
    if object == Object::Tunnel {
        let reason = if b.tunnel_unchanged(address) { Reason::Drift } else { Reason::Added };
        b.device_change(object, address, ChangeAction::Update, reason, detail);
        return;
    }
    let mapping = b.mappings.iter().find(|m| m.mapping.address() == address).map(|m| m.mapping);
    let origin = mapping.map(|m| m.origin.clone());
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
