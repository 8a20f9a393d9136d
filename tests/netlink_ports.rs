//! What generated ports and bridges do on the wire: nothing on their own, and forward what they should. Needs root.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Netns, veth};
use std::process::{Child, Stdio};
use std::time::Duration;
use tunnel_mesh::model::{LinkChange, Local, NewLink, PortKind, TunnelKind};
use tunnel_mesh::netlink::Netlink;

/// Packets of an interface (or `any`), as tcpdump prints them.
struct Capture {
    child: Child,
}

impl Capture {
    fn start(netns: &Netns, interface: &str) -> Self {
        let mut command = netns.spawnable(&["tcpdump", "-i", interface, "-n", "-e", "-l"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It says "listening on" once it does.
        let mut byte = [0];
        let mut said = Vec::new();
        let stderr = child.stderr.as_mut().unwrap();
        while !said.ends_with(b"listening on") {
            assert_eq!(std::io::Read::read(stderr, &mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        Self { child }
    }

    fn finish(self) -> String {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        String::from_utf8(self.child.wait_with_output().unwrap().stdout).unwrap()
    }
}

/// A bridge of ours with one isolated port of each kind that this kernel has, everything up.
async fn segment(netlink: &Netlink) -> Vec<(&'static str, u32)> {
    let bridge =
        NewLink::Bridge { name: "br-red".to_owned(), mtu: 1450, alias: "tunnel-mesh bridge br-red".to_owned() };
    let bridge = netlink.create(&bridge).await.unwrap();
    let mut ports = Vec::new();
    for (name, kind) in [("tm-best", netlink.port_kind().await.unwrap()), ("tm-veth", PortKind::Veth)] {
        let port = NewLink::Port {
            name: name.to_owned(),
            kind,
            altname: format!("red/{name}"),
            alias: format!("tunnel-mesh port red/{name}"),
            mtu: 1450,
        };
        let index = netlink.create(&port).await.unwrap();
        for change in [LinkChange::Master { bridge: Some(bridge) }, LinkChange::Isolated(true), LinkChange::Up] {
            netlink.change(index, &change).await.unwrap();
        }
        ports.push((name, index));
    }
    netlink.change(bridge, &LinkChange::Up).await.unwrap();
    ports
}

#[test]
fn what_we_make_says_nothing_on_its_own() {
    let netns = Netns::new();
    let heard = netns.block_on(|| async {
        let capture = Capture::start(&netns, "any");
        let netlink = Netlink::open().await.unwrap();
        segment(&netlink).await;
        let tunnel = NewLink::Tunnel {
            name: "vxlan0".to_owned(),
            kind: TunnelKind::Vxlan,
            port: None,
            ip6: false,
            local: Local { v4: Some([10, 0, 0, 1].into()), v6: None },
            mtu: 1450,
            alias: "tunnel-mesh tunnel vxlan0".to_owned(),
            udp6_zero_checksum_rx: false,
        };
        let tunnel = netlink.create(&tunnel).await.unwrap();
        netlink.change(tunnel, &LinkChange::Up).await.unwrap();
        // Duplicate address detection, router solicitations and multicast reports come within 2 seconds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        capture.finish()
    });
    assert_eq!(heard.trim(), "");
}

#[test]
fn a_flooded_frame_goes_out_of_every_port() {
    let (netns, workload) = (Netns::new(), Netns::new());
    veth((&netns, "host0"), (&workload, "eth0"));
    workload.cmd("ip addr add 10.5.0.1/24 dev eth0");
    netns.block_on(|| async {
        let netlink = Netlink::open().await.unwrap();
        let ports = segment(&netlink).await;
        netns.cmd("ip link set host0 master br-red");
        let captures: Vec<_> = ports.iter().map(|(name, _)| Capture::start(&netns, name)).collect();
        let ping = workload.try_cmd("ping -c 2 -i 0.2 -W 1 10.5.0.9");
        assert!(!ping.status.success());
        for ((name, _), capture) in ports.iter().zip(captures) {
            let heard = capture.finish();
            assert!(heard.contains("who-has 10.5.0.9"), "{name}: {heard}");
        }
        let port = netns.cmd("bridge -d link show dev tm-best") + &netns.cmd("bridge -d link show dev tm-veth");
        assert_eq!(port.matches("state forwarding").count(), 2, "{port}");
        assert_eq!(port.matches("isolated on").count(), 2, "{port}");
    });
}
