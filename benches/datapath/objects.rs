//! The benchmark's own programs: both ends of a measurement, and BCC's way.

use crate::harness::Netns;
use aya::maps::{HashMap, PerCpuArray};
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use std::net::Ipv4Addr;

static GENERATOR: &[u8] = include_bytes_aligned!(env!("TUNNEL_MESH_GENERATOR_OBJECT"));
static CLONE: &[u8] = include_bytes_aligned!(env!("TUNNEL_MESH_CLONE_OBJECT"));

/// Frames that go through the network stack at a time, as a network card's driver hands them over.
const BATCH: u32 = 64;

/// Makes frames on an interface of a namespace: they leave by it.
pub struct Generator {
    object: Ebpf,
    program: &'static str,
    frame: Vec<u8>,
    context: [u8; 24],
}

impl Generator {
    /// Frames like the given one, with changing UDP source ports.
    pub fn new(frame: &[u8], ifindex: u32, flows: u32) -> Self {
        Self::load("generate", frame, ifindex, flows, 1)
    }

    /// VXLAN frames like the given one, with tunnel ids from 1 to `ids`.
    pub fn tunnel(frame: &[u8], ifindex: u32, ids: u32) -> Self {
        Self::load("generate_tunnel", frame, ifindex, 1, ids)
    }

    fn load(program: &'static str, frame: &[u8], ifindex: u32, flows: u32, ids: u32) -> Self {
        assert!(flows.is_power_of_two() && ids.is_power_of_two());
        let mut header = [0u8; 92];
        let length = header.len().min(frame.len());
        header[..length].copy_from_slice(&frame[..length]);
        let (flows, ids) = (flows - 1, ids - 1);
        let mut object = EbpfLoader::new()
            .btf(None)
            .override_global("header", &header, true)
            .override_global("flows", &flows, true)
            .override_global("ids", &ids, true)
            .load(GENERATOR)
            .unwrap();
        let xdp: &mut Xdp = object.program_mut(program).unwrap().try_into().unwrap();
        xdp.load().unwrap();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        Self { object, program, frame: frame.to_vec(), context }
    }

    /// Sends that many frames. The calling thread is in the interface's namespace.
    pub fn run(&self, frames: u32) {
        let xdp: &Xdp = self.object.program(self.program).unwrap().try_into().unwrap();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.frame);
        options.ctx_in = Some(&self.context);
        options.repeat = frames;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        xdp.test_run(options).unwrap();
    }
}

/// Counts what arrives at an interface and drops it.
pub struct Sink {
    object: Ebpf,
}

impl Sink {
    pub fn new(netns: &Netns, interface: &str) -> Self {
        let mut object = EbpfLoader::new().btf(None).load(GENERATOR).unwrap();
        netns.enter(|| attach(&mut object, "sink", interface, TcAttachType::Ingress));
        Self { object }
    }

    pub fn delivered(&self) -> u64 {
        let map: PerCpuArray<_, u64> = self.object.map("delivered").unwrap().try_into().unwrap();
        map.get(&0, 0).unwrap().iter().sum()
    }
}

/// Carries one interface through one external tunnel device, in BCC's way.
pub struct Cloner {
    _object: Ebpf,
}

impl Cloner {
    pub fn new(netns: &Netns, port: (&str, u32), tunnel: (&str, u32), id: u32, remote: Ipv4Addr) -> Self {
        let mut object = EbpfLoader::new().btf(None).load(CLONE).unwrap();
        let key = [id, u32::from(remote)];
        let mut conf: HashMap<_, u32, u32> = object.map_mut("conf").unwrap().try_into().unwrap();
        conf.insert(1, tunnel.1, 0).unwrap();
        let mut tunkey2if: HashMap<_, [u32; 2], u32> = object.map_mut("tunkey2if").unwrap().try_into().unwrap();
        tunkey2if.insert(key, port.1, 0).unwrap();
        let mut if2tunkey: HashMap<_, u32, [u32; 2]> = object.map_mut("if2tunkey").unwrap().try_into().unwrap();
        if2tunkey.insert(port.1, key, 0).unwrap();
        netns.enter(|| {
            for (name, interface, side) in
                [("clone_egress", port.0, TcAttachType::Egress), ("clone_ingress", tunnel.0, TcAttachType::Ingress)]
            {
                qdisc_add_clsact(interface).unwrap();
                let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
                program.load().unwrap();
                let options = TcAttachOptions::Netlink(NlOptions::default());
                // Dropping the link would detach it, in the wrong namespace; the filter goes with its device.
                let link = program.attach_with_options(interface, side, options).unwrap();
                std::mem::forget(program.take_link(link).unwrap());
            }
        });
        Self { _object: object }
    }
}

fn attach(object: &mut Ebpf, name: &str, interface: &str, side: TcAttachType) {
    let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(interface, side).unwrap();
}
