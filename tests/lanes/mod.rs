//! Two hosts and two tenants, in every set-up: {port, endpoint} x {IPv4, IPv6 underlay} x {TCX, clsact}, and the lane as
//! something that changes while they run.
//!
//! Nobody in here speaks but the test, so that every frame and every counter has one explanation.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod account;
pub mod cases;
pub mod inner;
pub mod line;
pub mod mesh;
pub mod model;
pub mod mutate;
pub mod outer;
pub mod raw;
pub mod router;
pub mod segment;
pub mod site;

pub use crate::world::setup::{Attach, Over};

/// Which way plain packets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Device,
    Fast,
}

impl Lane {
    /// What the tunnel's `fast` says.
    pub fn fast(self) -> &'static str {
        match self {
            Self::Device => "off",
            Self::Fast => "on",
        }
    }
}

/// Both. The first is what the second is compared with.
pub const LANES: [Lane; 2] = [Lane::Device, Lane::Fast];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Tcx,
    Clsact,
}

impl Hook {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What the tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Vxlan,
    Geneve,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }

    pub fn port(self) -> u16 {
        match self {
            Self::Vxlan => 4789,
            Self::Geneve => 6081,
        }
    }

    /// The first word behind the UDP header. VXLAN: the I flag and nothing else. Geneve: no options, Ethernet inside.
    pub fn word(self) -> u32 {
        match self {
            Self::Vxlan => 0x0800_0000,
            Self::Geneve => 0x0000_6558,
        }
    }
}

/// One set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub attach: Attach,
    pub over: Over,
    pub hook: Hook,
    pub kind: Kind,
}

/// Tunnel ids of the tenants. The second shares its last byte with the first.
pub const RED: u32 = 0x00a1_b2c3;
pub const BLUE: u32 = 0x0000_00c3;
