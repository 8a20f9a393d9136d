//! Compiles the eBPF object from `bpf-src/` with clang, for embedding in the binary.
//!
//! Gives the crate two environment variables: `TUNNEL_MESH_BPF_OBJECT`, the object's path, and
//! `TUNNEL_MESH_BPF_BUILD`, a hash of its bytes in decimal, by which a running program is told from this build's.
//! The tests, which also run where no compiler is, get programs that play somebody else's, and the benchmark its
//! generator and its peers: `TUNNEL_MESH_FOREIGN_OBJECT` and so on.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

const SOURCE_DIR: &str = "bpf-src";
const PROGRAM: &str = "bpf-src/tunnel_mesh.bpf.c";
const FOR_TESTS: [(&str, &str); 6] = [
    ("tests/programs/foreign.bpf.c", "FOREIGN"),
    ("tests/programs/probe.bpf.c", "PROBE"),
    ("tests/programs/verdict.bpf.c", "VERDICT"),
    ("benches/datapath/programs/generator.bpf.c", "GENERATOR"),
    ("benches/datapath/programs/clone.bpf.c", "CLONE"),
    ("benches/datapath/programs/lookup.bpf.c", "LOOKUP"),
];
const PACKAGES: &str = "install clang and the libbpf headers (Debian, Ubuntu: apt-get install clang libbpf-dev \
                        linux-libc-dev)";

fn main() {
    if let Err(error) = compile() {
        eprintln!("error: compile the eBPF object: {error}");
        exit(1);
    }
}

fn compile() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE_DIR}");
    let sources = fs::read_dir(SOURCE_DIR).map_err(|e| format!("read {SOURCE_DIR}: {e}"))?;
    for source in sources {
        let source = source.map_err(|e| format!("read {SOURCE_DIR}: {e}"))?;
        println!("cargo:rerun-if-changed={}", source.path().display());
    }
    println!("cargo:rerun-if-env-changed=CLANG");

    let bytes = compile_one(PROGRAM, "BPF", &[])?;
    println!("cargo:rustc-env=TUNNEL_MESH_BPF_BUILD={}", fnv1a(&bytes));
    for (source, name) in FOR_TESTS {
        println!("cargo:rerun-if-changed={source}");
        if Path::new(source).exists() {
            compile_one(source, name, &[])?;
        }
    }
    // Another release of the same data plane, for the tests: other instructions that do the same.
    compile_one(PROGRAM, "OTHER", &["-fno-unroll-loops"])?;
    Ok(())
}

/// Compiles a source to an object, tells the crate its path, and returns its bytes.
fn compile_one(source: &str, name: &str, options: &[&str]) -> Result<Vec<u8>, String> {
    let root = variable("CARGO_MANIFEST_DIR")?;
    let object = PathBuf::from(variable("OUT_DIR")?).join(format!("{}.o", name.to_lowercase()));
    let target = if variable("CARGO_CFG_TARGET_ENDIAN")? == "big" { "bpfeb" } else { "bpfel" };
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());

    let mut command = Command::new(&clang);
    command
        .current_dir(&root)
        // With v3 the compiler spills 32-bit registers, which old verifiers refuse (see bpf-src/words.h).
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-mcpu=v2"])
        .args(["-target", target])
        .args(options)
        // The same sources give the same bytes wherever they lie.
        .arg(format!("-ffile-prefix-map={root}=."))
        .arg("-fdebug-compilation-dir=.");
    // <asm/types.h> lies beside the other headers only for the compiler's own target.
    let multiarch = format!("/usr/include/{}-linux-{}", variable("CARGO_CFG_TARGET_ARCH")?, target_env());
    if Path::new(&multiarch).is_dir() {
        command.arg(format!("-I{multiarch}"));
    }
    command.args(["-c", source, "-o"]).arg(&object);

    let output = command.output().map_err(|e| format!("run {clang}: {e}; {PACKAGES}, or set CLANG to a clang"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let remedy = if messages.contains("file not found") { format!("\n{PACKAGES}") } else { String::new() };
        return Err(format!("{clang} {}:\n{messages}{remedy}", output.status));
    }
    println!("cargo:rustc-env=TUNNEL_MESH_{name}_OBJECT={}", object.display());
    fs::read(&object).map_err(|e| format!("read {}: {e}", object.display()))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("read the environment variable {name}: {e}"))
}

fn target_env() -> String {
    match env::var("CARGO_CFG_TARGET_ENV") {
        Ok(name) if !name.is_empty() => name,
        _ => "gnu".to_owned(),
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
