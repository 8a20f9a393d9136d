//! Small records in the state directory, each one JSON file that is replaced in one step.

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads one; `None` where there is none.
///
/// # Errors
///
/// When it can't be read or understood.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display())).map(Some),
    }
}

/// Replaces one. It isn't forced to the disk: what is in it may be lost with the machine's power, and nothing else is.
///
/// # Errors
///
/// What the kernel said.
pub fn replace(path: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(directory) = path.parent() {
        crate::private::make(directory)?;
    }
    let what = || format!("write {}", path.display());
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).with_context(what)?;
    let mut writer = BufWriter::with_capacity(1 << 16, file);
    serde_json::to_writer(&mut writer, value).with_context(what)?;
    writer.into_inner().with_context(what)?;
    crate::fault_point::reach();
    std::fs::rename(&temporary, path).with_context(what)
}

/// Removes one; gone already is success.
///
/// # Errors
///
/// What the kernel said.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
