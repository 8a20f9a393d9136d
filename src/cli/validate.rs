//! `validate`: checks topology files, offline and without root.

use super::{Exit, Global, print, tell};
use crate::files::read;
use crate::topology::render::{Form, render};
use crate::topology::{NodeChoice, SourceFile, merge, parse};
use anyhow::{Context, Result};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct ValidateArgs {
    /// Files or directories; `-` is standard input; default: the topology
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
    Short,
    Github,
}

impl ValidateArgs {
    pub(super) fn run(&self, global: &Global) -> Result<Exit> {
        let paths = if self.paths.is_empty() { &global.topology } else { &self.paths };
        let sources = match gather(paths) {
            Ok(sources) => sources,
            Err(error) => {
                // What can't be read can't be in force: the same code as what is wrong.
                tell(&format!("error: {error:#}"));
                return Ok(Exit::Invalid);
            }
        };
        let parsed: Vec<_> = sources.iter().map(parse).collect();
        let checked = merge(&parsed).and_then(|topology| match &global.node {
            Some(node) => topology.compile(&NodeChoice::Named(node.clone())).map(drop),
            None => topology.check(),
        });
        let diagnostics = checked.err().unwrap_or_default();
        let form = match self.format {
            Format::Text => Form::Text,
            Format::Json => Form::Json,
            Format::Short => Form::Short,
            Format::Github => Form::Github,
        };
        let color = global.colored(std::io::stdout().is_terminal());
        let mut text = render(&diagnostics, &sources, form, color);
        if form == Form::Text {
            let files = if sources.len() == 1 { "1 file".to_owned() } else { format!("{} files", sources.len()) };
            match diagnostics.len() {
                0 => text.push_str(&format!("{files}: valid.\n")),
                1 => text.push_str(&format!("{files}: 1 error.\n")),
                n => text.push_str(&format!("{files}: {n} errors.\n")),
            }
        }
        print(&text)?;
        Ok(if diagnostics.is_empty() { Exit::Done } else { Exit::Invalid })
    }
}

fn gather(paths: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let mut out = Vec::new();
    let (standard, named): (Vec<&PathBuf>, Vec<&PathBuf>) = paths.iter().partition(|p| p.as_path() == Path::new("-"));
    if !standard.is_empty() {
        let mut text = Vec::new();
        std::io::stdin().lock().read_to_end(&mut text).context("read standard input")?;
        out.push(SourceFile { name: "<stdin>".to_owned(), text });
    }
    if !named.is_empty() {
        let named: Vec<PathBuf> = named.into_iter().cloned().collect();
        for (path, _) in read::list(&named)? {
            out.push(read::read(&path)?.0);
        }
    }
    Ok(out)
}
