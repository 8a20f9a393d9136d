//! `tunkey2if` as it grows: the look-up by itself, other layouts of the same table, and packets on their whole way.

use crate::cpu;
use crate::objects::{Generator, Sink};
use crate::packets::Bench;
use crate::path::{Mode, Path, ifindex};
use crate::table::{Bar, Findings, Ratio, Rounds};
use aya::maps::{Array, HashMap};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use std::net::{IpAddr, Ipv4Addr};
use tunnel_mesh::bpf::Dataplane;
use tunnel_mesh::bpf::bare::Encoded;
use tunnel_mesh::model::{FIRST_MAPPING_SLOT, SlotRef, TunKey};
use tunnel_mesh::plan::slots_for;

static LOOKUP: &[u8] = include_bytes_aligned!(env!("TUNNEL_MESH_LOOKUP_OBJECT"));

/// LOOKUPS of the program.
const LOOKUPS: f64 = 32.0;
const ROUNDS: usize = 11;
/// Look-ups of a round, in runs of the program.
const RUNS: u32 = 20_000;
const MILLION: u32 = 1_000_000;
const MANY: u32 = 1 << 17;
const HOT: u32 = 64;

/// Buckets of a cache line with four keys each.
type Line = [u64; 8];

/// How many entries a table has room for.
#[derive(Clone, Copy)]
enum Room {
    /// As the maps are made for so many mappings.
    Made,
    /// None but its entries, a power of two.
    Full,
}

/// One table with as many entries, of which `drawn` are looked up.
struct Table {
    object: Ebpf,
    program: &'static str,
}

fn word(n: u32) -> u64 {
    (u64::from(n) + 1) << 40 | (0x0a00_0000 + u64::from(n))
}

impl Table {
    fn new(program: &'static str, room: Room, entries: u32, drawn: u32) -> Self {
        let lines = entries.next_power_of_two();
        let line_mask = lines - 1;
        let (entries, slots) = match room {
            Room::Made => (entries, slots_for(entries)),
            Room::Full => (lines, lines),
        };
        let mut loader = EbpfLoader::new();
        loader.btf(None).override_global("drawn", &drawn, true).override_global("line_mask", &line_mask, true);
        match program {
            "look_up" => loader.map_max_entries("tunkey2if", slots),
            "look_up_narrow" => loader.map_max_entries("narrow", slots),
            _ => loader.map_max_entries("lines", lines),
        };
        let mut object = loader.load(LOOKUP).unwrap();
        match program {
            "look_up" => {
                let mut map: HashMap<_, [u8; 24], [u8; 8]> = object.map_mut("tunkey2if").unwrap().try_into().unwrap();
                let keys: Vec<_> = (0..entries).map(|n| (key(1, n), slot_ref(FIRST_MAPPING_SLOT))).collect();
                for (key, value) in &Encoded::of(&keys, &[]).rows()[0] {
                    map.insert(<[u8; 24]>::try_from(*key).unwrap(), <[u8; 8]>::try_from(*value).unwrap(), 0).unwrap();
                }
            }
            "look_up_narrow" => {
                let mut map: HashMap<_, u64, u64> = object.map_mut("narrow").unwrap().try_into().unwrap();
                (0..entries).for_each(|n| map.insert(word(n), u64::from(FIRST_MAPPING_SLOT), 0).unwrap());
            }
            "look_up_lines" => {
                let mut table = vec![Line::default(); lines as usize];
                for n in 0..entries {
                    let hash = word(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                    let line = &mut table[(hash as u32 & line_mask) as usize];
                    // A full line is missed: an experiment measures what a found key costs.
                    if let Some(free) = line[..4].iter().position(|&key| key == 0) {
                        line[free] = word(n);
                        line[4 + free] = u64::from(FIRST_MAPPING_SLOT);
                    }
                }
                let mut map: Array<_, Line> = object.map_mut("lines").unwrap().try_into().unwrap();
                table.iter().enumerate().for_each(|(n, line)| map.set(n as u32, line, 0).unwrap());
            }
            _ => {}
        }
        let classifier: &mut SchedClassifier = object.program_mut(program).unwrap().try_into().unwrap();
        classifier.load().unwrap();
        Self { object, program }
    }

    /// Nanoseconds a look-up.
    fn round(&self) -> f64 {
        let classifier: &SchedClassifier = self.object.program(self.program).unwrap().try_into().unwrap();
        let mut options = TestRunOptions::new();
        let data = [0; 64];
        options.data_in = Some(&data);
        options.repeat = RUNS;
        let result = classifier.test_run(options).unwrap();
        if self.program != "look_up_nothing" {
            let missed = f64::from(result.return_value) / LOOKUPS;
            assert!(missed < 0.2, "{}: {missed:.2} of the keys were missed", self.program);
        }
        result.duration.as_nanos() as f64 / LOOKUPS
    }
}

fn key(tunnel: u32, n: u32) -> TunKey {
    TunKey { tunnel, id: n + 1, remote: IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)) }
}

fn slot_ref(slot: u32) -> SlotRef {
    SlotRef { slot, endpoint: false, valid: true }
}

pub fn run(findings: &mut Findings) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cpu::pin();
            look_ups(findings);
        });
    });
    packets(findings);
}

fn look_ups(findings: &mut Findings) {
    let tables = [
        ("one entry", Table::new("look_up", Room::Made, 1, 1)),
        ("1M entries, 64 of them hot", Table::new("look_up", Room::Made, MILLION, HOT)),
        ("1M entries, one of them hot", Table::new("look_up", Room::Made, MILLION, 1)),
        ("1M entries, 1k of them hot", Table::new("look_up", Room::Made, MILLION, 1024)),
        ("1M entries that fill their map, 64 of them hot", Table::new("look_up", Room::Full, MILLION, HOT)),
        ("128k entries, uniformly random", Table::new("look_up", Room::Made, MANY, MANY)),
        ("1M entries, uniformly random", Table::new("look_up", Room::Made, MILLION, MILLION)),
        ("key of 8 bytes, one entry", Table::new("look_up_narrow", Room::Made, 1, 1)),
        ("key of 8 bytes, 128k, uniformly random", Table::new("look_up_narrow", Room::Made, MANY, MANY)),
        ("array of cache lines, one entry", Table::new("look_up_lines", Room::Made, 1, 1)),
        ("array of cache lines, 128k, uniformly random", Table::new("look_up_lines", Room::Made, MANY, MANY)),
    ];
    let nothing = Table::new("look_up_nothing", Room::Made, 1, 1);
    let mut rounds = vec![Rounds::default(); tables.len()];
    for _ in 0..ROUNDS {
        let overhead = nothing.round();
        for ((_, table), rounds) in tables.iter().zip(&mut rounds) {
            rounds.0.push(table.round() - overhead);
        }
    }
    let mut rows = Vec::new();
    for (n, (what, _)) in tables.iter().enumerate() {
        let ratio = Ratio {
            mode: "tunkey2if".to_owned(),
            measure: what,
            peer: Some("one entry"),
            ratio: rounds[n].ratio(&rounds[0]),
            bar: (n == 1).then_some(Bar::AtMost(1.3)),
        };
        let figure = format!("{:.1} ({:.1})", rounds[n].median(), rounds[n].least());
        rows.push(vec![(*what).to_owned(), figure, ratio.cell()]);
        findings.ratios.push(ratio);
    }
    findings.table(&["`tunkey2if`", "ns a look-up: median (best)", "against one entry"], &rows);
}

/// From the underlay's wire to the receiver, with ever more keys in use.
fn packets(findings: &mut Findings) {
    let sizes: [(u32, &'static str); 3] = [(1, "1 key"), (1024, "1k random keys"), (MANY, "128k random keys")];
    let mut rows = Vec::new();
    for fast in [true, false] {
        let mode = Mode::Ours { endpoint: true, fast };
        let paths: Vec<(Path, Bench)> = sizes
            .iter()
            .map(|&(keys, _)| {
                let path = Path::new(mode);
                fill(&path, keys);
                path.napi(1, "u0", true);
                let generator = Generator::tunnel(&path.outer_frame(), ifindex(path.host(0), "u0"), keys);
                let sink = Sink::new(&path.receiver, "eth0");
                (path, Bench::of(generator, sink))
            })
            .collect();
        let mut rounds = vec![Rounds::default(); sizes.len()];
        for _ in 0..ROUNDS {
            for ((path, bench), rounds) in paths.iter().zip(&mut rounds) {
                rounds.0.push(path.host(0).enter(|| bench.round()));
            }
        }
        for (n, &(_, measure)) in sizes.iter().enumerate() {
            let ratio = rounds[n].ratio(&rounds[0]);
            let figure = format!("{:.0} ({:.0})", rounds[n].median(), rounds[n].least());
            rows.push(vec![mode.name().to_owned(), measure.to_owned(), figure, format!("{ratio:.2}x")]);
            let mode = mode.name().to_owned();
            findings.ratios.push(Ratio { mode, measure, peer: Some("1 key"), ratio, bar: None });
        }
    }
    findings.table(&["mode", "keys", "CPU ns a packet received: median (best)", "against 1 key"], &rows);
}

/// Maps the ids up to `keys` to the receiver, beside the one that the topology maps.
fn fill(path: &Path, keys: u32) {
    path.host(1).enter(|| {
        let mut dataplane = Dataplane::open_writer(&path.pins(1)).unwrap();
        let slots = slots_for(keys);
        if dataplane.capacity().unwrap() < slots {
            dataplane.grow_maps(slots).unwrap();
        }
        let (mapped, value) = dataplane.read_hashes().unwrap().0[0];
        let entries: Vec<_> = (1..=keys).map(|id| (TunKey { id, ..mapped }, value)).collect();
        dataplane.write_tunkey2if(&entries).unwrap();
    });
}
