//! A binary of another release.

use crate::world::binary;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A binary with another data plane: its program is compiled from the same sources with other options, so that it
/// differs in its instructions and in nothing that it does.
pub fn other(directory: &Path) -> PathBuf {
    let embedded: &[u8] = include_bytes!(env!("TUNNEL_MESH_BPF_OBJECT"));
    let mut other = include_bytes!(env!("TUNNEL_MESH_OTHER_OBJECT")).to_vec();
    assert!(other.len() <= embedded.len(), "the other object must fit in the place of the embedded one");
    other.resize(embedded.len(), 0);
    let build = env!("TUNNEL_MESH_BPF_BUILD");
    let other_build: String = build.chars().rev().collect();
    assert_ne!(build.trim_start_matches('0'), other_build.trim_start_matches('0'));

    let mut bytes = std::fs::read(binary()).unwrap();
    replace(&mut bytes, embedded, &other);
    replace(&mut bytes, build.as_bytes(), other_build.trim_start_matches('0').as_bytes());
    let path = directory.join("tunnel-mesh-other");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = memchr::memmem::find_iter(bytes, from).collect();
    assert!(!places.is_empty(), "the binary lacks {} bytes that it was built with", from.len());
    for place in places {
        bytes[place..place + from.len()].copy_from_slice(to);
    }
}
