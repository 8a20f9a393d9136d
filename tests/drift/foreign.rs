//! Somebody else's program on our hooks, by TCX and by clsact.

// Two test binaries compile their own copy, and each uses a part of it.
#![allow(dead_code)]

use crate::safety::{FOREIGN_PRIORITY, Probe, attach_pinned};
use crate::world::harness::Netns;
use crate::world::{Host, clsact};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use std::process::Command;

/// The foreign program: it counts and lets all pass.
const PROGRAM: &str = "see_tc_index";

/// Where a foreign program puts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A clsact filter of a late priority.
    Clsact,
    /// A clsact filter of our priority, added after ours and so run before it.
    ClsactFirst,
    /// The end of the TCX chain.
    TcxLast,
    /// The head of the TCX chain.
    TcxFirst,
}

/// Its attachment, which ends on drop where it is one by TCX.
pub enum Held {
    Tcx { _link: FdLink },
    Clsact,
}

pub struct Foreign(Probe);

fn side(direction: &str) -> TcAttachType {
    if direction == "ingress" { TcAttachType::Ingress } else { TcAttachType::Egress }
}

impl Foreign {
    pub fn load(netns: &Netns) -> Self {
        Self(Probe::load(netns))
    }

    pub fn attach(&self, host: &Host, interface: &str, direction: &str, place: Place) -> Held {
        let pin = self.0.program(PROGRAM);
        let order = match place {
            Place::Clsact | Place::ClsactFirst => {
                let priority = if place == Place::Clsact { FOREIGN_PRIORITY } else { 1 };
                attach_pinned(&host.netns, interface, direction, priority, &pin);
                return Held::Clsact;
            }
            Place::TcxLast => LinkOrder::last(),
            Place::TcxFirst => LinkOrder::first(),
        };
        host.netns.enter(|| {
            let mut program = SchedClassifier::from_pin(&pin).unwrap();
            let link =
                program.attach_with_options(interface, side(direction), TcAttachOptions::TcxOrder(order)).unwrap();
            let link: SchedClassifierLink = program.take_link(link).unwrap();
            Held::Tcx { _link: FdLink::try_from(link).unwrap() }
        })
    }

    /// Whether it is still on that hook, and behind ours where both are of one kind.
    pub fn is_on(host: &Host, interface: &str, direction: &str, place: Place) -> bool {
        if matches!(place, Place::Clsact | Place::ClsactFirst) {
            return host.netns.cmd(&format!("tc filter show dev {interface} {direction}")).contains(PROGRAM);
        }
        let (_, chain) = host.netns.enter(|| SchedClassifier::query_tcx(interface, side(direction)).unwrap());
        chain.iter().any(|p| p.name_as_str() == Some(PROGRAM))
    }

    /// Takes it off again.
    pub fn detach_all(&self, host: &Host, hooks: &[(&str, &str)], held: Vec<Held>) {
        for ((interface, direction), held) in hooks.iter().zip(held) {
            if matches!(held, Held::Clsact) {
                let shown = host.netns.cmd(&format!("tc -j filter show dev {interface} {direction}"));
                let filters: serde_json::Value = serde_json::from_str(&shown).unwrap();
                let ours =
                    |f: &&serde_json::Value| f["options"]["bpf_name"].as_str().is_some_and(|n| n.contains(PROGRAM));
                let theirs = filters.as_array().unwrap().iter().find(ours).unwrap();
                let handle = theirs["options"]["handle"].as_str().unwrap();
                host.netns.cmd(&format!("tc filter del dev {interface} {direction} prio 1 handle {handle} bpf"));
            }
        }
    }
}

/// Detaches our program from a hook, as an operator who knows how. On TCX the pin stays.
pub fn detach_ours(host: &Host, interface: &str, direction: &str) {
    if clsact() {
        host.netns.cmd(&format!("tc filter del dev {interface} {direction} prio 1"));
        return;
    }
    let pin = host.pin("links").join(format!("{direction}_{}", host.ifindex(interface)));
    let output = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).output().unwrap();
    assert!(output.status.success(), "detach {}: {}", pin.display(), String::from_utf8_lossy(&output.stderr));
}

/// Removes the pin of our TCX link and keeps the link itself open.
pub fn unpin_and_hold(host: &Host, interface: &str, direction: &str) -> FdLink {
    let pin = host.pin("links").join(format!("{direction}_{}", host.ifindex(interface)));
    PinnedLink::from_pin(pin).unwrap().unpin().unwrap()
}
