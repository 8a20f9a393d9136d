//! The live state, indexed once a plan: every look-up of a plan is then cheap, whatever the number of mappings.

use super::*;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

/// No place.
const NOWHERE: u32 = u32::MAX;

/// Places of small numbers: an array where they lie close together, as ifindexes and slots do.
#[derive(Debug, Default)]
struct Dense {
    base: u32,
    places: Vec<u32>,
}

impl Dense {
    /// The place of the last of each number. `None` where they lie too far apart.
    fn of(numbers: impl Iterator<Item = u32> + Clone) -> Option<Self> {
        let (mut low, mut high, mut count) = (u32::MAX, 0, 0u64);
        for number in numbers.clone() {
            (low, high, count) = (low.min(number), high.max(number), count + 1);
        }
        if count == 0 {
            return Some(Self::default());
        }
        let span = u64::from(high - low) + 1;
        if span > count * 8 + 1024 {
            return None;
        }
        let mut places = vec![NOWHERE; usize::try_from(span).ok()?];
        for (place, number) in numbers.enumerate() {
            places[(number - low) as usize] = u32::try_from(place).ok()?;
        }
        Some(Self { base: low, places })
    }

    fn get(&self, number: u32) -> Option<usize> {
        let place = *self.places.get(number.checked_sub(self.base)? as usize)?;
        (place != NOWHERE).then_some(place as usize)
    }
}

/// Entries of a map, sorted by key.
#[derive(Debug)]
pub(super) struct Sorted<'a, K: Copy + Ord, V: Copy> {
    entries: Cow<'a, [(K, V)]>,
    dense: Option<Dense>,
}

impl<K: Copy + Ord, V: Copy> Default for Sorted<'_, K, V> {
    fn default() -> Self {
        Self { entries: Cow::Borrowed(&[]), dense: None }
    }
}

impl<'a, K: Copy + Ord, V: Copy> Sorted<'a, K, V> {
    fn of(entries: &'a [(K, V)]) -> Self {
        let mut entries = Cow::Borrowed(entries);
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            // A map has each key once; where somebody gives one twice, the last counts.
            let unique: BTreeMap<K, V> = entries.iter().copied().collect();
            entries = Cow::Owned(unique.into_iter().collect());
        }
        Self { entries, dense: None }
    }

    fn place(&self, key: K) -> Option<usize> {
        self.entries.binary_search_by(|(k, _)| k.cmp(&key)).ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (K, V)> + Clone {
        self.entries.iter().copied()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = K> + Clone {
        self.entries.iter().map(|(k, _)| *k)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = V> + Clone {
        self.entries.iter().map(|(_, v)| *v)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<'a, V: Copy> Sorted<'a, u32, V> {
    fn dense(entries: &'a [(u32, V)]) -> Self {
        let mut sorted = Self::of(entries);
        sorted.dense = Dense::of(sorted.keys());
        sorted
    }

    pub(super) fn get(&self, key: u32) -> Option<V> {
        let place = match &self.dense {
            Some(dense) => dense.get(key),
            None => self.place(key),
        };
        self.entries.get(place?).map(|(_, v)| *v)
    }
}

/// The live maps by key; empty where there are none.
#[derive(Debug, Default)]
pub(super) struct Live<'a> {
    pub(super) present: bool,
    pub(super) capacity: u32,
    pub(super) conf: BTreeMap<u32, Conf>,
    pub(super) keys: Sorted<'a, TunKey, SlotRef>,
    pub(super) ifs: Sorted<'a, u32, IfEntry>,
    pub(super) devs: Sorted<'a, u32, u32>,
    /// Places in `keys` by the slot they refer to.
    by_slot: Option<Dense>,
}

impl<'a> Live<'a> {
    pub(super) fn of(observed: &'a Observed) -> Self {
        let Some(maps) = &observed.maps else { return Self::default() };
        let keys = Sorted::of(&maps.tunkey2if);
        Self {
            present: true,
            capacity: maps.capacity,
            conf: maps.conf.clone(),
            by_slot: Dense::of(keys.values().map(|v| v.slot)),
            keys,
            ifs: Sorted::dense(&maps.if2tunkey),
            devs: Sorted::dense(&maps.devs),
        }
    }

    /// Place and value of a key of `tunkey2if`; it is looked for first where that slot's key is.
    pub(super) fn key(&self, key: &TunKey, slot: u32) -> Option<(usize, SlotRef)> {
        let near = self.by_slot.as_ref().and_then(|d| d.get(slot)).filter(|p| self.keys.entries[*p].0 == *key);
        let place = near.or_else(|| self.keys.place(*key))?;
        self.keys.entries.get(place).map(|(_, value)| (place, *value))
    }

    /// Name of the tunnel with that index.
    pub(super) fn tunnel_name(&self, index: u32) -> String {
        self.conf.get(&index).map_or_else(|| format!("tunnel index {index}"), |c| c.name.clone())
    }
}

/// A set of small numbers: slots, ifindexes.
#[derive(Debug, Default)]
pub(super) struct Slots {
    low: Vec<bool>,
    /// A broken entry may name any number: those don't make the array long.
    high: BTreeSet<u32>,
}

impl Slots {
    const LOW: u32 = 1 << 20;

    /// Adds a slot; false where it is in already.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
        if slot >= Self::LOW {
            return self.high.insert(slot);
        }
        let place = slot as usize;
        if place >= self.low.len() {
            self.low.resize((place + 1).next_power_of_two(), false);
        }
        !std::mem::replace(&mut self.low[place], true)
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.low.get(slot as usize).copied().unwrap_or_else(|| self.high.contains(&slot))
    }
}

/// The mappings of a state by tunnel id and remote; made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct ByKey<'a>(OnceCell<HashMap<(u32, IpAddr), Vec<&'a Mapping>>>);

impl<'a> ByKey<'a> {
    /// The mappings of `desired` with the id and the remote of a key, in order.
    pub(super) fn of(&self, desired: &'a Desired, key: TunKey) -> impl Iterator<Item = &'a Mapping> {
        let all = self.0.get_or_init(|| {
            let mut all: HashMap<_, Vec<&Mapping>> = HashMap::with_capacity(desired.mappings.len());
            desired.mappings.values().for_each(|m| all.entry((m.key.id, m.key.remote)).or_default().push(m));
            all
        });
        all.get(&(key.id, key.remote)).into_iter().flatten().copied()
    }
}

/// The links of the namespace by name and by index.
#[derive(Debug)]
pub(super) struct Links<'a> {
    observed: &'a Observed,
    by_name: HashMap<&'a str, &'a Link, Quick>,
    /// Made when it is first needed: where nothing changes, it never is.
    by_index: OnceCell<HashMap<u32, &'a Link>>,
}

impl<'a> Links<'a> {
    pub(super) fn of(observed: &'a Observed) -> Self {
        let mut by_name = HashMap::with_capacity_and_hasher(observed.links.len(), Quick);
        for link in &observed.links {
            by_name.entry(link.name.as_str()).or_insert(link);
        }
        Self { observed, by_name, by_index: OnceCell::new() }
    }

    pub(super) fn named(&self, name: &str) -> Option<&'a Link> {
        self.by_name.get(name).copied()
    }

    pub(super) fn indexed(&self, ifindex: u32) -> Option<&'a Link> {
        let all = || self.observed.links.iter().rev().map(|l| (l.ifindex, l)).collect();
        self.by_index.get_or_init(all).get(&ifindex).copied()
    }
}

/// Hashes interface names, 15 bytes at most: quicker than the usual hash, and nobody gains by making names collide that
/// the kernel lets an administrator only give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quick;

impl BuildHasher for Quick {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher(0)
    }
}

pub(super) struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 = mixed ^ (mixed >> 29);
        }
    }

    fn finish(&self) -> u64 {
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Our attachments by hook.
#[derive(Debug)]
pub(super) struct Hooks<'a> {
    /// Sorted by interface.
    attachments: Vec<&'a Attachment>,
    /// Place of the last of each interface.
    last: Option<Dense>,
    /// Those that belong where they are, by place.
    kept: Vec<bool>,
}

impl<'a> Hooks<'a> {
    pub(super) fn of(attachments: &'a [Attachment]) -> Self {
        let mut attachments: Vec<_> = attachments.iter().collect();
        attachments.sort_by_key(|a| a.ifindex);
        let last = Dense::of(attachments.iter().map(|a| a.ifindex));
        Self { kept: vec![false; attachments.len()], attachments, last }
    }

    /// What is attached to a hook that something belongs on.
    pub(super) fn claim(&mut self, ifindex: u32, direction: Direction, kind: HookKind) -> Option<&'a Attachment> {
        let end = match &self.last {
            Some(dense) => dense.get(ifindex)? + 1,
            None => self.attachments.partition_point(|a| a.ifindex <= ifindex),
        };
        let mut found = None;
        for place in (0..end).rev().take_while(|p| self.attachments[*p].ifindex == ifindex) {
            let attachment = self.attachments[place];
            if attachment.direction == direction && attachment.kind == kind {
                self.kept[place] = true;
                found = Some(attachment);
            }
        }
        found
    }

    /// What is attached to an interface.
    pub(super) fn at(&self, ifindex: u32) -> impl Iterator<Item = &'a Attachment> {
        let start = self.attachments.partition_point(|a| a.ifindex < ifindex);
        self.attachments[start..].iter().take_while(move |a| a.ifindex == ifindex).copied()
    }

    /// What nobody claimed.
    pub(super) fn unclaimed(&self) -> impl Iterator<Item = &'a Attachment> {
        self.attachments.iter().zip(&self.kept).filter(|(_, kept)| !**kept).map(|(a, _)| *a)
    }
}
