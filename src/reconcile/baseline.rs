//! What the files are compared with at a start: the state accepted before, else what is live.

use super::kernel::Kernel;
use crate::files::accepted::Accepted;
use crate::model::Intent;
use crate::topology::adopt;
use anyhow::{Context, Result};
use std::path::Path;

/// The last accepted state. Where there is none, or its file can't be read, the live state stands in for it, so that the
/// deletion guard has something to count. `None` on a host where nothing is mapped.
///
/// # Errors
///
/// When the live state is needed and can't be read.
pub async fn baseline<K: Kernel>(kernel: &mut K, state: &Path) -> Result<Option<Intent>> {
    match Accepted::load(state) {
        Ok(Some(intent)) => return Ok(Some(intent)),
        Ok(None) => {}
        Err(error) => tracing::error!("{error:#}; the files are compared with what is live instead"),
    }
    let observed = kernel.observe(false).await.context("read the live state")?;
    let desired = adopt::adopt(&observed);
    Ok((!desired.mappings.is_empty()).then(|| Intent { desired: desired.into(), ..Intent::default() }))
}
