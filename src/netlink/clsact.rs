//! Attaches programs as filters of the `clsact` qdisc, for kernels without TCX (before Linux 6.6).
//!
//! Ours is the filter of kind `bpf`, chain 0, protocol `all`, with [`FILTER_PRIORITY`] and one of the instance's two
//! handles. They are fixed, so that attaching again replaces the program in place, without a gap, and a restart finds its
//! filter. The second handle is for moving back to the head: a new filter of a priority runs before the older ones.
//! Filters of others are left alone.

use super::Netlink;
use super::attributes::{attribute, attributes, text, u32_host};
use super::transport::{Failure, Frame};
use crate::model::{Attachment, Direction, HookKind, Instance};
use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Priority of our filter: the first that the kernel runs.
pub const FILTER_PRIORITY: u16 = 1;

/// Handles of the filter of the usual instance within its priority, "tm" and the next; one is in use at a time. Other
/// tools that sit at priority 1 use handle 1.
pub const FILTER_HANDLES: [u32; 2] = [0x746d, 0x746e];

/// What the handles of filters on underlay devices have more.
const UNDERLAY_HANDLE: u32 = 0x4000_0000;

/// Handles of an instance's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handles([u32; 2]);

impl Default for Handles {
    fn default() -> Self {
        Self(FILTER_HANDLES)
    }
}

impl Handles {
    /// [`FILTER_HANDLES`], or two from the upper half that are the instance's own.
    pub(super) fn of(instance: &Instance, hash: u32) -> Self {
        if *instance == Instance::default() {
            return Self(FILTER_HANDLES);
        }
        let first = (hash | 0x8000_0000) & !1 & !UNDERLAY_HANDLE;
        Self([first, first | 1])
    }

    /// All of them.
    fn all(self) -> [u32; 4] {
        let ([a, b], [c, d]) = (self.at(Direction::Ingress), self.at(Direction::Underlay));
        [a, b, c, d]
    }

    /// The two of a hook: those on underlay devices are others.
    fn at(self, direction: Direction) -> [u32; 2] {
        match direction {
            Direction::Ingress | Direction::Egress => self.0,
            Direction::Underlay => self.0.map(|handle| handle | UNDERLAY_HANDLE),
        }
    }
}

const CLSACT: &str = "clsact";

/// Length of `struct tcmsg`.
const TCMSG_LEN: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// `tcm_info` of a filter: its priority, and `ETH_P_ALL` in network byte order.
fn filter_info() -> u32 {
    (u32::from(FILTER_PRIORITY) << 16) | u32::from(3u16.to_be())
}

fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress | Direction::Underlay => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: TcHandle::CLSACT.major, minor }
}

/// Where on a link: for the kernel's messages and for people.
fn hook(ifindex: u32, direction: Direction) -> String {
    format!("clsact {direction} of the link with ifindex {ifindex}")
}

fn message(ifindex: u32) -> Result<TcMessage> {
    let index = i32::try_from(ifindex).with_context(|| format!("ifindex {ifindex} is out of range"))?;
    Ok(TcMessage::with_index(index))
}

fn filter_message(ifindex: u32, direction: Direction, handle: u32) -> Result<TcMessage> {
    let mut message = message(ifindex)?;
    message.header.parent = parent(direction);
    message.header.handle = handle.into();
    message.header.info = filter_info();
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
    Ok(message)
}

/// A filter as `RTM_GETTFILTER` lists it.
#[derive(Debug)]
struct Filter {
    /// Its handle, where it is ours.
    ours: Option<u32>,
    program: Option<u32>,
    /// What `tc filter show` prints of it, where it has no program with a name.
    kind: String,
    /// The name that a `bpf` filter was given.
    name: Option<String>,
    priority: u16,
}

/// A filter at a hook, whosever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFilter {
    /// Whether it is this instance's.
    pub ours: bool,
    /// Kind: `bpf`, `flower`, …
    pub kind: String,
    /// Priority.
    pub priority: u16,
    /// Id of its program, where it is a `bpf` filter.
    pub program: Option<u32>,
    /// Name that a `bpf` filter was given.
    pub name: Option<String>,
}

/// Reads a listed filter of chain 0. The kernel lists each priority once more, with handle 0: that isn't a filter.
fn filter(frame: &Frame, handles: &[u32]) -> Option<Filter> {
    if frame.kind != libc::RTM_NEWTFILTER {
        return None;
    }
    let handle = frame.body.get(8..).and_then(u32_host).filter(|handle| *handle != 0)?;
    let info = frame.body.get(16..).and_then(u32_host)?;
    let tail = frame.body.get(TCMSG_LEN..)?;
    if attribute(tail, TCA_CHAIN).and_then(u32_host).unwrap_or(0) != 0 {
        return None;
    }
    let kind = attribute(tail, TCA_KIND).map(text).unwrap_or_default();
    let bpf = kind == TcFilterBpf::KIND;
    let options = attribute(tail, TCA_OPTIONS).unwrap_or_default();
    Some(Filter {
        ours: (bpf && handles.contains(&handle) && info == filter_info()).then_some(handle),
        program: bpf.then(|| attribute(options, TCA_BPF_ID).and_then(u32_host)).flatten(),
        name: bpf.then(|| attribute(options, TCA_BPF_NAME).map(text)).flatten().filter(|n| !n.is_empty()),
        kind,
        priority: (info >> 16) as u16,
    })
}

/// The qdiscs at the clsact place: ifindex and kind (`clsact`, or its older relative `ingress`).
fn clsact_place(frame: &Frame) -> Option<(u32, String)> {
    if frame.kind != libc::RTM_NEWQDISC {
        return None;
    }
    let ifindex = frame.body.get(4..).and_then(u32_host)?;
    let parent = frame.body.get(12..).and_then(u32_host)?;
    let kind = attributes(frame.body.get(TCMSG_LEN..)?).find(|(kind, _)| *kind == TCA_KIND)?;
    (parent == u32::from(TcHandle::CLSACT)).then(|| (ifindex, text(kind.1)))
}

impl Netlink {
    /// Runs a program (`BPF_PROG_TYPE_SCHED_CLS`) at a hook, in place of the one that runs there as ours. Adds the
    /// clsact qdisc where it is missing. `name` is what `tc filter show` prints.
    ///
    /// # Errors
    /// When the kernel refuses; [`super::is_gone`] where the link doesn't exist. When an `ingress` qdisc has clsact's
    /// place, or another filter than `bpf` our priority.
    pub async fn clsact_attach(
        &self,
        ifindex: u32,
        direction: Direction,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<()> {
        let what = || format!("attach {name} to {}", hook(ifindex, direction));
        self.clsact_ensure(ifindex).await.with_context(what)?;
        let descriptor = u32::try_from(program.as_raw_fd()).with_context(what)?;
        let there = self.ours(ifindex, direction).await.with_context(what)?;
        let handles = self.handles.at(direction);
        // In place where ours is the first that runs; else before it, with the other handle, and only then without it.
        let handle = match there.first() {
            Some((0, handle)) => *handle,
            Some((_, old)) => handles.into_iter().find(|h| h != old).unwrap_or(handles[0]),
            None => handles[0],
        };
        if there.iter().any(|(place, h)| *h == handle && *place > 0) {
            self.remove_filter(ifindex, direction, handle).await.with_context(what)?;
        }
        let mut message = filter_message(ifindex, direction, handle)?;
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(descriptor)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        self.transport.request(request, NLM_F_CREATE | NLM_F_REPLACE).await.map_err(|failure| {
            let remedy = match failure.errno() {
                Some(libc::EINVAL) => {
                    format!(": does another kind of filter have priority {FILTER_PRIORITY}? (see: tc filter show)")
                }
                Some(libc::EPERM) => " (needs CAP_NET_ADMIN)".to_owned(),
                _ => String::new(),
            };
            anyhow!(failure).context(format!("{}{remedy}", what()))
        })?;
        for (_, old) in there.iter().filter(|(_, h)| *h != handle) {
            self.remove_filter(ifindex, direction, *old).await.with_context(what)?;
        }
        Ok(())
    }

    /// Places in the order of execution and handles of what is ours at a hook.
    async fn ours(&self, ifindex: u32, direction: Direction) -> Result<Vec<(u32, u32)>> {
        let frames = self.filters(ifindex, direction).await?;
        let placed = (0..).zip(frames.iter().filter_map(|frame| filter(frame, &self.handles.at(direction))));
        Ok(placed.filter_map(|(place, filter)| Some((place, filter.ours?))).collect())
    }

    async fn remove_filter(&self, ifindex: u32, direction: Direction, handle: u32) -> Result<()> {
        let request = RouteNetlinkMessage::DelTrafficFilter(filter_message(ifindex, direction, handle)?);
        done_or_gone(self.transport.request(request, 0).await).context("remove our filter")
    }

    async fn clsact_ensure(&self, ifindex: u32) -> Result<()> {
        let mut message = message(ifindex)?;
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        let Err(failure) = self.transport.request(request, NLM_F_CREATE | NLM_F_EXCL).await else { return Ok(()) };
        if failure.errno() != Some(libc::EEXIST) {
            return Err(anyhow!(failure).context("add the clsact qdisc"));
        }
        // An egress filter of an `ingress` qdisc would run at ingress.
        match self.clsact_kind(ifindex).await?.as_deref() {
            Some(CLSACT) => Ok(()),
            Some(other) => {
                bail!("its {other} qdisc has the place of clsact (to remove it: tc qdisc del dev … {other})")
            }
            None => Err(anyhow!(failure).context("add the clsact qdisc")),
        }
    }

    async fn clsact_kind(&self, ifindex: u32) -> Result<Option<String>> {
        Ok(self.clsact_places().await?.into_iter().find(|(index, _)| *index == ifindex).map(|(_, kind)| kind))
    }

    async fn clsact_places(&self) -> Result<Vec<(u32, String)>> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(0));
        let frames = self.transport.dump(request).await.context("list qdiscs")?;
        Ok(frames.iter().filter_map(clsact_place).collect())
    }

    /// What the kernel lists at a hook, in the order in which it runs: nothing where the link or its clsact is gone.
    pub(super) async fn filters(&self, ifindex: u32, direction: Direction) -> Result<Vec<Frame>> {
        let mut message = message(ifindex)?;
        message.header.parent = parent(direction);
        match self.transport.dump(RouteNetlinkMessage::GetTrafficFilter(message)).await {
            Err(failure) if failure.errno() == Some(libc::ENODEV) => Ok(vec![]),
            outcome => outcome.with_context(|| format!("list the filters at {}", hook(ifindex, direction))),
        }
    }

    /// Whether what is listed at a hook is a filter of somebody else, in whatever chain.
    pub(super) fn is_foreign(&self, frame: &Frame) -> bool {
        let is_filter = frame.kind == libc::RTM_NEWTFILTER && frame.body.get(8..).and_then(u32_host) != Some(0);
        is_filter && filter(frame, &self.handles.all()).is_none_or(|filter| filter.ours.is_none())
    }

    /// Our filters on these links, ingress before egress, in the order given. A link that is gone has none.
    ///
    /// Costs one dump, and two more for each of these links that has a clsact qdisc.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub async fn clsact_attachments(&self, ifindexes: &[u32]) -> Result<Vec<Attachment>> {
        let places = self.clsact_places().await?;
        let clsact: BTreeSet<u32> = places.into_iter().filter(|(_, kind)| kind == CLSACT).map(|(i, _)| i).collect();
        let mut found = Vec::new();
        for &ifindex in ifindexes.iter().filter(|ifindex| clsact.contains(ifindex)) {
            let ingress = self.filters(ifindex, Direction::Ingress).await?;
            let egress = self.filters(ifindex, Direction::Egress).await?;
            let hooks = [(Direction::Ingress, &ingress), (Direction::Egress, &egress), (Direction::Underlay, &ingress)];
            for (direction, frames) in hooks {
                let mut placed = frames.iter().filter_map(|frame| filter(frame, &self.handles.at(direction))).zip(0..);
                let ours = placed.find(|(filter, _)| filter.ours.is_some());
                found.extend(ours.map(|(filter, position)| Attachment {
                    kind: HookKind::Clsact,
                    ifindex,
                    direction,
                    program: filter.program,
                    position,
                }));
            }
        }
        Ok(found)
    }

    /// Every filter at these hooks, whosever they are, in the order in which they run; hooks without one are
    /// left out. An `ingress` qdisc counts too.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub async fn filter_chains(&self, hooks: &[(u32, Direction)]) -> Result<Vec<(u32, Direction, Vec<ListedFilter>)>> {
        let places: BTreeMap<u32, String> = self.clsact_places().await?.into_iter().collect();
        let mut chains = Vec::new();
        for &(ifindex, direction) in hooks {
            let Some(kind) = places.get(&ifindex) else { continue };
            // Asked for its other side, an `ingress` qdisc lists the same filters again.
            if kind != CLSACT && direction == Direction::Egress {
                continue;
            }
            let frames = self.filters(ifindex, direction).await?;
            let listed = frames.iter().filter_map(|frame| filter(frame, &self.handles.all()));
            let chain: Vec<_> = listed
                .map(|f| {
                    let Filter { ours, program, kind, name, priority } = f;
                    ListedFilter { ours: ours.is_some(), kind, priority, program, name }
                })
                .collect();
            if !chain.is_empty() {
                chains.push((ifindex, direction, chain));
            }
        }
        Ok(chains)
    }

    /// Removes our filter from a hook, and the clsact qdisc when no filter of anybody is left on either side of the
    /// link, unless it is an underlay device. No filter, no qdisc and no link are success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn clsact_detach(&self, ifindex: u32, direction: Direction) -> Result<()> {
        let what = || format!("detach from {}", hook(ifindex, direction));
        if self.clsact_kind(ifindex).await.with_context(what)?.as_deref() != Some(CLSACT) {
            return Ok(());
        }
        for handle in self.handles.at(direction) {
            self.remove_filter(ifindex, direction, handle).await.with_context(what)?;
        }
        // Taking the qdisc away stops the link for a moment: an underlay device keeps it until all is removed.
        if direction == Direction::Underlay { Ok(()) } else { self.clsact_tidy(ifindex).await }
    }

    /// Removes the clsact qdisc of a link when no filter of anybody is left on either side.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn clsact_tidy(&self, ifindex: u32) -> Result<()> {
        for side in [Direction::Ingress, Direction::Egress] {
            // Whatever is listed counts here, in other chains too.
            if !self.filters(ifindex, side).await?.is_empty() {
                return Ok(());
            }
        }
        let mut message = message(ifindex)?;
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        let request = RouteNetlinkMessage::DelQueueDiscipline(message);
        done_or_gone(self.transport.request(request, 0).await)
            .with_context(|| format!("remove the clsact qdisc of the link with ifindex {ifindex}"))
    }
}

fn done_or_gone(outcome: Result<Vec<Frame>, Failure>) -> Result<(), Failure> {
    match outcome {
        Err(failure) if matches!(failure.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn listed(change: impl FnOnce(&mut TcMessage)) -> Option<Filter> {
        let mut message = filter_message(7, Direction::Egress, FILTER_HANDLES[0]).unwrap();
        message.attributes.push(TcAttribute::Chain(0));
        message.attributes.push(TcAttribute::Options(vec![TcOption::Bpf(TcFilterBpfOption::ProgId(42))]));
        change(&mut message);
        filter(&Frame::from(RouteNetlinkMessage::NewTrafficFilter(message)), &FILTER_HANDLES)
    }

    #[test]
    fn our_filter_is_told_by_kind_protocol_priority_and_handle() {
        let ours = listed(|_| {}).unwrap();
        assert_eq!(ours.ours, Some(FILTER_HANDLES[0]));
        assert_eq!(ours.program, Some(42));
        assert!(listed(|m| m.header.handle = 1.into()).unwrap().ours.is_none());
        assert!(listed(|m| m.header.info = (2 << 16) | (filter_info() & 0xffff)).unwrap().ours.is_none());
        assert!(listed(|m| m.header.info = (1 << 16) | u32::from(0x0800u16.to_be())).unwrap().ours.is_none());
        assert!(listed(|m| m.attributes[0] = TcAttribute::Kind("flower".to_owned())).unwrap().ours.is_none());
    }

    #[test]
    fn an_instance_has_two_handles_of_its_own() {
        let of = |pins: &str, hash| Handles::of(&Instance::of(std::path::Path::new(pins)), hash);
        assert_eq!(of(Instance::DEFAULT_PINS, 5), Handles::default());
        let other = of("/sys/fs/bpf/other", 5);
        assert_eq!(other.at(Direction::Ingress), [0x8000_0004, 0x8000_0005]);
        assert_eq!(other.at(Direction::Underlay), [0xc000_0004, 0xc000_0005]);
        assert_eq!(of("/sys/fs/bpf/third", u32::MAX).at(Direction::Egress), [0xbfff_fffe, 0xbfff_ffff]);
    }

    #[test]
    fn headings_and_other_chains_are_no_filters() {
        assert!(listed(|m| m.header.handle = TcHandle::UNSPEC).is_none());
        assert!(listed(|m| m.attributes[1] = TcAttribute::Chain(3)).is_none());
    }
}
