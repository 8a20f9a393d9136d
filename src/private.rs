//! Directories that only we may enter.

use anyhow::{Context, Result};
use std::os::unix::fs::DirBuilderExt;
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
