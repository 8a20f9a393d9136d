//! Every way from workload to workload beside the others: packets, TCP, round trips.

use crate::packets::Bench;
use crate::path::{Mode, Path};
use crate::picture::{self, Panel};
use crate::table::{Bar, Findings, Ratio, Rounds};
use crate::{echo, stream};

const PACKET_ROUNDS: usize = 21;
const STREAM_ROUNDS: usize = 9;
const ECHO_ROUNDS: usize = 21;
/// Round trips of a round.
const TRIPS: usize = 3000;
/// Bytes of one TCP transfer.
const BYTES: u64 = 1 << 29;

pub const KERNEL: &str = "kernel bridge + vxlan";
pub const LIMIT: &str = "plain routed veth";
pub const CLONE: &str = "BCC's way";

/// What is asked of a mode: packets against the kernel, the limit and BCC's way, TCP against the kernel, round trip
/// against the kernel and against the limit.
fn bars(mode: Mode) -> Option<[Option<Bar>; 6]> {
    use Bar::{AtLeast, AtMost};
    let Mode::Ours { endpoint, fast } = mode else { return None };
    let least = |bar| Some(AtLeast(bar));
    Some(match (endpoint, fast) {
        (true, true) => [least(2.0), least(1.0), least(3.3), least(1.15), None, Some(AtMost(1.0))],
        (false, true) => [least(1.2), least(0.6), least(2.0), least(1.0), Some(AtMost(1.0)), None],
        (true, false) => [least(1.0), None, least(1.5), least(0.9), None, None],
        (false, false) => [least(0.75), None, least(1.15), least(0.85), None, None],
    })
}

/// Figures of all rounds, by the order of [`Mode::ALL`].
struct Figures {
    packets: Vec<Rounds>,
    streams: Vec<Rounds>,
    echoes: Vec<Rounds>,
}

pub fn run(findings: &mut Findings) {
    let paths: Vec<Path> = Mode::ALL.into_iter().map(Path::new).collect();
    let figures = measure(&paths);
    let modes = Mode::ALL.iter().map(|mode| mode.name());
    let absolute: Vec<Vec<String>> = modes
        .enumerate()
        .map(|(n, name)| {
            let (packets, streams, echoes) = (&figures.packets[n], &figures.streams[n], &figures.echoes[n]);
            vec![
                name.to_owned(),
                format!("{:.0} ({:.0})", packets.median(), packets.least()),
                format!("{:.1} ({:.1})", streams.median(), streams.most()),
                format!("{:.2} ({:.2})", echoes.median(), echoes.least()),
            ]
        })
        .collect();
    let rows = ratios(findings, &figures);
    let head = [
        "mode",
        "packets against kernel bridge + vxlan",
        "against the limit",
        "against BCC's way",
        "TCP Gb/s per CPU against the kernel",
        "p50 round trip against the kernel",
        "against plain routed veth",
    ];
    findings.table(&head, &rows);
    findings.table(&["median (best)", "CPU ns a packet", "TCP Gb/s per CPU", "p50 round trip, µs"], &absolute);
    findings.markdown.push_str("![CPU time a packet, TCP and round trip of every mode and peer](datapath.svg)\n\n");
    let medians = |rounds: &[Rounds]| rounds.iter().map(Rounds::median).collect::<Vec<_>>();
    findings.picture = picture::svg(&[
        Panel {
            title: "CPU time of a 64-byte packet, ns: less is better",
            figures: medians(&figures.packets),
            digits: 0,
        },
        Panel { title: "TCP, Gb/s per CPU: more is better", figures: medians(&figures.streams), digits: 1 },
        Panel { title: "Round trip, p50, µs: less is better", figures: medians(&figures.echoes), digits: 2 },
    ]);
}

/// No measurement: a few packets, round trips and bytes on every way.
pub fn smoke() {
    for path in Mode::ALL.into_iter().map(Path::new) {
        let bench = Bench::new(&path);
        path.sender.enter(|| bench.burst(256));
        drop(bench);
        path.napi(0, "ve0", false);
        echo::round(&path, 50);
        stream::round(&path, 1 << 20);
        println!("{}: 256 packets, 50 round trips and 1 MiB arrived", path.mode.name());
    }
}

fn measure(paths: &[Path]) -> Figures {
    let none = vec![Rounds::default(); paths.len()];
    let mut figures = Figures { packets: none.clone(), streams: none.clone(), echoes: none };
    let benches: Vec<Bench> = paths.iter().map(Bench::new).collect();
    for _ in 0..PACKET_ROUNDS {
        for (n, path) in paths.iter().enumerate() {
            figures.packets[n].0.push(path.sender.enter(|| benches[n].round()));
        }
    }
    drop(benches);
    paths.iter().for_each(|path| path.napi(0, "ve0", false));
    for _ in 0..ECHO_ROUNDS {
        for (n, path) in paths.iter().enumerate() {
            figures.echoes[n].0.push(echo::round(path, TRIPS));
        }
    }
    for _ in 0..STREAM_ROUNDS {
        for (n, path) in paths.iter().enumerate() {
            figures.streams[n].0.push(stream::round(path, BYTES));
        }
    }
    figures
}

/// Adds every ratio; answers with the rows of the table.
fn ratios(findings: &mut Findings, figures: &Figures) -> Vec<Vec<String>> {
    let at = |wanted: Mode| Mode::ALL.iter().position(|&mode| mode == wanted).unwrap();
    let (limit, kernel, clone) = (at(Mode::Plain), at(Mode::Bridge), at(Mode::Clone));
    let mut rows = Vec::new();
    for (n, mode) in Mode::ALL.into_iter().enumerate() {
        let Some(bars) = bars(mode) else { continue };
        let (packets, streams, echoes) = (&figures.packets, &figures.streams, &figures.echoes);
        let found = [
            ("packets", KERNEL, packets[kernel].ratio(&packets[n])),
            ("packets", LIMIT, packets[limit].ratio(&packets[n])),
            ("packets", CLONE, packets[clone].ratio(&packets[n])),
            ("tcp per cpu", KERNEL, streams[n].ratio(&streams[kernel])),
            ("round trip p50", KERNEL, echoes[n].ratio(&echoes[kernel])),
            ("round trip p50", LIMIT, echoes[n].ratio(&echoes[limit])),
        ];
        let mut row = vec![mode.name().to_owned()];
        for ((measure, peer, ratio), bar) in found.into_iter().zip(bars) {
            let ratio = Ratio { mode: mode.name().to_owned(), measure, peer: Some(peer), ratio, bar };
            row.push(ratio.cell());
            findings.ratios.push(ratio);
        }
        rows.push(row);
    }
    rows
}
