//! Turns the kernel's link and address messages into the model.
//!
//! Constants are those of `linux/if_link.h`, `linux/if_addr.h` and `linux/if_tunnel.h`.

use super::attributes::{attribute, attributes, flag, ipv4, ipv6, text, u16_host, u16_network, u32_host, u64_host};
use super::transport::Frame;
use crate::model::{Address, Forwarding, Link, Local, TunnelDevice, TunnelKind};
use std::net::IpAddr;

/// Length of `struct ifinfomsg`.
const IFINFOMSG_LEN: usize = 16;
/// Length of `struct ifaddrmsg`.
const IFADDRMSG_LEN: usize = 8;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;

const IFLA_GENEVE_PORT: u16 = 5;
const IFLA_GENEVE_COLLECT_METADATA: u16 = 6;
const IFLA_GENEVE_UDP_ZERO_CSUM6_RX: u16 = 10;

const IFLA_GRE_LOCAL: u16 = 6;
const IFLA_GRE_COLLECT_METADATA: u16 = 18;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Places of `rx_dropped` and `tx_dropped` in `struct rtnl_link_stats64`.
const STATS64_DROPPED: (usize, usize) = (6, 7);

/// `IFF_UP` of the flags in `struct ifinfomsg`.
const IFF_UP: u32 = 1;

/// Address family of a link message: `AF_UNSPEC` speaks of the link, `AF_BRIDGE` of its being a bridge port.
pub(super) fn family(frame: &Frame) -> Option<u8> {
    frame.body.first().copied()
}

/// Index of the link that a link message speaks of.
pub(super) fn ifindex(frame: &Frame) -> Option<u32> {
    frame.body.get(4..).and_then(u32_host).filter(|index| *index != 0)
}

/// Link group of the link that an `RTM_NEWLINK` speaks of.
pub(super) fn group(frame: &Frame) -> Option<u32> {
    attribute(frame.body.get(IFINFOMSG_LEN..)?, IFLA_GROUP).and_then(u32_host)
}

/// Reads an `RTM_NEWLINK`. `None` where it isn't one.
pub(super) fn link(frame: &Frame) -> Option<Link> {
    if frame.kind != libc::RTM_NEWLINK {
        return None;
    }
    let flags = frame.body.get(8..).and_then(u32_host)?;
    let ethernet = frame.body.get(2..).and_then(u16_host) == Some(libc::ARPHRD_ETHER);
    let mut link = Link { ifindex: ifindex(frame)?, ethernet, up: flags & IFF_UP != 0, ..Link::default() };
    let mut netnsid = false;
    for (kind, value) in attributes(frame.body.get(IFINFOMSG_LEN..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu = u32_host(value).unwrap_or_default(),
            IFLA_MASTER => link.master = u32_host(value),
            IFLA_LINK_NETNSID => netnsid = true,
            IFLA_PROP_LIST => {
                link.altnames =
                    attributes(value).filter(|(k, _)| *k == IFLA_ALT_IFNAME).map(|(_, v)| text(v)).collect();
            }
            IFLA_STATS64 => {
                let count = |index| u64_host(value, index).unwrap_or_default();
                link.dropped = (count(STATS64_DROPPED.0), count(STATS64_DROPPED.1));
            }
            IFLA_LINKINFO => read_info(value, &mut link),
            IFLA_AF_SPEC => link.forwards = forwards(value),
            _ => {}
        }
    }
    link.peer_in_other_netns = netnsid && link.kind == "veth";
    Some(link)
}

/// Of both arrays of settings, `IPV4_DEVCONF_FORWARDING` and `DEVCONF_FORWARDING` come first.
fn forwards(families: &[u8]) -> Forwarding {
    let first = |family, conf| {
        let settings = attribute(families, family).and_then(|f| attribute(f, conf));
        settings.and_then(u32_host).is_some_and(|forwarding| forwarding != 0)
    };
    Forwarding { v4: first(AF_INET, IFLA_INET_CONF), v6: first(AF_INET6, IFLA_INET6_CONF) }
}

fn read_info(info: &[u8], link: &mut Link) {
    if let Some(kind) = attribute(info, IFLA_INFO_KIND) {
        link.kind = text(kind).into();
    }
    let data = attribute(info, IFLA_INFO_DATA).unwrap_or_default();
    link.tunnel = match link.kind.as_str() {
        "vxlan" => Some(vxlan(data).into()),
        "geneve" => Some(geneve(data).into()),
        "gretap" => Some(gretap(data, false).into()),
        "ip6gretap" => Some(gretap(data, true).into()),
        _ => None,
    };
    if attribute(info, IFLA_INFO_SLAVE_KIND).is_some_and(|kind| text(kind) == "bridge") {
        let port = attribute(info, IFLA_INFO_SLAVE_DATA).unwrap_or_default();
        link.isolated = attribute(port, IFLA_BRPORT_ISOLATED).and_then(flag);
    }
}

fn is_set(data: &[u8], kind: u16) -> bool {
    attribute(data, kind).and_then(flag).unwrap_or(false)
}

fn vxlan(data: &[u8]) -> TunnelDevice {
    TunnelDevice {
        kind: TunnelKind::Vxlan,
        ip6: false,
        external: is_set(data, IFLA_VXLAN_COLLECT_METADATA),
        port: attribute(data, IFLA_VXLAN_PORT).and_then(u16_network),
        learning: is_set(data, IFLA_VXLAN_LEARNING),
        local: Local {
            v4: attribute(data, IFLA_VXLAN_LOCAL).and_then(ipv4),
            v6: attribute(data, IFLA_VXLAN_LOCAL6).and_then(ipv6),
        },
        udp6_zero_checksum_rx: is_set(data, IFLA_VXLAN_UDP_ZERO_CSUM6_RX),
    }
}

/// Collect-metadata is an attribute without value here, and absent when it is off.
fn geneve(data: &[u8]) -> TunnelDevice {
    TunnelDevice {
        kind: TunnelKind::Geneve,
        ip6: false,
        external: attribute(data, IFLA_GENEVE_COLLECT_METADATA).is_some(),
        port: attribute(data, IFLA_GENEVE_PORT).and_then(u16_network),
        learning: false,
        local: Local::default(),
        udp6_zero_checksum_rx: is_set(data, IFLA_GENEVE_UDP_ZERO_CSUM6_RX),
    }
}

/// The kernel says "no local address" with an address of zeros.
fn gretap(data: &[u8], ip6: bool) -> TunnelDevice {
    let address = attribute(data, IFLA_GRE_LOCAL);
    let local = if ip6 {
        Local { v4: None, v6: address.and_then(ipv6).filter(|a| !a.is_unspecified()) }
    } else {
        Local { v4: address.and_then(ipv4).filter(|a| !a.is_unspecified()), v6: None }
    };
    TunnelDevice {
        kind: TunnelKind::Gretap,
        ip6,
        external: attribute(data, IFLA_GRE_COLLECT_METADATA).is_some(),
        port: None,
        learning: false,
        local,
        udp6_zero_checksum_rx: false,
    }
}

/// Reads an `RTM_NEWADDR` or `RTM_DELADDR`. Of a point-to-point address this is the local end.
pub(super) fn address(frame: &Frame) -> Option<Address> {
    if frame.kind != libc::RTM_NEWADDR && frame.kind != libc::RTM_DELADDR {
        return None;
    }
    let attributes = frame.body.get(IFADDRMSG_LEN..)?;
    let value = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    let address = ipv4(value).map(IpAddr::V4).or_else(|| ipv6(value).map(IpAddr::V6))?;
    Some(Address { ifindex: ifindex(frame)?, address })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{
        InfoBridgePort, InfoData, InfoGeneve, InfoGre, InfoGre6, InfoKind, InfoPortData, InfoPortKind, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, Prop,
    };

    fn read(attributes: Vec<LinkAttribute>) -> Link {
        read_layer(LinkLayerType::Ether, attributes)
    }

    fn read_layer(layer: LinkLayerType, attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = layer;
        message.header.flags = LinkFlags::Up;
        message.attributes = attributes;
        link(&Frame::from(RouteNetlinkMessage::NewLink(message))).unwrap()
    }

    fn read_tunnel(kind: InfoKind, data: InfoData) -> TunnelDevice {
        *read(vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])]).tunnel.unwrap()
    }

    #[test]
    fn a_bridge_port_with_everything() {
        let link = read(vec![
            LinkAttribute::IfName("tm1".to_owned()),
            LinkAttribute::IfAlias("tunnel-mesh port red/host1".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
            LinkAttribute::Mtu(1450),
            LinkAttribute::Controller(3),
            LinkAttribute::PropList(vec![Prop::AltIfName("red/host1".to_owned()), Prop::AltIfName("x".to_owned())]),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Dummy),
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
            ]),
        ]);
        let expected = Link {
            ifindex: 7,
            name: "tm1".to_owned(),
            altnames: vec!["red/host1".to_owned(), "x".to_owned()],
            alias: Some("tunnel-mesh port red/host1".to_owned()),
            kind: "dummy".into(),
            mac: Some([2, 0, 0, 0, 0, 9]),
            ethernet: true,
            mtu: 1450,
            up: true,
            master: Some(3),
            isolated: Some(true),
            ..Link::default()
        };
        assert_eq!(link, expected);
    }

    #[test]
    fn what_is_not_ethernet() {
        assert!(read(Vec::new()).ethernet);
        let others = [LinkLayerType::Infiniband, LinkLayerType::Loopback, LinkLayerType::Ipgre, LinkLayerType::None];
        for layer in others {
            assert!(!read_layer(layer, vec![LinkAttribute::Address(vec![0; 6])]).ethernet, "{layer:?}");
        }
    }

    #[test]
    fn a_veth_whose_peer_is_elsewhere() {
        let info = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        assert!(read(vec![LinkAttribute::LinkNetNsId(0), info(InfoKind::Veth)]).peer_in_other_netns);
        assert!(!read(vec![info(InfoKind::Veth)]).peer_in_other_netns);
        // Tunnel devices carry the attribute too, when they were moved.
        assert!(!read(vec![LinkAttribute::LinkNetNsId(0), info(InfoKind::Vxlan)]).peer_in_other_netns);
    }

    #[test]
    fn tunnel_devices_in_external_mode() {
        let vxlan = read_tunnel(
            InfoKind::Vxlan,
            InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Port(4789),
                InfoVxlan::Learning(false),
                InfoVxlan::Local6("fd00::1".parse().unwrap()),
                InfoVxlan::UDPZeroCsumRX(true),
            ]),
        );
        assert!(vxlan.external && !vxlan.learning && vxlan.udp6_zero_checksum_rx);
        assert_eq!((vxlan.port, vxlan.local.v6), (Some(4789), Some("fd00::1".parse().unwrap())));

        let geneve =
            read_tunnel(InfoKind::Geneve, InfoData::Geneve(vec![InfoGeneve::CollectMetadata, InfoGeneve::Port(6081)]));
        assert_eq!((geneve.kind, geneve.external, geneve.port), (TunnelKind::Geneve, true, Some(6081)));

        let unset = InfoGre::Local("0.0.0.0".parse().unwrap());
        let gretap = read_tunnel(InfoKind::GreTap, InfoData::GreTap(vec![InfoGre::CollectMetadata, unset]));
        assert_eq!((gretap.external, gretap.ip6, gretap.local), (true, false, Local::default()));

        let ip6gretap = read_tunnel(InfoKind::GreTap6, InfoData::GreTap6(vec![InfoGre6::CollectMetadata]));
        assert!(ip6gretap.external && ip6gretap.ip6);
        assert!(!read_tunnel(InfoKind::GreTap6, InfoData::GreTap6(vec![])).external);
    }
}
