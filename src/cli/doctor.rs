//! `doctor`: looks this host over and says what to do.

use super::page::Page;
use super::{Exit, Format, Global, print, print_json};
use crate::doctor::{Facts, Report, Severity};
use anyhow::Result;

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
            Format::Text => print(&text(&report, global.page()))?,
        }
        Ok(if report.errors > 0 { Exit::Failed } else { Exit::Done })
    }
}

/// Column in which what was found begins.
const WHAT: usize = 9;

fn text(report: &Report, page: Page) -> String {
    let paint = page.paint;
    let mut out = String::new();
    let mut push = |line: &str, column: usize| out.push_str(&(page.hang(line, column) + "\n"));
    let node = report.node.as_ref().map(|n| format!(", node {n}")).unwrap_or_default();
    push(&format!("Linux {}{node}\n", report.kernel), 0);
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => paint.red("error  "),
            Severity::Warning => paint.yellow("warning"),
            Severity::Note => paint.dim("note   "),
        };
        let mut lines = finding.what.lines();
        let first = lines.next().unwrap_or_default();
        push(&format!("{severity}  {}: {first} [{}]", finding.check, finding.code), WHAT + 2);
        lines.for_each(|line| push(&format!("           {line}"), WHAT + 4));
        push(&format!("         {} {}", paint.bold("->"), finding.remedy), WHAT + 3);
    }
    if !report.passed.is_empty() {
        push(&format!("{}       {}", paint.green("ok"), report.passed.join(", ")), WHAT);
    }
    let count = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let counts = [count(report.errors, "error"), count(report.warnings, "warning"), count(report.notes, "note")];
    push(&format!("\n{}.", counts.join(", ")), 0);
    out
}
