//! Netfilter chains, as nf_tables lists them. Constants are those of `linux/netfilter/nf_tables.h`.

use super::attributes::{attribute, attributes, text, u32_network};
use super::transport::Frame;
use crate::model::NetfilterChain;

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWTABLE: u16 = NFTABLES;
const NFT_MSG_DELRULE: u16 = NFTABLES | 8;
const NFT_MSG_NEWCHAIN: u16 = NFTABLES | 3;
const NFT_MSG_GETCHAIN: u16 = NFTABLES | 4;

/// Length of `struct nfgenmsg`.
const HEADER_LEN: usize = 4;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_USE: u16 = 6;

const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_DEVICE_NAME: u16 = 1;

/// `NF_DROP`, as a policy.
const NF_DROP: u32 = 0;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;

/// A request for the chains of all families.
pub(super) fn request() -> Frame {
    Frame { kind: NFT_MSG_GETCHAIN, body: vec![0; HEADER_LEN] }
}

/// Whether a message tells of a table, a chain or a rule that comes or goes: sets and their elements change all the time,
/// and don't decide whether there are rules.
pub(super) fn is_change(frame: &Frame) -> bool {
    (NFT_MSG_NEWTABLE..=NFT_MSG_DELRULE).contains(&frame.kind)
}

/// Reads an `NFT_MSG_NEWCHAIN`. `None` for a chain that a tunnel's packets don't pass, or that does nothing: one that
/// isn't on a hook, one for what is forwarded, and one that is empty and accepts.
pub(super) fn chain(frame: &Frame) -> Option<NetfilterChain> {
    if frame.kind != NFT_MSG_NEWCHAIN {
        return None;
    }
    let family = frame.body.first()?;
    let tail = frame.body.get(HEADER_LEN..)?;
    let on = attribute(tail, NFTA_CHAIN_HOOK)?;
    let hook = match (*family, attribute(on, NFTA_HOOK_HOOKNUM).and_then(u32_network)) {
        (NFPROTO_NETDEV, Some(0)) | (NFPROTO_INET, Some(5)) => "ingress",
        (NFPROTO_NETDEV, Some(1)) => "egress",
        (NFPROTO_NETDEV, _) => "unknown hook",
        (_, Some(0)) => "prerouting",
        (_, Some(1)) => "input",
        (_, Some(2)) => return None,
        (_, Some(3)) => "output",
        (_, Some(4)) => "postrouting",
        _ => "unknown hook",
    };
    let family = match *family {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        NFPROTO_NETDEV => "netdev",
        // Of ARP, and of bridges, which the fast lane doesn't pass by.
        _ => return None,
    };
    // A base chain can't be jumped to: whoever refers to it is a rule in it.
    let rules = attribute(tail, NFTA_CHAIN_USE).and_then(u32_network) != Some(0);
    let drops = attribute(tail, NFTA_CHAIN_POLICY).and_then(u32_network) == Some(NF_DROP);
    if !(rules || drops) {
        return None;
    }
    let name = |kind| attribute(tail, kind).map(text).unwrap_or_default();
    let listed = attribute(on, NFTA_HOOK_DEVS).unwrap_or_default();
    let mut devices: Vec<String> = attribute(on, NFTA_HOOK_DEV).map(text).into_iter().collect();
    for (kind, device) in attributes(listed) {
        match kind {
            NFTA_DEVICE_NAME if !devices.contains(&text(device)) => devices.push(text(device)),
            NFTA_DEVICE_NAME => {}
            // A prefix of names, say: it may be any.
            _ => {
                devices.clear();
                break;
            }
        }
    }
    Some(NetfilterChain {
        family: family.to_owned(),
        table: name(NFTA_CHAIN_TABLE),
        chain: Some(name(NFTA_CHAIN_NAME)),
        hook: Some(hook.to_owned()),
        devices,
    })
}

/// The tables of the older iptables, from what `/proc/net/ip_tables_names` says.
pub(super) fn legacy(family: &str, names: &str) -> Vec<NetfilterChain> {
    let table = |name: &str| NetfilterChain {
        family: family.to_owned(),
        table: name.to_owned(),
        chain: None,
        hook: None,
        devices: Vec::new(),
    };
    names.lines().filter(|name| !name.is_empty()).map(table).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attributes::tests::encode;
    use super::*;

    fn frame(family: u8, hook: Option<(u32, &[&str])>, rules: u32, policy: u32) -> Frame {
        let mut body = vec![family, 0, 0, 0];
        body.extend(encode(NFTA_CHAIN_TABLE, b"filter\0"));
        body.extend(encode(NFTA_CHAIN_NAME, b"c\0"));
        body.extend(encode(NFTA_CHAIN_USE, &rules.to_be_bytes()));
        if let Some((number, devices)) = hook {
            let mut on = encode(NFTA_HOOK_HOOKNUM, &number.to_be_bytes());
            let list: Vec<u8> = devices.iter().flat_map(|d| encode(NFTA_DEVICE_NAME, d.as_bytes())).collect();
            on.extend(encode(NFTA_HOOK_DEVS, &list));
            body.extend(encode(NFTA_CHAIN_HOOK, &on));
            body.extend(encode(NFTA_CHAIN_POLICY, &policy.to_be_bytes()));
        }
        Frame { kind: NFT_MSG_NEWCHAIN, body }
    }

    #[test]
    fn chains_that_do_something_are_read() {
        let words = |frame: Frame| chain(&frame).map(|c| c.to_string());
        let input = "the nftables chain inet filter c (input)";
        assert_eq!(words(frame(NFPROTO_INET, Some((1, &[])), 1, 1)).as_deref(), Some(input));
        assert_eq!(words(frame(NFPROTO_INET, Some((1, &[])), 0, NF_DROP)).as_deref(), Some(input));
        assert_eq!(words(frame(NFPROTO_INET, Some((1, &[])), 0, 1)), None, "empty, and accepts");
        assert_eq!(words(frame(NFPROTO_INET, Some((2, &[])), 1, 0)), None, "forwarded");
        assert_eq!(words(frame(NFPROTO_INET, None, 9, 1)), None, "not on a hook");
        assert_eq!(words(frame(7, Some((0, &[])), 9, 1)), None, "a bridge's");
        let egress = chain(&frame(NFPROTO_NETDEV, Some((1, &["eth0", "eth1"])), 1, 1)).unwrap();
        assert_eq!((egress.hook.as_deref(), egress.devices.len()), (Some("egress"), 2));
    }

    #[test]
    fn tables_of_the_older_iptables() {
        let tables = legacy("ip6", "filter\nnat\n");
        assert_eq!(tables.len(), 2);
        assert_eq!(tables[1].to_string(), "the nat table of ip6tables");
        assert!(legacy("ip", "").is_empty());
    }

    #[test]
    fn elements_of_sets_are_no_change() {
        let is_change = |kind: u16| is_change(&Frame { kind: NFTABLES | kind, body: vec![] });
        assert!(is_change(0) && is_change(3) && is_change(6) && is_change(8));
        assert!(!is_change(9) && !is_change(12) && !is_change(15));
    }
}
