//! Entries inserted, moved and deleted as fast as possible while packets flow: nobody ever gets another's packet.
#![allow(clippy::unwrap_used)]

mod bpf_lab;

use bpf_lab::{Host, Lab, TUNNEL, in_netns, run};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tunnel_mesh::bpf::grace_period;
use tunnel_mesh::model::{Attach, IfEntry, SlotRef, TunKey};

const TENANTS: u32 = 8;
const SLOT: u32 = 64;
/// Slots that each tenant's key wanders through.
const SLOTS_EACH: u32 = 8;
/// Keys without traffic that come and go, so that elements are recycled and buckets are shared.
const STRANGERS: u32 = 48;

fn id(tenant: u32) -> u32 {
    1000 + tenant
}

/// Endpoints of all tenants on one host, all with the same addresses. Returns a socket in each workload.
fn workloads(lab: &mut Lab, host: &Host, remote: &Host, side: u8) -> Vec<UdpSocket> {
    let peer = 3 - side;
    (0..TENANTS)
        .map(|tenant| {
            let ns = lab.namespace(&format!("{side}w{tenant}"));
            let port = format!("e{tenant}");
            run(&format!("ip -n {} link add {port} type veth peer name eth0 netns {ns}", host.ns));
            in_netns(&host.ns, || fs::write(format!("/proc/sys/net/ipv6/conf/{port}/disable_ipv6"), "1").unwrap());
            in_netns(&ns, || fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").unwrap());
            run(&format!("ip -n {} link set {port} up", host.ns));
            run(&format!("ip -n {ns} link set eth0 address 02:00:00:00:00:{side:02x} up"));
            run(&format!("ip -n {ns} addr add 192.168.5.{side}/24 dev eth0"));
            run(&format!("ip -n {ns} neigh add 192.168.5.{peer} lladdr 02:00:00:00:00:{peer:02x} dev eth0"));
            host.map(&port, SLOT + tenant * SLOTS_EACH, id(tenant), remote.v4, Attach::Endpoint);
            in_netns(&ns, || {
                let socket = UdpSocket::bind(format!("192.168.5.{side}:9999")).unwrap();
                socket.connect(format!("192.168.5.{peer}:9999")).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
        })
        .collect()
}

fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu % std::thread::available_parallelism().unwrap());
    sched_setaffinity(None, &set).unwrap();
}

/// Rewrites the entries of one host for as long as `stop` isn't set. Tenant 0 is only ever updated in place.
fn churn(host: &Host, remote: &Host, devices: &[u32], stop: &AtomicBool) -> u64 {
    let dp = &host.dp;
    let key = |tenant: u32| TunKey { tunnel: TUNNEL, id: id(tenant), remote: remote.v4 };
    let value = |slot| SlotRef { slot, endpoint: true, valid: true };
    let entry = |tenant, slot| IfEntry { slot, ..host.entry(slot, id(tenant), remote.v4, Attach::Endpoint) };
    // Whose slots a tenant's key wanders through: they are exchanged now and then.
    let mut ranges: Vec<u32> = (0..TENANTS).collect();
    let fill = |range: u32, tenant: u32| {
        let slots = (0..SLOTS_EACH).map(|i| (SLOT + range * SLOTS_EACH + i, devices[tenant as usize]));
        dp.write_devs(&slots.collect::<Vec<_>>()).unwrap();
    };
    (0..TENANTS).for_each(|tenant| fill(tenant, tenant));
    let mut rounds = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let step = (rounds % u64::from(SLOTS_EACH)) as u32;
        for tenant in 0..TENANTS {
            let slot = SLOT + ranges[tenant as usize] * SLOTS_EACH + step;
            let ifindex = devices[tenant as usize];
            let stranger = TunKey { id: 5000 + (rounds as u32 * 7 + tenant) % STRANGERS, ..key(0) };
            if tenant != 0 && (rounds + u64::from(tenant)).is_multiple_of(2) {
                dp.delete_tunkey2if(&[key(tenant)]).unwrap();
                dp.write_tunkey2if(&[(stranger, value(SLOT))]).unwrap();
                dp.delete_if2tunkey(&[ifindex]).unwrap();
                dp.write_if2tunkey(&[(100_000 + stranger.id, entry(0, SLOT))]).unwrap();
            } else {
                dp.delete_tunkey2if(&[stranger]).unwrap();
                dp.delete_if2tunkey(&[100_000 + stranger.id]).unwrap();
            }
            dp.write_tunkey2if(&[(key(tenant), value(slot))]).unwrap();
            dp.write_if2tunkey(&[(ifindex, entry(tenant, slot))]).unwrap();
        }
        rounds += 1;
        if rounds.is_multiple_of(500) {
            // Two tenants exchange their slots: out of every entry, a grace period, other devices, in again.
            let (one, other) = (1, 2 + (rounds / 500 % u64::from(TENANTS - 2)) as u32);
            for tenant in [one, other] {
                dp.delete_tunkey2if(&[key(tenant)]).unwrap();
                dp.delete_if2tunkey(&[devices[tenant as usize]]).unwrap();
            }
            grace_period();
            ranges.swap(one as usize, other as usize);
            fill(ranges[one as usize], one);
            fill(ranges[other as usize], other);
        }
    }
    rounds
}

#[test]
fn churn_never_delivers_to_another_tenant() {
    let wanted: u64 = if std::env::var_os("TUNNEL_MESH_SLOW").is_some() { 20_000 } else { 1_000_000 };
    let mut lab = Lab::new();
    let (a, b) = lab.two_hosts();
    let senders = workloads(&mut lab, &a, &b, 1);
    let receivers = workloads(&mut lab, &b, &a, 2);
    let devices = |host: &Host| (0..TENANTS).map(|t| host.ifindex(&format!("e{t}"))).collect::<Vec<_>>();
    let (a_devices, b_devices) = (devices(&a), devices(&b));
    let stop = AtomicBool::new(false);
    let (delivered, strayed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (mut rounds, mut sent) = (0, 0u64);

    std::thread::scope(|scope| {
        let churning = [(&a, &b, &a_devices), (&b, &a, &b_devices)].map(|(host, remote, devices)| {
            let stop = &stop;
            scope.spawn(move || {
                pin_to(0);
                in_netns(&host.ns, || {
                    pin_to(0);
                    churn(host, remote, devices, stop)
                })
            })
        });
        scope.spawn(|| {
            let mut payload = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                for (tenant, socket) in (0u32..).zip(&receivers) {
                    while let Ok(length) = socket.recv(&mut payload) {
                        delivered.fetch_add(1, Ordering::Relaxed);
                        if payload[..length] != tenant.to_ne_bytes() {
                            strayed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        });
        pin_to(1);
        let deadline = Instant::now() + Duration::from_secs(300);
        while delivered.load(Ordering::Relaxed) < wanted && Instant::now() < deadline {
            for (tenant, socket) in (0u32..).zip(&senders) {
                for _ in 0..16 {
                    sent += u64::from(socket.send(&tenant.to_ne_bytes()).is_ok());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        for thread in churning {
            rounds += thread.join().unwrap();
        }
    });

    let (delivered, strayed) = (delivered.into_inner(), strayed.into_inner());
    println!("{sent} sent, {delivered} delivered, {strayed} strayed, {rounds} rounds of {TENANTS} changes");
    assert_eq!(strayed, 0, "of {delivered} delivered, in {rounds} rounds");
    assert!(delivered >= wanted, "{delivered} delivered of {sent} sent");
    assert!(rounds > 100, "{rounds} rounds");
    // A key that was only updated in place was never missed.
    let missed = b.dp.unknown().unwrap().into_iter().find(|unknown| unknown.key.id == id(0));
    assert_eq!(missed, None);
}
