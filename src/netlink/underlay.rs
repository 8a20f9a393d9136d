//! Reads what the fast lane would pass by: routing rules, IPsec policies, netfilter chains, filters of others on the
//! underlay's ingress, and IPv6 routes that forwarding would cost.
//!
//! What this kernel doesn't have can't be in the way. What it has and doesn't let us read is told as unread: whoever
//! decides takes that for an obstacle.

use super::attributes::{attribute, text, u32_host};
use super::transport::{Failure, Frame, Transport};
use super::{Netlink, ipsec, netfilter, rule};
use crate::model::{Direction, IngressProgram, Link, NetfilterChain, Underlay, Unread};
use anyhow::Result;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_XFRM};
use std::io::ErrorKind;

/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
/// `RTPROT_RA`: learned from a router's advertisement.
const RTPROT_RA: u8 = 9;
const RTA_OIF: u16 = 4;

/// Length of `struct tcmsg`.
const TCMSG_LEN: usize = 20;
const TCA_KIND: u16 = 1;

/// Connections beside the one for links.
#[derive(Debug)]
pub(super) struct Sources {
    routes: Transport,
    ipsec: Option<Transport>,
    netfilter: Option<Transport>,
}

impl Sources {
    pub(super) fn open() -> Result<Self> {
        Ok(Self {
            routes: Transport::open_strict()?,
            ipsec: Transport::open_other(NETLINK_XFRM)?,
            netfilter: Transport::open_other(NETLINK_NETFILTER)?,
        })
    }
}

/// Collects what is read and notes what isn't.
#[derive(Debug, Default)]
struct Survey {
    found: Underlay,
}

impl Survey {
    /// What was listed; nothing where the kernel doesn't know what was asked for, or doesn't tell.
    fn listed(&mut self, what: &str, outcome: Result<Vec<Frame>, Failure>) -> Vec<Frame> {
        match outcome {
            Ok(frames) => frames,
            Err(failure) if is_unknown(&failure) => Vec::new(),
            Err(failure) => {
                self.unread(what, failure.to_string());
                Vec::new()
            }
        }
    }

    fn unread(&mut self, what: &str, why: String) {
        self.found.unread.push(Unread { what: what.to_owned(), why });
    }

    /// Tables of the older iptables. The file says which there are in this namespace; where it is missing, none can be.
    /// Asking for one by its name would make it.
    fn older_tables(&mut self, family: &str, file: &str) -> Vec<NetfilterChain> {
        match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(names) => netfilter::legacy(family, &names),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let remedy = "it is root's; this kernel has the older iptables built in or loaded";
                self.unread(&format!("/proc/net/{file}"), format!("{error} ({remedy})"));
                Vec::new()
            }
        }
    }
}

/// Whether the kernel doesn't have what was asked for.
fn is_unknown(failure: &Failure) -> bool {
    matches!(failure.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
}

impl Netlink {
    /// What there is on this host that the fast lane would pass by, programs at TCX aside. Filters are looked for on the
    /// ingress of `candidates`: the links that have addresses.
    ///
    /// Costs six lists, and one for each candidate.
    pub async fn underlay(&self, candidates: &[&Link]) -> Underlay {
        let mut survey = Survey::default();
        let rules = survey.listed("routing rules", self.transport.dump(rule::request()).await);
        survey.found.rules = rules.iter().filter_map(rule::rule).collect();
        if let Some(ipsec) = &self.sources.ipsec {
            let policies = survey.listed("IPsec policies", ipsec.dump(ipsec::request()).await);
            survey.found.ipsec = policies.iter().filter_map(ipsec::policy).collect();
            let default = survey.listed("IPsec's default", ipsec.ask(ipsec::default_request()).await);
            survey.found.ipsec_blocks = default.iter().any(ipsec::blocks);
        }
        if let Some(netfilter) = &self.sources.netfilter {
            let chains = survey.listed("netfilter chains", netfilter.dump(netfilter::request()).await);
            survey.found.netfilter = chains.iter().filter_map(netfilter::chain).collect();
        }
        for (family, file) in [("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")] {
            let tables = survey.older_tables(family, file);
            survey.found.netfilter.extend(tables);
        }
        for link in candidates {
            let program = self.foreign_filters(link, &mut survey).await;
            survey.found.programs.extend(program);
        }
        let routes = survey.listed("IPv6 routes", self.sources.routes.dump(learned_routes()).await);
        let learned = routes.iter().filter_map(learned_default);
        survey.found.learned_defaults = learned.filter(|index| is_learning(candidates, *index)).collect();
        survey.found
    }

    /// The first filter of somebody else on a link's ingress: one is as bad as ten.
    async fn foreign_filters(&self, link: &Link, survey: &mut Survey) -> Option<IngressProgram> {
        let frames = match self.filters(link.ifindex, Direction::Ingress).await {
            Ok(frames) => frames,
            Err(error) => {
                survey.unread(&format!("TC filters of {}", link.name), format!("{error:#}"));
                return None;
            }
        };
        let foreign = frames.iter().find(|frame| self.is_foreign(frame))?;
        let kind = foreign.body.get(TCMSG_LEN..).and_then(|tail| attribute(tail, TCA_KIND)).map(text);
        let priority = foreign.body.get(16..).and_then(u32_host).unwrap_or_default() >> 16;
        let what = format!("the TC filter {} of priority {priority}", kind.unwrap_or_default());
        Some(IngressProgram { ifindex: link.ifindex, what })
    }
}

/// A request for the IPv6 routes of all tables that were learned from routers.
fn learned_routes() -> Frame {
    let mut body = vec![0; RTMSG_LEN];
    body[0] = libc::AF_INET6 as u8;
    body[5] = RTPROT_RA;
    Frame { kind: libc::RTM_GETROUTE, body }
}

/// The link of a default route that was learned from a router; 0 where it has several.
fn learned_default(frame: &Frame) -> Option<u32> {
    let header: &[u8; RTMSG_LEN] = frame.body.first_chunk().filter(|_| frame.kind == libc::RTM_NEWROUTE)?;
    // Before Linux 4.20 the kernel lists all routes, whatever was asked for.
    let learned = header[1] == 0 && header[5] == RTPROT_RA;
    learned.then(|| attribute(&frame.body[RTMSG_LEN..], RTA_OIF).and_then(u32_host).unwrap_or_default())
}

/// Whether the kernel itself listens to routers on that link and stops when it forwards: `accept_ra` is 1. With 0 the
/// route is a program's, which the kernel leaves alone, as it does with 2.
fn is_learning(candidates: &[&Link], ifindex: u32) -> bool {
    let Some(link) = candidates.iter().find(|link| link.ifindex == ifindex) else { return true };
    let path = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", link.name);
    !std::fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "0" | "2"))
}
