//! One netlink connection: sends requests, collects answers, tells the kernel's refusals apart.
//!
//! Messages travel undecoded, as a [`Frame`]. A library that decodes every attribute throws the whole message away
//! when one of them is odd (an alias that isn't UTF-8 is enough), and a link that is missing from a list looks like
//! a link that was deleted. So this edge decodes what it needs, leniently, and nothing else.

use super::attributes::{attributes, text};
use anyhow::{Context, Result};
use futures::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::{AsyncSocket, Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How often a dump is started again when the kernel says that its objects changed meanwhile.
const DUMP_ATTEMPTS: u32 = 20;

/// Attribute of an extended acknowledgement that holds the kernel's words (`NLMSGERR_ATTR_MSG`).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Length of `struct nlmsghdr`.
const NLMSGHDR_LEN: usize = 16;

/// A route message in the kernel's encoding.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// `RTM_*`.
    pub(super) kind: u16,
    /// What follows `struct nlmsghdr`: the family's header and the attributes.
    pub(super) body: Vec<u8>,
}

impl From<RouteNetlinkMessage> for Frame {
    fn from(message: RouteNetlinkMessage) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self { kind: message.message_type(), body }
    }
}

impl NetlinkSerializable for Frame {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Frame {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// Why a request had no good end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The kernel said no.
    #[error("{}{}", std::io::Error::from_raw_os_error(*errno), words(explanation))]
    Refused {
        /// Positive error number.
        errno: i32,
        /// The kernel's own words, where it has some.
        explanation: Option<String>,
    },
    /// What was being listed kept changing.
    #[error("the kernel's list changed while it was read, {DUMP_ATTEMPTS} times in a row")]
    Unsteady,
    /// The task that owns the socket is gone.
    #[error("the netlink connection is closed")]
    Closed,
}

fn words(explanation: &Option<String>) -> String {
    explanation.as_ref().map(|text| format!(": {text}")).unwrap_or_default()
}

impl Failure {
    /// The kernel's error number, positive.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Unsteady | Self::Closed => None,
        }
    }

    fn from_answer(flags: u16, answer: &ErrorMessage) -> Option<Self> {
        let errno = answer.code?.get().saturating_abs();
        // With NETLINK_CAP_ACK the request is cut to its header and the explanation follows it.
        let explanation = (flags & NLM_F_ACK_TLVS != 0 && flags & NLM_F_CAPPED != 0)
            .then(|| answer.header.get(NLMSGHDR_LEN..))
            .flatten()
            .and_then(|tail| attributes(tail).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
            .map(|(_, value)| text(value));
        Some(Self::Refused { errno, explanation })
    }
}

/// Whether an error means that the link isn't there any more (or never was): `ENODEV` from the kernel.
pub fn is_gone(error: &anyhow::Error) -> bool {
    has_errno(error, libc::ENODEV)
}

/// Whether an error means that the privilege (`CAP_NET_ADMIN`) is missing: `EPERM` from the kernel.
pub fn is_denied(error: &anyhow::Error) -> bool {
    has_errno(error, libc::EPERM)
}

/// Whether the kernel doesn't have a netlink protocol.
pub(super) fn is_unsupported(error: &anyhow::Error) -> bool {
    let unsupported = |errno| matches!(errno, Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT));
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|e| unsupported(e.raw_os_error())))
}

fn has_errno(error: &anyhow::Error, errno: i32) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<Failure>().and_then(Failure::errno) == Some(errno))
}

/// A connection for requests.
#[derive(Debug)]
pub(super) struct Transport {
    handle: ConnectionHandle<Frame>,
    task: JoinHandle<()>,
    /// The kernel runs one dump at a time on a socket.
    dumping: Mutex<()>,
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Transport {
    /// Opens a socket in the network namespace of the calling thread and spawns the task that serves it on the
    /// current tokio runtime.
    pub(super) fn open() -> Result<Self> {
        Self::connect(NETLINK_ROUTE, |_| Ok(()))
    }

    /// As [`Transport::open`], for lists that the kernel is to filter (`NETLINK_GET_STRICT_CHK`).
    pub(super) fn open_strict() -> Result<Self> {
        let strictly = |socket: &Socket| socket.set_netlink_get_strict_chk(true);
        Self::connect(NETLINK_ROUTE, strictly)
    }

    /// As [`Transport::open`], of another netlink protocol. `None` where this kernel doesn't have it.
    pub(super) fn open_other(protocol: isize) -> Result<Option<Self>> {
        match Self::connect(protocol, |_| Ok(())) {
            Err(error) if is_unsupported(&error) => Ok(None),
            connected => connected.map(Some),
        }
    }

    fn connect(protocol: isize, prepare: impl FnOnce(&Socket) -> std::io::Result<()>) -> Result<Self> {
        let (mut connection, handle, _) =
            rtnetlink::proto::new_connection::<Frame>(protocol).context("open a netlink socket")?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true).context("ask netlink for explanations (NETLINK_EXT_ACK)")?;
        socket.set_cap_ack(true).context("ask netlink for short acknowledgements (NETLINK_CAP_ACK)")?;
        prepare(socket).context("set the netlink socket up")?;
        Ok(Self { handle, task: tokio::spawn(connection), dumping: Mutex::new(()) })
    }

    /// Sends one request and waits for its acknowledgement; answers with what the kernel sent before that.
    pub(super) async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<Frame>, Failure> {
        crate::fault_point::reach();
        self.exchange(Frame::from(message), NLM_F_REQUEST | NLM_F_ACK | flags).await.map(|(frames, _)| frames)
    }

    /// As [`Transport::request`], for what changes nothing.
    pub(super) async fn ask(&self, frame: Frame) -> Result<Vec<Frame>, Failure> {
        self.exchange(frame, NLM_F_REQUEST | NLM_F_ACK).await.map(|(frames, _)| frames)
    }

    /// Lists objects, from the start again if they changed while they were listed.
    pub(super) async fn dump(&self, message: impl Into<Frame>) -> Result<Vec<Frame>, Failure> {
        let frame = message.into();
        let _turn = self.dumping.lock().await;
        for attempt in 0..DUMP_ATTEMPTS {
            match self.exchange(frame.clone(), NLM_F_REQUEST | NLM_F_DUMP).await {
                Ok((frames, true)) => return Ok(frames),
                Ok((_, false)) => {}
                // A dump that a dropped future left behind is still being read by the connection's task.
                Err(failure) if matches!(failure.errno(), Some(libc::EBUSY | libc::EINTR)) => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(Duration::from_millis(attempt.into())).await;
        }
        Err(Failure::Unsteady)
    }

    /// Frames of the answer, and whether they are consistent (no `NLM_F_DUMP_INTR`).
    async fn exchange(&self, frame: Frame, flags: u16) -> Result<(Vec<Frame>, bool), Failure> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(frame));
        message.header.flags = flags;
        let mut answers = self.handle.request(message, SocketAddr::new(0, 0)).map_err(|_| Failure::Closed)?;
        let mut frames = Vec::new();
        let mut steady = true;
        while let Some(answer) = answers.next().await {
            steady &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(frame) => frames.push(frame),
                NetlinkPayload::Error(error) => {
                    return match Failure::from_answer(answer.header.flags, &error) {
                        Some(failure) => Err(failure),
                        None => Ok((frames, steady)),
                    };
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(Failure::Refused { errno: done.code.saturating_abs(), explanation: None });
                }
                NetlinkPayload::Done(_) => return Ok((frames, steady)),
                NetlinkPayload::Overrun(_) => steady = false,
                _ => {}
            }
        }
        Err(Failure::Closed)
    }
}
