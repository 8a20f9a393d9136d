//! Entries move as fast as one CPU can write them while another one sends: whatever arrives is its tenant's.
//!
//! Twelve interfaces of four tenants on each host. Frames carry the number of their tenant; a program at every
//! receiving interface compares it. Two threads write, one the sender's `if2tunkey` and `devs`, one the receiver's
//! `tunkey2if` and `devs`: keys move between the interfaces of their tenant, entries of several tenants go and come
//! back so that the kernel recycles their elements, interfaces move to slots that others had a grace period ago.

#![allow(unsafe_code)]

use crate::Foreign;
use crate::world::harness::{Netns, run as command};
use crate::world::*;
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tunnel_mesh::bpf::{Dataplane, grace_period};
use tunnel_mesh::model::{IfEntry, SlotRef, TunKey};

const TENANTS: usize = 4;
const EACH: usize = 3;
const INTERFACES: usize = TENANTS * EACH;
/// Keys of each tenant: one more than it has interfaces.
const KEYS: usize = EACH + 1;
/// Slots beside those in use, which interfaces move to and from.
const SPARE: usize = 16;
/// One round of so many moves an interface to another slot: a grace period takes as long as thousands of writes.
const SLOT_MOVES: usize = 100;
const SPARE_FROM: u32 = 128;
const MAGIC: u32 = 0x544d_5431;
/// Frames of one call.
const BATCH: usize = 8 * INTERFACES;

fn tenant_of(interface: usize) -> usize {
    interface / EACH
}

fn id(tenant: usize, key: usize) -> u32 {
    (1000 * (tenant + 1) + key) as u32
}

/// The last two tenants have endpoints on the receiving host, the first two ports.
fn is_endpoint(tenant: usize) -> bool {
    tenant >= TENANTS / 2
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Two different tenants.
    fn two(&mut self) -> (usize, usize) {
        let first = self.below(TENANTS);
        (first, (first + 1 + self.below(TENANTS - 1)) % TENANTS)
    }
}

/// Slots that can be taken, and those whose grace period is yet to come.
struct Slots {
    free: Vec<u32>,
    released: Vec<u32>,
}

impl Slots {
    fn new() -> Self {
        Self { free: (SPARE_FROM..SPARE_FROM + SPARE as u32).collect(), released: Vec::new() }
    }

    fn take(&mut self) -> u32 {
        if self.free.is_empty() {
            grace_period();
            self.free.append(&mut self.released);
        }
        self.free.pop().unwrap()
    }
}

/// Moves keys, entries and slots of the receiving host.
fn churn_receiver(pins: &Path, stop: &AtomicBool) -> u64 {
    let plane = Dataplane::open(pins).unwrap();
    let live = plane.observe().unwrap().unwrap();
    let remote = live.tunkey2if[0].0.remote;
    let devs: BTreeMap<u32, u32> = live.devs.into_iter().collect();
    let mut slots = Slots::new();
    // Slot and device of each interface, and the interface of each key.
    let mut place = vec![(0, 0); INTERFACES];
    for (key, value) in &live.tunkey2if {
        let interface = ((key.id / 1000 - 1) as usize) * EACH + (key.id % 1000) as usize;
        place[interface] = (value.slot, devs[&value.slot]);
    }
    assert!(place.iter().all(|(slot, ifindex)| *slot != 0 && *ifindex != 0));
    let mut owner: Vec<Vec<usize>> = (0..TENANTS).map(|t| (0..KEYS).map(|k| t * EACH + k % EACH).collect()).collect();
    let entry = |place: &[(u32, u32)], owner: &[Vec<usize>], tenant: usize, key: usize| {
        let slot = place[owner[tenant][key]].0;
        let key = TunKey { tunnel: 1, id: id(tenant, key), remote };
        (key, SlotRef { slot, endpoint: is_endpoint(tenant), valid: true })
    };
    for tenant in 0..TENANTS {
        plane.write_tunkey2if(&[entry(&place, &owner, tenant, KEYS - 1)]).unwrap();
    }

    let (mut random, mut rounds) = (Random(0x9e37_79b9_7f4a_7c15), 0);
    while !stop.load(Ordering::Relaxed) {
        let (tenant, other) = random.two();
        let (key, other_key) = (random.below(KEYS), random.below(KEYS));
        match random.below(SLOT_MOVES) {
            0..20 => {
                owner[tenant][key] = tenant * EACH + random.below(EACH);
                plane.write_tunkey2if(&[entry(&place, &owner, tenant, key)]).unwrap();
            }
            20..50 => {
                let entry = entry(&place, &owner, tenant, key);
                plane.delete_tunkey2if(&[entry.0]).unwrap();
                plane.write_tunkey2if(&[entry]).unwrap();
            }
            50..99 => {
                // The element that one tenant leaves is the one that the other gets.
                let (a, b) = (entry(&place, &owner, tenant, key), entry(&place, &owner, other, other_key));
                plane.delete_tunkey2if(&[a.0, b.0]).unwrap();
                plane.write_tunkey2if(&[a]).unwrap();
                plane.write_tunkey2if(&[b]).unwrap();
            }
            _ => {
                let interface = tenant * EACH + random.below(EACH);
                let (old, ifindex) = place[interface];
                let new = slots.take();
                place[interface].0 = new;
                plane.write_devs(&[(new, ifindex)]).unwrap();
                for key in (0..KEYS).filter(|k| owner[tenant][*k] == interface) {
                    plane.write_tunkey2if(&[entry(&place, &owner, tenant, key)]).unwrap();
                }
                plane.clear_devs(&[old]).unwrap();
                slots.released.push(old);
            }
        }
        rounds += 1;
    }
    rounds
}

/// Moves entries and slots of the sending host.
fn churn_sender(pins: &Path, stop: &AtomicBool) -> u64 {
    let plane = Dataplane::open(pins).unwrap();
    let live = plane.observe().unwrap().unwrap();
    let mut slots = Slots::new();
    let mut entries: Vec<Vec<(u32, IfEntry)>> = vec![Vec::new(); TENANTS];
    for (ifindex, entry) in live.if2tunkey {
        entries[(entry.key.id / 1000 - 1) as usize].push((ifindex, entry));
    }
    assert!(entries.iter().all(|e| e.len() == EACH));

    let (mut random, mut rounds) = (Random(0xd1b5_4a32_d192_ed03), 0);
    while !stop.load(Ordering::Relaxed) {
        let (tenant, other) = random.two();
        let (n, other_n) = (random.below(EACH), random.below(EACH));
        match random.below(SLOT_MOVES) {
            0..20 => {
                entries[tenant][n].1.key.id = id(tenant, random.below(KEYS));
                plane.write_if2tunkey(&[entries[tenant][n]]).unwrap();
            }
            20..50 => {
                plane.delete_if2tunkey(&[entries[tenant][n].0]).unwrap();
                plane.write_if2tunkey(&[entries[tenant][n]]).unwrap();
            }
            50..99 => {
                let (a, b) = (entries[tenant][n], entries[other][other_n]);
                plane.delete_if2tunkey(&[a.0, b.0]).unwrap();
                plane.write_if2tunkey(&[a]).unwrap();
                plane.write_if2tunkey(&[b]).unwrap();
            }
            _ => {
                let (ifindex, entry) = &mut entries[tenant][n];
                let old = std::mem::replace(&mut entry.slot, slots.take());
                plane.write_devs(&[(entry.slot, *ifindex)]).unwrap();
                plane.write_if2tunkey(&[(*ifindex, *entry)]).unwrap();
                plane.clear_devs(&[old]).unwrap();
                slots.released.push(old);
            }
        }
        rounds += 1;
    }
    rounds
}

fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// Two different CPUs that we may use, or twice the only one.
fn cpus() -> (usize, usize) {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let list: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|c| allowed.is_set(*c)).collect();
    (list[0], *list.last().unwrap())
}

/// Sends frames out of the interfaces of a namespace.
struct Sender {
    socket: OwnedFd,
    /// Kept for the addresses in `messages`.
    _buffers: Vec<(libc::sockaddr_ll, [u8; 64], libc::iovec)>,
    messages: Vec<libc::mmsghdr>,
}

// SAFETY: the addresses in `messages` are those of `_buffers`, which goes along and stays where it is.
unsafe impl Send for Sender {}

impl Sender {
    /// A batch in which each interface has its turn, with its tenant's number in each frame.
    fn new(netns: &Netns, interfaces: &[u32]) -> Self {
        let socket = netns.enter(|| {
            // SAFETY: no addresses are passed; the descriptor is ours.
            unsafe {
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
                assert!(fd >= 0, "{}", std::io::Error::last_os_error());
                OwnedFd::from_raw_fd(fd)
            }
        });
        let mut buffers: Vec<_> = (0..BATCH)
            .map(|n| {
                let interface = n % INTERFACES;
                let mut frame = [0u8; 64];
                frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
                frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
                frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
                frame[14..18].copy_from_slice(&MAGIC.to_ne_bytes());
                frame[18..22].copy_from_slice(&(tenant_of(interface) as u32).to_ne_bytes());
                // SAFETY: all zeroes is a valid address.
                let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
                to.sll_family = libc::AF_PACKET as u16;
                to.sll_ifindex = interfaces[interface] as i32;
                to.sll_halen = 6;
                to.sll_protocol = 0x88b5u16.to_be();
                (to, frame, libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 64 })
            })
            .collect();
        let messages = buffers
            .iter_mut()
            .map(|(to, frame, vector)| {
                vector.iov_base = frame.as_mut_ptr().cast();
                // SAFETY: all zeroes is a valid header.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = std::ptr::from_mut(to).cast();
                message.msg_hdr.msg_namelen = std::mem::size_of::<libc::sockaddr_ll>() as u32;
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        Self { socket, _buffers: buffers, messages }
    }

    /// Sends the batch once. A frame that a program drops comes back as an error (ENOBUFS) and was sent all the same.
    fn batch(&mut self) -> u64 {
        let mut done = 0;
        while done < self.messages.len() {
            let rest = &mut self.messages[done..];
            // SAFETY: the messages and what they point to live in `self`.
            let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            if sent < 0 {
                let error = std::io::Error::last_os_error();
                assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
            }
            let sent = sent.max(0) as usize;
            done += if sent < rest.len() { sent + 1 } else { sent };
        }
        self.messages.len() as u64
    }
}

/// How many frames were right, wrong, and not ours.
fn verdicts(probe: &Foreign) -> [u64; 3] {
    let pin = probe.0.join("verdicts");
    let text = command("bpftool", &["-j", "map", "dump", "pinned", pin.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut out = [0; 3];
    for (n, entry) in json.as_array().unwrap().iter().enumerate() {
        let bytes: Vec<u8> = entry["value"].as_array().unwrap().iter().map(crate::hex).collect();
        out[n] = u64::from_ne_bytes(bytes.try_into().unwrap());
    }
    out
}

/// Drops by reason, over all slots.
fn drops(host: &Host) -> BTreeMap<&'static str, u64> {
    let mut out = BTreeMap::new();
    for (_, counters) in Dataplane::open(&host.pins).unwrap().counters().unwrap() {
        for reason in tunnel_mesh::model::DropReason::ALL.into_iter().filter(|r| counters.dropped(*r) > 0) {
            *out.entry(reason.name()).or_default() += counters.dropped(reason);
        }
    }
    out
}

fn topology(host: u32, prefix: &str) -> String {
    let mut text = format!(
        "version: 1\ntunnels:\n  vxlan0: {{kind: vxlan, create: true, local: 172.16.1.{}}}\nmappings:\n",
        100 + host
    );
    for interface in 0..INTERFACES {
        let tenant = tenant_of(interface);
        let attach = if host == 1 && is_endpoint(tenant) { "endpoint" } else { "port" };
        text.push_str(&format!(
            "- {{tenant: t{tenant}, interface: {prefix}{interface}, id: {}, remote: 172.16.1.{}, attach: {attach}}}\n",
            id(tenant, interface % EACH),
            101 - host
        ));
    }
    text
}

/// Nothing but our frames is to flow.
fn without_ipv6(netns: &Netns) {
    netns.enter(|| {
        for name in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            if Path::new(&path).exists() {
                std::fs::write(path, "1").unwrap();
            }
        }
    });
}

pub fn run() {
    let underlay = Underlay::new();
    let (from, to) = (underlay.host(0), underlay.host(1));
    let behind = Netns::new();
    [&from.netns, &to.netns, &behind].into_iter().for_each(without_ipv6);
    for n in (0..INTERFACES).step_by(2) {
        from.netns.cmd(&format!("ip link add a{n} type veth peer name a{}", n + 1));
    }
    // Indexes on the receiving side are chosen, so that no two namespaces use the same one.
    for n in 0..INTERFACES {
        let peer = if is_endpoint(tenant_of(n)) {
            format!("name w{n} index {} netns {}", 2000 + n, behind.name)
        } else {
            format!("name b{n}x")
        };
        to.netns.cmd(&format!("ip link add b{n} index {} type veth peer {peer}", 1000 + n));
    }
    let probe = Foreign::load(&to.netns);
    for n in 0..INTERFACES {
        from.netns.cmd(&format!("ip link set a{n} up"));
        to.netns.cmd(&format!("ip link set b{n} up"));
        let (netns, interface, ifindex) = if is_endpoint(tenant_of(n)) {
            (&behind, format!("w{n}"), 2000 + n)
        } else {
            to.netns.cmd(&format!("ip link set b{n}x up"));
            (&to.netns, format!("b{n}"), 1000 + n)
        };
        netns.cmd(&format!("ip link set {interface} up"));
        probe.attach("check_tenant", netns, &interface, "ingress");
        let pin = probe.0.join("tenant_of");
        let words = [ifindex as u32, tenant_of(n) as u32].map(|w| w.to_ne_bytes().map(|b| b.to_string()).join(" "));
        let line = format!("map update pinned {} key {} value {}", pin.display(), words[0], words[1]);
        command("bpftool", &line.split(' ').collect::<Vec<_>>());
    }
    from.write("a.yaml", &topology(0, "a"));
    to.write("a.yaml", &topology(1, "b"));
    // No daemon: the writers here are the only ones.
    from.apply();
    to.apply();
    assert_pings(&from.netns, "172.16.1.101");

    let indexes: Vec<u32> = (0..INTERFACES).map(|n| from.ifindex(&format!("a{n}"))).collect();
    let mut sender = Sender::new(&from.netns, &indexes);
    let (writers, traffic) = cpus();

    // At rest everything arrives.
    let mut sent = sender.batch();
    eventually("all of a batch arrive", || verdicts(&probe) == [sent, 0, 0]);
    assert_eq!((drops(&from), drops(&to)), (BTreeMap::new(), BTreeMap::new()));

    // The probe knows wrong from right: a tenant's frame at another one's interface.
    let exchanged = TunKey { tunnel: 1, id: id(0, 0), remote: "172.16.1.100".parse().unwrap() };
    let live = Dataplane::open(&to.pins).unwrap().observe().unwrap().unwrap();
    let value = |id: u32| live.tunkey2if.iter().find(|(k, _)| k.id == id).unwrap().1;
    let set = |value| {
        Dataplane::open(&to.pins).unwrap().write_tunkey2if(&[(exchanged, value)]).unwrap();
    };
    set(value(id(1, 0)));
    sent += sender.batch();
    let wrong = (BATCH / INTERFACES) as u64;
    eventually("the wrong ones are seen", || verdicts(&probe) == [sent - wrong, wrong, 0]);
    set(value(id(0, 0)));

    let goal = scaled(1_000_000);
    let before = verdicts(&probe);
    let stop = AtomicBool::new(false);
    let (sent, rounds) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            pin_to(writers);
            to.netns.enter(|| churn_receiver(&to.pins, &stop))
        });
        let senders = scope.spawn(|| {
            pin_to(writers);
            from.netns.enter(|| churn_sender(&from.pins, &stop))
        });
        let packets = scope.spawn(|| {
            pin_to(traffic);
            let mut sent = 0;
            while sent < goal {
                sent += sender.batch();
            }
            stop.store(true, Ordering::Relaxed);
            sent
        });
        (packets.join().unwrap(), [receiver.join().unwrap(), senders.join().unwrap()])
    });
    let gone = [drops(&from), drops(&to)];
    let dropped: u64 = gone.iter().flat_map(BTreeMap::values).sum();
    eventually("every packet is accounted for", || {
        let seen = verdicts(&probe);
        (seen[0] - before[0]) + (seen[1] - before[1]) + dropped >= sent
    });
    let seen = verdicts(&probe);
    let [right, wrong, strange] = [0, 1, 2].map(|n| seen[n] - before[n]);
    println!("{sent} sent: {right} right, {wrong} wrong, {strange} strange, dropped {gone:?}; rounds {rounds:?}");
    assert_eq!((wrong, strange), (0, 0), "packets of one tenant reached another");
    assert_eq!(right + dropped, sent, "every packet was delivered or counted as dropped");
    assert!(right >= sent / 2, "most arrive: {right} of {sent}, dropped {gone:?}");
    assert!(rounds.iter().all(|r| *r > 500), "the writers wrote: {rounds:?}");
    assert!(traffic == writers || dropped > 0, "the writers were noticed");

    // A pass puts everything right again.
    for host in [&from, &to] {
        let report: serde_json::Value = serde_json::from_str(&host.expect(0, &["apply", "--format", "json"])).unwrap();
        assert_eq!(report["changed"], true);
        host.wait_in_force();
    }
    let before = verdicts(&probe);
    let sent = sender.batch();
    eventually("all of a batch arrive again", || verdicts(&probe) == [before[0] + sent, before[1], 0]);
}
