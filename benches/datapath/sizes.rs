//! How large the programs are, and how much the verifier had to look at: so that growth is seen.

use crate::path::{Mode, Path};
use crate::table::{Findings, Ratio};
use aya::programs::ProgramInfo;

pub fn run(findings: &mut Findings) {
    let path = Path::new(Mode::Ours { endpoint: true, fast: true });
    let mut pins: Vec<_> =
        std::fs::read_dir(path.pins(0).join("programs")).unwrap().map(|e| e.unwrap().path()).collect();
    pins.sort();
    let mut rows = Vec::new();
    for pin in pins {
        let info = ProgramInfo::from_pin(&pin).unwrap();
        let name = pin.file_name().unwrap().to_string_lossy().into_owned();
        // The kernel counts bytes; an instruction has eight.
        let instructions = info.size_translated().unwrap_or_default() / 8;
        let machine = info.size_jitted();
        let verified = info.verified_instruction_count().unwrap_or_default();
        rows.push(vec![format!("`{name}`"), instructions.to_string(), machine.to_string(), verified.to_string()]);
        for (measure, figure) in
            [("instructions", instructions), ("bytes of machine code", machine), ("verified instructions", verified)]
        {
            let mode = name.clone();
            findings.ratios.push(Ratio { mode, measure, peer: None, ratio: f64::from(figure), bar: None });
        }
    }
    let head = ["program", "instructions", "bytes of machine code", "instructions that the verifier processed"];
    findings.table(&head, &rows);
}
