//! What a change of a few files means is worked out from those files alone: it is always what all files together mean,
//! to the place of every line, and what is wrong with them is told in the same words.

#![allow(clippy::unwrap_used, missing_docs)]

use anyhow::{Result, bail};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tunnel_mesh::files::read::{Disk, Files, Listing, Stamp};
use tunnel_mesh::model::Desired;
use tunnel_mesh::reconcile::loader::Loader;
use tunnel_mesh::topology::{Changed, Compiled, NodeChoice, ParsedFile, SourceFile, diagnose, merge, parse};

const FILES: usize = 5;

/// A mapping as a file says it: few interfaces, ids and remotes, so that files often claim the same.
#[derive(Debug, Clone, Copy)]
struct Line {
    interface: u8,
    id: u32,
    far: u8,
    tunnel: Option<u8>,
    tenant: u8,
}

/// What a file becomes.
#[derive(Debug, Clone)]
enum Version {
    Gone,
    /// These mappings, below so many lines of comment.
    Mappings(Vec<Line>, usize),
    /// The same, and a tunnel, a node or a tenant.
    More(Vec<Line>, u8),
    /// Something that no file may say.
    Broken(u8),
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let line = (0u8..16, 0u32..24, 0u8..3, prop::option::weighted(0.3, 0u8..2), 0u8..3);
    let line = line.prop_map(|(interface, id, far, tunnel, tenant)| Line { interface, id, far, tunnel, tenant });
    prop::collection::vec(line, 0..5)
}

/// Mostly mappings that get on with each other: each file has interfaces and ids of its own.
fn own(file: usize) -> impl Strategy<Value = Vec<Line>> {
    let own = prop::collection::btree_map(0u8..6, (0u32..3, 0u8..2, 0u8..2), 0..6);
    own.prop_map(move |own| {
        let line = |(n, (id, far, tenant)): (u8, (u32, u8, u8))| Line {
            interface: 20 + file as u8 * 6 + n,
            id: 100 + u32::from(n) * 3 + id + file as u32 * 20,
            far,
            tunnel: None,
            tenant,
        };
        own.into_iter().map(line).collect()
    })
}

fn version(file: usize) -> impl Strategy<Value = Version> {
    prop_oneof![
        1 => Just(Version::Gone),
        6 => (own(file), 0usize..3).prop_map(|(lines, above)| Version::Mappings(lines, above)),
        2 => (lines(), 0usize..3).prop_map(|(lines, above)| Version::Mappings(lines, above)),
        1 => (own(file), 0u8..3).prop_map(|(lines, what)| Version::More(lines, what)),
        1 => (0u8..6).prop_map(Version::Broken),
    ]
}

/// Which files change in a step, and to what.
fn steps() -> impl Strategy<Value = Vec<Vec<(usize, Version)>>> {
    let change = (0..FILES).prop_flat_map(|file| (Just(file), version(file)));
    prop::collection::vec(prop::collection::vec(change, 1..4), 1..12)
}

fn text(version: &Version) -> Option<String> {
    let mappings = |lines: &[Line]| {
        let each = lines.iter().map(|line| {
            let tunnel = line.tunnel.map(|n| format!(", tunnel: v{n}")).unwrap_or_default();
            let Line { interface, id, far, tenant, .. } = line;
            format!(
                "  - {{tenant: t{tenant}, interface: e{interface}, id: {id}, remote: 10.0.0.{}{tunnel}}}\n",
                far + 2
            )
        });
        let all: String = each.collect();
        if all.is_empty() { all } else { format!("mappings:\n{all}") }
    };
    let more =
        ["tunnels: {v0: {kind: vxlan, local: 10.1.0.1}}\n", "nodes: {far: 10.0.0.9}\n", "tenants: {t: {id: 9}}\n"];
    let broken = [
        "mappings:\n",
        "mappings: [",
        "mapings: []\n",
        "mappings: [{interface: e1, id: 1, remote: 10.1.0.1}]\n",
        "mappings: [{interface: e1, id: 99999999, remote: 10.0.0.2}]\n",
        "mappings: [{interface: e1/x, id: 1, remote: 224.0.0.1}]\n",
    ];
    Some(match version {
        Version::Gone => return None,
        Version::Mappings(lines, above) => format!("{}version: 1\n{}", "# above\n".repeat(*above), mappings(lines)),
        Version::More(lines, what) => format!("version: 1\n{}{}", more[usize::from(*what)], mappings(lines)),
        Version::Broken(what) => format!("version: 1\n{}", broken[usize::from(*what)]),
    })
}

/// A directory in memory.
#[derive(Default)]
struct Memory {
    files: RefCell<BTreeMap<PathBuf, (String, Stamp)>>,
    /// One that can't be read this time.
    unreadable: RefCell<Option<PathBuf>>,
    reads: Cell<u64>,
}

/// A stamp that no other file version has.
fn stamp(n: u64) -> Stamp {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![b'x'; n as usize]).unwrap();
    Files.list(&[file.path().to_owned()]).unwrap()[0].1.clone()
}

impl Disk for &Memory {
    fn list(&self, _: &[PathBuf]) -> Result<Listing> {
        Ok(self.files.borrow().iter().map(|(path, (_, stamp))| (path.clone(), stamp.clone())).collect())
    }

    fn read(&self, path: &Path) -> Result<(SourceFile, Stamp)> {
        self.reads.set(self.reads.get() + 1);
        if self.unreadable.borrow_mut().take_if(|p| p == path).is_some() {
            bail!("read {}: not now", path.display());
        }
        let (text, stamp) = self.files.borrow()[path].clone();
        Ok((SourceFile { name: path.display().to_string(), text: text.into_bytes() }, stamp))
    }

    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }
}

fn path(file: usize) -> PathBuf {
    PathBuf::from(format!("/t/{file}.yaml"))
}

/// What all files together mean, or what is wrong with them.
fn whole(files: &BTreeMap<PathBuf, (String, Stamp)>) -> Result<Desired, String> {
    let parsed: Vec<ParsedFile> = files
        .iter()
        .map(|(path, (text, _))| parse(&SourceFile { name: path.display().to_string(), text: text.clone().into() }))
        .collect();
    let node = NodeChoice::Named("n0".to_owned());
    let compiled = merge(&parsed).and_then(|topology| topology.compile(&node));
    compiled.map_err(|_| {
        diagnose(&parsed, Some(&node)).iter().map(|d| format!("{} {:?} {}\n", d.code, d.place, d.message)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    /// Whatever files become, one after the other and several at once.
    #[test]
    fn following_changes_is_the_same_as_reading_everything_anew(steps in steps(), unreadable in prop::option::of(0usize..12)) {
        let memory = Memory::default();
        let head = "version: 1\nnodes: {n0: 10.1.0.1, n1: 10.0.0.7}\ntunnels: {v0: {kind: vxlan, local: 10.1.0.1}}\n";
        memory.files.borrow_mut().insert(PathBuf::from("/t/head.yaml"), (head.to_owned(), stamp(1)));
        let mut loader = Loader::with_disk(&memory, vec![PathBuf::from("/t")], Some("n0"));
        prop_assert!(loader.load().is_ok());
        for (n, step) in steps.iter().enumerate() {
            for (file, version) in step {
                let text = text(version);
                memory.files.borrow_mut().remove(&path(*file));
                if let Some(text) = text {
                    memory.files.borrow_mut().insert(path(*file), (text, stamp(n as u64 + 2)));
                }
            }
            if unreadable == Some(n) {
                // Half of the changes may have been read by then.
                *memory.unreadable.borrow_mut() = step.last().map(|(file, _)| path(*file));
                let refused = loader.load().is_err();
                let missed = memory.unreadable.borrow_mut().take().is_some();
                prop_assert!(refused || missed || whole(&memory.files.borrow()).is_ok());
            }
            let loaded = loader.load().map_err(|rejected| rejected.to_string());
            match (loaded, whole(&memory.files.borrow())) {
                (Ok(followed), Ok(whole)) => prop_assert_eq!(&*followed, &whole),
                (Err(told), Err(wrong)) => {
                    prop_assert_eq!(told.lines().count(), wrong.lines().count(), "{}\n{}", told, wrong);
                    for (told, wrong) in told.lines().zip(wrong.lines()) {
                        let code = wrong.split(' ').next().unwrap();
                        prop_assert!(told.contains(code), "{} {}", told, wrong);
                    }
                }
                (loaded, whole) => prop_assert!(false, "{loaded:?}\n{whole:?}"),
            }
        }
    }
}

fn parsed(name: &str, text: &str) -> ParsedFile {
    parse(&SourceFile { name: name.to_owned(), text: text.into() }).slim()
}

/// The ordinary change is followed, and not left to the compilation of all files; what it means for others isn't.
#[test]
fn the_ordinary_change_is_followed_and_the_others_are_not() {
    let head = parsed("head", "version: 1\ntunnels: {v0: {kind: vxlan, local: 10.1.0.1}}\n");
    let line = |interface: &str, id: u32| format!("- {{interface: {interface}, id: {id}, remote: 10.0.0.2}}\n");
    let file = |name: &str, lines: &[String]| parsed(name, &format!("version: 1\nmappings:\n{}", lines.concat()));
    let one = file("1", &[line("a", 1), line("b", 2)]);
    let two = file("2", &[line("c", 3)]);
    let compiled = Compiled::all([&head, &one, &two], &NodeChoice::Unknown).unwrap();
    let follow = |compiled: &Compiled, after: Option<&ParsedFile>| {
        let files = [Some(&head), after, Some(&two)];
        let changed = [Changed { before: Some(&one), after }];
        let followed = compiled.follow(files.into_iter().flatten(), &changed);
        if let Some(followed) = &followed {
            let all = Compiled::all(files.into_iter().flatten(), &NodeChoice::Unknown).unwrap();
            assert_eq!(followed.desired(), all.desired());
        }
        followed.map(|f| Arc::clone(f.desired()))
    };
    // Another key, an interface that goes, one that comes, all go.
    for lines in [vec![line("a", 9), line("b", 2)], vec![line("a", 1)], vec![line("a", 1), line("b", 2), line("d", 4)]]
    {
        assert!(follow(&compiled, Some(&file("1", &lines))).is_some(), "{lines:?}");
    }
    assert!(follow(&compiled, None).is_some());
    // Keys that are exchanged within the file.
    assert!(follow(&compiled, Some(&file("1", &[line("a", 2), line("b", 1)]))).is_some());
    // Written anew with the same content: the very same state.
    assert!(Arc::ptr_eq(&follow(&compiled, Some(&one)).unwrap(), compiled.desired()));
    // Another file's interface, another file's key, the same mapping said twice, more than mappings, what is wrong.
    for lines in [vec![line("c", 9)], vec![line("a", 3)], vec![line("c", 3)], vec![line("a", 0x0100_0000)]] {
        assert_eq!(follow(&compiled, Some(&file("1", &lines))), None, "{lines:?}");
    }
    assert_eq!(follow(&compiled, Some(&parsed("1", "version: 1\nnodes: {n: 10.0.0.9}\n"))), None);
    // Said twice already: it goes only when nobody says it any more.
    let twice = file("3", &[line("a", 1)]);
    let files = [&head, &one, &two, &twice];
    let compiled = Compiled::all(files, &NodeChoice::Unknown).unwrap();
    let changed = [Changed { before: Some(&one), after: None }];
    assert!(compiled.follow([&head, &two, &twice], &changed).is_none());
}
