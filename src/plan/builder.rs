//! Collects operations by phase and changes by address, then lays the phases end to end.

use super::lanes::Lanes;
use super::live::{ByKey, Links, Live};
use super::*;
use std::collections::{BTreeMap, HashMap};

/// Stages of a plan, in the order of execution. See the module for why this order is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Maps,
    Programs,
    MakeLinks,
    StopSending,
    Counters,
    Targets,
    Receive,
    Send,
    StopReceiving,
    TunnelTargets,
    Tunnels,
    DropTargets,
    Attach,
    Join,
    DeleteLinks,
    Detach,
    Unload,
}

/// A tunnel of the desired state, resolved against the live one.
#[derive(Debug, Clone)]
pub(super) struct PlannedTunnel {
    pub(super) index: u32,
    pub(super) link: Option<LinkRef>,
    pub(super) mtu: u32,
    pub(super) way: Way,
    /// How its packets are told on the underlay, where they are decapsulated there.
    pub(super) decap: Option<Decap>,
}

/// A device that carries tunnels which are decapsulated on it.
#[derive(Debug, Clone)]
pub(super) struct PlannedUnderlay<'a> {
    pub(super) index: u32,
    pub(super) link: &'a Link,
    pub(super) ports: Vec<TunnelPort>,
}

/// A mapping of the desired state whose interface exists or is about to.
#[derive(Debug, Clone)]
pub(super) struct PlannedMapping<'a> {
    pub(super) mapping: &'a Mapping,
    /// Index of its interface; `None` while the plan has yet to make it.
    pub(super) ifindex: Option<u32>,
    pub(super) slot: u32,
    pub(super) fresh: bool,
    /// Set where its packets leave by the fast lane.
    pub(super) fast: Option<FastHeader>,
}

impl PlannedMapping<'_> {
    /// The interface.
    pub(super) fn link(&self) -> LinkRef {
        LinkRef { name: self.mapping.interface.to_string(), ifindex: self.ifindex }
    }
}

pub(super) struct Builder<'a> {
    pub(super) input: Input<'a>,
    pub(super) live: Live<'a>,
    pub(super) links: Links<'a>,
    /// Desired and accepted mappings by key.
    pub(super) keyed: [ByKey<'a>; 2],
    pub(super) tunnels: BTreeMap<&'a str, PlannedTunnel>,
    pub(super) mappings: Vec<PlannedMapping<'a>>,
    pub(super) lanes: Lanes<'a>,
    /// Indexes of `conf` that a tunnel has, or that something live refers to.
    pub(super) used_indexes: BTreeSet<u32>,
    /// Underlay devices by name.
    pub(super) underlays: BTreeMap<&'a str, PlannedUnderlay<'a>>,
    /// Links that go, each with the address of its change.
    pub(super) deleted_links: BTreeMap<u32, String>,
    pub(super) growing: bool,
    operations: Vec<(Phase, Operation)>,
    changes: BTreeMap<(Object, String), Change>,
    pub(super) pending: Vec<Pending>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Builder<'a> {
    fn new(input: Input<'a>) -> Self {
        Self {
            input,
            live: Live::of(input.observed),
            links: Links::of(input.observed),
            keyed: Default::default(),
            tunnels: BTreeMap::new(),
            mappings: Vec::new(),
            lanes: Lanes::of(input.desired, input.observed),
            used_indexes: BTreeSet::new(),
            underlays: BTreeMap::new(),
            deleted_links: BTreeMap::new(),
            growing: false,
            operations: Vec::new(),
            changes: BTreeMap::new(),
            pending: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Adds an operation that belongs to the change with that address.
    pub(super) fn operation(&mut self, phase: Phase, change: &str, step: Step) {
        let slot = step.slot();
        self.operations.push((phase, Operation { change: change.to_owned(), slot, step }));
    }

    /// The change with that address, made by `new` the first time.
    pub(super) fn change(&mut self, object: Object, address: &str, new: impl FnOnce() -> Change) -> &mut Change {
        self.changes.entry((object, address.to_owned())).or_insert_with(new)
    }

    /// Whether something changes there already.
    pub(super) fn has_change(&self, object: Object, address: &str) -> bool {
        self.changes.contains_key(&(object, address.to_owned()))
    }

    /// Notes a detail of a change of a device, which is an update unless something else said so before.
    pub(super) fn device_change(
        &mut self,
        object: Object,
        address: &str,
        action: ChangeAction,
        reason: Reason,
        detail: String,
    ) {
        let origin = match object {
            Object::Tunnel => self.input.desired.tunnels.get(address).map(|t| t.origin.clone()),
            Object::Bridge => self.input.desired.bridges.get(address).map(|b| b.origin.clone()),
            _ => None,
        };
        let change = self.change(object, address, || Change {
            object,
            address: address.to_owned(),
            action,
            reason,
            before: None,
            after: None,
            details: Vec::new(),
            origin,
        });
        change.details.push(detail);
    }

    pub(super) fn problem(&mut self, address: &str, what: String) {
        self.problems.push(Problem { address: address.to_owned(), what, origin: None });
    }

    /// Whether the files said the same of that tunnel before.
    pub(super) fn tunnel_unchanged(&self, name: &str) -> bool {
        let known = |d: &Desired| d.tunnels.get(name).map(|t| Tunnel { origin: Origin::default(), ..t.clone() });
        self.input.accepted.is_some_and(|a| known(a).is_some() && known(a) == known(self.input.desired))
    }

    /// Why a device differs that the files name: they changed, or somebody altered it.
    pub(super) fn device_reason(&self, known_before: bool) -> Reason {
        match self.input.accepted {
            Some(_) if known_before => Reason::Drift,
            Some(_) | None => Reason::Added,
        }
    }

    /// Says of attachments and devices whose slot they are about: that of their mapping or tunnel.
    fn number(&mut self) {
        let open = |(_, o): &(Phase, Operation)| o.slot.is_none() && o.change != DATA_PLANE;
        if !self.operations.iter().any(open) {
            return;
        }
        let mut slots: HashMap<String, u32> = HashMap::new();
        for (_, operation) in &self.operations {
            if let Some(slot) = operation.slot {
                slots.entry(operation.change.clone()).or_insert(slot);
            }
        }
        slots.extend(self.tunnels.iter().map(|(name, tunnel)| ((*name).to_owned(), tunnel.index)));
        slots.extend(self.mappings.iter().map(|planned| (planned.mapping.address(), planned.slot)));
        for (_, operation) in self.operations.iter_mut().filter(|o| open(o)) {
            operation.slot = slots.get(&operation.change).copied();
        }
    }

    /// Says of problems where the files name what they are about.
    fn place_problems(&mut self) {
        let desired = self.input.desired;
        for problem in &mut self.problems {
            let tunnel = || desired.tunnels.get(&problem.address).map(|t| &t.origin);
            let bridge = || desired.bridges.get(&problem.address).map(|b| &b.origin);
            let mapping = || {
                let interface = problem.address.rsplit('/').next().unwrap_or_default();
                let mapping = desired.mappings.get(interface);
                mapping.filter(|m| m.address() == problem.address).map(|m| &m.origin)
            };
            problem.origin = mapping().or_else(tunnel).or_else(bridge).cloned();
        }
    }

    fn finish(mut self) -> Plan {
        self.number();
        self.place_problems();
        self.operations.sort_by_key(|(phase, _)| *phase);
        self.pending.sort_by(|a, b| a.address.cmp(&b.address));
        Plan {
            changes: self.changes.into_values().collect(),
            operations: self.operations.into_iter().map(|(_, o)| o).collect(),
            pending: self.pending,
            problems: self.problems,
        }
    }
}

/// Computes the operations that turn the live state into the desired one.
pub fn plan(input: Input<'_>) -> Plan {
    let mut builder = Builder::new(input);
    devices::tunnels(&mut builder);
    devices::bridges_and_ports(&mut builder);
    devices::leftovers(&mut builder);
    lanes::resolve(&mut builder);
    slots::assign(&mut builder);
    mappings::capacity(&mut builder);
    mappings::conf(&mut builder);
    mappings::entries(&mut builder);
    hooks::attachments(&mut builder);
    builder.finish()
}
