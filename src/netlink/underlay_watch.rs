//! Tells that routing rules, netfilter chains or IPsec policies changed, and nothing more: whoever hears it reads them
//! again.

use super::netfilter;
use super::transport::{Frame, is_unsupported};
use anyhow::{Context, Result};
use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::{SelectAll, select_all};
use futures::{FutureExt, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use tokio::task::JoinHandle;

/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// `XFRMNLGRP_POLICY`.
const POLICY_GROUP: u32 = 4;

/// A subscription to `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_RULE`, `NFNLGRP_NFTABLES` and `XFRMNLGRP_POLICY`, as far as this
/// kernel has them and lets us. Whatever is missed, an overrun too, the periodic pass finds.
#[derive(Debug)]
pub struct UnderlayWatch {
    messages: SelectAll<UnboundedReceiver<(NetlinkMessage<Frame>, SocketAddr)>>,
    tasks: Vec<JoinHandle<()>>,
    /// Keep the connections open.
    _handles: Vec<ConnectionHandle<Frame>>,
}

impl Drop for UnderlayWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl UnderlayWatch {
    /// Subscribes in the network namespace of the calling thread; tasks on the current tokio runtime listen.
    pub async fn open() -> Self {
        let rules = (1 << (libc::RTNLGRP_IPV4_RULE - 1)) | (1 << (libc::RTNLGRP_IPV6_RULE - 1));
        let wanted = [
            (NETLINK_ROUTE, rules, "routing rules"),
            (NETLINK_NETFILTER, 1 << (NFTABLES_GROUP - 1), "netfilter chains"),
            (NETLINK_XFRM, 1 << (POLICY_GROUP - 1), "IPsec policies"),
        ];
        let (mut messages, mut tasks, mut handles) = (Vec::new(), Vec::new(), Vec::new());
        for (protocol, groups, what) in wanted {
            match subscribe(protocol, groups).with_context(|| format!("subscribe to {what}")) {
                Ok((received, task, handle)) => {
                    messages.push(received);
                    tasks.push(task);
                    handles.push(handle);
                }
                Err(error) if is_unsupported(&error) => {}
                Err(error) => tracing::info!("{error:#}; the periodic pass finds what changes there"),
            }
        }
        Self { messages: select_all(messages), tasks, _handles: handles }
    }

    /// Waits until something changed; whatever else is queued by then is part of it. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        while let Some((message, _)) = self.messages.next().await {
            if is_news(&message) {
                while let Some(Some(_)) = self.messages.next().now_or_never() {}
                return;
            }
        }
        // Nobody is left to listen to.
        futures::future::pending().await
    }
}

type Subscribed = (UnboundedReceiver<(NetlinkMessage<Frame>, SocketAddr)>, JoinHandle<()>, ConnectionHandle<Frame>);

fn subscribe(protocol: isize, groups: u32) -> Result<Subscribed> {
    let (mut connection, handle, messages) =
        rtnetlink::proto::new_connection::<Frame>(protocol).context("open a netlink socket")?;
    connection.socket_mut().socket_mut().bind(&SocketAddr::new(0, groups)).context("join the groups")?;
    Ok((messages, tokio::spawn(connection), handle))
}

/// Types of messages don't overlap: those of routing rules and IPsec policies are small numbers, nf_tables' aren't.
fn is_news(message: &NetlinkMessage<Frame>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(frame) => frame.kind < 0x100 || netfilter::is_change(frame),
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}
