//! An address prefix.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// An address and how many of its bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Bits that count.
    pub length: u8,
}

impl Prefix {
    /// Whether an address lies in it; one of the other family never does.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differing = ours.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.length).min(32)
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differing = ours.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.length).min(128)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_bits_count() {
        let contains = |prefix: &str, length, address: &str| {
            Prefix { address: prefix.parse().unwrap(), length }.contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0", 8, "10.9.8.7") && !contains("10.0.0.0", 8, "11.0.0.0"));
        assert!(contains("10.0.0.1", 32, "10.0.0.1") && !contains("10.0.0.1", 32, "10.0.0.0"));
        assert!(contains("0.0.0.0", 0, "255.0.0.1") && !contains("0.0.0.0", 0, "::1"));
        assert!(contains("fd00::", 8, "fdff::1") && !contains("fd00::", 8, "fe80::1"));
        assert!(contains("::", 0, "fe80::1") && contains("fd00::1", 200, "fd00::1"));
    }
}
