//! Files that vanish, are cut off or change while they are read: nothing is taken over that nobody wrote, nothing goes
//! that was not seen gone twice, errors are told as long as they last, and when it is quiet the files are in force.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "faulty/dice.rs"]
mod dice;

use anyhow::Result;
use dice::Dice;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tunnel_mesh::files::accepted::Accepted;
use tunnel_mesh::files::read::{Disk, Files, Listing, Stamp};
use tunnel_mesh::model::{Desired, Intent};
use tunnel_mesh::reconcile::acceptance::Acceptance;
use tunnel_mesh::reconcile::intent::Cause;
use tunnel_mesh::reconcile::loader::Loader;
use tunnel_mesh::topology::{NodeChoice, SourceFile, merge, parse};

/// Schedules in an ordinary run.
const SCHEDULES: u64 = 600;

const HEAD: &str = "version: 1\ntunnels: {v0: {kind: vxlan, local: 10.1.0.1}}\n";

/// Mappings that one file has: interfaces by number, each with its id.
type Content = BTreeMap<u32, u32>;

/// The text of file `n`, of which the first also declares the tunnel.
fn text(n: usize, content: &Content) -> String {
    let head = if n == 0 { HEAD } else { "version: 1\n" };
    let lines: String =
        content.iter().map(|(i, id)| format!("  - {{interface: e{i}, id: {id}, remote: 10.0.0.2}}\n")).collect();
    if lines.is_empty() { head.to_owned() } else { format!("{head}mappings:\n{lines}") }
}

fn path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("{n}.yaml"))
}

/// What the directory says now, all at once; `None` where it can't be accepted.
fn compiled(dir: &Path) -> Option<Desired> {
    let listing = Files.list(&[dir.to_owned()]).ok()?;
    let files: Vec<_> = listing.iter().map(|(p, _)| Some(parse(&Files.read(p).ok()?.0))).collect::<Option<_>>()?;
    merge(&files).ok()?.compile(&NodeChoice::Unknown).ok()
}

/// The file system, with somebody at work in the directory between any two looks at it.
struct Busy {
    dir: PathBuf,
    dice: RefCell<Dice>,
    /// How many looks in a hundred are followed by mischief.
    rate: Cell<u32>,
    /// What each file is meant to say in the end.
    contents: RefCell<Vec<Content>>,
    /// What was read last, by file.
    reads: RefCell<BTreeMap<PathBuf, u64>>,
}

impl Busy {
    fn new(dir: &Path, dice: Dice) -> Self {
        let busy = Self {
            dir: dir.to_owned(),
            dice: RefCell::new(dice),
            rate: Cell::new(0),
            contents: RefCell::new(vec![Content::new(); 3]),
            reads: RefCell::default(),
        };
        // Ids that don't collide: a file has its own hundred.
        for (n, content) in busy.contents.borrow_mut().iter_mut().enumerate() {
            let first = n as u32 * 100;
            content.extend((first..first + 12).map(|i| (i, i)));
        }
        busy.finish();
        busy
    }

    /// Everything is as it is meant to be.
    fn finish(&self) {
        let back = self.dir.with_extension("away");
        if back.exists() {
            fs::rename(&back, &self.dir).unwrap();
        }
        for (n, content) in self.contents.borrow().iter().enumerate() {
            let path = path(&self.dir, n);
            drop(fs::remove_file(&path));
            fs::write(path, text(n, content)).unwrap();
        }
    }

    fn mischief(&self) {
        let mut dice = self.dice.borrow_mut();
        if !dice.percent(self.rate.get()) {
            return;
        }
        let (n, away) = (dice.below(3), self.dir.with_extension("away"));
        if away.exists() {
            fs::rename(&away, &self.dir).unwrap();
        }
        let path = path(&self.dir, n);
        let mut contents = self.contents.borrow_mut();
        if dice.percent(50) {
            // A new version: one goes, one changes, one comes.
            let first = n as u32 * 100;
            let mut one = || first + dice.below(15) as u32;
            contents[n].remove(&one());
            let (changed, fresh) = (one(), one());
            contents[n].entry(changed).and_modify(|id| *id = changed + 20);
            contents[n].entry(fresh).or_insert(fresh);
        }
        let whole = text(n, &contents[n]);
        match dice.below(8) {
            0 => drop(fs::remove_file(&path)),
            1 => fs::write(&path, &whole[..dice.below(whole.len())]).unwrap(),
            2 => fs::write(&path, "").unwrap(),
            3 => {
                drop(fs::remove_file(&path));
                std::os::unix::fs::symlink("nowhere", &path).unwrap();
            }
            4 => fs::rename(&self.dir, &away).unwrap(),
            5 => {
                let beside = self.dir.join(".new");
                fs::write(&beside, &whole).unwrap();
                fs::rename(&beside, &path).unwrap();
            }
            _ => {
                if path.is_symlink() {
                    fs::remove_file(&path).unwrap();
                }
                fs::write(&path, &whole).unwrap();
            }
        }
    }
}

impl Disk for &Busy {
    fn list(&self, paths: &[PathBuf]) -> Result<Listing> {
        let listing = Files.list(paths);
        self.mischief();
        listing
    }

    fn read(&self, path: &Path) -> Result<(SourceFile, Stamp)> {
        let read = Files.read(path);
        *self.reads.borrow_mut().entry(path.to_owned()).or_default() += 1;
        self.mischief();
        read
    }

    fn now(&self) -> SystemTime {
        // Long after: whatever is written is settled at once, as far as stamps tell.
        SystemTime::now() + Duration::from_secs(3600)
    }
}

fn names(state: &Desired) -> Vec<&str> {
    state.mappings.keys().map(|name| name.as_str()).collect()
}

fn schedule(seed: u64) -> [u64; 5] {
    let mut dice = Dice(seed);
    let root = tempfile::tempdir().unwrap();
    let (dir, state) = (root.path().join("topology"), root.path().join("state"));
    fs::create_dir(&dir).unwrap();
    let busy = Busy::new(&dir, Dice(dice.next()));
    let open = || Acceptance::open(Loader::with_disk(&busy, vec![dir.clone()], None), state.clone(), recorded(&state));
    let mut acceptance = open();
    assert!(acceptance.read(Cause::Changed));
    busy.rate.set([5, 20, 50][dice.below(3)]);
    let mut happened = [0; 5];
    for _ in 0..12 {
        let before = acceptance.intent().unwrap().clone();
        if dice.percent(10) {
            // The disk of the accepted state is full, or is so no longer.
            let blocker = state.join("accepted.new");
            if blocker.exists() { fs::remove_dir(&blocker).unwrap() } else { fs::create_dir(&blocker).unwrap() }
        }
        let cause = if dice.percent(40) { Some(Cause::Changed) } else { acceptance.due() };
        let Some(cause) = cause else {
            busy.mischief();
            continue;
        };
        let ahead = if cause == Cause::Changed && dice.percent(50) { acceptance.prepare() } else { None };
        if ahead.is_some() {
            assert_eq!(acceptance.due(), None, "what was read ahead is no look at the directory");
            assert_eq!(acceptance.intent(), Some(&before));
            if dice.percent(50) {
                busy.mischief();
            }
        }
        let accepted = if ahead.is_some_and(|prepared| acceptance.accept_prepared(&prepared)) {
            acceptance.save();
            happened[4] += 1;
            true
        } else {
            acceptance.read(cause)
        };
        assert_eq!(accepted, acceptance.config_error().is_none());
        let now = acceptance.intent().unwrap().clone();
        if !accepted {
            assert_eq!(now, before, "what can't be accepted changes nothing");
            happened[0] += 1;
        }
        let gone: Vec<_> =
            names(&before.desired).into_iter().filter(|i| !now.desired.mappings.contains_key(*i)).collect();
        if !gone.is_empty() {
            assert_eq!(cause, Cause::Confirm, "{gone:?} went without being seen gone twice");
            assert!(gone.iter().all(|i| before.delayed.contains(*i)), "{gone:?} were not waiting: {before:?}");
            happened[1] += 1;
        }
        // Nothing is in force that no version of the files ever said.
        for mapping in now.desired.mappings.values() {
            let number: u32 = mapping.interface[1..].parse().unwrap();
            assert!(mapping.key.id == number || mapping.key.id == number + 20, "{mapping:?}");
        }
        let saved = Accepted::load(&state).unwrap();
        assert!(saved.as_ref() == Some(&now) || acceptance.unsaved().is_some());
        happened[2] += u64::from(acceptance.unsaved().is_some());
        happened[3] += u64::from(!now.held.is_empty());
        if acceptance.unsaved().is_none() && dice.percent(10) {
            // A restart goes on from there.
            acceptance = open();
            assert_eq!(acceptance.intent(), Some(&now));
        }
    }

    busy.rate.set(0);
    busy.finish();
    drop(fs::remove_dir(state.join("accepted.new")));
    // An event, and two rescans.
    acceptance.read(Cause::Changed);
    for _ in 0..2 {
        if let Some(cause) = acceptance.due() {
            acceptance.read(cause);
        }
    }
    assert_eq!((acceptance.due(), acceptance.config_error(), acceptance.unsaved()), (None, None, None));
    let (goal, intent) = (compiled(&dir).unwrap(), acceptance.intent().unwrap());
    assert!(intent.delayed.is_empty());
    let beside: Vec<_> = names(&intent.desired).into_iter().filter(|i| !goal.mappings.contains_key(*i)).collect();
    assert!(beside.iter().all(|i| intent.held.contains(*i)), "{beside:?} are in force, held are {:?}", intent.held);
    assert!(goal.mappings.iter().all(|(i, m)| intent.desired.mappings.get(i) == Some(m)));
    assert_eq!(Accepted::load(&state).unwrap().as_ref(), Some(intent));
    // What is held goes when somebody allows it.
    assert!(acceptance.read(Cause::Asked { allow_deletes: true }));
    assert_eq!(*acceptance.intent().unwrap().desired, goal);
    happened
}

/// What is on record as accepted.
fn recorded(state: &Path) -> Option<Intent> {
    Accepted::load(state).ok().flatten()
}

#[test]
fn schedules_of_files_that_change_under_the_readers_hands() {
    let mut happened = [0; 5];
    for seed in 0..SCHEDULES {
        match std::panic::catch_unwind(|| schedule(seed)) {
            Ok(some) => happened.iter_mut().zip(some).for_each(|(all, some)| *all += some),
            Err(panic) => {
                eprintln!("schedule {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(happened.iter().all(|n| *n > SCHEDULES / 20), "refused, gone, unsaved, held, read ahead: {happened:?}");
}

/// A damaged record of what was accepted is told until another one is in its place, and is never taken for an empty one.
#[test]
fn a_damaged_accepted_state_is_told_until_it_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let (dir, state) = (root.path().join("topology"), root.path().join("state"));
    fs::create_dir(&dir).unwrap();
    let open = || Acceptance::open(Loader::new(vec![dir.clone()], None), state.clone(), recorded(&state));
    let content = Content::from([(1, 1), (2, 2)]);
    fs::write(path(&dir, 0), text(0, &content)).unwrap();
    assert!(open().read(Cause::Changed));
    let whole = fs::read(state.join("accepted.json")).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(state.join("accepted.json"), &whole[..length]).unwrap();
        fs::write(path(&dir, 0), "mappings: [").unwrap();
        let mut acceptance = open();
        assert!(acceptance.unsaved().unwrap().contains("accepted.json"));
        assert!(!acceptance.read(Cause::Changed));
        assert_eq!(acceptance.intent(), None);
        assert!(acceptance.unsaved().is_some() && acceptance.config_error().is_some());

        fs::write(path(&dir, 0), text(0, &content)).unwrap();
        assert_eq!(acceptance.due(), Some(Cause::Changed));
        assert!(acceptance.read(Cause::Changed));
        assert_eq!((acceptance.unsaved(), acceptance.config_error()), (None, None));
        assert_eq!(Accepted::load(&state).unwrap().as_ref(), acceptance.intent());
    }
}

/// A file system whose clock stands still: every version of a file of one length has the same stamp.
struct Frozen {
    text: RefCell<String>,
    stamp: (Listing, SystemTime),
    tick: Cell<u64>,
}

impl Disk for &Frozen {
    fn list(&self, _: &[PathBuf]) -> Result<Listing> {
        Ok(self.stamp.0.clone())
    }

    fn read(&self, path: &Path) -> Result<(SourceFile, Stamp)> {
        let text = self.text.borrow().clone().into_bytes();
        Ok((SourceFile { name: path.display().to_string(), text }, self.stamp.0[0].1.clone()))
    }

    fn now(&self) -> SystemTime {
        self.stamp.1 + Duration::from_millis(self.tick.get())
    }
}

/// What was written in the tick in which it was read is read once more, although nothing shows that it changed.
#[test]
fn a_change_within_one_tick_of_the_clock_is_not_lost() {
    use std::os::unix::fs::MetadataExt;
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    let version = |id: u32| text(0, &Content::from([(1, id)]));
    fs::write(&file, version(1)).unwrap();
    let metadata = fs::metadata(&file).unwrap();
    let written = Duration::new(metadata.ctime().cast_unsigned(), metadata.ctime_nsec() as u32);
    let frozen = Frozen {
        text: RefCell::new(version(1)),
        stamp: (Files.list(std::slice::from_ref(&file)).unwrap(), SystemTime::UNIX_EPOCH + written),
        tick: Cell::new(2),
    };
    let mut acceptance =
        Acceptance::open(Loader::with_disk(&frozen, vec![file], None), root.path().join("state"), None);
    assert!(acceptance.read(Cause::Changed));
    let id = |acceptance: &Acceptance<&Frozen>| acceptance.intent().unwrap().desired.mappings["e1"].key.id;
    assert_eq!(id(&acceptance), 1);
    // Between reading ahead and accepting, too.
    *frozen.text.borrow_mut() = version(3);
    let ahead = acceptance.prepare().unwrap();
    *frozen.text.borrow_mut() = version(4);
    assert!(!acceptance.accept_prepared(&ahead));
    let ahead = acceptance.prepare().unwrap();
    assert!(acceptance.accept_prepared(&ahead));
    assert_eq!(id(&acceptance), 4);
    *frozen.text.borrow_mut() = version(2);
    frozen.tick.set(1_000);
    assert_eq!(acceptance.due(), Some(Cause::Changed));
    assert!(acceptance.read(Cause::Changed));
    assert_eq!((id(&acceptance), acceptance.due()), (2, None));
}
