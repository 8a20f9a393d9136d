//! Makes, changes and deletes devices.

use super::Netlink;
use super::link;
use super::transport::Failure;
use crate::model::{LinkChange, Local, NewLink, PortKind, TunnelKind, device_local};
use anyhow::{Context, Result, anyhow};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoBridge, InfoBridgePort, InfoData,
    InfoGeneve, InfoGre, InfoGre6, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, Prop,
};
use std::net::IpAddr;

/// A name that no kernel lets a link have, for asking whether a kind is known without making anything.
const IMPOSSIBLE_NAME: &str = "a/b";

/// Link group that links are put into to be deleted together: "tm" in the upper half.
pub const DELETE_GROUP: u32 = 0x746d_0001;

/// Where the link groups begin that devices are born into and leave once their alias says whose they are: what a killed
/// process left half made is told by it. Each instance has one of 65,536.
pub(super) const UNFINISHED_GROUPS: u32 = 0x746e_0000;

/// The group of links that nobody put into one.
const DEFAULT_GROUP: u32 = 0;

impl Netlink {
    /// The best kind of generated port that this kernel has: dummy, else ifb, else veth.
    ///
    /// Makes no link. But it makes the kernel load the module of the kind, as making a port would, and Debian's
    /// `dummy` and `ifb` modules bring `dummy0`, `ifb0` and `ifb1` along: ask only where ports are to be generated.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the kind or the name.
    pub async fn port_kind(&self) -> Result<PortKind> {
        for kind in [PortKind::Dummy, PortKind::Ifb] {
            if self.knows(info_kind(kind)).await? {
                return Ok(kind);
            }
        }
        Ok(PortKind::Veth)
    }

    /// Whether this kernel can make tunnel devices of that kind. Makes no link, but the kernel loads the module, as it
    /// would for one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the kind or the name.
    pub async fn knows_tunnel(&self, kind: TunnelKind, ip6: bool) -> Result<bool> {
        self.knows(match (kind, ip6) {
            (TunnelKind::Vxlan, _) => InfoKind::Vxlan,
            (TunnelKind::Geneve, _) => InfoKind::Geneve,
            (TunnelKind::Gretap, false) => InfoKind::GreTap,
            (TunnelKind::Gretap, true) => InfoKind::GreTap6,
        })
        .await
    }

    async fn knows(&self, kind: InfoKind) -> Result<bool> {
        let name = kind.to_string();
        let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        let probe = message(0, vec![LinkAttribute::IfName(IMPOSSIBLE_NAME.to_owned()), info]);
        let answer = self.transport.request(RouteNetlinkMessage::NewLink(probe), NLM_F_CREATE | NLM_F_EXCL).await;
        match answer.as_ref().err().and_then(Failure::errno) {
            Some(libc::EOPNOTSUPP) => Ok(false),
            Some(libc::EINVAL) => Ok(true),
            _ => {
                answer.with_context(|| format!("ask the kernel whether it has devices of kind {name}"))?;
                Err(anyhow!("the kernel took {IMPOSSIBLE_NAME:?} as the name of a {name} device"))
            }
        }
    }

    /// Makes a device, administratively down, and answers with its index. On error nothing is left behind.
    ///
    /// Alias, alternative name and silence (`addr_gen_mode none`) can't be part of the kernel's create request; they
    /// follow at once, and until then the device is in a link group of its own and not listed by [`Netlink::links`]. An alternative name that the kernel doesn't take (another link has it) is left out with a
    /// warning. A veth port's peer, named like the port with a trailing `p`, is up, without ARP or addresses.
    ///
    /// # Errors
    /// When the kernel refuses; where it lacks the kind of device, the error names the kernel option and module.
    pub async fn create(&self, spec: &NewLink) -> Result<u32> {
        let name = spec.name();
        let request = RouteNetlinkMessage::NewLink(message(0, create_attributes(spec, self.unfinished)));
        if let Err(failure) = self.transport.request(request, NLM_F_CREATE | NLM_F_EXCL).await {
            let remedy = create_remedy(spec, &failure);
            return Err(anyhow!(failure).context(format!("create {} {name}{remedy}", describe(spec))));
        }
        let ifindex = self.index_of(name).await?;
        if let Err(error) = self.finish(ifindex, spec).await {
            if let Err(left) = self.delete(ifindex).await {
                tracing::warn!("{left:#}");
            }
            return Err(error.context(format!("create {} {name}", describe(spec))));
        }
        Ok(ifindex)
    }

    async fn index_of(&self, name: &str) -> Result<u32> {
        let request = RouteNetlinkMessage::GetLink(message(0, vec![LinkAttribute::IfName(name.to_owned())]));
        let frames = self.transport.request(request, 0).await.with_context(|| format!("look {name} up"))?;
        frames.iter().find_map(link::ifindex).with_context(|| format!("look {name} up: an answer without an index"))
    }

    async fn finish(&self, ifindex: u32, spec: &NewLink) -> Result<()> {
        let ours = |alias: &String| vec![LinkAttribute::IfAlias(alias.clone()), LinkAttribute::Group(DEFAULT_GROUP)];
        match spec {
            NewLink::Tunnel { alias, .. } => self.silence(ifindex, ours(alias)).await,
            NewLink::Bridge { alias, mtu, .. } => {
                let mut attributes = ours(alias);
                attributes.push(LinkAttribute::Mtu(*mtu));
                self.silence(ifindex, attributes).await
            }
            NewLink::Port { name, kind, altname, alias, .. } => {
                if let Err(error) = self.change(ifindex, &LinkChange::Altname(altname.clone())).await {
                    tracing::warn!("{name}: {error:#}");
                }
                if *kind == PortKind::Veth {
                    let peer = self.index_of(&peer_name(name)).await?;
                    self.silence(peer, vec![]).await?;
                    self.set_flags(peer, LinkFlags::Up | LinkFlags::Noarp, LinkFlags::Up | LinkFlags::Noarp)
                        .await
                        .with_context(|| format!("set up {}, the peer of {name}", peer_name(name)))?;
                }
                self.silence(ifindex, ours(alias)).await
            }
        }
    }

    /// Sets attributes, and that the kernel generates no IPv6 address. Where the link has no IPv6 at all (switched
    /// off, or an MTU under 1280) there is nothing to keep quiet.
    async fn silence(&self, ifindex: u32, attributes: Vec<LinkAttribute>) -> Result<()> {
        let quiet = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
        let mut with_ipv6 = attributes.clone();
        with_ipv6.push(LinkAttribute::AfSpecUnspec(quiet));
        match self.set(ifindex, with_ipv6).await {
            Err(failure) if failure.errno() == Some(libc::EAFNOSUPPORT) => self.set(ifindex, attributes).await,
            outcome => outcome,
        }
        .context("set its alias, MTU and addr_gen_mode")
    }

    async fn set(&self, ifindex: u32, attributes: Vec<LinkAttribute>) -> Result<(), Failure> {
        self.transport.request(RouteNetlinkMessage::SetLink(message(ifindex, attributes)), 0).await.map(|_| ())
    }

    async fn set_flags(&self, ifindex: u32, flags: LinkFlags, mask: LinkFlags) -> Result<(), Failure> {
        let mut request = message(ifindex, vec![]);
        request.header.flags = flags;
        request.header.change_mask = mask;
        self.transport.request(RouteNetlinkMessage::SetLink(request), 0).await.map(|_| ())
    }

    /// Changes one thing of a link. A link that is already as asked for is success.
    ///
    /// # Errors
    /// When the kernel refuses; [`super::is_gone`] where the link, or the bridge it should join, doesn't exist.
    pub async fn change(&self, ifindex: u32, change: &LinkChange) -> Result<()> {
        let what = match change {
            LinkChange::Up => "set it up".to_owned(),
            LinkChange::Down => "set it down".to_owned(),
            LinkChange::Mtu(mtu) => format!("set its MTU to {mtu}"),
            LinkChange::Master { bridge: Some(bridge) } => format!("put it into the bridge with ifindex {bridge}"),
            LinkChange::Master { bridge: None } => "take it out of its bridge".to_owned(),
            LinkChange::Isolated(true) => "isolate it in its bridge".to_owned(),
            LinkChange::Isolated(false) => "end its isolation in its bridge".to_owned(),
            LinkChange::Learning(true) => "let it learn addresses".to_owned(),
            LinkChange::Learning(false) => "stop it from learning addresses".to_owned(),
            LinkChange::VxlanLocal(local) => format!("set its local address to {local}"),
            LinkChange::Forward { ipv6: false } => "let it forward IPv4".to_owned(),
            LinkChange::Forward { ipv6: true } => "let it forward IPv6".to_owned(),
            LinkChange::Alias(alias) => format!("set its alias to {alias:?}"),
            LinkChange::Altname(altname) => format!("give it the alternative name {altname:?}"),
        };
        let outcome = match change {
            LinkChange::Up => self.set_flags(ifindex, LinkFlags::Up, LinkFlags::Up).await,
            LinkChange::Down => self.set_flags(ifindex, LinkFlags::empty(), LinkFlags::Up).await,
            LinkChange::Mtu(mtu) => self.set(ifindex, vec![LinkAttribute::Mtu(*mtu)]).await,
            LinkChange::Master { bridge } => self.set_master(ifindex, *bridge).await,
            LinkChange::Isolated(isolated) => {
                let port = InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(*isolated)]);
                let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(port)];
                let request = message(ifindex, vec![LinkAttribute::LinkInfo(info)]);
                self.transport.request(RouteNetlinkMessage::NewLink(request), 0).await.map(|_| ())
            }
            LinkChange::Learning(on) => self.set_vxlan(ifindex, InfoVxlan::Learning(*on)).await,
            LinkChange::VxlanLocal(IpAddr::V4(local)) => self.set_vxlan(ifindex, InfoVxlan::Local(*local)).await,
            LinkChange::VxlanLocal(IpAddr::V6(local)) => self.set_vxlan(ifindex, InfoVxlan::Local6(*local)).await,
            LinkChange::Forward { ipv6: false } => {
                let mut forwarding = InetDevConf::default();
                forwarding.forwarding = 1;
                let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(forwarding)]);
                self.set(ifindex, vec![LinkAttribute::AfSpecUnspec(vec![inet])]).await
            }
            LinkChange::Forward { ipv6: true } => return self.forward6(ifindex).await,
            LinkChange::Alias(alias) => self.set(ifindex, vec![LinkAttribute::IfAlias(alias.clone())]).await,
            LinkChange::Altname(altname) => self.add_altname(ifindex, altname).await,
        };
        outcome.map_err(|failure| {
            let remedy = change_remedy(change, &failure);
            anyhow!(failure).context(format!("link with ifindex {ifindex}: {what}{remedy}"))
        })
    }

    /// Netlink can't say it. The setting is left alone where it is on already: the kernel forgets default routes that it
    /// learned from router advertisements whenever somebody switches forwarding on.
    async fn forward6(&self, ifindex: u32) -> Result<()> {
        let request = RouteNetlinkMessage::GetLink(message(ifindex, vec![]));
        let frames = self.transport.request(request, 0).await.context("look a link up")?;
        let Some(link) = frames.iter().find_map(link::link) else { return Ok(()) };
        if link.forwards.v6 {
            return Ok(());
        }
        let path = format!("/proc/sys/net/ipv6/conf/{}/forwarding", link.name);
        crate::fault_point::reach();
        match std::fs::write(&path, "1") {
            // The link is gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.with_context(|| format!("write {path}")),
        }
    }

    /// What isn't named stays as it is.
    async fn set_vxlan(&self, ifindex: u32, option: InfoVxlan) -> Result<(), Failure> {
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vec![option]))];
        let request = message(ifindex, vec![LinkAttribute::LinkInfo(info)]);
        self.transport.request(RouteNetlinkMessage::NewLink(request), 0).await.map(|_| ())
    }

    /// The kernel answers `EINVAL` when the bridge doesn't exist; this says so.
    async fn set_master(&self, ifindex: u32, bridge: Option<u32>) -> Result<(), Failure> {
        let outcome = self.set(ifindex, vec![LinkAttribute::Controller(bridge.unwrap_or(0))]).await;
        if let (Err(failure), Some(bridge)) = (&outcome, bridge)
            && failure.errno() == Some(libc::EINVAL)
        {
            self.transport.request(RouteNetlinkMessage::GetLink(message(bridge, vec![])), 0).await?;
        }
        outcome
    }

    /// The kernel answers `EEXIST` whoever has the name.
    async fn add_altname(&self, ifindex: u32, altname: &str) -> Result<(), Failure> {
        let names = vec![LinkAttribute::PropList(vec![Prop::AltIfName(altname.to_owned())])];
        let request = RouteNetlinkMessage::NewLinkProp(message(ifindex, names));
        let outcome = self.transport.request(request, NLM_F_CREATE | NLM_F_EXCL).await.map(|_| ());
        if outcome.as_ref().err().and_then(Failure::errno) == Some(libc::EEXIST) {
            let request = RouteNetlinkMessage::GetLink(message(ifindex, vec![]));
            let frames = self.transport.request(request, 0).await?;
            if frames.iter().filter_map(link::link).any(|l| l.altnames.iter().any(|name| name == altname)) {
                return Ok(());
            }
        }
        outcome
    }

    /// Deletes a link. One that is gone already is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete(&self, ifindex: u32) -> Result<()> {
        match self.transport.request(RouteNetlinkMessage::DelLink(message(ifindex, vec![])), 0).await {
            Err(failure) if failure.errno() == Some(libc::ENODEV) => Ok(()),
            outcome => outcome.map(|_| ()).with_context(|| format!("delete the link with ifindex {ifindex}")),
        }
    }
}

impl Netlink {
    /// Deletes many links at once: the kernel waits for its readers once, not once per link (20 ms each). The links
    /// are put into a group of their own ([`DELETE_GROUP`]), and the group is deleted; one by one where a link that isn't
    /// among these is in that group. Those that are gone are skipped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_all(&self, ifindexes: &[u32]) -> Result<()> {
        let others_in_group = self.in_group(DELETE_GROUP).await?.iter().any(|index| !ifindexes.contains(index));
        if ifindexes.len() < 2 || others_in_group {
            for &ifindex in ifindexes {
                self.delete(ifindex).await?;
            }
            return Ok(());
        }
        let mut grouped = 0;
        for &ifindex in ifindexes {
            match self.set(ifindex, vec![LinkAttribute::Group(DELETE_GROUP)]).await {
                Ok(()) => grouped += 1,
                Err(failure) if failure.errno() == Some(libc::ENODEV) => {}
                Err(failure) => {
                    return Err(anyhow!(failure).context(format!("delete the link with ifindex {ifindex}")));
                }
            }
        }
        if grouped == 0 {
            return Ok(());
        }
        let request = RouteNetlinkMessage::DelLink(message(0, vec![LinkAttribute::Group(DELETE_GROUP)]));
        match self.transport.request(request, 0).await {
            Err(failure) if failure.errno() == Some(libc::ENODEV) => Ok(()),
            outcome => outcome.map(|_| ()).with_context(|| format!("delete {grouped} links")),
        }
    }

    /// Deletes devices that a process left half made. Only the one writer may: it has none of its own under way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_unfinished(&self) -> Result<()> {
        for ifindex in self.in_group(self.unfinished).await? {
            self.delete(ifindex).await?;
        }
        Ok(())
    }

    async fn in_group(&self, group: u32) -> Result<Vec<u32>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let frames = self.transport.dump(request).await.context("list links")?;
        Ok(frames.iter().filter(|frame| link::group(frame) == Some(group)).filter_map(link::ifindex).collect())
    }
}

fn message(ifindex: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    message
}

fn info_kind(kind: PortKind) -> InfoKind {
    match kind {
        PortKind::Dummy => InfoKind::Dummy,
        PortKind::Ifb => InfoKind::Ifb,
        PortKind::Veth => InfoKind::Veth,
    }
}

/// Name of the other end of a veth that stands in for a port: cut to the kernel's 15 bytes.
fn peer_name(port: &str) -> String {
    let mut name = port.to_owned();
    name.push('p');
    if name.len() > crate::model::INTERFACE_NAME_MAX {
        let mut end = crate::model::INTERFACE_NAME_MAX - 1;
        while !port.is_char_boundary(end) {
            end -= 1;
        }
        name = format!("{}p", &port[..end]);
    }
    name
}

fn create_attributes(spec: &NewLink, group: u32) -> Vec<LinkAttribute> {
    let (mtu, info) = match spec {
        NewLink::Tunnel { kind, port, ip6, local, mtu, udp6_zero_checksum_rx, .. } => {
            let port = port.or(kind.default_port());
            (*mtu, tunnel_info(*kind, port, *ip6, *local, *udp6_zero_checksum_rx))
        }
        // A bridge follows the MTU of its ports until somebody changes it; setting it to what it is isn't a change.
        // With multicast snooping it would itself report memberships (IGMP, MLD) into the tenant's segment.
        NewLink::Bridge { mtu, .. } => {
            let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
            (mtu ^ 1, vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)])
        }
        NewLink::Port { name, kind, mtu, .. } => {
            let mut info = vec![LinkInfo::Kind(info_kind(*kind))];
            if *kind == PortKind::Veth {
                let peer = vec![LinkAttribute::IfName(peer_name(name)), LinkAttribute::Mtu(*mtu)];
                info.push(LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(message(0, peer)))));
            }
            (*mtu, info)
        }
    };
    let group = LinkAttribute::Group(group);
    vec![LinkAttribute::IfName(spec.name().to_owned()), LinkAttribute::Mtu(mtu), group, LinkAttribute::LinkInfo(info)]
}

fn tunnel_info(kind: TunnelKind, port: Option<u16>, ip6: bool, local: Local, zero_checksum: bool) -> Vec<LinkInfo> {
    let (kind, data) = match (kind, ip6) {
        (TunnelKind::Vxlan, _) => {
            let local = device_local(kind, local);
            let mut data = vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Learning(false)];
            data.extend(port.map(InfoVxlan::Port));
            data.extend(local.v4.map(InfoVxlan::Local));
            data.extend(local.v6.map(InfoVxlan::Local6));
            data.extend(zero_checksum.then_some(InfoVxlan::UDPZeroCsumRX(true)));
            (InfoKind::Vxlan, InfoData::Vxlan(data))
        }
        (TunnelKind::Geneve, _) => {
            let mut data = vec![InfoGeneve::CollectMetadata];
            data.extend(port.map(InfoGeneve::Port));
            data.extend(zero_checksum.then_some(InfoGeneve::UdpZeroCsum6Rx(true)));
            (InfoKind::Geneve, InfoData::Geneve(data))
        }
        (TunnelKind::Gretap, false) => (InfoKind::GreTap, InfoData::GreTap(vec![InfoGre::CollectMetadata])),
        (TunnelKind::Gretap, true) => (InfoKind::GreTap6, InfoData::GreTap6(vec![InfoGre6::CollectMetadata])),
    };
    vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]
}

/// The kernel's name for the kind of device.
fn describe(spec: &NewLink) -> &'static str {
    match spec {
        NewLink::Tunnel { kind: TunnelKind::Vxlan, .. } => "vxlan",
        NewLink::Tunnel { kind: TunnelKind::Geneve, .. } => "geneve",
        NewLink::Tunnel { kind: TunnelKind::Gretap, ip6: false, .. } => "gretap",
        NewLink::Tunnel { kind: TunnelKind::Gretap, ip6: true, .. } => "ip6gretap",
        NewLink::Bridge { .. } => "bridge",
        NewLink::Port { kind: PortKind::Dummy, .. } => "dummy",
        NewLink::Port { kind: PortKind::Ifb, .. } => "ifb",
        NewLink::Port { kind: PortKind::Veth, .. } => "veth",
    }
}

fn create_remedy(spec: &NewLink, failure: &Failure) -> String {
    let device = describe(spec);
    match failure.errno() {
        Some(libc::EOPNOTSUPP) => {
            let (option, module) = match device {
                "vxlan" => ("CONFIG_VXLAN", "vxlan"),
                "geneve" => ("CONFIG_GENEVE", "geneve"),
                "gretap" => ("CONFIG_NET_IPGRE", "ip_gre"),
                "ip6gretap" => ("CONFIG_IPV6_GRE", "ip6_gre"),
                "bridge" => ("CONFIG_BRIDGE", "bridge"),
                "dummy" => ("CONFIG_DUMMY", "dummy"),
                "ifb" => ("CONFIG_IFB", "ifb"),
                _ => ("CONFIG_VETH", "veth"),
            };
            format!(": the kernel has no {device} devices, it needs {option} (try: modprobe {module})")
        }
        Some(libc::EPERM) => " (needs CAP_NET_ADMIN)".to_owned(),
        Some(libc::EEXIST) => match spec {
            NewLink::Tunnel { kind: TunnelKind::Gretap, .. } => {
                format!(": the name is taken, or the namespace has an external {device} device (it can have one)")
            }
            NewLink::Tunnel { .. } => ": the name is taken, or an external device has the same UDP port".to_owned(),
            _ => ": the name is taken".to_owned(),
        },
        _ => String::new(),
    }
}

fn change_remedy(change: &LinkChange, failure: &Failure) -> &'static str {
    match (change, failure.errno()) {
        (_, Some(libc::EPERM)) => " (needs CAP_NET_ADMIN)",
        (LinkChange::Up, Some(libc::EADDRINUSE)) => ": another tunnel device or a program has its UDP port",
        (LinkChange::Isolated(_), Some(libc::EOPNOTSUPP | libc::EINVAL)) => ": it isn't a port of a bridge",
        (LinkChange::Altname(_), Some(libc::EEXIST)) => ": another link has that name",
        (LinkChange::Master { .. }, Some(libc::EXFULL)) => {
            ": the bridge has 1,023 ports, which is the most it can have"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_port_has_a_name_that_fits() {
        assert_eq!(peer_name("tm0123456789"), "tm0123456789p");
        assert_eq!(peer_name("tm0123456789abc"), "tm0123456789abp");
        assert_eq!(peer_name("tm0123456789aäö"), "tm0123456789ap");
    }

    #[test]
    fn a_device_gets_one_local_address_or_none() {
        let v4 = Local { v4: Some([10, 0, 0, 1].into()), v6: None };
        let both = Local { v6: Some("fd00::1".parse().unwrap_or(std::net::Ipv6Addr::LOCALHOST)), ..v4 };
        assert_eq!(device_local(TunnelKind::Vxlan, v4), v4);
        assert_eq!(device_local(TunnelKind::Vxlan, both), Local::default());
        assert_eq!(device_local(TunnelKind::Geneve, v4), Local::default());
    }
}
