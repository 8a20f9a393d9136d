//! The command line offline: help, usage, validate, and what it says where nothing can be done. No root needed.

#![allow(clippy::unwrap_used, missing_docs)]

use assert_cmd::Command;
use insta::assert_snapshot;
use std::path::Path;

fn tunnel_mesh(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("tunnel-mesh").unwrap();
    command
        .current_dir(directory)
        .args(arguments)
        .env_remove("TUNNEL_MESH_HOOK")
        .env("TUNNEL_MESH_TOPOLOGY", "topology")
        .env("TUNNEL_MESH_NODE", "host0")
        .env("TUNNEL_MESH_PIN_DIR", directory.join("pins"))
        .env("TUNNEL_MESH_RUN_DIR", directory.join("run"))
        .env("TUNNEL_MESH_STATE_DIR", directory.join("state"))
        .env("COLUMNS", "100");
    command
}

/// Exit code, stdout and stderr in one text.
fn run(directory: &Path, arguments: &[&str], input: &str) -> String {
    let output = tunnel_mesh(directory, arguments).write_stdin(input).output().unwrap();
    format!(
        "exit {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap().replace(&directory.display().to_string(), "DIR"),
        String::from_utf8(output.stderr).unwrap().replace(&directory.display().to_string(), "DIR")
    )
}

fn topology(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("topology")).unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join("topology").join(name), text).unwrap();
    }
    directory
}

const FIVE_MISTAKES: &str = "\
version: 1
tunnels:
  vxlan0: {kind: vxlan, local: 10.0.0.1}
mappings:
  - {tenant: red, interface: eth2, id: 456, remote: 10.0.0.3}
  - {tenant: red, interface: eth2, id: 457, remote: 10.0.0.3}
  - {tenant: red, interface: eth3, id: 16777216, remote: 10.0.0.3}
  - {tenant: red, interface: eth4, id: 1, remote: 10.0.0.1}
  - {tenant: red, interface: eth5, id: 1, remote: 'fd00::3'}
  - {tenant: red, interface: eth6, id: 1, remote: 10.0.0.3, tunnel: vxlan}
";

#[test]
fn help_names_every_command() {
    let directory = topology(&[]);
    assert_snapshot!(run(directory.path(), &["--help"], ""));
}

#[test]
fn wrong_usage_exits_64_and_help_goes_to_stdout() {
    let directory = topology(&[]);
    for arguments in [
        &["frobnicate"][..],
        &["plan", "--frobnicate"],
        &[],
        &["apply", "--format", "xml"],
        &["run", "--interval", "0"],
    ] {
        let output = tunnel_mesh(directory.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    let output = tunnel_mesh(directory.path(), &["--version"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

#[test]
fn validate_tells_every_error_at_once() {
    let directory = topology(&[("a.yaml", FIVE_MISTAKES)]);
    assert_snapshot!("validate_text", run(directory.path(), &["validate"], ""));
    assert_snapshot!("validate_short", run(directory.path(), &["validate", "--format", "short"], ""));
    assert_snapshot!("validate_github", run(directory.path(), &["validate", "--format", "github"], ""));
    assert_snapshot!("validate_json", run(directory.path(), &["validate", "--format", "json"], ""));
}

#[test]
fn validate_takes_one_file_and_standard_input() {
    let right = FIVE_MISTAKES.lines().take(5).collect::<Vec<_>>().join("\n");
    let directory = topology(&[("a.yaml", &right)]);
    assert_snapshot!("validate_one_file", run(directory.path(), &["validate", "topology/a.yaml"], ""));
    assert_snapshot!("validate_stdin", run(directory.path(), &["validate", "-"], &right));
    assert_snapshot!("validate_stdin_wrong", run(directory.path(), &["validate", "-"], "version: 1\nmapings: []\n"));
}

#[test]
fn what_cannot_be_read_is_invalid_and_says_why() {
    let empty = topology(&[]);
    assert_snapshot!("empty_directory", run(empty.path(), &["validate"], ""));
    assert_snapshot!("missing_directory", run(empty.path(), &["validate", "nowhere"], ""));
    let latin1 = topology(&[]);
    std::fs::write(latin1.path().join("topology/a.yaml"), b"version: 1\n# caf\xe9\n").unwrap();
    assert_snapshot!("not_utf8", run(latin1.path(), &["validate"], ""));
    // Root reads everything, so the file that can't be read is one that isn't there: a symlink to nowhere.
    let dangling = topology(&[]);
    std::os::unix::fs::symlink("nowhere", dangling.path().join("topology/a.yaml")).unwrap();
    assert_snapshot!("unreadable_file", run(dangling.path(), &["validate"], ""));
}

#[test]
fn plan_and_apply_refuse_an_invalid_topology_before_they_touch_anything() {
    let directory = topology(&[("a.yaml", FIVE_MISTAKES)]);
    for command in ["plan", "apply"] {
        let output = tunnel_mesh(directory.path(), &[command]).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{command}");
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).contains("error[TM0202]"));
    }
    for made in ["pins", "run", "state"] {
        assert!(!directory.path().join(made).exists(), "{made}");
    }
}

#[test]
fn color_is_never_for_pipes_and_always_when_asked() {
    let directory = topology(&[("a.yaml", FIVE_MISTAKES)]);
    assert!(!run(directory.path(), &["validate"], "").contains('\x1b'));
    assert!(run(directory.path(), &["validate", "--color", "always"], "").contains('\x1b'));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let directory = topology(&[("a.yaml", FIVE_MISTAKES)]);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tunnel-mesh"))
        .args(["validate", "--format", "json"])
        .current_dir(directory.path())
        .env("TUNNEL_MESH_TOPOLOGY", "topology")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panic"));
    assert_eq!(output.status.code(), Some(78), "{:?}", output.status);
}
