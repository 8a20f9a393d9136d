//! Tells that links or addresses changed, and nothing more: whoever hears it reads everything again.
//!
//! Subscribe before listing, or a change between the two is lost.

use super::link;
use super::transport::Frame;
use crate::model::Link;
use anyhow::{Context, Result};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use tokio::task::JoinHandle;

/// Receive buffer of the subscription in bytes: a few thousand link messages.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What the subscription has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// Something that the model shows changed, once or many times.
    Changed,
    /// The kernel had more to say than fitted the buffer: what changed is unknown.
    Overrun,
    /// The subscription has ended; open another.
    Closed,
}

/// A subscription to links (`RTNLGRP_LINK`), and to addresses of both families (`RTNLGRP_IPV4_IFADDR`,
/// `RTNLGRP_IPV6_IFADDR`), because the underlay's addresses decide about MTUs and sources.
///
/// Repetitions are left out: a link message counts only if it differs from the last one of the same link in what the
/// model shows (counters aside), an address only when it comes or goes. Filters of others on our hooks make no event
/// here; the periodic pass finds them.
#[derive(Debug)]
pub struct LinkWatch {
    messages: UnboundedReceiver<(NetlinkMessage<Frame>, SocketAddr)>,
    task: JoinHandle<()>,
    seen: Seen,
    /// Keeps the connection open.
    _handle: ConnectionHandle<Frame>,
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LinkWatch {
    /// Subscribes in the network namespace of the calling thread; a task on the current tokio runtime listens.
    ///
    /// # Errors
    /// When the kernel refuses the socket or the subscription.
    pub async fn open() -> Result<Self> {
        Self::with_buffer(RECEIVE_BUFFER).await
    }

    /// As [`LinkWatch::open`], with a receive buffer of about this many bytes: the kernel doubles it for its own
    /// book-keeping, and cuts it to `net.core.rmem_max` for callers without `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// As [`LinkWatch::open`].
    pub async fn with_buffer(bytes: usize) -> Result<Self> {
        let (mut connection, handle, messages) =
            rtnetlink::proto::new_connection::<Frame>(NETLINK_ROUTE).context("open a netlink socket")?;
        let socket = connection.socket_mut().socket_mut();
        set_socket_recv_buffer_size_force(&*socket, bytes)
            .or_else(|_| set_socket_recv_buffer_size(&*socket, bytes))
            .context("set the receive buffer of the netlink subscription")?;
        let groups = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR];
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        socket.bind(&SocketAddr::new(0, mask)).context("subscribe to links and addresses")?;
        Ok(Self { messages, task: tokio::spawn(connection), seen: Seen::default(), _handle: handle })
    }

    /// Waits for the next event; whatever else is queued by then is part of it. Dropping the future loses nothing.
    pub async fn next(&mut self) -> LinkEvent {
        let mut event = None;
        loop {
            let message = match event {
                None => self.messages.next().await,
                Some(event) => match self.messages.next().now_or_never() {
                    Some(message) => message,
                    None => return event,
                },
            };
            let Some((message, _)) = message else { return event.unwrap_or(LinkEvent::Closed) };
            match message.payload {
                NetlinkPayload::InnerMessage(frame) if self.seen.is_news(&frame) => {
                    event = event.or(Some(LinkEvent::Changed));
                }
                NetlinkPayload::Overrun(_) => {
                    self.seen = Seen::default();
                    event = Some(LinkEvent::Overrun);
                }
                _ => {}
            }
        }
    }
}

/// The last that was heard of each object.
#[derive(Debug, Default)]
struct Seen {
    /// By family (`AF_UNSPEC` or `AF_BRIDGE`) and ifindex.
    links: HashMap<(u8, u32), Link>,
    addresses: HashSet<(u32, IpAddr)>,
}

impl Seen {
    fn is_news(&mut self, frame: &Frame) -> bool {
        match frame.kind {
            libc::RTM_NEWLINK => {
                let (Some(family), Some(mut link)) = (link::family(frame), link::link(frame)) else { return true };
                link.dropped = (0, 0);
                match self.links.entry((family, link.ifindex)) {
                    std::collections::hash_map::Entry::Occupied(known) if *known.get() == link => false,
                    entry => {
                        entry.insert_entry(link);
                        true
                    }
                }
            }
            // With the family AF_BRIDGE the link lives on: it left its bridge.
            libc::RTM_DELLINK => {
                if let (Some(family), Some(ifindex)) = (link::family(frame), link::ifindex(frame)) {
                    self.links.remove(&(family, ifindex));
                }
                true
            }
            libc::RTM_NEWADDR => {
                link::address(frame).is_none_or(|known| self.addresses.insert((known.ifindex, known.address)))
            }
            libc::RTM_DELADDR => {
                if let Some(gone) = link::address(frame) {
                    self.addresses.remove(&(gone.ifindex, gone.address));
                }
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

    fn message(family: AddressFamily, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = family;
        message.header.index = 7;
        message.header.flags = flags;
        message.attributes = attributes;
        message
    }

    fn new(flags: LinkFlags, attributes: Vec<LinkAttribute>) -> Frame {
        RouteNetlinkMessage::NewLink(message(AddressFamily::Unspec, flags, attributes)).into()
    }

    #[test]
    fn only_what_the_model_shows_is_news() {
        let mut seen = Seen::default();
        let name = LinkAttribute::IfName("eth7".to_owned());
        assert!(seen.is_news(&new(LinkFlags::empty(), vec![name.clone()])));
        assert!(!seen.is_news(&new(LinkFlags::empty(), vec![name.clone()])));
        // Carrier and operational state are nothing that we act upon.
        assert!(!seen.is_news(&new(LinkFlags::Running, vec![name.clone(), LinkAttribute::OperState(State::Up)])));
        assert!(seen.is_news(&new(LinkFlags::Up, vec![name])));
        assert!(seen.is_news(&new(LinkFlags::Up, vec![LinkAttribute::IfName("renamed".to_owned())])));
    }

    #[test]
    fn a_link_that_comes_back_is_news() {
        let mut seen = Seen::default();
        assert!(seen.is_news(&new(LinkFlags::Up, vec![])));
        let gone = message(AddressFamily::Unspec, LinkFlags::Up, vec![]);
        assert!(seen.is_news(&RouteNetlinkMessage::DelLink(gone).into()));
        assert!(seen.is_news(&new(LinkFlags::Up, vec![])));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_news_and_no_deletion() {
        let mut seen = Seen::default();
        assert!(seen.is_news(&new(LinkFlags::Up, vec![])));
        let left = message(AddressFamily::Bridge, LinkFlags::Up, vec![]);
        assert!(seen.is_news(&RouteNetlinkMessage::DelLink(left).into()));
        assert!(!seen.is_news(&new(LinkFlags::Up, vec![])));
    }

    #[test]
    fn what_cannot_be_read_is_news() {
        assert!(Seen::default().is_news(&Frame { kind: libc::RTM_NEWLINK, body: vec![] }));
        assert!(Seen::default().is_news(&Frame { kind: libc::RTM_NEWADDR, body: vec![0; 3] }));
    }
}
