//! Carries a plan's `operations[]` out as somebody would who has only its JSON: maps by bpftool, devices by `ip`, programs
//! and attachments by aya or `tc`. Shares no code with `apply`.

use crate::entries::{self, IfEntry, Role};
use crate::world::live::write_map;
use crate::world::{Host, clsact};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{EbpfLoader, maps::MapData};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

/// What the programs are loaded from.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TUNNEL_MESH_BPF_OBJECT"));

const MAPS: [&str; 7] = ["conf", "tunkey2if", "if2tunkey", "devs", "counters", "unknown", "meta"];
/// Those that are as large as the capacity says.
const SIZED: [&str; 4] = ["tunkey2if", "if2tunkey", "devs", "counters"];

/// The interpreter of one host.
pub struct Interpreter<'a> {
    host: &'a Host,
    /// How often each operation was carried out.
    pub done: BTreeMap<String, usize>,
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}")).try_into().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn truth(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| panic!("no truth: {value}"))
}

fn address(value: &Value) -> IpAddr {
    text(value).parse().unwrap()
}

/// A fixed octet, or none where it is inherited.
fn outer(value: &Value) -> Option<u8> {
    (value != "inherit").then(|| number(&value["fixed"]).try_into().unwrap())
}

fn role(role: &Value) -> Role {
    if let Some(ports) = role["underlay"].as_array() {
        let port = |p: &Value| (number(&p["tunnel"]), number(&p["port"]).try_into().unwrap());
        return Role::Underlay(ports.iter().map(port).collect());
    }
    let decap = role.get("tunnel").unwrap_or_else(|| panic!("no role: {role}"));
    if decap.is_null() {
        return Role::Plain;
    }
    let local = |family: &str| decap["local"][family].as_str();
    Role::Decapsulated {
        geneve: truth(&decap["geneve"]),
        zero_checksum6: truth(&decap["zero_checksum6"]),
        v4: local("v4").map(|a| a.parse().unwrap()),
        v6: local("v6").map(|a| a.parse().unwrap()),
    }
}

impl<'a> Interpreter<'a> {
    pub fn new(host: &'a Host) -> Self {
        Self { host, done: BTreeMap::new() }
    }

    /// Carries a plan out.
    pub fn run(&mut self, plan: &Value) {
        assert_eq!(plan["format_version"], 1);
        let changes: Vec<&str> = plan["changes"].as_array().unwrap().iter().map(|c| text(&c["address"])).collect();
        for operation in plan["operations"].as_array().unwrap() {
            assert!(changes.contains(&text(&operation["change"])), "of no change: {operation}");
            self.step(operation);
            *self.done.entry(text(&operation["op"]).to_owned()).or_default() += 1;
        }
    }

    fn step(&self, o: &Value) {
        let host = self.host;
        match text(&o["op"]) {
            "create_maps" => self.create_maps(number(&o["capacity"])),
            "grow_maps" => self.grow_maps(number(&o["to"])),
            "load_program" => self.load(&o["program"]),
            "unload_program" => std::fs::remove_file(self.program_pin(&o["program"])).unwrap(),
            "create_link" => self.create_link(&o["link"]),
            "change_link" => self.change_link(&self.name(&o["link"]), &o["edit"]),
            "delete_link" => drop(host.netns.cmd(&format!("ip link del {}", self.name(&o["link"])))),
            "reset_counters" => {
                let zeros = vec![0; self.value_size("counters")];
                write_map(host, "counters", "update", &number(&o["slot"]).to_ne_bytes(), Some(&zeros));
            }
            "set_conf" => {
                let ifindex = if o["link"].is_null() { 0 } else { self.index(&o["link"]) };
                let mark = number(&o["mark"]).try_into().unwrap();
                let of = |what: &str| o["way"][what].as_u64().unwrap_or(0);
                let way = entries::Way {
                    gre: o["way"]["gre"] == true,
                    room: ["v4", "v6"].map(|family| of(family).try_into().unwrap()),
                    ethernet: ["ethernet4", "ethernet6"].map(|family| of(family).try_into().unwrap()),
                };
                let mut value = entries::conf(ifindex, text(&o["name"]), mark, &way, self.value_size("conf"));
                role(&o["role"]).write(&mut value);
                write_map(host, "conf", "update", &number(&o["index"]).to_ne_bytes(), Some(&value));
            }
            "clear_conf" => {
                let zeros = vec![0; self.value_size("conf")];
                write_map(host, "conf", "update", &number(&o["index"]).to_ne_bytes(), Some(&zeros));
            }
            "set_dev" => {
                let value = entries::dev(self.index(&o["link"]));
                write_map(host, "devs", "update", &number(&o["slot"]).to_ne_bytes(), Some(&value));
            }
            "clear_dev" => {
                // The kernel may have emptied it with its device.
                let key = number(&o["slot"]).to_ne_bytes();
                if crate::world::live::entries(host, "devs").contains_key(&key[..]) {
                    write_map(host, "devs", "delete", &key, None);
                }
            }
            "set_tunkey" => {
                let key = self.tunkey(&o["key"]);
                let value = entries::slot_ref(&key, number(&o["value"]["slot"]), truth(&o["value"]["endpoint"]));
                let action = if truth(&o["insert"]) { "noexist" } else { "exist" };
                self.write("tunkey2if", &key, &value, action);
            }
            "delete_tunkey" => write_map(host, "tunkey2if", "delete", &self.tunkey(&o["key"]), None),
            "set_if" => {
                let (ifindex, v) = (self.index(&o["link"]), &o["value"]);
                let entry = IfEntry {
                    slot: number(&v["slot"]),
                    endpoint: truth(&v["endpoint"]),
                    tunnel: number(&v["key"]["tunnel"]),
                    id: number(&v["key"]["id"]),
                    remote: address(&v["key"]["remote"]),
                    local: address(&v["local"]),
                    ttl: outer(&v["ttl"]),
                    tos: outer(&v["tos"]),
                    df: truth(&v["df"]),
                    checksum: truth(&v["checksum"]),
                    fast: v["fast"].as_object().map(|f| (truth(&f["geneve"]), number(&f["port"]).try_into().unwrap())),
                };
                let action = if truth(&o["insert"]) { "noexist" } else { "exist" };
                self.write("if2tunkey", &ifindex.to_ne_bytes(), &entry.encode(ifindex), action);
            }
            "delete_if" => write_map(host, "if2tunkey", "delete", &self.index(&o["link"]).to_ne_bytes(), None),
            "attach" => self.attach(o),
            "detach" => self.detach(o),
            other => panic!("unknown operation {other}: {o:#}"),
        }
    }

    /// An update that must find, or must not find, the key.
    fn write(&self, map: &str, key: &[u8], value: &[u8], flag: &str) {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("0x{b:02x}")).collect::<Vec<_>>().join(" ");
        let pin = self.host.pin(map).display().to_string();
        self.host.netns.cmd(&format!("bpftool map update pinned {pin} key {} value {} {flag}", hex(key), hex(value)));
    }

    fn tunkey(&self, key: &Value) -> Vec<u8> {
        entries::tunkey(number(&key["tunnel"]), number(&key["id"]), address(&key["remote"]))
    }

    fn value_size(&self, map: &str) -> usize {
        let pin = self.host.pin(map);
        let output = Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(&pin).output().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        number(&shown["bytes_value"]) as usize
    }

    fn name(&self, link: &Value) -> String {
        text(&link["name"]).to_owned()
    }

    /// Index of a link: told, or that of the one made meanwhile.
    fn index(&self, link: &Value) -> u32 {
        link["ifindex"].as_u64().map_or_else(|| self.host.ifindex(text(&link["name"])), |i| i.try_into().unwrap())
    }

    fn create_link(&self, link: &Value) {
        let netns = &self.host.netns;
        let (kind, spec) = link.as_object().unwrap().iter().next().unwrap();
        let (name, mtu) = (text(&spec["name"]), number(&spec["mtu"]));
        match kind.as_str() {
            "tunnel" => {
                assert_eq!(spec["kind"], "vxlan", "the test has no other kind");
                let mut line = format!("ip link add {name} mtu {mtu} type vxlan external nolearning");
                line.push_str(&format!(" dstport {}", spec["port"].as_u64().unwrap_or(4789)));
                match (spec["local"]["v4"].as_str(), spec["local"]["v6"].as_str()) {
                    (Some(one), None) | (None, Some(one)) => line.push_str(&format!(" local {one}")),
                    _ => {}
                }
                if truth(&spec["udp6_zero_checksum_rx"]) {
                    line.push_str(" udp6zerocsumrx");
                }
                netns.cmd(&line);
            }
            "bridge" => {
                netns.cmd(&format!("ip link add {name} type bridge mcast_snooping 0"));
                // Set on one that exists, ports that join don't change it.
                netns.cmd(&format!("ip link set {name} mtu {mtu}"));
            }
            "port" if spec["kind"] == "veth" => {
                netns.cmd(&format!("ip link add {name} mtu {mtu} type veth peer name {name}p mtu {mtu}"));
                netns.cmd(&format!("ip link set {name}p addrgenmode none"));
                netns.cmd(&format!("ip link set {name}p up"));
            }
            "port" => drop(netns.cmd(&format!("ip link add {name} mtu {mtu} type {}", text(&spec["kind"])))),
            other => panic!("unknown device {other}"),
        }
        netns.cmd(&format!("ip link set {name} addrgenmode none"));
        netns.command(&["ip", "link", "set", name, "alias", text(&spec["alias"])]);
        if let Some(altname) = spec["altname"].as_str() {
            self.add_altname(name, altname);
        }
    }

    /// `ip` refuses names with a slash, which the kernel takes.
    fn add_altname(&self, name: &str, altname: &str) {
        let ifindex = self.host.ifindex(name);
        self.host.netns.block_on(|| async move {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().property_add(ifindex).alt_ifname(&[altname]).execute().await.unwrap();
        });
    }

    fn change_link(&self, name: &str, edit: &Value) {
        let netns = &self.host.netns;
        let to = &edit["to"];
        let on = |to: &Value| if truth(to) { "on" } else { "off" };
        drop(match text(&edit["set"]) {
            "up" => netns.cmd(&format!("ip link set {name} {}", if truth(to) { "up" } else { "down" })),
            "mtu" => netns.cmd(&format!("ip link set {name} mtu {}", number(to))),
            "master" => netns.cmd(&format!("ip link set {name} master {}", text(&to["name"]))),
            "isolated" => netns.cmd(&format!("bridge link set dev {name} isolated {}", on(to))),
            "altname" => {
                self.add_altname(name, text(to));
                String::new()
            }
            "alias" => netns.command(&["ip", "link", "set", name, "alias", text(to)]),
            "forward" => {
                let family = if truth(&to["ipv6"]) { "ipv6" } else { "ipv4" };
                netns.cmd(&format!("sysctl -q -w net/{family}/conf/{name}/forwarding=1"))
            }
            other => panic!("the test has no such change: {other}"),
        });
    }

    fn create_maps(&self, capacity: u32) {
        for directory in ["", "programs", "links"] {
            std::fs::create_dir_all(self.host.pin(directory)).unwrap();
        }
        self.pin_maps(capacity);
        let size = |id: u32| [&0u64.to_ne_bytes()[..], &0u32.to_ne_bytes(), &id.to_ne_bytes()].concat();
        // The layout's version, and whose namespace it is: the last entry of `meta`.
        let snapshot: Value = serde_json::from_str(&self.host.expect(0, &["snapshot"])).unwrap();
        let cookie = snapshot["observed"]["netns_cookie"].as_u64().unwrap();
        let abi = abi_version();
        write_map(self.host, "meta", "update", &0u32.to_ne_bytes(), Some(&size(abi)));
        let meta = MapData::from_pin(self.host.pin("meta")).unwrap();
        let last = meta.info().unwrap().max_entries() - 1;
        let value = [&cookie.to_ne_bytes()[..], &0u32.to_ne_bytes(), &abi.to_ne_bytes()].concat();
        write_map(self.host, "meta", "update", &last.to_ne_bytes(), Some(&value));
    }

    /// Makes the maps that aren't there.
    fn pin_maps(&self, capacity: u32) {
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, self.host.pin(name));
        }
        for name in SIZED {
            loader.map_max_entries(name, capacity);
        }
        loader.load(OBJECT).unwrap();
    }

    /// Larger maps with the same content; every program runs on them before the old ones go.
    fn grow_maps(&self, capacity: u32) {
        let old = |name: &str| crate::world::live::entries(self.host, name);
        let content = ["tunkey2if", "if2tunkey", "devs"].map(|name| (name, old(name)));
        let sizes: BTreeMap<&str, usize> = SIZED.map(|name| (name, self.value_size(name))).into();
        let programs: Vec<String> = std::fs::read_dir(self.host.pin("programs"))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        for name in SIZED {
            std::fs::remove_file(self.host.pin(name)).unwrap();
        }
        self.pin_maps(capacity);
        for (name, entries) in content {
            assert_eq!(self.value_size(name), sizes[name]);
            for (key, value) in entries {
                write_map(self.host, name, "update", &key, Some(&value));
            }
        }
        let mut ids = BTreeMap::new();
        for file in programs {
            let index = file.rsplit_once('_').and_then(|(_, n)| n.parse::<u32>().ok());
            let program = match (file.rsplit_once('_'), index) {
                (Some((name @ "handle_ingress", _)), Some(index)) => serde_json::json!({name: {"tunnel": index}}),
                (Some((name @ "handle_underlay", _)), Some(index)) => serde_json::json!({name: {"index": index}}),
                _ => Value::from(file.as_str()),
            };
            let pin = self.program_pin(&program);
            let before = SchedClassifier::from_pin(&pin).unwrap().info().unwrap().id();
            self.load(&program);
            ids.insert(before, pin);
        }
        for file in std::fs::read_dir(self.host.pin("links")).unwrap() {
            let link_pin = file.unwrap().path();
            let held: FdLink = PinnedLink::from_pin(&link_pin).unwrap().into();
            let shown = Command::new("bpftool").args(["-j", "link", "show", "pinned"]).arg(&link_pin).output().unwrap();
            let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
            let mut program = SchedClassifier::from_pin(&ids[&number(&shown["prog_id"])]).unwrap();
            program.attach_to_link(SchedClassifierLink::try_from(held).unwrap()).unwrap();
        }
    }

    /// Name of a program, its file's name and its tunnel.
    fn program(program: &Value) -> (&'static str, String, u32) {
        if program == "handle_egress" {
            return ("handle_egress", "handle_egress".to_owned(), 0);
        }
        if let Some(underlay) = program.get("handle_underlay") {
            let index = number(&underlay["index"]);
            return ("handle_underlay", format!("handle_underlay_{index}"), index);
        }
        let tunnel = number(&program["handle_ingress"]["tunnel"]);
        ("handle_ingress", format!("handle_ingress_{tunnel}"), tunnel)
    }

    fn program_pin(&self, program: &Value) -> std::path::PathBuf {
        self.host.pin("programs").join(Self::program(program).1)
    }

    fn load(&self, program: &Value) {
        let (name, _, tunnel) = Self::program(program);
        let mut loader = EbpfLoader::new();
        loader.override_global("tunnel_index", &tunnel, true);
        for name in MAPS {
            loader.map_pin_path(name, self.host.pin(name));
        }
        let mut object = loader.load(OBJECT).unwrap();
        let classifier: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
        classifier.load().unwrap();
        let pin = self.program_pin(program);
        drop(std::fs::remove_file(&pin));
        classifier.pin(&pin).unwrap();
        let build: u64 = env!("TUNNEL_MESH_BPF_BUILD").parse().unwrap();
        let id = classifier.info().unwrap().id();
        let value = [&build.to_ne_bytes()[..], &id.to_ne_bytes(), &abi_version().to_ne_bytes()].concat();
        write_map(self.host, "meta", "update", &tunnel.to_ne_bytes(), Some(&value));
    }

    fn attach(&self, o: &Value) {
        let (name, direction) = (self.name(&o["link"]), text(&o["direction"]));
        let pin = self.program_pin(&o["program"]);
        if o["kind"] == "clsact" {
            let netns = &self.host.netns;
            drop(netns.try_cmd(&format!("tc qdisc add dev {name} clsact")));
            let action = if truth(&o["replace"]) { "replace" } else { "add" };
            let (handle, pin) = (self.handle(direction), pin.display());
            let filter = format!("prio 1 handle {handle} bpf direct-action object-pinned {pin}");
            netns.cmd(&format!("tc filter {action} dev {name} {} {filter}", Self::side(direction)));
            return;
        }
        assert_eq!(o["kind"], "tcx");
        let link_pin = self.host.pin("links").join(format!("{direction}_{}", self.index(&o["link"])));
        self.host.netns.enter(|| {
            let mut program = SchedClassifier::from_pin(&pin).unwrap();
            if truth(&o["replace"]) {
                let held: FdLink = PinnedLink::from_pin(&link_pin).unwrap().into();
                program.attach_to_link(SchedClassifierLink::try_from(held).unwrap()).unwrap();
                return;
            }
            let egress = Self::side(direction) == "egress";
            let side = if egress { TcAttachType::Egress } else { TcAttachType::Ingress };
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let link = program.attach_with_options(&name, side, first).unwrap();
            let link = FdLink::try_from(program.take_link(link).unwrap()).unwrap();
            link.pin(&link_pin).unwrap();
        });
    }

    fn detach(&self, o: &Value) {
        let direction = text(&o["direction"]);
        if o["kind"] == "clsact" {
            let (name, handle, side) = (self.name(&o["link"]), self.handle(direction), Self::side(direction));
            self.host.netns.cmd(&format!("tc filter del dev {name} {side} prio 1 handle {handle} bpf"));
            return;
        }
        // The link goes with its last reference.
        let pin = self.host.pin("links").join(format!("{direction}_{}", self.index(&o["link"])));
        std::fs::remove_file(pin).unwrap();
    }

    /// The side of a device that a hook is on.
    fn side(direction: &str) -> &str {
        if direction == "underlay" { "ingress" } else { direction }
    }

    /// The handle of this host's filters, which one that is there tells. On underlay devices it has a bit more.
    fn handle(&self, direction: &str) -> String {
        let shown = self.host.netns.cmd("tc -j filter show dev vxlan0 ingress");
        let filters: Value = serde_json::from_str(&shown).unwrap();
        let handle = filters.as_array().unwrap().iter().find_map(|f| f["options"]["handle"].as_str());
        let handle = handle.expect("a filter of ours on vxlan0");
        let number = u32::from_str_radix(handle.trim_start_matches("0x"), 16).unwrap();
        format!("{:#x}", number | if direction == "underlay" { 0x4000_0000 } else { 0 })
    }

    /// Whether it can make everything from nothing: filters have a handle that only an attachment tells.
    pub fn from_nothing() -> bool {
        !clsact()
    }
}

/// `TM_ABI_VERSION` of the header.
fn abi_version() -> u32 {
    let header = include_str!("../../bpf-src/abi.h");
    let line = header.lines().find_map(|l| l.strip_prefix("#define TM_ABI_VERSION ")).unwrap();
    line.trim().parse().unwrap()
}
