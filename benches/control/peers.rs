//! The same 10,000 entries written by others: bpftool, Python one by one, and the kernel's own forwarding table.

use crate::lab::{Maps, Netns, entries};
use crate::table::{Table, Times, ratio, timed};
use std::fmt::Write;
use std::process::Command;
use std::time::Duration;
use tunnel_mesh::bpf::Dataplane;
use tunnel_mesh::bpf::bare::Encoded;
use tunnel_mesh::model::FIRST_MAPPING_SLOT;

const ENTRIES: u32 = 10_000;
const ROUNDS: usize = 5;
const MAPS: [&str; 2] = ["tunkey2if", "if2tunkey"];

pub fn run(table: &mut Table) {
    let maps = Maps::new("peers", ENTRIES + FIRST_MAPPING_SLOT);
    let (keys, ifs) = entries(ENTRIES);
    let encoded = Encoded::of(&keys, &ifs);
    let bare = maps.dataplane.bare().unwrap();
    let files = tempfile::tempdir().unwrap();

    let mut batch = String::new();
    let mut python = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/benches/control/onebyone.py").to_owned()];
    for (name, rows) in MAPS.iter().zip(encoded.rows()) {
        let pin = maps.pins.join(name).display().to_string();
        let file = files.path().join(name);
        let mut bytes = Vec::new();
        for (key, value) in &rows {
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!(" {b:02x}")).collect::<String>();
            writeln!(batch, "map update pinned {pin} key hex{} value hex{}", hex(key), hex(value)).unwrap();
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        std::fs::write(&file, bytes).unwrap();
        let (key, value) = rows[0];
        python.extend([pin, key.len().to_string(), value.len().to_string(), file.display().to_string()]);
    }
    let batch_file = files.path().join("bpftool");
    std::fs::write(&batch_file, batch).unwrap();

    let netns = Netns::new();
    let fdb_file = files.path().join("fdb");
    let mut fdb = String::new();
    for (n, (key, _)) in keys.iter().enumerate() {
        let mac = format!("02:00:00:{:02x}:{:02x}:{:02x}", n >> 16, (n >> 8) & 255, n & 255);
        writeln!(fdb, "fdb add {mac} dev vx0 dst {} vni {} src_vni {} self", key.remote, key.id, key.id).unwrap();
    }
    std::fs::write(&fdb_file, fdb).unwrap();

    let (mut ours, mut bpftool, mut one, mut bridge) =
        (Times::default(), Times::default(), Times::default(), Times::default());
    for _ in 0..ROUNDS {
        let write = || {
            let dataplane = Dataplane::open(&maps.pins).unwrap();
            dataplane.write_tunkey2if(&keys).unwrap();
            dataplane.write_if2tunkey(&ifs).unwrap();
        };
        ours.add(timed(write).0);
        bare.clear(&encoded).unwrap();
        bpftool.add(timed(|| succeed(Command::new("bpftool").arg("batch").arg("file").arg(&batch_file))).0);
        assert_eq!(bare.scan().unwrap(), 2 * ENTRIES as usize);
        bare.clear(&encoded).unwrap();
        let seconds = succeed(Command::new("python3").args(&python));
        one.add(Duration::from_secs_f64(seconds.trim().parse().unwrap()));
        assert_eq!(bare.scan().unwrap(), 2 * ENTRIES as usize);
        bare.clear(&encoded).unwrap();
        netns.cmd("ip link add vx0 type vxlan dstport 4789 external nolearning");
        let mut command = netns.spawnable(&["bridge", "-batch", fdb_file.to_str().unwrap()]);
        bridge.add(timed(|| succeed(&mut command)).0);
        netns.cmd("ip link del vx0");
    }
    for (what, times) in [
        ("10k entries of both hashes, against `bpftool batch`", &bpftool),
        ("10k entries of both hashes, against Python one by one (its calls alone)", &one),
        ("10k entries of both hashes, against 10k of `bridge -batch` (fdb)", &bridge),
    ] {
        let r = ratio(times, &ours);
        table.add(what, &ours.text(), &times.text(), &format!("{r:.0}x faster"), "faster", Some(r > 1.0));
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
