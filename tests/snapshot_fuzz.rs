//! Snapshots and saved plans come from elsewhere: whatever their bytes are, they are read or refused, and what was read is
//! planned with and shown without a panic.
//!
//! `SNAPSHOT_FUZZ_CASES` says how many inputs; the usual number is small.

#![allow(clippy::unwrap_used, missing_docs)]

mod memory;

use memory::block;
use memory::topology::{Choice, desired, fresh_kernel};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tunnel_mesh::model::{Desired, Intent, SNAPSHOT_VERSION, Snapshot, Throughput};
use tunnel_mesh::plan::{Input, fingerprint, mesh, plan};
use tunnel_mesh::reconcile::Reconciler;
use tunnel_mesh::reconcile::saved::{Expected, Saved, SavedPlan};
use tunnel_mesh::topology::{adopt, write};

fn cases() -> u32 {
    std::env::var("SNAPSHOT_FUZZ_CASES").ok().map_or(3000, |n| n.parse().unwrap())
}

fn run<S: Strategy>(inputs: &S, test: impl Fn(S::Value)) {
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(inputs, |input| {
        test(input);
        Ok(())
    });
    checked.unwrap();
}

fn state(ports: u8) -> Desired {
    let choice = |n: u8| Some(Choice { tunnel: n, id: n, far: n, endpoint: n.is_multiple_of(2) });
    desired(&[choice(0), choice(1), None, choice(2), choice(3)], 64, ports)
}

/// A snapshot of a host with that in force.
fn snapshot() -> Snapshot {
    let accepted = state(2);
    let mut reconciler = Reconciler::new(fresh_kernel());
    block(reconciler.pass(&accepted, None)).unwrap();
    Snapshot {
        format_version: SNAPSHOT_VERSION,
        host: "host0".to_owned(),
        node: Some("host0".to_owned()),
        accepted: Some(Intent { desired: accepted, ..Intent::default() }),
        traffic: [(64, Throughput { rx_packets: 1, ..Throughput::default() })].into(),
        observed: reconciler.kernel().seen(),
    }
}

/// A saved plan of that snapshot.
fn saved() -> Value {
    let snapshot = snapshot();
    let intent = Intent { desired: state(1), ..Intent::default() };
    let nobody = BTreeSet::new();
    let accepted = snapshot.accepted.as_ref().map(|a| &a.desired);
    let input = Input { desired: &intent.desired, observed: &snapshot.observed, accepted, was_pending: &nobody };
    let mut file = serde_json::to_value(plan(input)).unwrap();
    let fields = file.as_object_mut().unwrap();
    fields.insert("format_version".to_owned(), 1.into());
    fields.insert("fingerprint".to_owned(), fingerprint(&intent.desired, &snapshot.observed).into());
    let saved = Saved { accepted: "none".to_owned(), allow_deletes: false, intent };
    fields.insert("saved".to_owned(), serde_json::to_value(saved).unwrap());
    file
}

/// All that is done with a snapshot that was read.
fn use_snapshot(snapshot: &Snapshot) {
    let adopted = adopt::adopt(&snapshot.observed);
    drop(adopt::untold(&snapshot.observed));
    drop(write::topology(&adopted, "host0"));
    let nobody = BTreeSet::new();
    let before = snapshot.accepted.as_ref().map_or(&adopted, |a| &a.desired);
    for wanted in [&state(1), &adopted, before, &Desired::default()] {
        let input =
            Input { desired: wanted, observed: &snapshot.observed, accepted: Some(before), was_pending: &nobody };
        let plan = plan(input);
        drop(fingerprint(wanted, &snapshot.observed));
        let host =
            mesh::Host { node: "a", desired: wanted, observed: Some(&snapshot.observed), pending: &plan.pending };
        let other = mesh::Host { node: "b", desired: before, observed: None, pending: &[] };
        drop(mesh::check(&[host, other]));
        drop(serde_json::to_string(&plan).unwrap());
    }
}

fn use_saved(saved: &SavedPlan) {
    let snapshot = snapshot();
    let desired = &saved.saved.intent.desired;
    let nobody = BTreeSet::new();
    let before = snapshot.accepted.as_ref();
    let input =
        Input { desired, observed: &snapshot.observed, accepted: before.map(|b| &b.desired), was_pending: &nobody };
    let plan = plan(input);
    let now = Expected::now(before, desired, &snapshot.observed, &plan);
    drop(saved.expected().check(&now));
    drop(saved.differences(&plan));
}

/// One change of a document: what replaces the value at a place that the numbers lead to.
#[derive(Debug, Clone)]
struct Change {
    path: Vec<u8>,
    value: Value,
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        any::<bool>().prop_map(Value::from),
        prop_oneof![
            Just(0u64),
            Just(1),
            Just(63),
            Just(64),
            Just((1 << 28) - 1),
            Just(1 << 28),
            Just(u64::from(u32::MAX))
        ]
        .prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![
            Just(""),
            Just("eth0"),
            Just("vxlan0"),
            Just("10.0.0.1"),
            Just("fd00::1"),
            Just("a/b"),
            Just("\u{0}\n")
        ]
        .prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (prop::collection::vec(any::<u8>(), 1..9), values()).prop_map(|(path, value)| Change { path, value });
    prop::collection::vec(change, 0..6)
}

/// Replaces, doubles or takes away what the path leads to; where the document ends sooner, so does the path.
fn apply(document: &mut Value, path: &[u8], value: &Value) {
    let Some((step, rest)) = path.split_first() else {
        *document = value.clone();
        return;
    };
    let (step, ends) = (usize::from(*step), rest.is_empty() && *step >= 200);
    match document {
        Value::Array(items) if !items.is_empty() => {
            let place = step % items.len();
            if ends {
                let copy = items[place].clone();
                items.push(copy);
            } else {
                apply(&mut items[place], rest, value);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(step % fields.len()).unwrap().clone();
            if ends {
                fields.remove(&name);
            } else {
                apply(fields.get_mut(&name).unwrap(), rest, value);
            }
        }
        other => *other = value.clone(),
    }
}

/// Bytes changed, put in or cut off.
fn scramble(mut text: Vec<u8>, edits: &[(u16, u8)], cut: Option<u16>) -> Vec<u8> {
    for (place, byte) in edits {
        let place = usize::from(*place) % (text.len() + 1);
        match text.get_mut(place) {
            Some(there) => *there = *byte,
            None => text.push(*byte),
        }
    }
    if let Some(cut) = cut {
        text.truncate(usize::from(cut) % (text.len() + 1));
    }
    text
}

#[test]
fn any_bytes_are_read_or_refused() {
    let (whole, plan) = (serde_json::to_vec(&snapshot()).unwrap(), serde_json::to_vec(&saved()).unwrap());
    run(&prop::collection::vec(any::<u8>(), 0..200), |bytes| {
        drop((Snapshot::parse(&bytes), SavedPlan::parse(&bytes)));
    });
    let edits = (prop::collection::vec(any::<(u16, u8)>(), 1..6), prop::option::weighted(0.1, any::<u16>()));
    run(&edits, |(edits, cut)| {
        if let Ok(snapshot) = Snapshot::parse(&scramble(whole.clone(), &edits, cut)) {
            use_snapshot(&snapshot);
        }
        if let Ok(saved) = SavedPlan::parse(&scramble(plan.clone(), &edits, cut)) {
            use_saved(&saved);
        }
    });
}

#[test]
fn any_document_is_planned_with_or_refused() {
    let (whole, plan) = (serde_json::to_value(snapshot()).unwrap(), saved());
    // As it is, both are read.
    use_snapshot(&Snapshot::parse(whole.to_string().as_bytes()).unwrap());
    use_saved(&SavedPlan::parse(plan.to_string().as_bytes()).unwrap());
    run(&changes(), |changes| {
        let mut document = whole.clone();
        changes.iter().for_each(|c| apply(&mut document, &c.path, &c.value));
        if let Ok(snapshot) = Snapshot::parse(document.to_string().as_bytes()) {
            use_snapshot(&snapshot);
        }
        let mut document = plan.clone();
        changes.iter().for_each(|c| apply(&mut document, &c.path, &c.value));
        if let Ok(saved) = SavedPlan::parse(document.to_string().as_bytes()) {
            use_saved(&saved);
        }
    });
}

#[test]
fn deep_nesting_is_refused() {
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(100_000);
        assert!(Snapshot::parse(deep.as_bytes()).is_err() && SavedPlan::parse(deep.as_bytes()).is_err());
        let inside = format!("{{\"format_version\":1,\"observed\":{deep}");
        assert!(Snapshot::parse(inside.as_bytes()).is_err() && SavedPlan::parse(inside.as_bytes()).is_err());
    }
}
