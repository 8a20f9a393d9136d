//! Attachments: which program belongs on which hook, against what is attached.

use super::builder::{Builder, Phase};
use super::live::Hooks;
use super::*;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A program that belongs on a hook.
struct Wanted<'a> {
    program: Program,
    interface: &'a str,
    /// `None` while the plan has yet to make the interface.
    ifindex: Option<u32>,
    direction: Direction,
    owner: Owner<'a>,
    /// What is attached there.
    found: Option<&'a Attachment>,
}

/// Whose hook it is.
#[derive(Clone, Copy)]
enum Owner<'a> {
    Tunnel(&'a str),
    Mapping(&'a Mapping),
    Underlay(&'a str),
}

impl Owner<'_> {
    /// Address of the change that an attachment would belong to.
    fn address(self) -> String {
        match self {
            Self::Tunnel(name) | Self::Underlay(name) => name.to_owned(),
            Self::Mapping(mapping) => mapping.address(),
        }
    }
}

/// All that belongs somewhere, by hook; made when it is first needed.
#[derive(Default)]
struct ByHook(OnceCell<HashMap<(u32, Direction), usize>>);

impl ByHook {
    fn find<'w, 'a>(&self, wanted: &'w [Wanted<'a>], ifindex: u32, direction: Direction) -> Option<&'w Wanted<'a>> {
        let all = || wanted.iter().enumerate().filter_map(|(n, w)| Some(((w.ifindex?, w.direction), n))).collect();
        self.0.get_or_init(all).get(&(ifindex, direction)).and_then(|n| wanted.get(*n))
    }
}

pub(super) fn attachments(b: &mut Builder<'_>) {
    let observed = b.input.observed;
    let kind = observed.features.hook_kind;
    let loaded: BTreeMap<Program, &LoadedProgram> = observed.programs.iter().map(|p| (p.program, p)).collect();
    let mut hooks = Hooks::of(&observed.attachments);
    let mut wanted = wanted(b, &mut hooks);
    wanted.extend(held_fast(b, &mut hooks, &wanted));
    let by_hook = ByHook::default();
    let bare = bare_beside_the_fast_lane(b, &hooks);

    // Runs, but perhaps on other maps than those that are about to be written: of an unknown program nobody knows, and a
    // growth takes along what is attached by TCX only.
    let (present, growing) = (b.live.present, b.growing);
    let left_behind = |a: &Attachment| {
        let known = || loaded.values().any(|l| Some(l.id) == a.program && l.current);
        present && a.program.is_some() && ((growing && a.kind == HookKind::Clsact) || !known())
    };

    // Programs first: one that is missing or comes from another build is loaded, and replaced wherever it runs.
    let mut programs: BTreeSet<Program> = BTreeSet::new();
    programs.extend(wanted.iter().map(|w| w.program));
    let needed = programs.clone();
    let nobodys = |a: &Attachment| by_hook.find(&wanted, a.ifindex, a.direction).is_none();
    let orphans = || hooks.unclaimed().any(|a| a.direction != Direction::Underlay && left_behind(a) && nobodys(a));
    if !bare.is_empty() || orphans() {
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

    for Wanted { program, interface, ifindex, direction, owner, found } in &wanted {
        let running = found.and_then(|a| a.program);
        let known = loaded.get(program);
        let id = known.filter(|p| p.current).map(|p| p.id);
        // While maps grow, TCX attachments move along; clsact ones are put on the new maps before anything is written.
        let moved = b.growing && kind == HookKind::Tcx && running.is_some() && running == known.map(|p| p.id);
        let fine = moved || (!b.growing && id.is_some() && running == id);
        // On an underlay device others may well come first.
        if fine && found.is_some_and(|a| a.position == 0 || *direction == Direction::Underlay) {
            continue;
        }
        let here = ifindex.iter().flat_map(|ifindex| hooks.at(*ifindex));
        let behind = here.filter(|a| a.direction == *direction).any(left_behind);
        let phase = if behind { Phase::Programs } else { Phase::Attach };
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
            Some(_) if programs.contains(program) || b.growing => None,
            Some(_) => Some(format!("replace the program on {interface} {direction}")),
        };
        let mut replace = found.is_some();
        let address = owner.address();
        let change = if replace && detail.is_none() { DATA_PLANE } else { address.as_str() };
        if let Some(detail) = detail {
            note(b, *owner, &address, detail);
        }
        let link = LinkRef { name: (*interface).to_owned(), ifindex: *ifindex };
        if *direction == Direction::Ingress && ifindex.is_some_and(|ifindex| bare.contains(&ifindex)) {
            b.operation(Phase::Programs, change, guard(link.clone(), kind, replace));
            replace = true;
        }
        let step = Step::Attach { program: *program, link, direction: *direction, kind, replace };
        b.operation(phase, change, step);
    }

    // The same on a device that goes. One that stays without its tunnel is the host's from then on.
    for ifindex in bare.into_iter().filter(|i| by_hook.find(&wanted, *i, Direction::Ingress).is_none()) {
        if let (Some(link), Some(address)) = (b.links.indexed(ifindex), b.deleted_links.get(&ifindex).cloned()) {
            let (link, direction) = (LinkRef::of(link), Direction::Ingress);
            let replace = hooks.claim(ifindex, direction, kind).is_some();
            b.operation(Phase::Programs, &address, guard(link.clone(), kind, replace));
            if kind == HookKind::Tcx {
                // A filter goes with its link, a pin doesn't.
                b.operation(Phase::Detach, &address, Step::Detach { link, direction, kind });
            }
        }
    }

    // What is ours and belongs nowhere any more.
    for attachment in hooks.unclaimed() {
        let Attachment { ifindex, direction, kind, .. } = *attachment;
        let here = by_hook.find(&wanted, ifindex, direction);
        let link = b.links.indexed(ifindex);
        let underlay = direction == Direction::Underlay;
        if left_behind(attachment) && here.is_none() && !underlay {
            // Nobody is to be heard there any more, but until it is detached nothing may reach the host's stack:
            // handle_egress drops what has no entry.
            let link = link.map_or_else(|| LinkRef::gone(ifindex), LinkRef::of);
            let step = Step::Attach { program: Program::HandleEgress, link, direction, kind, replace: true };
            b.operation(Phase::Programs, DATA_PLANE, step);
        }
        if kind == HookKind::Clsact && (link.is_none() || b.deleted_links.contains_key(&ifindex)) {
            continue; // the filter goes with its link
        }
        let link = link.map_or_else(|| LinkRef::gone(ifindex), LinkRef::of);
        // Of the same change as its link, if that goes: where the link can't be deleted, the program stays.
        let doomed = b.deleted_links.get(&ifindex).cloned();
        // And where one of the other kind takes over, of the change that attaches that one: no gap if it can't.
        let named = || if underlay { link_name(b, ifindex) } else { owner_of(b, ifindex) };
        let address = here.map(|w| w.owner.address()).or(doomed).or_else(named);
        let address = address.unwrap_or_else(|| link.to_string());
        // Nobody waits on an underlay device for what goes there: it is detached before the maps move on.
        let replaced = (here.is_some() || underlay) && left_behind(attachment);
        let phase = if replaced { Phase::Programs } else { Phase::Detach };
        b.operation(phase, &address, Step::Detach { link: link.clone(), direction, kind });
        let object = match underlay {
            true => Object::Underlay,
            false if b.tunnels.contains_key(address.as_str()) => Object::Tunnel,
            false => Object::Mapping,
        };
        note_detach(b, object, &address, format!("detach from {link} {direction}"));
    }

    for (program, _) in loaded.iter().filter(|(p, _)| !needed.contains(p)) {
        // handle_egress stays loaded: the next mapping finds it there.
        if !matches!(program, Program::HandleEgress) {
            b.operation(Phase::Unload, DATA_PLANE, Step::UnloadProgram { program: *program });
            let detail = format!("unload {}", describe(*program));
            b.device_change(Object::DataPlane, DATA_PLANE, ChangeAction::Update, Reason::Removed, detail);
        }
    }
}

/// Tunnel devices without a program of ours whose tunnel is in the fast lane, as far as anybody knows. What that lane is
/// about to leave to the device must not reach the host's stack, nor go by entries that are about to be deleted.
fn bare_beside_the_fast_lane(b: &Builder<'_>, hooks: &Hooks<'_>) -> BTreeSet<u32> {
    let attached = &b.input.observed.attachments;
    let guarded = |i: u32| hooks.at(i).any(|a| a.direction == Direction::Ingress && a.program.is_some());
    // Of programs whose maps were lost nobody knows.
    let lost = !b.live.present && attached.iter().any(|a| a.direction == Direction::Underlay && a.program.is_some());
    let unknown = b.tunnels.values().filter_map(|t| t.link.as_ref()?.ifindex).chain(b.deleted_links.keys().copied());
    let fast = b.live.conf.values().filter(|conf| matches!(conf.role, Role::Tunnel(Some(_)))).map(|conf| conf.ifindex);
    let candidates = fast.chain(unknown.filter(|_| lost));
    let is_tunnel = |i: &u32| b.links.indexed(*i).is_some_and(|link| link.tunnel.is_some());
    candidates.filter(is_tunnel).filter(|i| !guarded(*i)).collect()
}

/// Puts a program there that drops everything: handle_egress, without an entry.
fn guard(link: LinkRef, kind: HookKind, replace: bool) -> Step {
    Step::Attach { program: Program::HandleEgress, link, direction: Direction::Ingress, kind, replace }
}

/// What belongs where, and what is there.
fn wanted<'a>(b: &Builder<'a>, hooks: &mut Hooks<'a>) -> Vec<Wanted<'a>> {
    let kind = b.input.observed.features.hook_kind;
    let mut wanted = Vec::with_capacity(b.tunnels.len() + b.mappings.len());
    let mut want = |program, interface, ifindex: Option<u32>, direction, owner| {
        let found = ifindex.and_then(|ifindex| hooks.claim(ifindex, direction, kind));
        wanted.push(Wanted { program, interface, ifindex, direction, owner, found });
    };
    for (name, tunnel) in &b.tunnels {
        if let Some(link) = &tunnel.link {
            let program = Program::HandleIngress { tunnel: tunnel.index };
            want(program, *name, link.ifindex, Direction::Ingress, Owner::Tunnel(name));
        }
    }
    for (name, underlay) in &b.underlays {
        let program = Program::HandleUnderlay { index: underlay.index };
        want(program, *name, Some(underlay.link.ifindex), Direction::Underlay, Owner::Underlay(name));
    }
    for planned in &b.mappings {
        let mapping = planned.mapping;
        let direction = match mapping.attach {
            Attach::Port => Direction::Egress,
            Attach::Endpoint => Direction::Ingress,
        };
        want(Program::HandleEgress, &mapping.interface, planned.ifindex, direction, Owner::Mapping(mapping));
    }
    wanted
}

/// Hooks of ours on devices that the files name and that can't be used as they are: the program stays there and drops,
/// or a tenant's packets would fall to the host's own stack.
fn held_fast<'a>(b: &Builder<'a>, hooks: &mut Hooks<'a>, wanted: &[Wanted<'a>]) -> Vec<Wanted<'a>> {
    let kind = b.input.observed.features.hook_kind;
    let unclaimed: Vec<&Attachment> =
        hooks.unclaimed().filter(|attachment| attachment.direction != Direction::Underlay).collect();
    if unclaimed.is_empty() {
        return Vec::new();
    }
    let by_hook = ByHook::default();
    let planned: HashSet<u32> = b.mappings.iter().filter_map(|m| m.ifindex).collect();
    let mut held: Vec<Wanted<'a>> = Vec::new();
    let mut known = HashSet::new();
    for attachment in unclaimed {
        let Attachment { ifindex, direction, .. } = *attachment;
        let Some(link) = b.links.indexed(ifindex).filter(|_| !b.deleted_links.contains_key(&ifindex)) else {
            continue;
        };
        // A clsact filter and a TCX attachment on one hook are one wish.
        if by_hook.find(wanted, ifindex, direction).is_some()
            || planned.contains(&ifindex)
            || known.contains(&(ifindex, direction))
        {
            continue;
        }
        let (program, owner) = if let Some((name, tunnel)) = b.tunnels.get_key_value(link.name.as_str()) {
            if direction != Direction::Ingress || tunnel.link.is_some() {
                continue;
            }
            (Program::HandleIngress { tunnel: tunnel.index }, Owner::Tunnel(name))
        } else if let Some(mapping) = b.input.desired.mappings.get(link.name.as_str()) {
            (Program::HandleEgress, Owner::Mapping(mapping))
        } else {
            continue;
        };
        known.insert((ifindex, direction));
        let found = hooks.claim(ifindex, direction, kind);
        held.push(Wanted { program, interface: &link.name, ifindex: Some(ifindex), direction, owner, found });
    }
    held
}

fn describe(program: Program) -> String {
    match program {
        Program::HandleEgress => "handle_egress".to_owned(),
        Program::HandleIngress { tunnel } => format!("handle_ingress of tunnel index {tunnel}"),
        Program::HandleUnderlay { index } => format!("handle_underlay of index {index}"),
    }
}

fn link_name(b: &Builder<'_>, ifindex: u32) -> Option<String> {
    b.links.indexed(ifindex).map(|link| link.name.clone())
}

/// The change an attachment of that link belongs to: the mapping's or tunnel's that is or was there.
fn owner_of(b: &Builder<'_>, ifindex: u32) -> Option<String> {
    if let Some(conf) = b.live.conf.values().find(|c| c.ifindex == ifindex) {
        return Some(conf.name.clone());
    }
    b.live.ifs.get(ifindex).map(|entry| super::mappings::address_of(b, ifindex, &entry))
}

fn note(b: &mut Builder<'_>, owner: Owner<'_>, address: &str, detail: String) {
    let mapping = match owner {
        Owner::Tunnel(_) => {
            let reason = if b.tunnel_unchanged(address) { Reason::Drift } else { Reason::Added };
            b.device_change(Object::Tunnel, address, ChangeAction::Update, reason, detail);
            return;
        }
        Owner::Underlay(_) => {
            let reason = if b.live.present { Reason::Drift } else { Reason::Added };
            b.device_change(Object::Underlay, address, ChangeAction::Update, reason, detail);
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
