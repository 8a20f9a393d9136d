//! Links, devices, addresses and clsact filters, through rtnetlink; and what the fast lane would pass by.
//!
//! A *link* is a network interface. Everything here acts on the network namespace that the calling thread was in when
//! the connection was opened. Requests go over one connection ([`Netlink`]), the subscription to changes over another
//! ([`LinkWatch`]), so that a burst of changes can't crowd out an answer. Deleting what is gone is success; any other
//! refusal of the kernel is an error that names the operation and the object.

mod attributes;
mod clsact;
mod device;
mod ipsec;
mod link;
mod netfilter;
mod rule;
mod transport;
mod underlay;
mod underlay_watch;
mod watch;

pub use clsact::{FILTER_HANDLES, FILTER_PRIORITY, ListedFilter};
pub use device::DELETE_GROUP;
pub use transport::{is_denied, is_gone};
pub use underlay_watch::UnderlayWatch;
pub use watch::{LinkEvent, LinkWatch};

use crate::model::{Address, Instance, Link, share};
use anyhow::{Context, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use transport::Transport;

/// A connection for requests, in the network namespace that the calling thread was in at [`Netlink::open`].
///
/// Requests may be made concurrently. The kernel carries a request out inside the system call that sends it, so
/// slow ones (deleting a link, the first clsact of a link: about 10 ms each) hold the runtime's thread for as long.
#[derive(Debug)]
pub struct Netlink {
    transport: Transport,
    /// What tells of the underlay.
    sources: underlay::Sources,
    /// Group of devices that are being made.
    unfinished: u32,
    /// Handles of our clsact filters.
    handles: clsact::Handles,
}

/// Whether IPv6 forwarding of a link can be switched on: that goes by `/proc/sys`, which a unit may see read-only.
pub fn forwarding6_writable() -> bool {
    std::fs::OpenOptions::new().write(true).open("/proc/sys/net/ipv6/conf/lo/forwarding").is_ok()
}

impl Netlink {
    /// Opens the connection and spawns the task that serves it on the current tokio runtime. Dropping the
    /// [`Netlink`] ends the task.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub async fn open() -> Result<Self> {
        let (transport, sources) = (Transport::open()?, underlay::Sources::open()?);
        Ok(Self { transport, sources, unfinished: device::UNFINISHED_GROUPS, handles: clsact::Handles::default() })
    }

    /// Tells half-made devices and filters of that instance from those of others.
    #[must_use]
    pub fn for_instance(mut self, instance: &Instance) -> Self {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(instance.port_alias("", ""));
        let hash = u32::from_be_bytes([0, 1, 2, 3].map(|n| digest.get(n).copied().unwrap_or_default()));
        self.unfinished = device::UNFINISHED_GROUPS | hash >> 16;
        self.handles = clsact::Handles::of(instance, hash);
        self
    }

    /// Every link of the namespace, from one consistent dump, in the kernel's order; without devices that are only half
    /// made.
    ///
    /// # Errors
    /// When the kernel refuses, or when links keep changing faster than they can be listed.
    pub async fn links(&self) -> Result<Vec<Link>> {
        self.list(LinkMessage::default()).await
    }

    /// As [`Netlink::links`], without the links' drop counters: half of what the kernel has to gather.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub async fn links_without_counters(&self) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.list(message).await
    }

    async fn list(&self, message: LinkMessage) -> Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(message);
        let frames = self.transport.dump(request).await.context("list links")?;
        let whole = frames.iter().filter(|frame| link::group(frame) != Some(self.unfinished));
        let mut links: Vec<Link> = whole.filter_map(link::link).collect();
        // They are kept, and there may be many.
        links.shrink_to_fit();
        share(links.iter_mut().map(|link| &mut link.kind));
        Ok(links)
    }

    /// Every address of the namespace, both families.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let frames = self.transport.dump(request).await.context("list addresses")?;
        Ok(frames.iter().filter_map(link::address).collect())
    }
}
