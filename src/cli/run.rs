//! `run`: the daemon.

use super::{Attaching, Exit, Global};
use crate::metrics::{Listener, serve};
use crate::reconcile::board::Board;
use crate::reconcile::daemon::{Daemon, Options};
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Seconds between passes that nothing asked for; they repair drift
    #[arg(long, env = "TUNNEL_MESH_INTERVAL", hide_env_values = true, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    interval: u64,
    /// Serve /metrics, /livez and /readyz over HTTP there: 127.0.0.1:9469, [::1]:9469, or :9469 for every address
    #[arg(long, env = "TUNNEL_MESH_METRICS", hide_env_values = true, value_name = "ADDR")]
    metrics: Option<String>,
    #[command(flatten)]
    attaching: Attaching,
}

impl RunArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let paths = global.paths();
        let expedite = self.attaching.expedite(&paths);
        let interval = Duration::from_secs(self.interval);
        let board = Arc::new(Board::default());
        // Before anything is changed: a wrong address is no reason to run without metrics.
        let listener = self.metrics.as_deref().map(Listener::open).transpose()?;
        let pins = paths.pins.clone();
        let options = Options { paths, hook: global.hook(), interval, expedite, board: Arc::clone(&board) };
        let daemon = Daemon::start(options, global.loader()).await?;
        if let Some(listener) = listener {
            tracing::info!("metrics on http://{}/metrics", listener.address()?);
            serve(listener, board, pins)?;
        }
        daemon.run().await?;
        Ok(Exit::Done)
    }
}
