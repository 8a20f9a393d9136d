//! `run`: the daemon.

use super::{Attaching, Exit, Global};
use crate::reconcile::daemon::{Daemon, Options};
use anyhow::Result;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Seconds between passes that nothing asked for; they repair drift
    #[arg(long, env = "TUNNEL_MESH_INTERVAL", hide_env_values = true, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    interval: u64,
    #[command(flatten)]
    attaching: Attaching,
}

impl RunArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let paths = global.paths();
        let expedite = self.attaching.expedite(&paths);
        let interval = Duration::from_secs(self.interval);
        let options = Options { paths, hook: global.hook(), interval, expedite };
        Daemon::start(options, global.loader()).await?.run().await?;
        Ok(Exit::Done)
    }
}
