//! The embedded eBPF object: making maps and loading programs from it, by `aya`.

use super::abi::{ABI_VERSION, RawMeta};
use super::maps;
use super::pins::Pins;
use crate::model::Program;
use anyhow::{Context, Result, anyhow};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

/// The object that build.rs compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TUNNEL_MESH_BPF_OBJECT"));

/// Hash of the object's bytes: two programs with the same one do the same.
pub(super) fn build() -> u64 {
    // build.rs writes a number; 0 would only make every program look outdated.
    env!("TUNNEL_MESH_BPF_BUILD").parse().unwrap_or_default()
}

/// The record of a program that was loaded from this object.
pub(super) fn meta(program_id: u32) -> RawMeta {
    RawMeta { build: build(), program: program_id, abi: ABI_VERSION }
}

/// Index of a program in `meta`.
pub(super) fn meta_index(program: Program) -> u32 {
    match program {
        Program::HandleEgress => 0,
        Program::HandleIngress { tunnel: index } | Program::HandleUnderlay { index } => index,
    }
}

/// Opens the maps pinned in `pins`, and makes and pins those that are missing, with that many slots where given.
///
/// What is pinned already must have been checked before: `aya` doesn't.
fn load(pins: &Pins, capacity: Option<u32>, tunnel: u32) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    // There are no relocations against the kernel's types, and parsing those would take 20 ms.
    loader.btf(None).override_global("tunnel_index", &tunnel, true);
    for name in maps::names() {
        loader.map_pin_path(name, pins.map(name));
    }
    if let Some(capacity) = capacity {
        for name in maps::sized_names() {
            loader.map_max_entries(name, capacity);
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Makes and pins every map.
pub(super) fn create_maps(pins: &Pins, capacity: u32) -> Result<()> {
    load(pins, Some(capacity), 0)
        .map(drop)
        .with_context(|| format!("make maps of {capacity} slots in {}", pins.dir.display()))
}

/// A program that was loaded, on the maps in `pins`. Gone with this value unless it is pinned or attached.
pub(super) struct Loaded {
    object: Ebpf,
    name: &'static str,
}

impl Loaded {
    /// Loads a program on the maps in `pins`, all of which must be there.
    pub(super) fn new(pins: &Pins, program: Program) -> Result<Self> {
        let name = program.name();
        let context = || match program {
            Program::HandleEgress => format!("load {name}"),
            Program::HandleIngress { tunnel } => format!("load {name} for tunnel index {tunnel}"),
            Program::HandleUnderlay { index } => format!("load {name} for index {index}"),
        };
        let index = meta_index(program);
        let mut loaded = Self { object: load(pins, None, index).with_context(context)?, name };
        loaded.classifier()?.load().map_err(explain).with_context(context)?;
        Ok(loaded)
    }

    /// The program.
    pub(super) fn classifier(&mut self) -> Result<&mut SchedClassifier> {
        let name = self.name;
        let program = self.object.program_mut(name).ok_or_else(|| anyhow!("the embedded object lacks {name}"))?;
        program.try_into().with_context(|| format!("take {name} as a classifier"))
    }
}

/// A verifier's refusal comes as EACCES or EINVAL, which mustn't be taken for a missing privilege: only its log is kept.
fn explain(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } if io_error.raw_os_error() != Some(libc::EPERM) => {
            anyhow!("the kernel refused the program ({io_error}); its verifier says: {verifier_log}")
        }
        error => error.into(),
    }
}
