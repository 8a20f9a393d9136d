//! Where the packets went that a host received on its underlay: everything that is counted at the end of some way, by us or
//! by the kernel.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use crate::world::Host;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// Counters by name.
pub type Account = BTreeMap<String, u64>;

/// Ends in the kernel's stack before the tunnel device: header errors, wrong addresses, fragments that wait for the rest,
/// ports and protocols that nobody listens to, and what another protocol than ours took.
const ENDS: [&str; 26] = [
    "Ip InHdrErrors",
    "Ip InAddrErrors",
    "Ip InUnknownProtos",
    "Ip InDiscards",
    "Ip ReasmReqds",
    "IpExt InTruncatedPkts",
    "IpExt InNoRoutes",
    "Udp NoPorts",
    "Udp InErrors",
    "UdpLite NoPorts",
    "UdpLite InErrors",
    "Icmp InMsgs",
    "Tcp InSegs",
    "TcpExt IPReversePathFilter",
    "Ip6InHdrErrors",
    "Ip6InAddrErrors",
    "Ip6InUnknownProtos",
    "Ip6InDiscards",
    "Ip6InTruncatedPkts",
    "Ip6InNoRoutes",
    "Ip6ReasmReqds",
    "Udp6NoPorts",
    "Udp6InErrors",
    "UdpLite6NoPorts",
    "UdpLite6InErrors",
    "Icmp6InMsgs",
];

/// What is counted on a host now.
pub fn account(host: &Host) -> Account {
    let read =
        |file: &str| host.netns.enter(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap());
    let mut all = Account::new();
    for file in ["snmp", "netstat"] {
        let text = read(file);
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks(2) {
            let (group, names) = pair[0].split_once(": ").unwrap();
            let values = pair[1].split_once(": ").unwrap().1;
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                all.insert(format!("{group} {name}"), value.parse().unwrap_or(0));
            }
        }
    }
    for line in read("snmp6").lines() {
        let mut words = line.split_whitespace();
        all.insert(words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap());
    }
    all.retain(|name, _| ENDS.contains(&name.as_str()));
    let links: Value = serde_json::from_str(&host.netns.cmd("ip -j -s -s link")).unwrap();
    for link in links.as_array().unwrap().iter().filter(|l| l["ifname"] == "eth0" || l["ifname"] == "vxlan0") {
        for kind in ["errors", "dropped", "otherhost", "nohandler"] {
            let count = link["stats64"]["rx"][kind].as_u64().unwrap_or(0);
            all.insert(format!("{} {kind}", link["ifname"].as_str().unwrap()), count);
        }
    }
    let counts = super::site::Counts::of(&host.status());
    all.insert("delivered".to_owned(), counts.rx);
    all.insert("dropped by us".to_owned(), counts.drops);
    all
}

/// What was added since then, without what wasn't.
pub fn since(now: &Account, before: &Account) -> Account {
    let more = now.iter().map(|(name, count)| (name.clone(), count - before.get(name).copied().unwrap_or(0)));
    more.filter(|(_, count)| *count > 0).collect()
}

/// What the kernel says from now on.
pub struct KernelLog(File);

impl KernelLog {
    pub fn new() -> Self {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Self(file)
    }

    /// Nothing in it is a complaint: no crash, no warning.
    pub fn assert_quiet(mut self) {
        let mut buffer = [0; 8192];
        loop {
            match self.0.read(&mut buffer) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&buffer[..length]);
                    let bad = ["BUG: ", "WARNING: ", "Oops", "general protection", "refcount_t", "verifier bug"];
                    assert!(!bad.iter().any(|word| line.contains(word)), "the kernel complains: {line}");
                }
                // Overtaken by newer lines: on with the oldest that is still there.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
    }
}
