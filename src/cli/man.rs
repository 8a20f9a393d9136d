//! `man`: manual pages, one a command.

use super::exit::Exit as Code;
use super::{Cli, Exit, print, tell};
use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The command whose page is printed; default: that of tunnel-mesh itself
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Option<String>,
    /// Write every page into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManArgs {
    pub(super) fn run(&self) -> Result<Exit> {
        let root = command();
        if let Some(directory) = &self.dir {
            std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
            write(directory, "tunnel-mesh", &page(&root, &root)?)?;
            for command in commands(&root) {
                write(directory, &title(command), &page(&root, command)?)?;
            }
            return Ok(Exit::Done);
        }
        let found = match &self.command {
            None => Some(&root),
            Some(name) => commands(&root).find(|c| c.get_name() == name),
        };
        let Some(found) = found else {
            let names: Vec<&str> = commands(&root).map(Command::get_name).collect();
            tell(&format!("error: there is no such command; the commands are {}", names.join(", ")));
            return Ok(Exit::Usage);
        };
        print(&page(&root, found)?)?;
        Ok(Exit::Done)
    }
}

/// The command line with everything that clap adds by itself.
fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn commands(root: &Command) -> impl Iterator<Item = &Command> {
    root.get_subcommands().filter(|c| !c.is_hide_set())
}

fn title(command: &Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_owned()
}

fn write(directory: &Path, title: &str, page: &str) -> Result<()> {
    let path = directory.join(format!("{title}.1"));
    std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))
}

/// One page.
fn page(root: &Command, command: &Command) -> Result<String> {
    let of_root = std::ptr::eq(root, command);
    let man = Man::new(command.clone().version(env!("CARGO_PKG_VERSION"))).manual("tunnel-mesh").title(title(command));
    let mut out = Vec::new();
    man.render_title(&mut out).context("write a manual page")?;
    man.render_name_section(&mut out).context("write a manual page")?;
    man.render_synopsis_section(&mut out).context("write a manual page")?;
    man.render_description_section(&mut out).context("write a manual page")?;
    man.render_options_section(&mut out).context("write a manual page")?;
    if of_root {
        man.render_subcommands_section(&mut out).context("write a manual page")?;
    }
    let mut end = Roff::new();
    section(&mut end, "EXIT STATUS", CODES.iter().map(|(code, what)| ((*code as u8).to_string(), *what)));
    if of_root {
        section(&mut end, "FILES", FILES.iter().map(|(path, what)| ((*path).to_owned(), *what)));
        section(&mut end, "ENVIRONMENT", ENVIRONMENT.iter().map(|(name, what)| ((*name).to_owned(), *what)));
    }
    end.control("SH", ["SEE ALSO"]);
    let others: Vec<String> = if of_root { commands(root).map(title).collect() } else { vec![title(root)] };
    end.text([roman(others.iter().map(|t| format!("{t}(1)")).collect::<Vec<_>>().join(", "))]);
    out.extend(end.render().bytes());
    String::from_utf8(out).context("write a manual page")
}

fn section<'a>(roff: &mut Roff, name: &str, entries: impl Iterator<Item = (String, &'a str)>) {
    roff.control("SH", [name]);
    for (term, what) in entries {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(what)]);
    }
}

/// What each exit code means.
const CODES: [(Code, &str); 10] = [
    (Code::Done, "Done; a plan with changes, too, unless --detailed-exitcode is given."),
    (Code::Failed, "Failed."),
    (Code::Changes, "Changes are pending (plan --detailed-exitcode)."),
    (Code::Held, "Deletions are held."),
    (Code::Partly, "Partly applied; standard error lists what is left."),
    (Code::Busy, "Another writer holds the lock, or the plan is stale."),
    (Code::TimedOut, "status --wait timed out."),
    (Code::Usage, "Wrong usage."),
    (Code::Denied, "Privileges are missing."),
    (Code::Invalid, "The topology is invalid."),
];

const FILES: [(&str, &str); 4] = [
    ("/etc/tunnel-mesh/topology.d", "The topology: *.yaml and *.yml, read recursively; files merge."),
    ("/sys/fs/bpf/tunnel-mesh", "Maps under their own names, programs and attachments."),
    ("/run/tunnel-mesh/control.sock", "How apply, status and down reach the daemon."),
    ("/var/lib/tunnel-mesh/accepted.json", "The accepted state."),
];

const ENVIRONMENT: [(&str, &str); 3] = [
    ("TUNNEL_MESH_...", "Each option of tunnel-mesh, in capitals: TUNNEL_MESH_TOPOLOGY for --topology."),
    ("TUNNEL_MESH_LOG", "What is logged, in the words of Rust's env_logger: warn,tunnel_mesh=debug."),
    ("NO_COLOR", "If it isn't empty, nothing is coloured unless --color always is given."),
];
