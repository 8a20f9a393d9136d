//! The topology: cases in folders, published examples, properties.

#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tunnel_mesh::model::*;
use tunnel_mesh::topology::render::{Form, Look, render};
use tunnel_mesh::topology::{Diagnostic, NodeChoice, ParsedFile, SourceFile, Topology, diagnose, guard, merge, parse};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The YAML files of a folder, by their bare names, sorted.
fn sources(folder: &Path) -> Vec<SourceFile> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    let name = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|p| SourceFile { name: name(p), text: std::fs::read(p).unwrap() }).collect()
}

fn folders(under: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(under).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.is_dir()).collect();
    all.sort();
    assert!(!all.is_empty(), "no folder in {}", under.display());
    all
}

fn topology(sources: &[SourceFile]) -> Result<Topology, Vec<Diagnostic>> {
    merge(&sources.iter().map(parse).collect::<Vec<_>>())
}

fn compile(text: &str, node: &str) -> Result<Desired, Vec<Diagnostic>> {
    let source = SourceFile { name: "t.yaml".to_owned(), text: text.as_bytes().to_vec() };
    topology(&[source])?.compile(&NodeChoice::Named(node.to_owned()))
}

/// A folder is a case: its YAML files, the node `host0`, and in `expected.txt` the state or the errors.
/// `UPDATE_CASES=1` writes what comes out; read it before you commit it.
#[test]
fn every_case_gives_what_it_says() {
    let mut wrong = Vec::new();
    for case in folders(&root().join("tests/cases")) {
        let sources = sources(&case);
        let choice = NodeChoice::Host("host0.example.org".to_owned());
        let parsed: Vec<ParsedFile> = sources.iter().map(parse).collect();
        let diagnostics = diagnose(&parsed, Some(&choice));
        let found = match topology(&sources).and_then(|t| t.compile(&choice)) {
            Ok(desired) if diagnostics.is_empty() => serde_yaml::to_string(&desired).unwrap(),
            Ok(_) => panic!("{} is right, and wrong", case.display()),
            Err(_) => render(&diagnostics, &sources, Form::Text, Look::default()),
        };
        let expected = case.join("expected.txt");
        if std::env::var_os("UPDATE_CASES").is_some() {
            std::fs::write(&expected, &found).unwrap();
        }
        if std::fs::read_to_string(&expected).ok().as_ref() != Some(&found) {
            wrong.push(format!("{}:\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Codes in a text: `TM` and four digits.
fn codes(text: &str) -> BTreeSet<String> {
    let found = text.match_indices("TM").filter_map(|(at, _)| text.get(at..at + 6));
    found.filter(|code| code[2..].bytes().all(|b| b.is_ascii_digit())).map(str::to_owned).collect()
}

fn texts(under: &Path, extension: &str) -> String {
    let entries = std::fs::read_dir(under).unwrap().map(|e| e.unwrap().path());
    let text = |path: PathBuf| match path.is_dir() {
        true => texts(&path, extension),
        false if path.extension().is_some_and(|e| e == extension) => std::fs::read_to_string(&path).unwrap(),
        false => String::new(),
    };
    entries.map(text).collect()
}

#[test]
fn every_code_is_explained_and_tested() {
    let source = codes(&texts(&root().join("src"), "rs"));
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    assert!(source.len() > 30, "{source:?}");
    assert_eq!(source, codes(&page), "docs/errors.md lists exactly the codes that there are");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| TM")).collect();
    assert_eq!(rows.len(), source.len(), "one row a code");
    let mut tested = codes(&texts(&root().join("tests/cases"), "txt"));
    tested.extend(codes(&texts(&root().join("tests/snapshots"), "snap")));
    tested.extend(codes(include_str!("topology.rs")));
    assert_eq!(source.difference(&tested).collect::<Vec<_>>(), Vec::<&String>::new(), "codes that no test expects");
}

#[test]
fn every_error_says_what_to_do() {
    for case in folders(&root().join("tests/cases")) {
        let parsed: Vec<ParsedFile> = sources(&case).iter().map(parse).collect();
        for diagnostic in diagnose(&parsed, Some(&NodeChoice::Host("host0".to_owned()))) {
            assert!(diagnostic.help.is_some(), "{}: {diagnostic:?}", case.display());
        }
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let only = |text: String| {
        let source = SourceFile { name: "t.yaml".to_owned(), text: text.into_bytes() };
        let diagnostics = diagnose(&[parse(&source)], None);
        assert!(diagnostics.iter().all(|d| d.help.is_some()));
        diagnostics.into_iter().map(|d| d.code).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(only(" ".repeat((16 << 20) + 1)), ["TM0002"]);
    let tunnels: String = (0..64).map(|n| format!("  v{n}: {{kind: vxlan, port: {}}}\n", 5000 + n)).collect();
    assert_eq!(only(format!("version: 1\ntunnels:\n{tunnels}")), ["TM0222"]);
    let nodes: String = (0..1025).map(|n| format!("  n{n}: 10.0.{}.{}\n", n / 250, n % 250 + 1)).collect();
    let rest = "tunnels: {v: {kind: vxlan}}\ntenants: {t: {id: 1, bridge: b}}\n";
    assert_eq!(only(format!("version: 1\nnodes:\n{nodes}{rest}")), ["TM0215"]);
}

#[test]
fn every_example_is_right_on_every_node() {
    for folder in folders(&root().join("examples/topologies")) {
        let sources = sources(&folder);
        let topology =
            topology(&sources).unwrap_or_else(|d| panic!("{}", render(&d, &sources, Form::Text, Look::default())));
        assert_eq!(topology.check(), Ok(()), "{}", folder.display());
        let mut mappings = 0;
        let nodes = topology.nodes();
        for node in
            nodes.iter().map(|n| NodeChoice::Named(n.clone())).chain(nodes.is_empty().then_some(NodeChoice::Unknown))
        {
            mappings += topology.compile(&node).unwrap().mappings.len();
        }
        let expected = match folder.file_name().unwrap().to_str().unwrap() {
            "two-node" => 2,
            "full-mesh" | "dual-stack" => 12,
            "wires" => 4,
            "ansible" => 3,
            other => panic!("say how many mappings the example {other} has, all nodes together"),
        };
        assert_eq!(mappings, expected, "{}", folder.display());
    }
}

#[test]
fn mappings_of_one_host_are_checked_for_no_host_in_particular() {
    let check = |text: &str| {
        let source = SourceFile { name: "t.yaml".to_owned(), text: text.as_bytes().to_vec() };
        let codes = |list: Vec<Diagnostic>| list.iter().map(|d| d.code.to_owned()).collect::<Vec<_>>();
        topology(&[source]).and_then(|t| t.check()).map_err(codes)
    };
    let nodes = "version: 1\nnodes: {host0: 10.0.0.1, host1: 10.0.0.2}\ntunnels: {v: {kind: vxlan}}\n";
    let mapping = "mappings: [{interface: e0, id: 1, remote: 10.0.0.2}]\n";
    let tenant = "tenants: {t: {id: 2, bridge: b}}\n";
    assert_eq!(check(&format!("{nodes}{mapping}")), Ok(()), "the source is the node's that it will be");
    assert_eq!(check(&format!("{nodes}{mapping}{tenant}")), Ok(()), "no node is this host yet");
    let six = mapping.replace("10.0.0.2", "fd00::2");
    assert_eq!(check(&format!("{nodes}{six}{tenant}")), Err(vec!["TM0205".to_owned()]), "no node has such a source");
    let own = nodes.replace("{kind: vxlan}", "{kind: vxlan, local: 10.0.0.2}");
    assert_eq!(check(&format!("{own}{mapping}")), Err(vec!["TM0208".to_owned()]));
}

#[test]
fn gretap_comes_to_one_family_at_both_ends() {
    let text = "version: 1\nnodes: {a: [10.0.0.1, 'fd00::1'], b: ['fd00::2', 10.0.0.2]}\n\
                tunnels: {g: {kind: gretap}}\ntenants: {t: {id: 2, bridge: br}}\n";
    let remotes = ["a", "b"].map(|node| compile(text, node).unwrap().mappings.into_values().next().unwrap().key.remote);
    assert_eq!(remotes.map(|r| r.to_string()), ["10.0.0.2", "10.0.0.1"]);
}

#[test]
fn a_hundred_kilobytes_of_brackets_are_refused_before_they_are_parsed() {
    for bracket in ["[", "{", "[{"] {
        let source = SourceFile { name: "t.yaml".to_owned(), text: bracket.repeat(100_000).into_bytes() };
        let parsed = parse(&source);
        assert_eq!(parsed.diagnostics()[0].code, "TM0003");
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("version: 1\nnodes:\n  a0: &a0 [10.0.0.1]\n");
    for n in 1..40 {
        text.push_str(&format!("  a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1));
    }
    let parsed = parse(&SourceFile { name: "t.yaml".to_owned(), text: text.into_bytes() });
    assert_eq!(parsed.diagnostics()[0].code, "TM0004");
}

#[test]
fn the_host_name_decides_exactly_first_then_by_its_first_label() {
    let text = "version: 1\nnodes: {host0: 10.0.0.1, host0.b: 10.0.0.2}\ntunnels: {v: {kind: vxlan}}\ntenants: {t: {id: 1, bridge: b}}\n";
    let topology = topology(&[SourceFile { name: "t".to_owned(), text: text.into() }]).unwrap();
    let choose = |host: &str| topology.choose(&NodeChoice::Host(host.to_owned()));
    assert_eq!(choose("host0.b").unwrap().as_deref(), Some("host0.b"));
    assert_eq!(choose("host0.c").unwrap().as_deref(), Some("host0"));
    let refused = choose("elsewhere").unwrap_err();
    assert_eq!(refused[0].code, "TM0217");
    assert!(refused[0].help.as_ref().unwrap().contains("host0, host0.b"));
}

fn mesh(nodes: usize, tenants: &[(u32, Vec<usize>)]) -> String {
    let mut text = String::from("version: 1\nnodes:\n");
    for n in 0..nodes {
        text.push_str(&format!("  n{n}: [10.0.0.{}, 'fd00::{n}:1']\n", n + 1));
    }
    text.push_str("tunnels: {v0: {kind: vxlan, create: true}}\ntenants:\n");
    for (t, (id, members)) in tenants.iter().enumerate() {
        let names: Vec<String> = members.iter().map(|m| format!("n{m}")).collect();
        text.push_str(&format!("  t{t}: {{id: {id}, bridge: br{t}, members: [{}]}}\n", names.join(", ")));
    }
    text
}

fn meshes() -> impl Strategy<Value = (usize, Vec<(u32, Vec<usize>)>)> {
    (2usize..6).prop_flat_map(|nodes| {
        let members = prop::sample::subsequence((0..nodes).collect::<Vec<_>>(), 2..=nodes);
        let tenants = prop::collection::vec(members, 1..5)
            .prop_map(|all| all.into_iter().enumerate().map(|(n, m)| (n as u32 + 1, m)).collect());
        (Just(nodes), tenants)
    })
}

proptest! {
    /// Every mapping has its mirror on the other host: same id, remote and local swapped.
    #[test]
    fn a_mesh_is_symmetrical((nodes, tenants) in meshes()) {
        let text = mesh(nodes, &tenants);
        let all: Vec<Desired> = (0..nodes).map(|n| compile(&text, &format!("n{n}")).unwrap()).collect();
        for desired in &all {
            for mapping in desired.mappings.values() {
                let other = &mapping.generated.as_ref().unwrap().node;
                let far = all.iter().find(|d| d.node.as_ref() == Some(other)).unwrap();
                let mirrors = far.mappings.values().filter(|m| {
                    m.tenant == mapping.tenant && m.key.id == mapping.key.id && m.key.remote == mapping.local && m.local == mapping.key.remote
                });
                prop_assert_eq!(mirrors.count(), 1);
            }
        }
        let expected: usize = tenants.iter().map(|(_, m)| m.len() * (m.len() - 1)).sum();
        prop_assert_eq!(all.iter().map(|d| d.mappings.len()).sum::<usize>(), expected);
    }

    /// Neither the order of files nor how the same content is spread over them has a meaning.
    #[test]
    fn files_merge_in_any_order((nodes, tenants) in meshes(), swap in any::<bool>()) {
        let text = mesh(nodes, &tenants);
        let (head, tail) = text.split_at(text.find("tenants:").unwrap());
        let one = SourceFile { name: "a.yaml".to_owned(), text: head.into() };
        let two = SourceFile { name: "b.yaml".to_owned(), text: format!("version: 1\n{tail}").into() };
        let split = if swap { [two, one] } else { [one, two] };
        let whole = compile(&text, "n0").unwrap();
        let merged = topology(&split).unwrap().compile(&NodeChoice::Named("n0".to_owned())).unwrap();
        prop_assert_eq!(&merged.revision, &whole.revision);
        let places = |d: &Desired| d.mappings.values().map(|m| (m.interface.clone(), m.key.clone())).collect::<Vec<_>>();
        prop_assert_eq!(places(&merged), places(&whole));
    }

    /// Whatever the bytes are, reading them ends with a result and not with a panic.
    #[test]
    fn no_bytes_make_the_reader_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let source = SourceFile { name: "t".to_owned(), text };
        if let Ok(topology) = topology(std::slice::from_ref(&source)) {
            drop(topology.check());
        }
    }

    /// The same for text that is nearly a topology.
    #[test]
    fn no_damaged_topology_makes_the_reader_panic((nodes, tenants) in meshes(), cut in any::<prop::sample::Index>(), junk in "[\\[\\]{}&*:,'\" a-z0-9\\n-]{0,6}") {
        let mut text = mesh(nodes, &tenants);
        text.insert_str(cut.index(text.len()), &junk);
        let source = SourceFile { name: "t".to_owned(), text: text.into_bytes() };
        match topology(std::slice::from_ref(&source)).and_then(|t| t.check()) {
            Ok(()) => {}
            Err(diagnostics) => {
                for form in [Form::Text, Form::Short, Form::Github, Form::Json] {
                    prop_assert!(!render(&diagnostics, std::slice::from_ref(&source), form, Look::default()).is_empty());
                }
            }
        }
    }

    /// The guard lets few removals pass, holds many, and always holds all.
    #[test]
    fn the_guard_holds_what_the_contract_says(total in 1usize..60, gone in 0usize..60) {
        let gone = gone.min(total);
        let desired = |range: std::ops::Range<usize>| {
            let mut text = String::from("version: 1\ntunnels: {v0: {kind: vxlan, local: 10.1.0.1}}\n");
            for (n, i) in range.enumerate() {
                if n == 0 {
                    text.push_str("mappings:\n");
                }
                text.push_str(&format!("  - {{interface: e{i}, id: {i}, remote: 10.0.0.2}}\n"));
            }
            compile(&text, "x").unwrap()
        };
        let verdict = guard::check(&desired(0..total), &desired(gone..total));
        prop_assert_eq!(verdict.removed.len(), gone);
        let many = gone >= 10 && gone * 10 > total * 3;
        prop_assert_eq!(verdict.held, many || gone == total);
    }
}
