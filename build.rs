//! Compiles the data plane in `bpf-src/` with clang, for embedding, and names its version.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=bpf-src");
    println!("cargo::rerun-if-env-changed=CLANG");
    let object = out.join("tunnel_mesh.bpf.o");
    compile(Path::new("bpf-src/tunnel_mesh.bpf.c"), &object);
    let bytes = std::fs::read(&object).expect("read the compiled data plane");
    println!("cargo::rustc-env=TUNNEL_MESH_BPF_BUILD={:016x}", fnv1a(&bytes));

    println!("cargo::rerun-if-changed=tests/programs");
    // Programs that tests put beside ours; they run where there is no compiler, too.
    for name in ["probe", "verdict"] {
        let source = PathBuf::from(format!("tests/programs/{name}.bpf.c"));
        if source.exists() {
            compile(&source, &out.join(format!("{name}.bpf.o")));
        }
    }
}

fn compile(source: &Path, object: &Path) {
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3"]);
    // Debian keeps asm/types.h in a directory of the architecture, which clang doesn't search for bpf.
    for triplet in
        ["x86_64-linux-gnu", "aarch64-linux-gnu", "s390x-linux-gnu", "powerpc64le-linux-gnu", "riscv64-linux-gnu"]
    {
        let directory = Path::new("/usr/include").join(triplet);
        if directory.join("asm/types.h").exists() {
            command.arg("-I").arg(directory);
            break;
        }
    }
    command.arg("-I").arg("bpf-src").arg("-c").arg(source).arg("-o").arg(object);
    match command.output() {
        Err(error) => fail(&format!("can't run {clang}: {error}. Install clang (Debian, Ubuntu: `make deps`)")),
        Ok(output) if !output.status.success() => fail(&format!(
            "{clang} could not compile {}. If a header is missing, install libbpf-dev and linux-libc-dev (`make deps`).\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        )),
        Ok(_) => {}
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1);
}

/// A name for the object's content, not a protection: FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
