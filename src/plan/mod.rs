//! The difference between what the files ask and what the kernel has, as plain data.
//!
//! A *plan* is an ordered list of operations, each naming the change it belongs to. The rule of this module: it is
//! pure, and its order is safe at every instant. After any prefix of the operations no packet reaches a tenant that
//! is right in neither the old nor the new topology:
//!
//! 1. devices are made, down;
//! 2. what stops sending stops (`if2tunkey` deletes);
//! 3. mappings' targets are written (`devs`), for slots through which nothing else arrives;
//! 4. receiving starts or moves (`tunkey2if`), each key in one update;
//! 5. sending starts or moves (`if2tunkey`), each interface in one update;
//! 6. what stops receiving stops (`tunkey2if` deletes); only then tunnels get their devices (`conf`, `devs`), so that
//!    a tunnel comes back with right entries only; then the targets of what stopped go;
//! 7. programs are attached, then devices join their bridge and go up;
//! 8. devices that nobody wants are deleted, then programs are detached.
//!
//! Before all that, maps are made or grown, and what is attached but runs on other maps than the live ones (those
//! before a growth, say) is replaced or detached: it would go on by a topology that nobody remembers. And where a tunnel
//! in the fast lane lost its own program, its device gets one that drops until its own is back.

mod builder;
pub mod declared;
mod devices;
mod fingerprint;
mod hooks;
pub mod lanes;
#[cfg(test)]
mod lanes_tests;
mod live;
mod mappings;
pub mod mesh;
mod operation;
pub mod room;
mod slots;
mod views;

use crate::model::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub use builder::plan;
pub use devices::tunnel_mtu;
pub use fingerprint::fingerprint;
pub use mappings::slots_for;

/// Version of the plan's JSON.
pub const FORMAT_VERSION: u32 = 1;

/// Address of the changes of the maps and programs as a whole.
pub const DATA_PLANE: &str = "data plane";

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The state to reach.
    pub desired: &'a Desired,
    /// The live state.
    pub observed: &'a Observed,
    /// The state accepted before, if any: tells a change of the files from drift.
    pub accepted: Option<&'a Desired>,
    /// Interfaces that the last pass found missing: tells an appearance from drift.
    pub was_pending: &'a BTreeSet<String>,
}

/// The difference, ready to be executed in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What changes, for people, in stable order.
    pub changes: Vec<Change>,
    /// What is done, in the order of execution.
    pub operations: Vec<Operation>,
    /// Mappings that can't be in force yet, and why.
    pub pending: Vec<Pending>,
    /// What is wrong with devices that the files name.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// What kind of thing a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// The maps and programs as a whole.
    DataPlane,
    /// A tunnel and its device.
    Tunnel,
    /// A bridge.
    Bridge,
    /// A device that carries tunnels.
    Underlay,
    /// A mapping.
    Mapping,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// It wasn't there.
    Create,
    /// It is there and differs.
    Update,
    /// It goes.
    Delete,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The files brought it.
    Added,
    /// The files say something else than before.
    Changed,
    /// The files don't have it any more.
    Removed,
    /// The live state was altered by somebody else.
    Drift,
    /// The interface came back with another identity.
    InterfaceRecreated,
    /// The interface was missing and is there now.
    InterfaceAppeared,
    /// The interface is gone.
    InterfaceGone,
    /// The programs come from another version of tunnel-mesh.
    Upgrade,
}

/// One change, in the words of the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it is about.
    pub object: Object,
    /// `tenant/interface` of a mapping, or the name of a device.
    pub address: String,
    /// What happens.
    pub action: ChangeAction,
    /// Why.
    pub reason: Reason,
    /// Live state of a mapping before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<MappingView>,
    /// State of a mapping afterwards.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<MappingView>,
    /// What differs, where before and after don't say it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub details: Vec<String>,
    /// Where the files say so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
}

/// A mapping as a plan shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingView {
    /// Interface name, or `ifindex N` where no link has that index.
    pub interface: String,
    /// Tunnel name, or `tunnel index N` where `conf` has no name for it.
    pub tunnel: String,
    /// Tunnel id.
    pub id: u32,
    /// Far underlay address.
    pub remote: std::net::IpAddr,
    /// Underlay source; absent where only the receiving side is live.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub local: Option<std::net::IpAddr>,
    /// Port or endpoint.
    pub attach: Attach,
}

/// A mapping that can't be in force yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The mapping's address.
    pub address: String,
    /// The interface it waits for.
    pub interface: String,
    /// Why, and what to do.
    pub why: String,
    /// Where the files say so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
}

/// A device that isn't as the files say and that isn't ours to repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The device or mapping.
    pub address: String,
    /// What is wrong, and what to do.
    pub what: String,
    /// Where the files name it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
}

/// A link by name; its index is known unless this very plan makes the link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkRef {
    /// Name.
    pub name: String,
    /// Index, when the link exists already.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ifindex: Option<u32>,
}

impl LinkRef {
    /// The reference to a link that exists.
    pub fn of(link: &Link) -> Self {
        Self { name: link.name.clone(), ifindex: Some(link.ifindex) }
    }

    /// The reference to a link that an earlier operation makes.
    pub fn to_be_made(name: &str) -> Self {
        Self { name: name.to_owned(), ifindex: None }
    }

    /// The reference to an index that no link has.
    pub fn gone(ifindex: u32) -> Self {
        Self { name: String::new(), ifindex: Some(ifindex) }
    }
}

impl std::fmt::Display for LinkRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.name.as_str(), self.ifindex) {
            ("", Some(ifindex)) => write!(f, "ifindex {ifindex}"),
            (name, Some(ifindex)) => write!(f, "{name} (ifindex {ifindex})"),
            (name, None) => write!(f, "{name} (ifindex known after it is made)"),
        }
    }
}

/// One step of a plan. In JSON it is one object: `change`, `slot`, `op` and what that needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Address of the change it belongs to.
    pub change: String,
    /// Slot of the mapping, or index of the tunnel, that it is about; `None` for the maps and programs as a whole.
    pub slot: Option<u32>,
    /// What is done.
    pub step: Step,
}

/// What one operation does. Map writes carry whole entries, so that a plan can be executed by whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Step {
    /// Creates and pins the maps.
    CreateMaps {
        /// Slots, and entries of each hash.
        capacity: u32,
    },
    /// Moves the live contents into larger maps, or into maps of this version's layout.
    GrowMaps {
        /// Capacity before.
        from: u32,
        /// Capacity afterwards.
        to: u32,
    },
    /// Loads and pins a program.
    LoadProgram {
        /// Which.
        program: Program,
    },
    /// Unpins a program.
    UnloadProgram {
        /// Which.
        program: Program,
    },
    /// Makes a device, down.
    CreateLink {
        /// What to make.
        link: NewLink,
    },
    /// Changes one property of a device.
    ChangeLink {
        /// The device.
        link: LinkRef,
        /// The property.
        edit: LinkEdit,
    },
    /// Deletes a device that we made.
    DeleteLink {
        /// The device.
        link: LinkRef,
    },
    /// Zeroes the counters of a slot that gets a new owner.
    ResetCounters {
        /// Slot.
        slot: u32,
    },
    /// Writes an entry of `conf`.
    SetConf {
        /// Tunnel index.
        index: u32,
        /// Name of the tunnel.
        name: String,
        /// Its device; `None` while it doesn't exist.
        link: Option<LinkRef>,
        /// Value for `tc_index`.
        mark: u16,
        /// What the entry is for.
        role: Role,
        /// What is known of the way to a tunnel's remotes.
        #[serde(default, alias = "room")]
        way: Way,
        /// Whether it is written, without a device, even where the device could not be made: to keep the index, or to
        /// forget the device that it names.
        without_device: bool,
    },
    /// Zeroes an entry of `conf`.
    ClearConf {
        /// Tunnel index.
        index: u32,
    },
    /// Writes an entry of `devs`.
    SetDev {
        /// Slot.
        slot: u32,
        /// The device.
        link: LinkRef,
    },
    /// Deletes an entry of `devs`.
    ClearDev {
        /// Slot.
        slot: u32,
    },
    /// Inserts or overwrites an entry of `tunkey2if`.
    SetTunkey {
        /// Whether the key is new.
        insert: bool,
        /// Key.
        key: TunKey,
        /// Value.
        value: SlotRef,
    },
    /// Deletes an entry of `tunkey2if`.
    DeleteTunkey {
        /// Key.
        key: TunKey,
        /// Slot it refers to.
        slot: u32,
    },
    /// Inserts or overwrites an entry of `if2tunkey`.
    SetIf {
        /// Whether the key is new.
        insert: bool,
        /// Key.
        link: LinkRef,
        /// Value.
        value: IfEntry,
    },
    /// Deletes an entry of `if2tunkey`.
    DeleteIf {
        /// Key.
        link: LinkRef,
        /// Slot it refers to.
        slot: u32,
    },
    /// Attaches a program, or puts another one in its place without a gap.
    Attach {
        /// Which.
        program: Program,
        /// Where.
        link: LinkRef,
        /// Hook.
        direction: Direction,
        /// TCX or clsact.
        kind: HookKind,
        /// Whether an attachment of ours is there already and is replaced or re-anchored in place.
        replace: bool,
    },
    /// Detaches our program.
    Detach {
        /// Where.
        link: LinkRef,
        /// Hook.
        direction: Direction,
        /// TCX or clsact.
        kind: HookKind,
    },
}

/// One property of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "set", content = "to", rename_all = "snake_case")]
pub enum LinkEdit {
    /// Administrative state.
    Up(bool),
    /// MTU in bytes.
    Mtu(u32),
    /// Joins a bridge.
    Master(LinkRef),
    /// Bridge port option `isolated`.
    Isolated(bool),
    /// Whether a vxlan device learns addresses.
    Learning(bool),
    /// Forwards IPv4, or IPv6 where said: the fast lane looks its routes up as if the tunnel device forwarded.
    Forward {
        /// IPv6.
        ipv6: bool,
    },
    /// Local address of a vxlan device, in place of one of the same family.
    VxlanLocal(std::net::IpAddr),
    /// Alias.
    Alias(String),
    /// Adds an alternative name.
    Altname(String),
}
