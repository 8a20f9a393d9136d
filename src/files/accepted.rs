//! The last accepted state on disk: it stays in force when the directory breaks, across restarts, too.

use crate::model::Intent;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FORMAT_VERSION: u32 = 1;

/// The accepted state's file.
#[derive(Debug, Deserialize)]
pub struct Accepted {
    format_version: u32,
    intent: Intent,
}

#[derive(Serialize)]
struct Stored<'a> {
    format_version: u32,
    intent: &'a Intent,
}

fn path(directory: &Path) -> PathBuf {
    directory.join("accepted.json")
}

impl Accepted {
    /// Reads it; `None` where nothing was ever accepted.
    ///
    /// # Errors
    ///
    /// When it can't be read or understood.
    pub fn load(directory: &Path) -> Result<Option<Intent>> {
        let path = path(directory);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("read the accepted state {}", path.display())),
        };
        let accepted: Self = serde_json::from_slice(&text)
            .with_context(|| format!("understand the accepted state {}", path.display()))?;
        if accepted.format_version != FORMAT_VERSION {
            bail!(
                "the accepted state {} has format {}, this version reads {FORMAT_VERSION}",
                path.display(),
                accepted.format_version
            );
        }
        Ok(Some(accepted.intent))
    }

    /// Replaces it in one step.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn store(directory: &Path, intent: &Intent) -> Result<()> {
        crate::fault_point::reach();
        crate::private::make(directory)?;
        let path = path(directory);
        let temporary = path.with_extension("new");
        let what = || format!("write the accepted state {}", path.display());
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .with_context(what)?;
        let mut writer = BufWriter::with_capacity(1 << 16, file);
        serde_json::to_writer(&mut writer, &Stored { format_version: FORMAT_VERSION, intent }).with_context(what)?;
        let file = writer.into_inner().with_context(what)?;
        file.sync_all().with_context(what)?;
        crate::fault_point::reach();
        std::fs::rename(&temporary, &path).with_context(what)
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn forget(directory: &Path) -> Result<()> {
        crate::fault_point::reach();
        match std::fs::remove_file(path(directory)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove the accepted state {}", path(directory).display()))
            }
            _ => Ok(()),
        }
    }
}
