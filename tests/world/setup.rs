//! What most set-ups differ in: how a workload meets its mapping, and what the tunnels go over.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::net::IpAddr;

/// How a workload meets its mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Its veth joins the tenant's bridge, beside the generated port.
    Port,
    /// Its veth is the mapping's interface.
    Endpoint,
}

/// Which addresses the hosts have on the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Ipv4,
    Ipv6,
}

impl Over {
    /// Address of that host on the underlay.
    pub fn host(self, n: usize) -> IpAddr {
        let text = match self {
            Self::Ipv4 => format!("172.16.1.{}", 100 + n),
            Self::Ipv6 => format!("fd00::{}", 100 + n),
        };
        text.parse().unwrap()
    }

    /// What VXLAN and Geneve take of the underlay's MTU: the outer headers behind Ethernet's, and the tenant's Ethernet header.
    pub fn overhead(self) -> u32 {
        match self {
            Self::Ipv4 => 50,
            Self::Ipv6 => 70,
        }
    }

    /// What they leave of an underlay's 1500.
    pub fn mtu(self) -> u32 {
        1500 - self.overhead()
    }
}
