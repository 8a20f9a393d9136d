//! The real kernel behind the reconciler: a network namespace with the links that the topologies in `memory` name.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use crate::memory::topology::{INTERFACES, TUNNELS, port_of};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use tunnel_mesh::bpf::Dataplane;
use tunnel_mesh::model::HookKind;
use tunnel_mesh::reconcile::live::LiveKernel;

/// A namespace, another one for the workloads behind its interfaces, and a pin directory. Gone on drop.
pub struct Place {
    pub ns: String,
    workloads: String,
    pub pins: PathBuf,
}

/// Runs a command that must succeed.
pub fn run(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Place {
    /// Makes it, with every interface and the tunnels that we don't make ourselves.
    pub fn new() -> Self {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "the kernel tests need root");
        if !on_bpffs() {
            run("mount -t bpf bpf /sys/fs/bpf");
        }
        let ns = format!("tmt-{}-{}", std::process::id(), PLACES.fetch_add(1, Ordering::Relaxed));
        let place =
            Self { pins: PathBuf::from(format!("/sys/fs/bpf/{ns}")), workloads: format!("{ns}-w"), ns: ns.clone() };
        run(&format!("ip netns add {ns}"));
        run(&format!("ip netns add {}", place.workloads));
        run(&format!("ip -n {ns} link set lo up"));
        for name in INTERFACES {
            place.add_link(name);
        }
        for name in &TUNNELS[..2] {
            place.add_vxlan(name);
        }
        place
    }

    /// Adds an interface as somebody else would.
    pub fn add_link(&self, name: &str) {
        let (ns, workloads) = (&self.ns, &self.workloads);
        // The end of an earlier one of that name goes with it, but perhaps not at once.
        drop(Command::new("ip").args(["-n", workloads, "link", "del", name]).output());
        run(&format!("ip -n {ns} link add {name} type veth peer name {name} netns {workloads}"));
        run(&format!("ip -n {ns} link set {name} up"));
    }

    /// Adds a tunnel device as somebody else would.
    pub fn add_vxlan(&self, name: &str) {
        let ns = &self.ns;
        run(&format!("ip -n {ns} link add {name} type vxlan external dstport {}", port_of(name)));
        run(&format!("ip -n {ns} link set {name} up"));
    }

    /// Removes a link as somebody else would.
    pub fn remove_link(&self, name: &str) {
        run(&format!("ip -n {} link del {name}", self.ns));
    }

    /// Runs asynchronous code in the namespace, in a thread of its own.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, f: impl FnOnce() -> F + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.ns)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f())
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The kernel, seen from within the namespace; on clsact where that is asked for.
    pub async fn kernel(&self) -> LiveKernel {
        let clsact = std::env::var("TUNNEL_MESH_HOOK").is_ok_and(|hook| hook == "clsact");
        self.kernel_on(clsact.then_some(HookKind::Clsact)).await
    }

    /// As [`Place::kernel`], with that hook; none: whatever there is.
    pub async fn kernel_on(&self, hook: Option<HookKind>) -> LiveKernel {
        LiveKernel::open(&self.pins, hook).await.unwrap()
    }
}

fn on_bpffs() -> bool {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    rustix::fs::statfs("/sys/fs/bpf").is_ok_and(|s| s.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(Dataplane::open(&self.pins).and_then(|mut dataplane| dataplane.remove_all()));
        drop(std::fs::remove_dir_all(&self.pins));
        for ns in [&self.ns, &self.workloads] {
            drop(Command::new("ip").args(["netns", "del", ns]).output());
        }
    }
}
