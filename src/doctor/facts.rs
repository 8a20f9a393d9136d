//! What the checks look at, gathered once. Changes nothing, except that the kernel may load the module of a tunnel kind
//! that the topology asks for, as it would for the tunnel itself.

use super::sockets::{self, Socket};
use crate::files::accepted::Accepted;
use crate::model::*;
use crate::netlink::Netlink;
use crate::plan::Plan;
use crate::reconcile::Reconciler;
use crate::reconcile::chains::Chains;
use crate::reconcile::control::{Request, ask};
use crate::reconcile::instance::Paths;
use crate::reconcile::live::{LiveKernel, WrongNamespace};
use crate::reconcile::loader::Loader;
use crate::reconcile::status::Status;
use std::collections::BTreeMap;
use std::path::Path;

/// Everything that checks may look at.
#[derive(Debug, Default)]
pub struct Facts {
    /// The kernel.
    pub kernel: KernelFacts,
    /// Privileges of the daemon, or of this process where none runs.
    pub privileges: Privileges,
    /// Directories.
    pub paths: PathFacts,
    /// What the files say.
    pub files: Option<Desired>,
    /// Why they were not accepted.
    pub rejected: Option<String>,
    /// What was accepted.
    pub accepted: Option<Intent>,
    /// Why the record of it can't be read.
    pub unreadable: Option<String>,
    /// The live state.
    pub live: Option<Live>,
    /// Why there is none.
    pub blind: Option<Blind>,
    /// UDP sockets.
    pub sockets: Vec<Socket>,
    /// What the daemon says of itself.
    pub daemon: Option<Status>,
    /// Why a daemon that is there doesn't answer.
    pub daemon_error: Option<String>,
}

/// The kernel.
#[derive(Debug, Default)]
pub struct KernelFacts {
    /// Release.
    pub release: String,
    /// Whether programs are attached by TCX; unknown without privileges.
    pub tcx: Option<bool>,
    /// Tunnel kinds that the topology asks for, with `true` for their IPv6 form: whether the kernel has them.
    pub kinds: BTreeMap<(TunnelKind, bool), bool>,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u32>,
    /// Whether frames on bridges go through iptables, ip6tables or arptables.
    pub bridge_netfilter: Vec<String>,
}

/// Privileges.
#[derive(Debug, Default)]
pub struct Privileges {
    /// The daemon's process, where one runs.
    pub daemon: Option<u32>,
    /// Effective capabilities, a bit each.
    pub effective: u64,
    /// Whether `/sys/kernel/rcu_expedited` can be written.
    pub expedite: bool,
}

impl Privileges {
    /// Whether the capability with that number is there.
    pub fn has(&self, capability: u32) -> bool {
        self.effective & (1 << capability) != 0
    }
}

/// Directories.
#[derive(Debug, Default)]
pub struct PathFacts {
    /// Pin directory.
    pub pins: String,
    /// Whether the pin directory, or the nearest one above it, is on a BPF file system.
    pub bpffs: bool,
    /// Mode of the pin directory where others may enter it.
    pub open_to_others: Option<u32>,
    /// What lies there and isn't ours.
    pub foreign_pins: Vec<String>,
    /// Whether a growth of the maps was interrupted.
    pub half_grown: bool,
}

/// The live state.
#[derive(Debug)]
pub struct Live {
    /// As a pass would see it.
    pub observed: Observed,
    /// What a pass would do.
    pub plan: Plan,
    /// What runs at the TC hooks of every link.
    pub chains: Chains,
}

/// Why the live state could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blind {
    /// Privileges are missing.
    Denied,
    /// The pins belong to another network namespace.
    OtherNamespace(String),
    /// Something else.
    Failed(String),
}

impl Facts {
    /// What is to be in force: what the files say or, where they are wrong, what was accepted.
    pub fn desired(&self) -> Option<&Desired> {
        self.files.as_ref().or(self.accepted.as_ref().map(|a| &a.desired))
    }

    /// Gathers them.
    pub async fn gather(paths: &Paths, hook: Option<HookKind>, loader: &mut Loader) -> Self {
        let mut facts = Self::default();
        match loader.load() {
            Ok(desired) => facts.files = Some(desired),
            Err(rejected) => facts.rejected = Some(rejected.to_string()),
        }
        match Accepted::load(&paths.state) {
            Ok(accepted) => facts.accepted = accepted,
            Err(error) => facts.unreadable = Some(format!("{error:#}")),
        }
        match ask(&paths.socket(), &Request::Status).await {
            Ok(Some(answer)) => (facts.daemon, facts.daemon_error) = (answer.status.map(|s| *s), answer.error),
            Ok(None) => {}
            Err(error) => facts.daemon_error = Some(format!("{error:#}")),
        }
        facts.privileges = privileges(facts.daemon.as_ref().and_then(|s| s.daemon.pid));
        facts.kernel = kernel(facts.desired()).await;
        facts.sockets = sockets::udp();
        let mut directories = directories(paths);
        let live = live(paths, hook, facts.desired(), &mut directories).await;
        facts.paths = directories;
        match live {
            Ok(live) => facts.live = Some(live),
            Err(error) => {
                facts.blind = Some(if let Some(wrong) = error.downcast_ref::<WrongNamespace>() {
                    Blind::OtherNamespace(wrong.to_string())
                } else if crate::reconcile::is_denied(&error) {
                    Blind::Denied
                } else {
                    Blind::Failed(format!("{error:#}"))
                });
            }
        }
        facts
    }
}

async fn live(
    paths: &Paths,
    hook: Option<HookKind>,
    desired: Option<&Desired>,
    found: &mut PathFacts,
) -> anyhow::Result<Live> {
    let mut kernel = LiveKernel::open(&paths.pins, hook).await?;
    found.foreign_pins = kernel.foreign_pins()?;
    found.half_grown = kernel.is_half_grown();
    kernel.count_drops(true);
    let mut reconciler = Reconciler::new(kernel);
    let empty = Desired::default();
    let (observed, plan) = reconciler.plan(desired.unwrap_or(&empty), desired).await?;
    let sides = [Direction::Ingress, Direction::Egress];
    let hooks: Vec<_> = observed.links.iter().flat_map(|l| sides.map(|side| (l.ifindex, side))).collect();
    let chains = reconciler.kernel().chains(&hooks, &observed).await?;
    Ok(Live { observed, plan, chains })
}

async fn kernel(desired: Option<&Desired>) -> KernelFacts {
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let filtered = ["iptables", "ip6tables", "arptables"]
        .into_iter()
        .filter(|name| number(&format!("/proc/sys/net/bridge/bridge-nf-call-{name}")).is_some_and(|value| value != 0));
    let mut kinds = BTreeMap::new();
    if let Ok(netlink) = Netlink::open().await {
        for tunnel in desired.iter().flat_map(|d| d.tunnels.values()).filter(|t| t.create) {
            let ip6 = tunnel.kind == TunnelKind::Gretap && tunnel.local.v4.is_none();
            match netlink.knows_tunnel(tunnel.kind, ip6).await {
                Ok(known) => drop(kinds.insert((tunnel.kind, ip6), known)),
                Err(error) => tracing::debug!("{error:#}"),
            }
        }
    }
    KernelFacts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        tcx: crate::bpf::probe_tcx().inspect_err(|e| tracing::debug!("{e:#}")).ok(),
        kinds,
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        bridge_netfilter: filtered.map(|name| format!("bridge-nf-call-{name}")).collect(),
    }
}

fn privileges(daemon: Option<u32>) -> Privileges {
    let process = daemon.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let effective = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    // The kernel lets root write there, whatever its capabilities.
    let uid = field("Uid:").and_then(|ids| ids.split_whitespace().nth(1)).and_then(|id| id.parse::<u32>().ok());
    let writable = std::fs::OpenOptions::new().write(true).open("/sys/kernel/rcu_expedited").is_ok();
    let expedite = if daemon.is_some() { uid == Some(0) } else { writable };
    Privileges { daemon, effective, expedite }
}

fn directories(paths: &Paths) -> PathFacts {
    use std::os::unix::fs::MetadataExt;
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let nearest = paths.pins.ancestors().find(|a| a.is_dir()).unwrap_or(Path::new("/"));
    let bpffs = rustix::fs::statfs(nearest).is_ok_and(|s| s.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC);
    let mode = std::fs::metadata(&paths.pins).map(|m| m.mode() & 0o7777).ok();
    PathFacts {
        pins: paths.pins.display().to_string(),
        bpffs,
        open_to_others: mode.filter(|mode| mode & 0o077 != 0),
        ..PathFacts::default()
    }
}
