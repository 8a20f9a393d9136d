//! The command line: one file a command with its arguments and its run.
//!
//! Data goes to stdout, everything else to stderr. Exit codes are decided in [`exit`].

pub mod exit;

mod apply;
mod completions;
mod doctor;
mod down;
mod fleet;
mod graph;
mod lanes;
mod man;
mod offline;
mod page;
mod paint;
mod plan;
mod progress;
mod run;
mod schema;
mod show;
mod snapshot;
mod status;
mod streams;
mod validate;

use crate::model::HookKind;
use crate::reconcile::expedite::Expedite;
use crate::reconcile::instance::Paths;
use crate::reconcile::live::LiveKernel;
use crate::reconcile::loader::{Loader, Rejected, this_node};
use crate::topology::NodeChoice;
use crate::topology::render::Look;
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use exit::{Exit, Told};
use page::Page;
use paint::Paint;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use streams::{print, print_json, tell};

/// Carries the traffic of many tenants through tunnels between hosts, and keeps that data plane equal to a directory
/// of YAML files.
#[derive(Debug, Parser)]
#[command(name = "tunnel-mesh", version, about, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// Directory (or file) of the topology; repeatable
    #[arg(
        long,
        global = true,
        env = "TUNNEL_MESH_TOPOLOGY",
        hide_env_values = true,
        value_name = "DIR",
        value_delimiter = ':',
        default_value = "/etc/tunnel-mesh/topology.d"
    )]
    topology: Vec<PathBuf>,
    /// Which node this host is; default: the host name, exact or its first label
    #[arg(long, global = true, env = "TUNNEL_MESH_NODE", hide_env_values = true, value_name = "NAME")]
    node: Option<String>,
    /// Where maps, programs and links are pinned
    #[arg(
        long,
        global = true,
        env = "TUNNEL_MESH_PIN_DIR",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/sys/fs/bpf/tunnel-mesh"
    )]
    pin_dir: PathBuf,
    /// Where the control socket is
    #[arg(
        long,
        global = true,
        env = "TUNNEL_MESH_RUN_DIR",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/run/tunnel-mesh"
    )]
    run_dir: PathBuf,
    /// Where the accepted state is kept
    #[arg(
        long,
        global = true,
        env = "TUNNEL_MESH_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/var/lib/tunnel-mesh"
    )]
    state_dir: PathBuf,
    /// How programs are attached; default: TCX where the kernel has it, else clsact
    #[arg(long, global = true, env = "TUNNEL_MESH_HOOK", hide_env_values = true, value_name = "KIND")]
    hook: Option<Hook>,
    /// When to colour
    #[arg(
        long,
        global = true,
        env = "TUNNEL_MESH_COLOR",
        hide_env_values = true,
        value_name = "WHEN",
        default_value = "auto"
    )]
    color: Color,
    /// More of the log; repeatable
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Only errors in the log
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Form of the log
    #[arg(
        long,
        global = true,
        env = "TUNNEL_MESH_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hook {
    Tcx,
    Clsact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    /// Whether to colour what goes to a stream.
    fn colored(self, terminal: bool) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !streams::is_dumb() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: watches files and links, and keeps the data plane equal to the topology
    Run(run::RunArgs),
    /// Shows what would change, and changes nothing
    Plan(plan::PlanArgs),
    /// One pass, then exit; asks the daemon where one runs
    Apply(apply::ApplyArgs),
    /// Writes the live state down: for a plan elsewhere, or as a topology to adopt this host
    Snapshot(snapshot::SnapshotArgs),
    /// Checks topology files, offline and without root
    Validate(validate::ValidateArgs),
    /// Shows mappings, tunnels, counters, drops and health
    Status(status::StatusArgs),
    /// Looks for what keeps this host from working well, each finding with its remedy
    Doctor(doctor::DoctorArgs),
    /// Detaches, unpins and deletes everything that tunnel-mesh made
    Down(down::DownArgs),
    /// Draws the mesh: hosts, tenants, mappings, and what isn't in force
    Graph(graph::GraphArgs),
    /// Prints the JSON Schema of topology files, for editors and CI
    Schema(schema::SchemaArgs),
    /// Prints completions for a shell
    Completions(completions::CompletionsArgs),
    /// Prints the manual page of a command, or writes all of them
    Man(man::ManArgs),
}

/// What `run`, `apply` and `down` may do to the machine while they attach and detach.
#[derive(Debug, Clone, Copy, Args)]
struct Attaching {
    /// Set /sys/kernel/rcu_expedited while many programs are attached for the first time, or detached; restored afterwards
    #[arg(long, env = "TUNNEL_MESH_RCU_EXPEDITED", hide_env_values = true)]
    rcu_expedited: bool,
}

impl Attaching {
    fn expedite(self, paths: &Paths) -> Expedite {
        Expedite::new(&paths.state, self.rcu_expedited)
    }
}

impl Global {
    fn paths(&self) -> Paths {
        Paths { pins: self.pin_dir.clone(), run: self.run_dir.clone(), state: self.state_dir.clone() }
    }

    /// The kernel of this host, to be looked at.
    async fn live(&self) -> Result<LiveKernel> {
        let paths = self.paths();
        let kernel = LiveKernel::open(&paths.pins, self.hook()).await?;
        paths.check_pins()?;
        Ok(kernel)
    }

    fn loader(&self) -> Loader {
        Loader::new(self.topology.clone(), self.node.as_deref())
    }

    /// Which node this is.
    fn node_choice(&self) -> NodeChoice {
        this_node(self.node.as_deref())
    }

    /// Tells in full why a topology isn't accepted.
    fn accept<T>(&self, loaded: Result<T, Rejected>) -> Result<T> {
        loaded.map_err(|rejected| {
            tell(rejected.text(self.look(&std::io::stderr())).trim_end());
            Told(Exit::Invalid).into()
        })
    }

    fn hook(&self) -> Option<HookKind> {
        self.hook.map(|hook| match hook {
            Hook::Tcx => HookKind::Tcx,
            Hook::Clsact => HookKind::Clsact,
        })
    }

    /// What is laid out for standard output.
    fn page(&self) -> Page {
        let width = streams::width(&std::io::stdout());
        Page { paint: Paint(self.color.colored(width.is_some())), width }
    }

    /// How diagnostics look on that stream.
    fn look(&self, stream: &(impl IsTerminal + AsFd)) -> Look {
        let width = streams::width(stream);
        Look { color: self.color.colored(width.is_some()), width }
    }

    fn log(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (false, 0) => "warn,tunnel_mesh=info",
            (false, 1) => "info,tunnel_mesh=debug",
            (false, _) => "trace",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("TUNNEL_MESH_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            // Said with eprintln, which panics where nobody listens.
            .log_internal_errors(false)
            .with_ansi(self.color.colored(std::io::stderr().is_terminal()));
        match self.log_format {
            LogFormat::Text => builder.init(),
            LogFormat::Json => builder.json().init(),
        }
    }
}

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            tell_of_usage(&error);
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    cli.global.log();
    match run(&cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let (exit, hint) = exit::classify(&error);
            if error.downcast_ref::<Told>().is_none() {
                tell(&format!("error: {error:#}"));
            }
            if let Some(hint) = hint {
                tell(&format!("hint: {hint}"));
            }
            exit.into()
        }
    }
}

/// Writes help, the version, or why words aren't understood, in colours where other output would have them.
fn tell_of_usage(error: &clap::Error) {
    let terminal = if error.use_stderr() { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    let text = error.render();
    let text = if usage_color().colored(terminal) { text.ansi().to_string() } else { text.to_string() };
    if error.use_stderr() {
        tell(text.trim_end_matches('\n'));
    } else {
        // What can't be written is no reason to fail.
        drop(print(&text));
    }
}

/// What is said of colour, for help and for words that aren't understood: before anything else is.
fn usage_color() -> Color {
    let mut words = std::env::args_os().skip(1);
    let mut said = std::env::var_os("TUNNEL_MESH_COLOR");
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--") => break,
            Some("--color") => said = words.next(),
            Some(word) => said = word.strip_prefix("--color=").map(Into::into).or(said),
            None => {}
        }
    }
    said.as_ref().and_then(|said| Color::from_str(said.to_str()?, true).ok()).unwrap_or(Color::Auto)
}

fn run(cli: &Cli) -> Result<Exit> {
    let global = &cli.global;
    match &cli.command {
        Command::Run(args) => wait(args.run(global)),
        Command::Plan(args) => wait(args.run(global)),
        Command::Apply(args) => wait(args.run(global)),
        Command::Snapshot(args) => wait(args.run(global)),
        Command::Validate(args) => args.run(global),
        Command::Status(args) => wait(args.run(global)),
        Command::Doctor(args) => wait(args.run(global)),
        Command::Down(args) => wait(args.run(global)),
        Command::Graph(args) => wait(args.run(global)),
        Command::Schema(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
    }
}

/// Runs what waits for the kernel or the daemon.
fn wait(command: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(command)
}

/// A topology that is right by itself, and refused here.
fn refused(why: String) -> anyhow::Error {
    tell(&format!("error: {why}"));
    Told(Exit::Invalid).into()
}
