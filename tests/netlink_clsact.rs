//! Programs as clsact filters: attach, replace, list, detach, beside foreign filters. Needs root.
#![allow(clippy::unwrap_used)]

mod harness;

use aya::programs::{ProgramFd, SchedClassifier};
use harness::{Netns, veth};
use std::os::fd::AsFd;
use tunnel_mesh::model::{Attachment, Direction, HookKind};
use tunnel_mesh::netlink::{Netlink, is_gone};

/// Two programs: one that lets packets through to the next filter, one that drops them.
struct Programs {
    pass: Loaded,
    drop: Loaded,
    /// Path of the object, for `tc`.
    object: String,
    _ebpf: aya::Ebpf,
    _directory: tempfile::TempDir,
}

struct Loaded {
    fd: ProgramFd,
    id: u32,
}

impl Programs {
    fn load() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let object = directory.path().join("verdict.bpf.o").display().to_string();
        std::fs::write(&object, include_bytes!(env!("TUNNEL_MESH_VERDICT_OBJECT"))).unwrap();
        let mut ebpf = aya::Ebpf::load_file(&object).unwrap();
        let mut load = |name: &str| {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            Loaded { fd: program.fd().unwrap().try_clone().unwrap(), id: program.info().unwrap().id() }
        };
        let (pass, drop) = (load("pass"), load("drop"));
        Self { pass, drop, object, _ebpf: ebpf, _directory: directory }
    }
}

fn ours(ifindex: u32, direction: Direction, program: u32, position: u32) -> Attachment {
    Attachment { kind: HookKind::Clsact, ifindex, direction, program: Some(program), position }
}

async fn index(netlink: &Netlink, name: &str) -> u32 {
    netlink.links().await.unwrap().iter().find(|link| link.name == name).unwrap().ifindex
}

fn has_clsact(netns: &Netns, name: &str) -> bool {
    netns.cmd(&format!("tc qdisc show dev {name}")).contains("clsact")
}

#[test]
fn attached_replaced_listed_and_detached() {
    let programs = Programs::load();
    let netns = Netns::new();
    netns.cmd("ip link add v0 type veth peer name v1");
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let (v0, v1) = (index(&netlink, "v0").await, index(&netlink, "v1").await);
        assert_eq!(netlink.clsact_attachments(&[v0, v1, 9999]).await.unwrap(), []);

        for direction in [Direction::Ingress, Direction::Egress] {
            netlink.clsact_attach(v0, direction, programs.pass.fd.as_fd(), "handle_egress").await.unwrap();
        }
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        let both = [ours(v0, ingress, programs.pass.id, 0), ours(v0, egress, programs.pass.id, 0)];
        assert_eq!(netlink.clsact_attachments(&[v0, v1]).await.unwrap(), both);

        netlink.clsact_attach(v0, egress, programs.drop.fd.as_fd(), "handle_egress").await.unwrap();
        let replaced = [ours(v0, ingress, programs.pass.id, 0), ours(v0, egress, programs.drop.id, 0)];
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), replaced);
        let shown = netns.cmd("tc filter show dev v0 egress");
        assert!(shown.contains("pref 1 bpf") && shown.contains("handle 0x746d handle_egress direct-action"), "{shown}");
        assert_eq!(shown.matches("handle_egress").count(), 1, "{shown}");

        netlink.clsact_detach(v0, egress).await.unwrap();
        netlink.clsact_detach(v0, egress).await.unwrap();
        assert!(has_clsact(&netns, "v0"), "one side is still in use");
        netlink.clsact_detach(v0, ingress).await.unwrap();
        assert!(!has_clsact(&netns, "v0"));
        netlink.clsact_detach(v0, ingress).await.unwrap();
        netlink.clsact_detach(9999, ingress).await.unwrap();
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), []);
    });
}

#[test]
fn foreign_filters_are_left_alone_and_counted_before_ours() {
    let programs = Programs::load();
    let netns = Netns::new();
    netns.cmd("ip link add v0 type veth peer name v1");
    netns.cmd("tc qdisc add dev v0 clsact");
    let object = &programs.object;
    // Another program at the same priority, as Cilium has it; later ones go before earlier ones.
    let first = format!("tc filter add dev v0 egress prio 1 handle 1 bpf da obj {object} sec classifier");
    let later = format!("tc filter add dev v0 egress prio 1 handle 2 bpf da obj {object} sec classifier");
    let after = format!("tc filter add dev v0 egress prio 9 bpf da obj {object} sec classifier");
    netns.cmd(&first);
    netns.cmd(&after);
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let v0 = index(&netlink, "v0").await;
        netlink.clsact_attach(v0, Direction::Egress, programs.pass.fd.as_fd(), "handle_egress").await.unwrap();
        let head = [ours(v0, Direction::Egress, programs.pass.id, 0)];
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), head);
        netns.cmd(&later);
        let second = [ours(v0, Direction::Egress, programs.pass.id, 1)];
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), second);
        // Attaching again moves ours back to the head, as often as somebody goes before it.
        netlink.clsact_attach(v0, Direction::Egress, programs.pass.fd.as_fd(), "handle_egress").await.unwrap();
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), head);
        netns.cmd("tc filter del dev v0 egress prio 1 handle 2 bpf");
        netns.cmd(&later);
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), second);
        netlink.clsact_attach(v0, Direction::Egress, programs.pass.fd.as_fd(), "handle_egress").await.unwrap();
        assert_eq!(netlink.clsact_attachments(&[v0]).await.unwrap(), head);
        netlink.clsact_detach(v0, Direction::Egress).await.unwrap();
        let shown = netns.cmd("tc filter show dev v0 egress");
        assert_eq!(shown.matches("direct-action").count(), 3, "{shown}");
    });
}

#[test]
fn what_has_our_place_is_an_error_with_a_remedy() {
    let programs = Programs::load();
    let netns = Netns::new();
    netns.cmd("ip link add v0 type veth peer name v1");
    netns.cmd("tc qdisc add dev v0 ingress");
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let v0 = index(&netlink, "v0").await;
        for direction in [Direction::Ingress, Direction::Egress] {
            let attached = netlink.clsact_attach(v0, direction, programs.pass.fd.as_fd(), "handle_egress").await;
            let error = format!("{:#}", attached.unwrap_err());
            assert!(error.contains("its ingress qdisc has the place of clsact"), "{error}");
            netlink.clsact_detach(v0, direction).await.unwrap();
        }
        assert!(netns.cmd("tc qdisc show dev v0").contains("qdisc ingress"));
        let error = netlink.clsact_attach(9999, Direction::Egress, programs.pass.fd.as_fd(), "handle_egress").await;
        assert!(is_gone(&error.unwrap_err()));
    });
}

#[test]
fn replacing_in_place_leaves_no_gap() {
    let programs = Programs::load();
    let (a, b) = (Netns::new(), Netns::new());
    veth((&a, "eth0"), (&b, "eth0"));
    a.cmd("ip addr add 10.7.0.1/24 dev eth0");
    b.cmd("ip addr add 10.7.0.2/24 dev eth0");
    a.cmd("ping -c 1 -W 2 10.7.0.2");
    a.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let eth0 = index(&netlink, "eth0").await;
        // The program drops everything: whatever gets through went through a gap.
        netlink.clsact_attach(eth0, Direction::Egress, programs.drop.fd.as_fd(), "handle_egress").await.unwrap();
        let mut ping = a.spawnable(&["ping", "-q", "-i", "0.002", "-c", "300", "-W", "1", "10.7.0.2"]);
        let mut ping = ping.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut swaps = 0;
        while ping.try_wait().unwrap().is_none() {
            netlink.clsact_attach(eth0, Direction::Egress, programs.drop.fd.as_fd(), "handle_egress").await.unwrap();
            swaps += 1;
        }
        let said = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.contains(" 0 received"), "{swaps} swaps: {said}");
        assert!(swaps > 100, "{swaps}");
    });
}
