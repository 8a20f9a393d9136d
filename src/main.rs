//! The `tunnel-mesh` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_mesh::cli::main()
}
