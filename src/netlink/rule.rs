//! Routing rules, as `RTM_GETRULE` lists them. Constants are those of `linux/fib_rules.h`.

use super::attributes::{attributes, flag, ipv4, ipv6, text, u16_host, u32_host};
use super::transport::Frame;
use crate::model::{Prefix, RoutingRule};
use std::net::IpAddr;

/// Length of `struct fib_rule_hdr`.
const HEADER_LEN: usize = 12;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DPORT_MASK: u16 = 29;

const FIB_RULE_INVERT: u32 = 2;

const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;

/// The tables that the rules of every namespace look into, whatever the packet: `default`, `main` and `local`.
const USUAL_TABLES: [u32; 3] = [253, 254, 255];

/// A request for all rules of both families.
pub(super) fn request() -> Frame {
    Frame { kind: libc::RTM_GETRULE, body: vec![0; HEADER_LEN] }
}

/// Reads an `RTM_NEWRULE`. `None` for what isn't one of IPv4 or IPv6, and for a rule that every namespace starts with,
/// at whatever priority.
pub(super) fn rule(frame: &Frame) -> Option<RoutingRule> {
    let header: &[u8; HEADER_LEN] = frame.body.first_chunk().filter(|_| frame.kind == libc::RTM_NEWRULE)?;
    let [family, to_length, from_length, tos, table, _, _, action, ..] = *header;
    let ipv6_family = match i32::from(family) {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return None,
    };
    let inverted = header.get(8..).and_then(u32_host)? & FIB_RULE_INVERT != 0;
    let mut rule = RoutingRule { ipv6: ipv6_family, inverted, more: tos != 0, ..RoutingRule::default() };
    let (mut table, mut suppresses, mut port_mask) = (u32::from(table), String::new(), u16::MAX);
    let (mut mark, mut mask, mut target) = (None, None, None);
    for (kind, value) in attributes(frame.body.get(HEADER_LEN..)?) {
        let address = || ipv4(value).map(IpAddr::V4).or_else(|| ipv6(value).map(IpAddr::V6));
        match kind {
            FRA_DST => rule.to = address().map(|address| Prefix { address, length: to_length }),
            FRA_SRC => rule.from = address().map(|address| Prefix { address, length: from_length }),
            FRA_IIFNAME => rule.iif = Some(text(value)),
            FRA_OIFNAME => rule.oif = Some(text(value)),
            FRA_PRIORITY => rule.priority = u32_host(value)?,
            FRA_FWMARK => mark = u32_host(value),
            FRA_FWMASK => mask = u32_host(value),
            FRA_L3MDEV => rule.l3mdev = flag(value).unwrap_or(false),
            FRA_IP_PROTO => rule.protocol = value.first().copied(),
            FRA_DPORT_RANGE => rule.ports = u16_host(value).zip(value.get(2..).and_then(u16_host)),
            FRA_TABLE => table = u32_host(value)?,
            FRA_GOTO => target = u32_host(value),
            // -1: off, which is how the kernel lists it.
            FRA_SUPPRESS_PREFIXLEN => match u32_host(value)? {
                u32::MAX => {}
                length => suppresses.push_str(&format!(" suppress_prefixlength {length}")),
            },
            FRA_SUPPRESS_IFGROUP => match u32_host(value)? {
                u32::MAX => {}
                group => suppresses.push_str(&format!(" suppress_ifgroup {group}")),
            },
            FRA_DPORT_MASK => port_mask = u16_host(value)?,
            FRA_PAD | FRA_PROTOCOL => {}
            // Whatever else there is (ports it comes from, users, realms, selectors yet to be invented) makes it a rule
            // that isn't a usual one.
            _ => rule.more = true,
        }
    }
    if port_mask != u16::MAX {
        (rule.ports, rule.more) = (None, true);
    }
    rule.mark = mark.filter(|mark| *mark != 0 || mask.unwrap_or_default() != 0).map(|m| (m, mask.unwrap_or(u32::MAX)));
    if action == FR_ACT_NOP || (action == FR_ACT_TO_TBL && suppresses.is_empty() && is_usual(&rule, table)) {
        return None;
    }
    rule.action = match action {
        FR_ACT_TO_TBL if rule.l3mdev => format!("lookup [l3mdev-table]{suppresses}"),
        FR_ACT_TO_TBL => format!("lookup {table}{suppresses}"),
        FR_ACT_GOTO => format!("goto {}", target.unwrap_or_default()),
        FR_ACT_BLACKHOLE => "blackhole".to_owned(),
        FR_ACT_UNREACHABLE => "unreachable".to_owned(),
        FR_ACT_PROHIBIT => "prohibit".to_owned(),
        other => format!("action {other}"),
    };
    Some(rule)
}

/// Whether a rule looks into one of the usual tables for every packet.
fn is_usual(rule: &RoutingRule, table: u32) -> bool {
    let RoutingRule { inverted, from, to, iif, oif, l3mdev, protocol, ports, mark, more, .. } = rule;
    let selects = *inverted || *l3mdev || *more || from.is_some() || to.is_some() || iif.is_some() || oif.is_some();
    USUAL_TABLES.contains(&table) && !(selects || protocol.is_some() || ports.is_some() || mark.is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attributes::tests::encode;
    use super::*;

    fn frame(header: [u8; 8], flags: u32, list: &[(u16, &[u8])]) -> Frame {
        let mut body = header.to_vec();
        body.extend(flags.to_ne_bytes());
        list.iter().for_each(|(kind, value)| body.extend(encode(*kind, value)));
        Frame { kind: libc::RTM_NEWRULE, body }
    }

    const OFF: [u8; 4] = u32::MAX.to_ne_bytes();

    #[test]
    fn the_rules_of_every_namespace_are_left_out() {
        for (family, table, priority) in
            [(2, 255u8, 0u32), (2, 254, 32766), (2, 253, 32767), (10, 255, 0), (10, 254, 32766)]
        {
            let list: [(u16, &[u8]); 3] = [
                (FRA_TABLE, &u32::from(table).to_ne_bytes()),
                (FRA_SUPPRESS_PREFIXLEN, &OFF),
                (FRA_PRIORITY, &priority.to_ne_bytes()),
            ];
            assert_eq!(rule(&frame([family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL], 0, &list)), None);
        }
        // Of multicast routing.
        assert_eq!(rule(&frame([128, 0, 0, 0, 100, 0, 0, FR_ACT_TO_TBL], 0, &[])), None);
    }

    #[test]
    fn selectors_are_read() {
        let list: [(u16, &[u8]); 8] = [
            (FRA_SRC, &[10, 0, 0, 0]),
            (FRA_DST, &[10, 1, 2, 3]),
            (FRA_PRIORITY, &100u32.to_ne_bytes()),
            (FRA_FWMARK, &5u32.to_ne_bytes()),
            (FRA_FWMASK, &255u32.to_ne_bytes()),
            (FRA_IIFNAME, b"eth0\0"),
            (FRA_DPORT_RANGE, &[4789u16.to_ne_bytes(), 4790u16.to_ne_bytes()].concat()),
            (FRA_TABLE, &1000u32.to_ne_bytes()),
        ];
        let rule = rule(&frame([2, 32, 8, 0, 252, 0, 0, FR_ACT_TO_TBL], FIB_RULE_INVERT, &list)).unwrap();
        let expected = "100: not from 10.0.0.0/8 to 10.1.2.3/32 fwmark 0x5/0xff iif eth0 dport 4789-4790 lookup 1000";
        assert_eq!(rule.to_string(), expected);
    }

    #[test]
    fn what_is_unknown_makes_a_rule_of_its_own() {
        let odd = rule(&frame([2, 0, 0, 0, 254, 0, 0, FR_ACT_TO_TBL], 0, &[(99, &[1])])).unwrap();
        assert!(odd.more, "{odd}");
        let ports: [(u16, &[u8]); 2] = [(FRA_DPORT_RANGE, &[1, 0, 1, 0]), (FRA_DPORT_MASK, &1u16.to_ne_bytes())];
        let masked = rule(&frame([2, 0, 0, 0, 254, 0, 0, FR_ACT_TO_TBL], 0, &ports)).unwrap();
        assert_eq!((masked.ports, masked.more), (None, true), "which ports it is for isn't looked at");
        let suppressing = [(FRA_SUPPRESS_PREFIXLEN, &0u32.to_ne_bytes()[..])];
        let rule = rule(&frame([2, 0, 0, 0, 254, 0, 0, FR_ACT_TO_TBL], 0, &suppressing)).unwrap();
        assert_eq!(rule.action, "lookup 254 suppress_prefixlength 0");
    }
}
