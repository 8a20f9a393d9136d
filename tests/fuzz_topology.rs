//! The reader of topology files under arbitrary bytes and mutated topologies: it never panics, every place that it names
//! is in the file, and what it accepts satisfies the JSON Schema.
//!
//! A short run by default; `FUZZ_INPUTS=1000000` for a long one, `FUZZ_SEED` for another one. A failure names the seed and
//! the number of its input, which is made again by itself with `FUZZ_SEED=… FUZZ_ONLY=…`; `FUZZ_FROM` goes on from one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;
use tunnel_mesh::topology::render::{Form, Look, render};
use tunnel_mesh::topology::{NodeChoice, SourceFile, diagnose, merge, parse, schema};

/// A generator that gives the same everywhere (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Pieces that mean something to YAML or to a topology.
const PIECES: [&str; 62] = [
    "version: 1",
    "version: 2",
    "nodes:",
    "tunnels:",
    "mappings:",
    "tenants:",
    "kind: vxlan",
    "kind: gretap",
    "port: 0",
    "port: 65536",
    "create: true",
    "local: 10.0.0.1",
    "local: [10.0.0.1, 'fd00::1']",
    "family: ipv6",
    "mtu: 40",
    "ttl: 0",
    "tos: inherit",
    "id: 16777216",
    "id: -1",
    "id: 1.5",
    "id: 0x10",
    "remote: 10.0.0.2",
    "remote: ::ffff:1.2.3.4",
    "interface: eth0",
    "interface: a-name-that-is-too-long",
    "attach: endpoint",
    "bridge: br0",
    "members: [host0, host1]",
    "members: {host0: {interface: e0}, host1: }",
    "tenant: red",
    "tunnel: v0",
    "interfcae: eth0",
    "- ",
    "? ",
    ": ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!x ",
    "|\n ",
    ">-\n ",
    "\n---\n",
    "\n...\n",
    "%YAML 1.2\n",
    "#",
    "\"",
    "'",
    "~",
    "null",
    "\t",
    "\r",
    "\u{feff}",
    "\u{2028}",
    "é",
    "\0",
    "  ",
];

/// Texts to start from, right ones first, and how many those are.
fn corpus() -> (Vec<Vec<u8>>, usize) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut out = Vec::new();
    let mut folders = vec![root.join("tests/cases"), root.join("examples/topologies")];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            match path.extension().and_then(|e| e.to_str()) {
                None => folders.push(path),
                Some("yaml" | "yml") => out.push(std::fs::read(path).unwrap()),
                Some(_) => {}
            }
        }
    }
    assert!(out.len() > 30);
    let valid = |text: &Vec<u8>| {
        let parsed = parse(&SourceFile { name: "t.yaml".to_owned(), text: text.clone() });
        diagnose([&parsed], Some(&NodeChoice::Named("host0".to_owned()))).is_empty()
    };
    let (mut all, wrong): (Vec<Vec<u8>>, Vec<Vec<u8>>) = out.into_iter().partition(valid);
    let right = all.len();
    all.extend(wrong);
    (all, right)
}

/// Lines of a text, as bytes, with their ends.
fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
}

fn mutate(dice: &mut Dice, text: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = dice.below(text.len() + 1);
    let end = (at + dice.below(12)).min(text.len());
    match dice.below(11) {
        0 => drop(text.splice(at..at, dice.of(&PIECES).bytes())),
        1 => drop(text.splice(at..end, dice.of(&PIECES).bytes())),
        2 => drop(text.drain(at..end)),
        3 => text.truncate(at),
        4 => {
            if at < text.len() {
                text[at] ^= 1 << dice.below(8);
            }
        }
        5 => drop(text.splice(at..at, [dice.roll() as u8])),
        // Words change places, keep their neighbours.
        6 => {
            let other = dice.below(text.len() + 1);
            let piece = text[at..end].to_vec();
            drop(text.splice(other..other, piece));
        }
        // Whole lines: twice, away, elsewhere, from somewhere else, deeper.
        7..=9 => {
            let mut all = lines(text);
            let n = dice.below(all.len());
            let foreign = lines(dice.of::<Vec<u8>>(corpus));
            let line = all.get(n).cloned().unwrap_or_default();
            match dice.below(5) {
                0 => all.insert(n, line),
                1 if n < all.len() => drop(all.remove(n)),
                2 => {
                    let to = dice.below(all.len() + 1);
                    all.insert(to, line);
                }
                3 => all.insert(n, dice.of(&foreign).clone()),
                _ => {
                    if let Some(line) = all.get_mut(n) {
                        drop(line.splice(0..0, *b"  "));
                    }
                }
            }
            *text = all.concat();
        }
        // A key in it is spelt wrongly.
        _ => {
            let words: Vec<usize> = text.windows(2).enumerate().filter(|(_, w)| w == b": ").map(|(n, _)| n).collect();
            if let Some(end) = words.get(dice.below(words.len())).copied().filter(|end| *end >= 2) {
                text.swap(end - 1, end - 2);
            }
        }
    }
}

/// One input. The first `right` texts of the corpus are right ones.
fn input(seed: u64, number: u64, corpus: &[Vec<u8>], right: usize) -> Vec<u8> {
    let mut dice = Dice(seed ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03));
    if dice.below(10) == 0 {
        return (0..dice.below(200)).map(|_| dice.roll() as u8).collect();
    }
    if dice.below(10) == 0 {
        return (0..dice.below(40)).flat_map(|_| format!("{}\n", dice.of(&PIECES)).into_bytes()).collect();
    }
    let from = if dice.below(3) == 0 { corpus } else { &corpus[..right] };
    let mut text = dice.of::<Vec<u8>>(from).clone();
    for _ in 0..=dice.below(4) {
        mutate(&mut dice, &mut text, corpus);
    }
    text
}

fn json(value: serde_yaml::Value) -> Option<serde_json::Value> {
    Some(match value {
        serde_yaml::Value::Sequence(list) => {
            serde_json::Value::Array(list.into_iter().map(json).collect::<Option<_>>()?)
        }
        serde_yaml::Value::Mapping(entries) => {
            let mut out = serde_json::Map::new();
            for (key, value) in entries {
                let key = match key {
                    serde_yaml::Value::String(text) => text,
                    other => json(other)?.to_string(),
                };
                out.insert(key, json(value)?);
            }
            serde_json::Value::Object(out)
        }
        serde_yaml::Value::Tagged(_) => return None,
        other => serde_json::to_value(other).ok()?,
    })
}

/// Reads one input in every way there is; says what isn't right. Returns whether it was accepted, and whether its
/// mistakes are ones of meaning.
fn check(text: Vec<u8>, schema: &jsonschema::Validator) -> (bool, bool) {
    let file = SourceFile { name: "t.yaml".to_owned(), text };
    let parsed = parse(&file);
    let choice = NodeChoice::Named("host0".to_owned());
    let diagnostics = diagnose([&parsed], Some(&choice));
    let whole = diagnose([&parsed], None);
    let lines = String::from_utf8_lossy(&file.text).lines().count().max(1) + 1;
    for d in diagnostics.iter().chain(&whole) {
        assert!(d.code.starts_with("TM0") && d.help.is_some() && !d.message.is_empty(), "{d:?}");
        let places = std::iter::once(&d.place).chain(d.related.iter().map(|r| &r.place));
        for place in places {
            // YAML ends lines in more ways than most.
            let breaks = file.text.iter().filter(|b| matches!(b, b'\r' | 0x85 | 0xa8 | 0xa9)).count();
            assert!(place.line >= 1 && place.column >= 1 && place.length >= 1, "{d:?}");
            assert!(place.line as usize <= lines + breaks, "{d:?} is beyond {lines} lines");
        }
    }
    for form in [Form::Text, Form::Short, Form::Github, Form::Json] {
        let text = render(&diagnostics, std::slice::from_ref(&file), form, Look { color: false, width: Some(60) });
        assert!(diagnostics.is_empty() || !text.is_empty());
        assert!(form != Form::Short || text.lines().count() >= diagnostics.len());
    }
    // What one way of reading accepts the other does, too.
    let compiled = merge([&parsed]).and_then(|topology| topology.compile(&choice));
    assert_eq!(compiled.is_ok(), diagnostics.is_empty(), "{diagnostics:?}");
    if diagnostics.is_empty() && whole.is_empty() {
        let text = std::str::from_utf8(file.content()).unwrap();
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = <serde_yaml::Value as serde::Deserialize>::deserialize(document);
            let value = value.unwrap_or_else(|error| panic!("accepted, and not by another reader: {error}"));
            let Some(value) = (!value.is_null()).then_some(value).and_then(json) else { continue };
            let errors: Vec<String> =
                schema.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
            assert!(errors.is_empty(), "accepted, and not by the schema: {errors:?}");
        }
    }
    (diagnostics.is_empty(), parsed.diagnostics().is_empty())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn the_reader_survives_anything_and_accepts_only_what_the_schema_does() {
    let (inputs, seed) = (number("FUZZ_INPUTS", 4000), number("FUZZ_SEED", 2026));
    let only = std::env::var("FUZZ_ONLY").ok().map(|text| text.parse::<u64>().unwrap());
    let schema = jsonschema::options().should_validate_formats(true).build(&schema()).unwrap();
    let (corpus, right) = corpus();
    let (mut accepted, mut formed) = (0u64, 0u64);
    let from = number("FUZZ_FROM", 0);
    for n in only.map_or(from..inputs, |n| n..n + 1) {
        let text = input(seed, n, &corpus, right);
        if only.is_some() {
            eprintln!("{}", String::from_utf8_lossy(&text));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(text.clone(), &schema)));
        let (valid, form) = outcome.unwrap_or_else(|_| {
            panic!("FUZZ_SEED={seed} FUZZ_ONLY={n}:\n{}", String::from_utf8_lossy(&text));
        });
        accepted += u64::from(valid);
        formed += u64::from(form);
    }
    let inputs = inputs - from;
    println!("{inputs} inputs with seed {seed}: {formed} right in form, {accepted} right in meaning");
    if only.is_none() {
        // Mutants that die at once would prove little.
        assert!(
            accepted * 50 > inputs && formed * 20 > inputs,
            "{accepted} of {inputs} accepted, {formed} well-formed"
        );
    }
}
