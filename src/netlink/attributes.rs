//! Reads netlink attributes: `{length: u16, type: u16, value, padding to 4}`, lengths and types in host byte order.
//!
//! Whatever is malformed reads as absent; nothing here fails or panics, whatever the kernel sends.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bits of the type field that aren't the type: `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = !0xc000;

/// Length of an attribute's header, in bytes.
const HEADER: usize = 4;

/// The attributes in `bytes`, one level, as type and value. Ends at the first one that doesn't fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_host(bytes)?);
        let kind = u16_host(bytes.get(2..)?)? & TYPE_MASK;
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the last attribute of that type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).filter(|(k, _)| *k == kind).last().map(|(_, value)| value)
}

/// A string, up to its NUL. What isn't UTF-8 becomes U+FFFD.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A number of 16 bits in host byte order.
pub(super) fn u16_host(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_ne_bytes)
}

/// A number of 16 bits in network byte order.
pub(super) fn u16_network(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_be_bytes)
}

/// A number of 32 bits in network byte order.
pub(super) fn u32_network(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_be_bytes)
}

/// A number of 32 bits in host byte order.
pub(super) fn u32_host(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The `index`th number of 64 bits in host byte order.
pub(super) fn u64_host(value: &[u8], index: usize) -> Option<u64> {
    value.get(index * 8..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

/// A truth value of 8 bits.
pub(super) fn flag(value: &[u8]) -> Option<bool> {
    value.first().map(|b| *b != 0)
}

/// An IPv4 address.
pub(super) fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

/// An IPv6 address.
pub(super) fn ipv6(value: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(value).ok().map(Ipv6Addr::from)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    pub(in crate::netlink) fn encode(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(HEADER + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn reads_what_was_written_and_stops_at_garbage() {
        let mut bytes = encode(3, b"eth0\0");
        bytes.extend(encode(4 | 0x8000, &1500u32.to_ne_bytes()));
        bytes.extend([200, 0, 1]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"eth0\0"[..]), (4, &1500u32.to_ne_bytes()[..])]);
        assert_eq!(text(attribute(&bytes, 3).unwrap()), "eth0");
        assert_eq!(attribute(&bytes, 4).and_then(u32_host), Some(1500));
        assert_eq!(attribute(&bytes, 9), None);
    }

    #[test]
    fn the_last_attribute_may_lack_its_padding() {
        let mut bytes = encode(3, b"ab");
        bytes.truncate(6);
        assert_eq!(attribute(&bytes, 3), Some(&b"ab"[..]));
    }

    #[test]
    fn odd_text_is_kept_readable() {
        assert_eq!(text(b"\xff\xfe\0x"), "\u{fffd}\u{fffd}");
        assert_eq!(text(b"no end"), "no end");
    }

    proptest! {
        #[test]
        fn no_input_panics_or_loops(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let count = attributes(&bytes).count();
            prop_assert!(count <= bytes.len() / HEADER + 1);
            for (_, value) in attributes(&bytes) {
                let _ = (text(value), flag(value), ipv4(value), ipv6(value), u64_host(value, 6), u16_network(value));
            }
        }
    }
}
