//! `validate`: checks topology files, offline and without root.

use super::{Exit, Global, print};
use crate::files::read;
use crate::topology::render::{Form, render};
use crate::topology::{NodeChoice, ParsedFile, SourceFile, diagnose, parse};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::io::Read;
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
        let (sources, unreadable) = gather(paths);
        let mut parsed: Vec<_> = sources.iter().map(parse).collect();
        parsed.extend(unreadable.into_iter().map(|(path, error)| ParsedFile::unreadable(&path, &error)));
        let node = global.node.clone().map(NodeChoice::Named);
        let diagnostics = diagnose(&parsed, node.as_ref());
        let form = match self.format {
            Format::Text => Form::Text,
            Format::Json => Form::Json,
            Format::Short => Form::Short,
            Format::Github => Form::Github,
        };
        let mut text = render(&diagnostics, &sources, form, global.look(&std::io::stdout()));
        if form == Form::Text {
            let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            let verdict = match diagnostics.len() {
                0 => "valid".to_owned(),
                n => count(n, "error"),
            };
            text.push_str(&format!("{}: {verdict}.\n", count(sources.len(), "file")));
        }
        print(&text)?;
        Ok(if diagnostics.is_empty() { Exit::Done } else { Exit::Invalid })
    }
}

/// The files of these paths, each once, and what can't be read, with the reason.
fn gather(paths: &[PathBuf]) -> (Vec<SourceFile>, Vec<(String, String)>) {
    let (mut sources, mut unreadable) = (Vec::new(), Vec::new());
    let (standard, named): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|p| p == Path::new("-"));
    if !standard.is_empty() {
        match standard_input() {
            Ok(source) => sources.push(source),
            Err(error) => unreadable.push(("<stdin>".to_owned(), format!("{error:#}"))),
        }
    }
    let mut files = BTreeSet::new();
    match read::list(&named) {
        _ if named.is_empty() => {}
        Ok(listing) => files.extend(listing.into_iter().map(|(file, _)| file)),
        // One by one: every error at once.
        Err(_) => {
            for path in named {
                match read::list(std::slice::from_ref(&path)) {
                    Ok(listing) => files.extend(listing.into_iter().map(|(file, _)| file)),
                    Err(error) => unreadable.push((path.display().to_string(), format!("{error:#}"))),
                }
            }
        }
    }
    for file in files {
        match read::read(&file) {
            Ok((source, _)) => sources.push(source),
            Err(error) => unreadable.push((file.display().to_string(), format!("{error:#}"))),
        }
    }
    (sources, unreadable)
}

fn standard_input() -> Result<SourceFile> {
    let mut text = Vec::new();
    // One byte more than a file may have, so that a longer one is refused.
    let most = crate::topology::SIZE_MAX as u64 + 1;
    std::io::stdin().lock().take(most).read_to_end(&mut text).context("read standard input")?;
    Ok(SourceFile { name: "<stdin>".to_owned(), text })
}
