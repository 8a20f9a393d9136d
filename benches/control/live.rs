//! On real interfaces: first attaches, restart, the full pass, one changed file, an idle daemon.

use crate::lab::{Lab, PER_FILE, id};
use crate::table::{Table, Times, ratio, show, timed};
use std::time::{Duration, Instant};
use tunnel_mesh::bpf::Dataplane;
use tunnel_mesh::netlink::Netlink;
use tunnel_mesh::plan::{Input, plan};
use tunnel_mesh::reconcile::Reconciler;
use tunnel_mesh::reconcile::kernel::Kernel;
use tunnel_mesh::reconcile::live::LiveKernel;
use tunnel_mesh::reconcile::loader::Loader;

const MAPPINGS: u32 = 10_000;
const ATTACHED: u32 = 1_000;
const QUIET: Duration = Duration::from_millis(20);
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// 1,000 interfaces: the first attach as it is and expedited, and a restart over what is pinned.
pub fn attach(table: &mut Table) {
    let lab = Lab::new("attach", ATTACHED);
    let (mut plain, mut expedited, mut restart) = (Times::default(), Times::default(), Times::default());
    for _ in 0..2 {
        plain.add(timed(|| lab.run(&["apply"])).0);
        for _ in 0..5 {
            restart.add(timed(|| lab.run(&["apply"])).0);
        }
        down(&lab);
        expedited.add(timed(|| lab.run(&["apply", "--rcu-expedited"])).0);
        assert_eq!(std::fs::read_to_string(EXPEDITED).unwrap().trim(), "0", "rcu_expedited wasn't restored");
        down(&lab);
    }
    let r = plain.best().as_secs_f64() / restart.median().as_secs_f64();
    table.add(
        "restart (`apply`) over 1,000 pinned links, against first attach",
        &restart.text(),
        &plain.text(),
        &format!("{r:.0}x faster"),
        "at least 100x",
        Some(r >= 100.0),
    );
    let r = plain.best().as_secs_f64() / expedited.best().as_secs_f64();
    table.add(
        "1,000 first attaches (`apply --rcu-expedited`), against the plain loop",
        &expedited.text(),
        &plain.text(),
        &format!("{r:.1}x faster"),
        "at least 10x",
        Some(r >= 10.0),
    );
}

fn down(lab: &Lab) {
    std::fs::write(EXPEDITED, "1").unwrap();
    lab.run(&["down"]);
    std::fs::write(EXPEDITED, "0").unwrap();
}

/// 10,000 mappings on as many interfaces, in 1,000 files.
pub fn run(table: &mut Table) {
    let (empty, _) = resident(&Lab::new("empty", 0));
    let small = Lab::new("small", 10);
    let (_, daemon) = resident(&small);
    let latencies = changes(&small, 60);
    let beyond = latencies.median().saturating_sub(QUIET);
    table.add(
        "one changed file, 10 mappings in all, rename() to live map, beyond 20 ms",
        &percentiles(&latencies),
        "",
        &format!("{} beyond", show(beyond)),
        "p50 at most 1 ms",
        Some(beyond <= Duration::from_millis(1)),
    );
    drop(daemon);

    let lab = Lab::new("live", MAPPINGS);
    let (first, _) = timed(|| lab.run(&["apply", "--rcu-expedited"]));
    eprintln!("first apply of {MAPPINGS} mappings on as many interfaces: {}", show(first));
    passes(table, &lab);
    let (full, daemon) = resident(&lab);
    let each = full.saturating_sub(empty) / u64::from(MAPPINGS);
    table.add(
        "resident memory at 10k mappings",
        &format!("{} KiB", full / 1024),
        &format!("{} KiB empty", empty / 1024),
        &format!("{each} B a mapping"),
        "at most 1 KiB",
        Some(each <= 1024),
    );
    let latencies = changes(&lab, 60);
    let beyond = latencies.median().saturating_sub(QUIET);
    table.add(
        "one changed file of 1,000 at 10k mappings, rename() to live map, beyond 20 ms",
        &percentiles(&latencies),
        "",
        &format!("{} beyond", show(beyond)),
        "p50 at most 10 ms",
        Some(beyond <= Duration::from_millis(10)),
    );
    std::thread::sleep(Duration::from_secs(3));
    let (before, start) = (daemon.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(61));
    let share = (daemon.cpu() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    table.add(
        "idle daemon, 10k mappings, 61 s with two periodic passes",
        &format!("{share:.2} % of a CPU"),
        "",
        "",
        "under 0.5 %",
        Some(share < 0.5),
    );
    let full = daemon.resident();
    let each = full.saturating_sub(empty) / u64::from(MAPPINGS);
    table.add(
        "the same after 60 changed files and a minute",
        &format!("{} KiB", full / 1024),
        &format!("{} KiB empty", empty / 1024),
        &format!("{each} B a mapping"),
        "at most 1 KiB",
        Some(each <= 1024),
    );
    drop(daemon);
    down(&lab);
}

fn resident(lab: &Lab) -> (u64, crate::lab::Daemon) {
    let daemon = lab.daemon();
    std::thread::sleep(Duration::from_secs(2));
    (daemon.resident(), daemon)
}

fn percentiles(times: &Times) -> String {
    format!("p50 {}, p99 {}", show(times.median()), show(times.quantile(99)))
}

/// Changes one mapping of one file, again and again, and waits for the live entry.
fn changes(lab: &Lab, count: u32) -> Times {
    let dataplane = Dataplane::open(&lab.pins).unwrap();
    let bare = dataplane.bare().unwrap();
    let links = lab.netns.block_on(async || Netlink::open().await.unwrap().links().await.unwrap());
    let files = lab.mappings / PER_FILE;
    let mut times = Times::default();
    for version in 1..=count {
        let file = version * 17 % files;
        let n = file * PER_FILE;
        let ifindex = links.iter().find(|l| l.name == format!("i{n}")).unwrap().ifindex;
        let start = Instant::now();
        lab.write(file, version);
        let wanted = Some(id(n, version));
        while bare.id_of(ifindex).unwrap() != wanted {
            assert!(start.elapsed() < Duration::from_secs(30), "file {file} isn't in force");
            std::thread::sleep(Duration::from_micros(50));
        }
        times.add(start.elapsed());
        std::thread::sleep(Duration::from_millis(300));
    }
    times
}

/// Full passes over unchanged live mappings, and where their time goes.
fn passes(table: &mut Table, lab: &Lab) {
    let mut loader = Loader::new(vec![lab.topology()], Some("bench"));
    let desired = loader.load().unwrap_or_else(|e| panic!("{e}"));
    let (mut look, mut load) = (Times::default(), Times::default());
    for version in 1..12 {
        // Whatever was written this very moment is read once more.
        std::thread::sleep(QUIET);
        drop(loader.load());
        lab.write(version * 3, version);
        look.add(timed(|| assert!(!loader.unchanged())).0);
        load.add(timed(|| loader.load().unwrap_or_else(|e| panic!("{e}"))).0);
        lab.write(version * 3, 0);
    }
    let rows = lab.netns.block_on(async || {
        let mut reconciler = Reconciler::new(LiveKernel::open(&lab.pins, None).await.unwrap());
        let dataplane = Dataplane::open(&lab.pins).unwrap();
        let netlink = Netlink::open().await.unwrap();
        let bare = dataplane.bare().unwrap();
        let mut kept = Reconciler::new(LiveKernel::open(&lab.pins, None).await.unwrap());
        kept.kernel().keep_surroundings();
        kept.pass(&desired, Some(&desired)).await.unwrap();
        let mut times: [Times; 8] = Default::default();
        for _ in 0..11 {
            let start = Instant::now();
            let report = reconciler.pass(&desired, Some(&desired)).await.unwrap();
            times[0].add(start.elapsed());
            assert!(report.converged() && !report.changed, "{:?}", report.plan.operations.first());
            times[1].add(timed(|| assert_eq!(bare.scan().unwrap(), 2 * MAPPINGS as usize)).0);
            let start = Instant::now();
            drop(netlink.links_without_counters().await.unwrap());
            times[2].add(start.elapsed());
            times[3].add(timed(|| drop(dataplane.observe().unwrap())).0);
            times[4].add(timed(|| drop(dataplane.tcx_attachments().unwrap())).0);
            let observed = reconciler.kernel().observe(false).await.unwrap();
            let nothing = Default::default();
            let input =
                Input { desired: &desired, observed: &observed, accepted: Some(&desired), was_pending: &nothing };
            times[5].add(timed(|| assert!(plan(input).is_empty())).0);
            times[6].add(timed(|| dataplane.read_hashes().unwrap()).0);
            let start = Instant::now();
            assert!(!kept.pass(&desired, Some(&desired)).await.unwrap().changed);
            times[7].add(start.elapsed());
        }
        times
    });
    let [pass, scan, links, maps, attachments, plan, hashes, kept] = &rows;
    let r = ratio(kept, scan);
    table.add(
        "full pass of the daemon over 10k unchanged live mappings, without a link event since the last, against a bare scan of both hashes",
        &kept.text(),
        &scan.text(),
        &format!("{r:.2}x"),
        "at most 3x",
        Some(r <= 3.0),
    );
    let parts = [
        ("1,000 files looked over", &look),
        ("one changed file of 1,000 read, all merged and compiled", &load),
        ("pass with links, attachments and `devs` read anew", pass),
        ("links by netlink", links),
        ("hashes read, decoded, sorted", hashes),
        ("all maps, `devs` entry by entry", maps),
        ("10k pinned TCX attachments", attachments),
        ("plan", plan),
    ];
    for (what, times) in parts {
        let r = ratio(times, scan);
        table.add(&format!("- {what}"), &times.text(), &scan.text(), &format!("{r:.2}x"), "", None);
    }
}
