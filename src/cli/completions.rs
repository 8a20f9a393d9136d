//! `completions`: what a shell needs to complete this command line.

use super::{Cli, Exit, print};
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(&self) -> Result<Exit> {
        let mut command = Cli::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        let script = String::from_utf8(script).context("write completions")?;
        // clap_complete's script for bash takes the hyphen of the program's name for one before a subcommand, at one of
        // two places, and so knows no subcommand.
        print(&script.replace("tunnel__subcmd__mesh", "tunnel__mesh"))?;
        Ok(Exit::Done)
    }
}
