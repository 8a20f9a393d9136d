//! `down`: removes everything that is ours.

use super::{Attaching, Exit, Global, print, tell};
use crate::files::accepted::Accepted;
use crate::reconcile::control::{Request, ask};
use crate::reconcile::history::History;
use crate::reconcile::instance::Lock;
use crate::reconcile::live::LiveKernel;
use anyhow::{Context, Result};

#[derive(Debug, clap::Args)]
pub(super) struct DownArgs {
    #[command(flatten)]
    attaching: Attaching,
}

impl DownArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let paths = global.paths();
        if let Some(answer) = ask(&paths.socket(), &Request::Down).await? {
            if let Some(error) = answer.error {
                tell(&format!("error: the daemon could not remove everything: {error}"));
                return Ok(Exit::Partly);
            }
            print("Everything was removed; the daemon has ended.\n")?;
            return Ok(Exit::Done);
        }
        let pinned = paths.pins.try_exists().with_context(|| format!("look for pins in {}", paths.pins.display()))?;
        // Without pins nobody else can be at work; devices may be there still.
        let _lock = if pinned { Some(Lock::take(&paths.pins)?) } else { None };
        let mut kernel = LiveKernel::open(&paths.pins, global.hook()).await?;
        if pinned {
            // Only under the lock.
            kernel.expedite(self.attaching.expedite(&paths));
        }
        if !pinned && !kernel.has_devices().await? {
            print("Nothing to remove: no pins.\n")?;
            return Ok(Exit::Done);
        }
        let failures = kernel.remove_everything().await?;
        for failure in &failures {
            tracing::error!("{failure:#}");
        }
        if !failures.is_empty() {
            return Ok(Exit::Partly);
        }
        Accepted::forget(&paths.state)?;
        History::forget(&paths.state)?;
        print("Everything was removed.\n")?;
        Ok(Exit::Done)
    }
}
