//! `doctor`: looks this host over and says what to do.

use super::paint::Paint;
use super::{Exit, Format, Global, print, print_json};
use crate::doctor::{Facts, Report, Severity};
use anyhow::Result;
use std::io::IsTerminal;

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

impl DoctorArgs {
    pub(super) async fn run(&self, global: &Global) -> Result<Exit> {
        let facts = Facts::gather(&global.paths(), global.hook(), &mut global.loader()).await;
        let report = Report::of(&facts);
        match self.format {
            Format::Json => print_json(&report)?,
            Format::Text => print(&text(&report, Paint(global.colored(std::io::stdout().is_terminal()))))?,
        }
        Ok(if report.errors > 0 { Exit::Failed } else { Exit::Done })
    }
}

fn text(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    let node = report.node.as_ref().map(|n| format!(", node {n}")).unwrap_or_default();
    out.push_str(&format!("Linux {}{node}\n\n", report.kernel));
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => paint.red("error  "),
            Severity::Warning => paint.yellow("warning"),
            Severity::Note => paint.dim("note   "),
        };
        let mut lines = finding.what.lines();
        let first = lines.next().unwrap_or_default();
        out.push_str(&format!("{severity}  {}: {first} [{}]\n", finding.check, finding.code));
        lines.for_each(|line| out.push_str(&format!("           {line}\n")));
        out.push_str(&format!("         {} {}\n", paint.bold("->"), finding.remedy));
    }
    if !report.passed.is_empty() {
        out.push_str(&format!("{}       {}\n", paint.green("ok"), report.passed.join(", ")));
    }
    let count = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    out.push_str(&format!(
        "\n{}, {}, {}.\n",
        count(report.errors, "error"),
        count(report.warnings, "warning"),
        count(report.notes, "note")
    ));
    out
}
