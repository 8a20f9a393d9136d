//! IPsec policies, as `XFRM_MSG_GETPOLICY` lists them. Constants and layouts are those of `linux/xfrm.h`.

use super::attributes::{attribute, ipv4, ipv6, u16_host, u16_network, u32_host};
use super::transport::Frame;
use crate::model::{IpsecPolicy, PolicyDirection, Prefix};
use std::net::IpAddr;

const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;

/// Length of `struct xfrm_userpolicy_id`.
const POLICY_ID_LEN: usize = 64;
/// Length of `struct xfrm_userpolicy_info`.
const POLICY_INFO_LEN: usize = 168;
/// Places in `struct xfrm_userpolicy_info`.
const DIRECTION: usize = 160;
const ACTION: usize = 161;

const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;

const XFRM_POLICY_IN: u8 = 0;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_POLICY_ALLOW: u8 = 0;
const XFRM_USERPOLICY_BLOCK: u8 = 1;

/// A request for all policies.
pub(super) fn request() -> Frame {
    Frame { kind: XFRM_MSG_GETPOLICY, body: vec![0; POLICY_ID_LEN] }
}

/// A request for what becomes of what no policy names.
pub(super) fn default_request() -> Frame {
    Frame { kind: XFRM_MSG_GETDEFAULT, body: vec![0; 3] }
}

/// Whether an answer to [`default_request`] blocks what is received or sent here.
pub(super) fn blocks(frame: &Frame) -> bool {
    // In, forward, out.
    let at = |place: usize| frame.body.get(place) == Some(&XFRM_USERPOLICY_BLOCK);
    frame.kind == XFRM_MSG_GETDEFAULT && (at(0) || at(2))
}

/// Reads an `XFRM_MSG_NEWPOLICY`. `None` where it means no packet of a tunnel: what is forwarded, a single socket's
/// policy (those have directions of their own), an xfrm interface's, and one that lets packets pass as they are.
pub(super) fn policy(frame: &Frame) -> Option<IpsecPolicy> {
    let info = frame.body.get(..POLICY_INFO_LEN).filter(|_| frame.kind == XFRM_MSG_NEWPOLICY)?;
    let tail = frame.body.get(POLICY_INFO_LEN..)?;
    let direction = match info[DIRECTION] {
        XFRM_POLICY_IN => PolicyDirection::In,
        XFRM_POLICY_OUT => PolicyDirection::Out,
        _ => return None,
    };
    let transforms = attribute(tail, XFRMA_TMPL).is_some_and(|templates| !templates.is_empty());
    let of_interface = attribute(tail, XFRMA_IF_ID).and_then(u32_host).unwrap_or_default() != 0;
    if of_interface || (info[ACTION] == XFRM_POLICY_ALLOW && !transforms) {
        return None;
    }
    let is_ipv6 = u16_host(&info[40..])? == libc::AF_INET6 as u16;
    let address = |place: usize| {
        let bytes = &info[place..place + 16];
        if is_ipv6 { ipv6(bytes).map(IpAddr::V6) } else { ipv4(&bytes[..4]).map(IpAddr::V4) }
    };
    Some(IpsecPolicy {
        direction,
        destination: Prefix { address: address(0)?, length: info[42] },
        source: Prefix { address: address(16)?, length: info[43] },
        protocol: info[44],
        port: (u16_network(&info[32..])?, u16_network(&info[34..])?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attributes::tests::encode;
    use super::*;

    fn frame(direction: u8, action: u8, list: &[(u16, &[u8])]) -> Frame {
        let mut body = vec![0; POLICY_INFO_LEN];
        body[..4].copy_from_slice(&[10, 0, 0, 2]);
        body[16..20].copy_from_slice(&[10, 0, 0, 0]);
        body[32..36].copy_from_slice(&[0x12, 0xb5, 0xff, 0xff]);
        body[40..42].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        body[42..45].copy_from_slice(&[32, 24, 17]);
        (body[DIRECTION], body[ACTION]) = (direction, action);
        list.iter().for_each(|(kind, value)| body.extend(encode(*kind, value)));
        Frame { kind: XFRM_MSG_NEWPOLICY, body }
    }

    const TEMPLATE: (u16, &[u8]) = (XFRMA_TMPL, &[0; 64]);

    #[test]
    fn a_policy_that_transforms_is_read() {
        let policy = policy(&frame(XFRM_POLICY_OUT, XFRM_POLICY_ALLOW, &[TEMPLATE])).unwrap();
        assert_eq!(policy.to_string(), "src 10.0.0.0/24 dst 10.0.0.2/32 dir out");
        assert_eq!((policy.protocol, policy.port), (17, (4789, 0xffff)));
    }

    #[test]
    fn what_leaves_tunnels_alone_is_left_out() {
        let read = |direction, action, list: &[(u16, &[u8])]| policy(&frame(direction, action, list)).is_some();
        assert!(!read(XFRM_POLICY_OUT, XFRM_POLICY_ALLOW, &[]), "lets pass");
        assert!(read(XFRM_POLICY_IN, 1, &[]), "blocks");
        assert!(!read(2, 1, &[TEMPLATE]), "forwarded");
        assert!(!read(4, 0, &[TEMPLATE]), "a socket's");
        assert!(!read(XFRM_POLICY_OUT, 0, &[TEMPLATE, (XFRMA_IF_ID, &7u32.to_ne_bytes())]), "an xfrm interface's");
        assert_eq!(policy(&Frame { kind: XFRM_MSG_NEWPOLICY, body: vec![0; 20] }), None);
    }

    #[test]
    fn the_default_may_block() {
        let blocks = |body: &[u8]| blocks(&Frame { kind: XFRM_MSG_GETDEFAULT, body: body.to_vec() });
        assert!(blocks(&[1, 2, 2]) && blocks(&[2, 2, 1]));
        assert!(!blocks(&[2, 1, 2]) && !blocks(&[0, 0, 0]) && !blocks(&[]));
    }
}
