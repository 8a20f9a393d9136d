//! `status`: what is in force, from the daemon or, without one, from pins and accepted state.

mod amount;
mod text;
mod watch;

use super::{Exit, Format, Global, print, print_json};
use crate::files::accepted::Accepted;
use crate::model::Moment;
use crate::reconcile::Reconciler;
use crate::reconcile::control::{Request, ask};
use crate::reconcile::rates::SHORTEST;
use crate::reconcile::status::Status;
use crate::reconcile::tell::{Memory, read_status};
use anyhow::{Result, anyhow, bail};
use std::time::{Duration, Instant, SystemTime};

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Take rates over a second, from two looks; without it they are those that the daemon knows
    #[arg(long, conflicts_with = "wait")]
    rates: bool,
    /// A live table, until Ctrl-C; one JSON object a line with --format json
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        conflicts_with_all = ["wait", "rates"]
    )]
    watch: Option<u64>,
    /// Wait until the accepted topology is in force
    #[arg(long)]
    wait: bool,
    /// With --wait: until the topology with this revision is in force
    #[arg(long, value_name = "HASH", requires = "wait")]
    revision: Option<String>,
    /// With --wait: seconds to wait at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    timeout: u64,
}

/// Pause between two looks of `--wait`.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl StatusArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let mut memory = Memory::open(&global.paths().state);
        if let Some(seconds) = self.watch {
            return watch::run(global, &mut memory, self.format, Duration::from_secs(seconds)).await;
        }
        if self.rates {
            read(global, &mut memory).await?;
            tokio::time::sleep(SHORTEST + Duration::from_millis(100)).await;
        }
        let give_up = Instant::now() + Duration::from_secs(self.timeout);
        loop {
            let status = match read(global, &mut memory).await {
                Ok(status) => status,
                // Between two starts of a daemon its socket may be gone for a moment.
                Err(error) if self.wait && Instant::now() < give_up => {
                    tracing::debug!("{error:#}");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let there = !self.wait
                || (status.in_force && self.revision.as_ref().is_none_or(|r| Some(r) == status.revision.as_ref()));
            let late = Instant::now() >= give_up;
            if there || late {
                match self.format {
                    Format::Json => print_json(&status)?,
                    Format::Text => print(&text::text(&status, Moment::from(SystemTime::now()), global.page()))?,
                }
                return Ok(if there { Exit::Done } else { Exit::TimedOut });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

pub(super) async fn read(global: &Global, memory: &mut Memory) -> Result<Status> {
    let paths = global.paths();
    if let Some(answer) = ask(&paths.socket(), &Request::Status).await? {
        return match (answer.status, answer.error) {
            (Some(status), _) => Ok(*status),
            (None, Some(error)) => bail!("the daemon failed: {error}"),
            (None, None) => Err(anyhow!("the daemon sent no status")),
        };
    }
    let intent = Accepted::load(&paths.state)?;
    let kernel = global.live().await?;
    read_status(&mut Reconciler::new(kernel), intent.as_ref(), memory).await
}
