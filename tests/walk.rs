//! The user's walk of `walk.sh`, on real namespaces. The script runs by itself in the VM.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

#[test]
fn five_mistakes_are_mended_by_their_errors_and_a_lost_interface_is_told() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/walk.sh");
    let output = Command::new("bash").arg(script).env("BIN", env!("CARGO_BIN_EXE_tunnel-mesh")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success() && out.ends_with("== done\n"), "{}\n{out}\n{err}", output.status);
}
