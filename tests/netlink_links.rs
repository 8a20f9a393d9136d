//! Devices, links and the subscription, on the real kernel, in namespaces of the tests' own. Needs root.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Netns, veth};
use std::time::Duration;
use tunnel_mesh::model::{ALTNAME_MAX, Link, LinkChange, Local, NewLink, PortKind, TunnelKind};
use tunnel_mesh::netlink::{DELETE_GROUP, LinkEvent, LinkWatch, Netlink, is_denied, is_gone};

fn port(name: &str, kind: PortKind) -> NewLink {
    NewLink::Port {
        name: name.to_owned(),
        kind,
        altname: format!("red/{name}"),
        alias: format!("tunnel-mesh port red/{name}"),
        mtu: 1450,
    }
}

fn bridge(name: &str, mtu: u32) -> NewLink {
    NewLink::Bridge { name: name.to_owned(), mtu, alias: format!("tunnel-mesh bridge {name}") }
}

fn vxlan(name: &str, port: u16, local: Local) -> NewLink {
    NewLink::Tunnel {
        name: name.to_owned(),
        kind: TunnelKind::Vxlan,
        port: Some(port),
        ip6: false,
        local,
        mtu: 1450,
        alias: format!("tunnel-mesh tunnel {name}"),
        udp6_zero_checksum_rx: local.v6.is_some(),
    }
}

async fn seen(netlink: &Netlink, ifindex: u32) -> Link {
    netlink.links().await.unwrap().into_iter().find(|link| link.ifindex == ifindex).unwrap()
}

/// Whether `addr_gen_mode` is none, as `ip` shows it.
fn silent(netns: &Netns, name: &str) -> bool {
    netns.cmd(&format!("ip -d link show {name}")).contains("addrgenmode none")
}

#[test]
fn the_port_kind_is_probed_without_a_trace() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut watch = LinkWatch::open().await.unwrap();
        let netlink = Netlink::open().await.unwrap();
        let before = netlink.links().await.unwrap();
        let kind = netlink.port_kind().await.unwrap();
        assert_eq!(netlink.links().await.unwrap(), before);
        assert!(quiet(&mut watch).await);
        // What it says is there, and what is better isn't.
        let exists = |name: &str| netns.try_cmd(&format!("ip link add x-{name} type {name}")).status.success();
        let best = if exists("dummy") {
            PortKind::Dummy
        } else if exists("ifb") {
            PortKind::Ifb
        } else {
            PortKind::Veth
        };
        assert_eq!(kind, best);
    });
}

#[test]
fn ports_of_every_kind_are_made_joined_isolated_and_deleted() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let bridge = netlink.create(&bridge("br-red", 1450)).await.unwrap();
        for kind in [netlink.port_kind().await.unwrap(), PortKind::Veth] {
            let index = netlink.create(&port("tm0123456789", kind)).await.unwrap();
            let made = seen(&netlink, index).await;
            assert_eq!(made.name, "tm0123456789");
            assert_eq!(made.alias.as_deref(), Some("tunnel-mesh port red/tm0123456789"));
            assert_eq!(made.altnames, ["red/tm0123456789"]);
            assert_eq!((made.mtu, made.up, made.master, made.isolated), (1450, false, None, None));
            assert!(silent(&netns, "tm0123456789"));

            netlink.change(index, &LinkChange::Master { bridge: Some(bridge) }).await.unwrap();
            assert_eq!(seen(&netlink, index).await.isolated, Some(false));
            for change in [
                LinkChange::Isolated(true),
                LinkChange::Up,
                LinkChange::Mtu(1400),
                LinkChange::Alias("other".to_owned()),
                LinkChange::Altname("blue/b".to_owned()),
            ] {
                // Asking twice is asking once.
                netlink.change(index, &change).await.unwrap();
                netlink.change(index, &change).await.unwrap();
            }
            let changed = seen(&netlink, index).await;
            assert_eq!((changed.isolated, changed.master), (Some(true), Some(bridge)));
            assert_eq!((changed.up, changed.mtu, changed.alias.as_deref()), (true, 1400, Some("other")));
            assert!(changed.altnames.contains(&"blue/b".to_owned()));

            netlink.change(index, &LinkChange::Isolated(false)).await.unwrap();
            assert_eq!(seen(&netlink, index).await.isolated, Some(false));
            netlink.change(index, &LinkChange::Master { bridge: None }).await.unwrap();
            netlink.change(index, &LinkChange::Down).await.unwrap();
            let left = seen(&netlink, index).await;
            assert_eq!((left.master, left.isolated, left.up), (None, None, false));

            netlink.delete(index).await.unwrap();
            netlink.delete(index).await.unwrap();
            assert!(netlink.links().await.unwrap().iter().all(|link| !link.name.starts_with("tm")));
        }
    });
}

#[test]
fn a_bridge_keeps_the_mtu_it_was_given() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        for mtu in [1450, 1500, 8950] {
            let index = netlink.create(&bridge("br-red", mtu)).await.unwrap();
            netns.cmd("ip link add big0 mtu 9000 type veth peer name big1");
            netns.cmd("ip link set big0 master br-red");
            let made = seen(&netlink, index).await;
            assert_eq!((made.mtu, made.kind.as_str(), made.up), (mtu, "bridge", false));
            assert_eq!(made.alias.as_deref(), Some("tunnel-mesh bridge br-red"));
            assert!(silent(&netns, "br-red"));
            netns.cmd("ip link del big0");
            netlink.delete(index).await.unwrap();
        }
    });
}

#[test]
fn external_vxlan_devices_of_every_underlay() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let v4 = Local { v4: Some("10.1.1.1".parse().unwrap()), v6: None };
        let v6 = Local { v4: None, v6: Some("fd00::1".parse().unwrap()) };
        let both = Local { v4: v4.v4, v6: v6.v6 };
        for (name, port, local, shown) in
            [("vx4", 4789, v4, v4), ("vx6", 4790, v6, v6), ("vx46", 4791, both, Local::default())]
        {
            let index = netlink.create(&vxlan(name, port, local)).await.unwrap();
            netlink.change(index, &LinkChange::Up).await.unwrap();
            let made = seen(&netlink, index).await;
            let tunnel = made.tunnel.unwrap();
            assert_eq!((made.kind.as_str(), made.mtu, made.up), ("vxlan", 1450, true));
            assert_eq!((tunnel.kind, tunnel.external, tunnel.learning), (TunnelKind::Vxlan, true, false));
            assert_eq!((tunnel.port, tunnel.local), (Some(port), shown));
            assert_eq!(tunnel.udp6_zero_checksum_rx, local.v6.is_some());
            assert!(silent(&netns, name));
        }
        // Three at once; a fourth on a port that is taken says so, at the latest when it comes up.
        let taken = netlink.create(&vxlan("vxtwice", 4789, v4)).await;
        let error = match taken {
            Ok(index) => netlink.change(index, &LinkChange::Up).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(format!("{error:#}").contains("UDP port"), "{error:#}");
    });
}

#[test]
fn every_kind_of_tunnel_is_made_or_named_as_missing() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        for (kind, ip6, option) in [
            (TunnelKind::Geneve, false, "CONFIG_GENEVE"),
            (TunnelKind::Gretap, false, "CONFIG_NET_IPGRE"),
            (TunnelKind::Gretap, true, "CONFIG_IPV6_GRE"),
        ] {
            let spec = NewLink::Tunnel {
                name: "tun9".to_owned(),
                kind,
                port: None,
                ip6,
                local: Local { v4: Some("10.1.1.1".parse().unwrap()), v6: Some("fd00::1".parse().unwrap()) },
                mtu: 1400,
                alias: "tunnel-mesh tunnel tun9".to_owned(),
                udp6_zero_checksum_rx: true,
            };
            match netlink.create(&spec).await {
                Ok(index) => {
                    netlink.change(index, &LinkChange::Up).await.unwrap();
                    let made = seen(&netlink, index).await;
                    let tunnel = made.tunnel.unwrap();
                    assert_eq!((tunnel.kind, tunnel.ip6, tunnel.external), (kind, ip6, true));
                    assert_eq!((tunnel.port, made.mtu, made.up), (kind.default_port(), 1400, true));
                    assert_eq!(tunnel.local, Local::default());
                    assert_eq!(made.alias.as_deref(), Some("tunnel-mesh tunnel tun9"));
                    assert!(silent(&netns, "tun9"));
                    netlink.delete(index).await.unwrap();
                }
                Err(error) => assert!(format!("{error:#}").contains(option), "{error:#}"),
            }
        }
    });
}

#[test]
fn a_vxlan_device_is_changed_in_place() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        netns.cmd("ip link add vxlan9 type vxlan external dstport 9999 local 10.1.1.1 learning");
        let index = netlink.links().await.unwrap().iter().find(|l| l.name == "vxlan9").unwrap().ifindex;
        netlink.change(index, &LinkChange::Learning(false)).await.unwrap();
        netlink.change(index, &LinkChange::VxlanLocal("10.1.1.2".parse().unwrap())).await.unwrap();
        let device = seen(&netlink, index).await.tunnel.unwrap();
        assert_eq!((device.learning, device.external, device.port), (false, true, Some(9999)));
        assert_eq!(device.local, Local { v4: Some("10.1.1.2".parse().unwrap()), v6: None });
    });
}

#[test]
fn a_foreign_link_with_the_name_stays_as_it_is() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        netns.cmd("ip link add br-red type bridge");
        let before = netlink.links().await.unwrap();
        let error = netlink.create(&bridge("br-red", 1450)).await.unwrap_err();
        assert!(format!("{error:#}").contains("create bridge br-red: the name is taken"), "{error:#}");
        assert_eq!(netlink.links().await.unwrap(), before);
    });
}

#[test]
fn an_alternative_name_that_is_taken_is_left_out() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let kind = netlink.port_kind().await.unwrap();
        let first = netlink.create(&port("tm1", kind)).await.unwrap();
        netlink.change(first, &LinkChange::Altname("red/tm2".to_owned())).await.unwrap();
        let second = netlink.create(&port("tm2", kind)).await.unwrap();
        assert!(seen(&netlink, second).await.altnames.is_empty());
        let error = netlink.change(second, &LinkChange::Altname("red/tm2".to_owned())).await.unwrap_err();
        assert!(format!("{error:#}").contains("another link has that name"), "{error:#}");

        netlink.change(second, &LinkChange::Altname("n".repeat(ALTNAME_MAX))).await.unwrap();
        netlink.change(second, &LinkChange::Altname("m".repeat(ALTNAME_MAX + 1))).await.unwrap_err();
    });
}

#[test]
fn a_link_that_is_gone_is_told_apart() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let index = netlink.create(&port("tm1", PortKind::Veth)).await.unwrap();
        for change in [
            LinkChange::Up,
            LinkChange::Mtu(1400),
            LinkChange::Master { bridge: None },
            LinkChange::Master { bridge: Some(index) },
            LinkChange::Isolated(true),
            LinkChange::Alias("x".to_owned()),
            LinkChange::Altname("x/y".to_owned()),
        ] {
            let error = netlink.change(9999, &change).await.unwrap_err();
            assert!(is_gone(&error) && !is_denied(&error), "{change:?}: {error:#}");
        }
        let error = netlink.change(index, &LinkChange::Master { bridge: Some(9999) }).await.unwrap_err();
        assert!(is_gone(&error), "{error:#}");
        let error = netlink.change(index, &LinkChange::Isolated(true)).await.unwrap_err();
        assert!(!is_gone(&error) && format!("{error:#}").contains("isn't a port of a bridge"), "{error:#}");
    });
}

#[test]
fn without_the_privilege_the_error_says_so() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let netns = Netns::new();
    let pair = "ip link add v0 type veth peer name v1";
    netns.cmd(pair);
    netns.block_on(|| async {
        let mut have = capabilities(None).unwrap();
        have.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, have).unwrap();

        let netlink = Netlink::open().await.unwrap();
        let _watch = LinkWatch::open().await.unwrap();
        let index = netlink.links().await.unwrap().iter().find(|link| link.name == "v0").unwrap().ifindex;
        let error = netlink.create(&bridge("br-red", 1450)).await.unwrap_err();
        assert!(is_denied(&error) && format!("{error:#}").contains("needs CAP_NET_ADMIN"), "{error:#}");
        assert!(is_denied(&netlink.change(index, &LinkChange::Up).await.unwrap_err()));
        assert!(is_denied(&netlink.delete(index).await.unwrap_err()));
        assert!(is_denied(&netlink.port_kind().await.unwrap_err()));
    });
}

#[test]
fn dropped_and_concurrent_requests_do_no_harm() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let kind = netlink.port_kind().await.unwrap();
        for number in 0..200 {
            netlink.create(&port(&format!("tm{number}"), kind)).await.unwrap();
        }
        for patience in 0..50 {
            let _ = tokio::time::timeout(Duration::from_micros(patience * 20), netlink.links()).await;
        }
        let (a, b, c) = tokio::join!(netlink.links(), netlink.addresses(), netlink.links());
        assert!(a.unwrap().len() > 200 && !b.unwrap().is_empty() && c.unwrap().len() > 200);
    });
}

#[test]
fn many_links_are_deleted_at_once_and_no_other() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let kind = netlink.port_kind().await.unwrap();
        let bridge = netlink.create(&bridge("br-red", 1450)).await.unwrap();
        let mut ports = Vec::new();
        for number in 0..300 {
            let index = netlink.create(&port(&format!("tm{number}"), kind)).await.unwrap();
            netlink.change(index, &LinkChange::Master { bridge: Some(bridge) }).await.unwrap();
            ports.push(index);
        }
        let spared = ports.pop().unwrap();
        netns.cmd(&format!("ip link set tm299 group {DELETE_GROUP}"));
        netlink.delete_all(&ports[..5]).await.unwrap();
        assert_eq!(seen(&netlink, spared).await.ifindex, spared, "a foreign link in the group stays");
        netns.cmd("ip link set tm299 group 7");

        netlink.delete_all(&ports).await.unwrap();
        let left: Vec<u32> = netlink.links().await.unwrap().iter().map(|link| link.ifindex).collect();
        assert!(left.contains(&bridge) && left.contains(&spared));
        assert!(ports.iter().all(|index| !left.contains(index)));
        netlink.delete_all(&ports).await.unwrap();
        netlink.delete_all(&[]).await.unwrap();
        assert!(netlink.links().await.unwrap().len() == left.len());
    });
}

#[test]
fn odd_links_are_listed_too() {
    let (netns, other) = (Netns::new(), Netns::new());
    veth((&netns, "host0"), (&other, "eth0"));
    netns.cmd("ip link add near0 type veth peer name near1");
    netns.command(&["sh", "-c", "ip link set near0 alias \"$(printf '\\377\\376')\""]);
    netns.cmd("ip addr add 10.9.0.1 peer 10.9.0.2 dev host0");
    netns.cmd("ip addr add fd09::1/64 dev host0 nodad");
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let links = netlink.links().await.unwrap();
        let link = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        assert!(link("host0").peer_in_other_netns);
        assert!(!link("near0").peer_in_other_netns);
        assert_eq!(link("near0").alias.as_deref(), Some("\u{fffd}\u{fffd}"));
        assert_eq!(link("lo").kind, "");
        assert!(link("host0").mac.is_some());
        let addresses = netlink.addresses().await.unwrap();
        for address in ["10.9.0.1", "fd09::1", "127.0.0.1"] {
            assert!(addresses.iter().any(|a| a.address == address.parse::<std::net::IpAddr>().unwrap()), "{address}");
        }
        assert!(addresses.iter().all(|a| a.address != "10.9.0.2".parse::<std::net::IpAddr>().unwrap()));
    });
}

#[test]
fn a_thousand_links_in_one_list_while_others_come_and_go() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let kind = netlink.port_kind().await.unwrap();
        for number in 0..1000 {
            netlink.create(&port(&format!("tm{number}"), kind)).await.unwrap();
        }
        let mut churn = netns.spawnable(&[
            "sh",
            "-c",
            "i=0; while [ $i -lt 60 ]; do ip link add c$i type veth; ip link del c$i; i=$((i+1)); done",
        ]);
        let mut churn = churn.spawn().unwrap();
        while churn.try_wait().unwrap().is_none() {
            let count = netlink.links().await.unwrap().iter().filter(|link| link.name.starts_with("tm")).count();
            assert_eq!(count, 1000);
        }
    });
}

/// A shell command that makes that many cheap links, `o1` and on.
fn make(count: u32, kind: &str) -> String {
    format!("for i in $(seq {count}); do echo link add o$i type {kind}; done | ip -batch -")
}

/// The kind of links that the kernel makes fastest.
async fn kind() -> &'static str {
    match Netlink::open().await.unwrap().port_kind().await.unwrap() {
        PortKind::Dummy => "dummy",
        PortKind::Ifb => "ifb",
        PortKind::Veth => "veth",
    }
}

async fn quiet(watch: &mut LinkWatch) -> bool {
    tokio::time::timeout(Duration::from_millis(100), watch.next()).await.is_err()
}

async fn drain(watch: &mut LinkWatch) {
    while !quiet(watch).await {}
}

#[test]
fn the_subscription_tells_what_matters_once() {
    let netns = Netns::new();
    netns.cmd("ip link add br0 type bridge");
    netns.cmd("ip link add v0 type veth peer name v1");
    netns.block_on(|| async {
        let mut watch = LinkWatch::open().await.unwrap();
        assert!(quiet(&mut watch).await);
        for line in [
            "ip link set v0 up",
            "ip link set v0 master br0",
            "ip link set v0 type bridge_slave isolated on",
            "ip link set v0 nomaster",
            // Of a link that is down the kernel tells neither of these two.
            "ip link set v0 alias x",
            "ip link property add dev v0 altname other",
            "ip link set v0 down",
            "ip link set v0 name w0",
            "ip link set w0 mtu 1400",
            "ip addr add 10.0.0.1/24 dev w0",
            "ip addr del 10.0.0.1/24 dev w0",
            "ip link del w0",
            "ip link add w0 type veth peer name v1",
        ] {
            netns.cmd(line);
            let event = tokio::time::timeout(Duration::from_secs(2), watch.next()).await;
            assert_eq!(event.ok(), Some(LinkEvent::Changed), "{line}");
            drain(&mut watch).await;
        }
        // The same again, and what nobody acts upon, is no event.
        for line in ["ip link set w0 mtu 1500", "ip link set w0 promisc on", "ip link set w0 txqueuelen 77"] {
            netns.cmd(line);
            assert!(quiet(&mut watch).await, "{line}");
        }
    });
}

#[test]
fn a_small_buffer_overruns_and_says_so() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut watch = LinkWatch::with_buffer(16 << 10).await.unwrap();
        // Nobody reads meanwhile: the commands block this thread, and the subscription's task lives on it.
        netns.command(&["sh", "-c", &make(200, kind().await)]);
        assert_eq!(watch.next().await, LinkEvent::Overrun);
        drain(&mut watch).await;
        netns.cmd("ip link del o1");
        assert_eq!(watch.next().await, LinkEvent::Changed);
    });
}

#[test]
fn the_full_buffer_holds_a_thousand_new_links() {
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut watch = LinkWatch::open().await.unwrap();
        netns.command(&["sh", "-c", &make(1000, kind().await)]);
        let mut events = vec![watch.next().await];
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(200), watch.next()).await {
            events.push(event);
        }
        assert!(events.len() < 100, "a burst is few events, not {}", events.len());
        assert!(events.iter().all(|event| *event == LinkEvent::Changed));
    });
}
