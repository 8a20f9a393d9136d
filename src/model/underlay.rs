//! What the tunnels' own packets meet on this host beside the tunnel device: all that the fast lane would pass by.
//!
//! The fast lane puts a tunnel's packets straight on the underlay device and takes them from its TC ingress. Routing
//! rules, IPsec policies, netfilter chains and other people's TC programs of the ordinary path then don't see them. Here
//! stands what there is of those, and whether it could mean a given [`Flow`]: in doubt it does.

use super::{LaneReason, Prefix};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Number of UDP in IP headers.
const UDP: u8 = 17;

/// What there is on this host that the fast lane passes by. Nothing, in a namespace that nobody has touched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Underlay {
    /// Routing rules beside those that every namespace starts with, of both families.
    pub rules: Vec<RoutingRule>,
    /// IPsec policies that transform or block, for what is sent from here and what is received here.
    pub ipsec: Vec<IpsecPolicy>,
    /// Whether what no IPsec policy names is blocked.
    pub ipsec_blocks: bool,
    /// Netfilter chains with rules or a drop policy, on hooks that the fast lane passes by.
    pub netfilter: Vec<NetfilterChain>,
    /// TC programs and filters of others on the ingress of links that have addresses.
    pub programs: Vec<IngressProgram>,
    /// Links with an IPv6 default route that the kernel learned from a router and would forget as soon as any link
    /// forwards IPv6.
    pub learned_defaults: Vec<u32>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// The packets of one tunnel between this host and one other, as the underlay sees them.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Underlay address of this host.
    pub local: IpAddr,
    /// Underlay address of the far host.
    pub remote: IpAddr,
    /// UDP destination port.
    pub port: u16,
    /// The tunnel device.
    pub tunnel: &'a str,
    /// Name of the underlay device.
    pub device: &'a str,
    /// Index of the underlay device.
    pub ifindex: u32,
}

/// What of [`Underlay`] keeps a flow from the fast lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle<'a> {
    /// A routing rule.
    Rule(&'a RoutingRule),
    /// An IPsec policy.
    Ipsec(&'a IpsecPolicy),
    /// IPsec blocks what no policy names.
    IpsecBlocks,
    /// A netfilter chain.
    Netfilter(&'a NetfilterChain),
    /// A TC program of somebody else.
    Program(&'a IngressProgram),
    /// Something could not be read.
    Unread(&'a Unread),
}

impl Obstacle<'_> {
    /// Its kind.
    pub fn reason(&self) -> LaneReason {
        match self {
            Self::Rule(_) => LaneReason::RoutingRule,
            Self::Ipsec(_) | Self::IpsecBlocks => LaneReason::Ipsec,
            Self::Netfilter(_) => LaneReason::Netfilter,
            Self::Program(_) => LaneReason::TcProgram,
            Self::Unread(_) => LaneReason::Unread,
        }
    }
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => write!(f, "a routing rule decides about its route: {rule}"),
            Self::Ipsec(policy) => write!(f, "an IPsec policy is for it: {policy}"),
            Self::IpsecBlocks => f.write_str("IPsec blocks what no policy names"),
            Self::Netfilter(chain) => write!(f, "{chain} would not see it"),
            Self::Program(program) => write!(f, "{} on the underlay's ingress would not see it", program.what),
            Self::Unread(unread) => write!(f, "{} could not be read: {}", unread.what, unread.why),
        }
    }
}

impl Underlay {
    /// The first thing that could mean what is sent on that flow.
    pub fn obstacle_out(&self, flow: &Flow<'_>) -> Option<Obstacle<'_>> {
        let rule = || self.rules.iter().find(|r| r.may_apply(flow)).map(Obstacle::Rule);
        rule().or_else(|| self.obstacle(flow, PolicyDirection::Out))
    }

    /// The first thing that could mean what is received on that flow.
    pub fn obstacle_in(&self, flow: &Flow<'_>) -> Option<Obstacle<'_>> {
        let program = || self.programs.iter().find(|p| p.ifindex == flow.ifindex).map(Obstacle::Program);
        self.obstacle(flow, PolicyDirection::In).or_else(program)
    }

    fn obstacle(&self, flow: &Flow<'_>, way: PolicyDirection) -> Option<Obstacle<'_>> {
        let ipsec = self.ipsec.iter().find(|p| p.direction == way && p.may_apply(flow)).map(Obstacle::Ipsec);
        let blocks = || self.ipsec_blocks.then_some(Obstacle::IpsecBlocks);
        let netfilter = || self.netfilter.iter().find(|c| c.may_apply(flow, way)).map(Obstacle::Netfilter);
        let unread = || self.unread.first().map(Obstacle::Unread);
        ipsec.or_else(blocks).or_else(netfilter).or_else(unread)
    }
}

/// A routing rule (`ip rule`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutingRule {
    /// Whether it is one of IPv6.
    pub ipv6: bool,
    /// Priority; the lowest comes first.
    pub priority: u32,
    /// Whether it applies to what its selectors don't name (`not`).
    pub inverted: bool,
    /// Sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Prefix>,
    /// Destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Prefix>,
    /// Incoming interface; `lo` for what this host sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Outgoing interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oif: Option<String>,
    /// Whether it is for links of a VRF only.
    pub l3mdev: bool,
    /// IP protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// First and last destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// Mark and mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<(u32, u32)>,
    /// Whether it has selectors beside these.
    pub more: bool,
    /// What it does: `lookup 100`, `blackhole`, …
    pub action: String,
}

impl RoutingRule {
    /// Whether it could decide about the route of a flow. A mark is no excuse: what marks packets isn't known.
    pub fn may_apply(&self, flow: &Flow<'_>) -> bool {
        if self.ipv6 != flow.remote.is_ipv6() {
            return false;
        }
        let other = |name: &Option<String>, ours: &[&str]| name.as_ref().is_some_and(|n| !ours.contains(&n.as_str()));
        let excluded = self.from.is_some_and(|p| !p.contains(flow.local))
            || self.to.is_some_and(|p| !p.contains(flow.remote))
            || self.protocol.is_some_and(|p| p != UDP)
            || self.ports.is_some_and(|(first, last)| !(first..=last).contains(&flow.port))
            || other(&self.iif, &["lo", flow.tunnel])
            || other(&self.oif, &[flow.device]);
        // A VRF's links aren't underlay devices of the fast lane, which is looked at apart from this.
        self.inverted || !(excluded || self.l3mdev)
    }
}

impl fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.inverted {
            f.write_str(" not")?;
        }
        match self.from {
            Some(prefix) => write!(f, " from {prefix}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(prefix) = self.to {
            write!(f, " to {prefix}")?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        if let Some(name) = &self.iif {
            write!(f, " iif {name}")?;
        }
        if let Some(name) = &self.oif {
            write!(f, " oif {name}")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, " ipproto {protocol}")?;
        }
        if let Some((first, last)) = self.ports {
            write!(f, " dport {first}-{last}")?;
        }
        if self.more {
            f.write_str(" …")?;
        }
        write!(f, " {}", self.action)
    }
}

/// For which packets an IPsec policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyDirection {
    /// Received here.
    In,
    /// Sent from here.
    Out,
}

/// An IPsec policy (`ip xfrm policy`) that transforms or blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsecPolicy {
    /// For which packets.
    pub direction: PolicyDirection,
    /// Sources.
    pub source: Prefix,
    /// Destinations.
    pub destination: Prefix,
    /// IP protocol; 0: all.
    pub protocol: u8,
    /// Destination port and its mask; a mask of 0: all.
    pub port: (u16, u16),
}

impl IpsecPolicy {
    /// Whether it could be for packets of a flow.
    pub fn may_apply(&self, flow: &Flow<'_>) -> bool {
        let (from, to) = match self.direction {
            PolicyDirection::Out => (flow.local, flow.remote),
            PolicyDirection::In => (flow.remote, flow.local),
        };
        let (port, mask) = self.port;
        self.source.contains(from)
            && self.destination.contains(to)
            && (self.protocol == 0 || self.protocol == UDP)
            && (port ^ flow.port) & mask == 0
    }
}

impl fmt::Display for IpsecPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            PolicyDirection::In => "in",
            PolicyDirection::Out => "out",
        };
        write!(f, "src {} dst {} dir {direction}", self.source, self.destination)
    }
}

/// A base chain of nftables, or a table of the older iptables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetfilterChain {
    /// Family: `ip`, `ip6`, `inet` or `netdev`.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain; `None` for a table of the older iptables as a whole.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chain: Option<String>,
    /// Hook: `input`, `output`, `prerouting`, `postrouting`, `ingress` or `egress`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hook: Option<String>,
    /// The links that an `ingress` or `egress` chain is for; none where it may be any.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub devices: Vec<String>,
}

impl NetfilterChain {
    /// Whether packets of a flow that go that way pass through it on the ordinary path.
    pub fn may_apply(&self, flow: &Flow<'_>, way: PolicyDirection) -> bool {
        let passed = match self.hook.as_deref() {
            Some("prerouting" | "input" | "ingress") => way == PolicyDirection::In,
            Some("output" | "postrouting" | "egress") => way == PolicyDirection::Out,
            _ => true,
        };
        let family = match self.family.as_str() {
            "ip" => flow.remote.is_ipv4(),
            "ip6" => flow.remote.is_ipv6(),
            _ => true,
        };
        passed && family && (self.devices.is_empty() || self.devices.iter().any(|d| d == flow.device))
    }
}

impl fmt::Display for NetfilterChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tool = if self.family == "ip6" { "ip6tables" } else { "iptables" };
        match (&self.chain, &self.hook) {
            (Some(chain), Some(hook)) => {
                write!(f, "the nftables chain {} {} {chain} ({hook})", self.family, self.table)
            }
            (Some(chain), None) => write!(f, "the nftables chain {} {} {chain}", self.family, self.table),
            (None, _) => write!(f, "the {} table of {tool}", self.table),
        }
    }
}

/// A TC program or filter of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressProgram {
    /// The link.
    pub ifindex: u32,
    /// What it is.
    pub what: String,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn flow<'a>() -> Flow<'a> {
        Flow {
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.0.0.2".parse().unwrap(),
            port: 4789,
            tunnel: "vxlan0",
            device: "eth0",
            ifindex: 2,
        }
    }

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn a_rule_applies_unless_a_selector_says_no() {
        let applies = |change: fn(&mut RoutingRule)| {
            let mut rule = RoutingRule { action: "lookup 100".to_owned(), ..RoutingRule::default() };
            change(&mut rule);
            rule.may_apply(&flow())
        };
        assert!(applies(|_| {}));
        assert!(!applies(|r| r.ipv6 = true));
        assert!(applies(|r| r.from = Some(prefix("10.0.0.0/24"))));
        assert!(!applies(|r| r.from = Some(prefix("10.0.1.0/24"))));
        assert!(applies(|r| r.to = Some(prefix("10.0.0.2/32"))));
        assert!(!applies(|r| r.to = Some(prefix("10.0.0.3/32"))));
        assert!(applies(|r| r.protocol = Some(17)) && !applies(|r| r.protocol = Some(6)));
        assert!(applies(|r| r.ports = Some((4000, 5000))) && !applies(|r| r.ports = Some((1, 4788))));
        assert!(applies(|r| r.iif = Some("lo".to_owned())) && !applies(|r| r.iif = Some("eth1".to_owned())));
        assert!(applies(|r| r.iif = Some("vxlan0".to_owned())));
        assert!(applies(|r| r.oif = Some("eth0".to_owned())) && !applies(|r| r.oif = Some("eth1".to_owned())));
        assert!(!applies(|r| r.l3mdev = true), "only for what is in a VRF");
        assert!(applies(|r| r.mark = Some((1, 1))), "who marks packets isn't known");
        // WireGuard's "not fwmark": everything that isn't named.
        assert!(applies(|r| (r.inverted, r.to) = (true, Some(prefix("10.0.0.3/32")))));
    }

    #[test]
    fn a_policy_applies_in_its_direction() {
        let mut policy = IpsecPolicy {
            direction: PolicyDirection::Out,
            source: prefix("10.0.0.1/32"),
            destination: prefix("10.0.0.2/32"),
            protocol: 0,
            port: (0, 0),
        };
        assert!(policy.may_apply(&flow()));
        policy.direction = PolicyDirection::In;
        assert!(!policy.may_apply(&flow()));
        (policy.source, policy.destination) = (policy.destination, policy.source);
        assert!(policy.may_apply(&flow()));
        policy.port = (4790, 0xffff);
        assert!(!policy.may_apply(&flow()));
        policy.port = (4789, 0xffff);
        assert!(policy.may_apply(&flow()));
        policy.protocol = 6;
        assert!(!policy.may_apply(&flow()));
        policy.protocol = 17;
        assert!(policy.may_apply(&flow()));
        policy.source = prefix("::/0");
        assert!(!policy.may_apply(&flow()), "of the other family");
    }

    #[test]
    fn a_chain_sees_its_way_its_family_and_its_devices() {
        let applies_to = |family: &str, devices: &[&str], way| {
            let chain = NetfilterChain {
                family: family.to_owned(),
                table: "filter".to_owned(),
                chain: Some("input".to_owned()),
                hook: Some("input".to_owned()),
                devices: devices.iter().map(|&d| d.to_owned()).collect(),
            };
            chain.may_apply(&flow(), way)
        };
        let applies = |family: &str, devices: &[&str]| applies_to(family, devices, PolicyDirection::In);
        assert!(!applies_to("ip", &[], PolicyDirection::Out));
        assert!(applies("ip", &[]) && applies("inet", &[]) && !applies("ip6", &[]));
        assert!(applies("netdev", &["eth1", "eth0"]) && !applies("netdev", &["eth1"]));
    }

    #[test]
    fn an_untouched_host_has_nothing_in_the_way() {
        let both = |underlay: &Underlay| {
            (
                underlay.obstacle_out(&flow()).map(|o| o.to_string()),
                underlay.obstacle_in(&flow()).map(|o| o.to_string()),
            )
        };
        assert_eq!(both(&Underlay::default()), (None, None));
        let blocks = Underlay { ipsec_blocks: true, ..Underlay::default() };
        let why = "IPsec blocks what no policy names".to_owned();
        assert_eq!(both(&blocks), (Some(why.clone()), Some(why)));
        let unread = Unread { what: "IPsec policies".to_owned(), why: "no".to_owned() };
        let unread = Underlay { unread: vec![unread], ..Underlay::default() };
        let why = "IPsec policies could not be read: no".to_owned();
        assert_eq!(both(&unread), (Some(why.clone()), Some(why)));
        let program = |ifindex| IngressProgram { ifindex, what: "the TCX program 7".to_owned() };
        let elsewhere = Underlay { programs: vec![program(3)], ..Underlay::default() };
        assert_eq!(both(&elsewhere), (None, None));
        let here = Underlay { programs: vec![program(2)], ..Underlay::default() };
        assert_eq!(
            both(&here),
            (None, Some("the TCX program 7 on the underlay's ingress would not see it".to_owned()))
        );
    }
}
