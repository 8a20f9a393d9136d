//! Directories that only we may enter.

use anyhow::{Context, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Makes a directory with mode 0700, and its parents; one that exists stays as it is.
///
/// # Errors
///
/// What the kernel said, naming the directory.
pub fn make(directory: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
        format!(
            "make the directory {}; is its file system mounted, and may this user write there?",
            directory.display()
        )
    })
}

/// Gives everything in a directory to the directory's owner. Does nothing unless root calls: what root made in a
/// service's directories must be the service's, or it is locked out.
///
/// # Errors
///
/// What the kernel said, naming the file.
pub fn give_to_owner(directory: &Path) -> Result<()> {
    let Ok(owner) = std::fs::metadata(directory) else { return Ok(()) };
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))
            .with_context(|| format!("give {} to the owner of {}", path.display(), directory.display()))?;
        if path.is_dir() && !path.is_symlink() {
            give_to_owner(&path)?;
        }
    }
    Ok(())
}
