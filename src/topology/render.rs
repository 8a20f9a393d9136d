//! Diagnostics as text, with the source line and a caret, or in the forms that editors and CI read.

use super::SourceFile;
use super::diagnostic::{Diagnostic, Place};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use std::ops::Range;

/// Forms of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Source line, caret, help.
    Text,
    /// `file:line:col: error[CODE]: message`, one a line.
    Short,
    /// Workflow commands of GitHub Actions, one a line.
    Github,
    /// One JSON document.
    Json,
}

/// Renders all of them.
pub fn render(diagnostics: &[Diagnostic], sources: &[SourceFile], form: Form, color: bool) -> String {
    match form {
        Form::Text => diagnostics.iter().map(|d| text(d, sources, color) + "\n\n").collect(),
        Form::Short => diagnostics.iter().map(short).collect(),
        Form::Github => diagnostics.iter().map(github).collect(),
        Form::Json => {
            let body = serde_json::json!({
                "format_version": 1,
                "valid": diagnostics.is_empty(),
                "diagnostics": diagnostics,
            });
            serde_json::to_string_pretty(&body).unwrap_or_default() + "\n"
        }
    }
}

fn short(d: &Diagnostic) -> String {
    let p = &d.place;
    let mut line = format!("{}:{}:{}: error[{}]: {}", p.file, p.line, p.column, d.code, d.message);
    if let Some((place, label)) = &d.related {
        line.push_str(&format!(" ({label}: {}:{}:{})", place.file, place.line, place.column));
    }
    if let Some(help) = &d.help {
        line.push_str(&format!("; {help}"));
    }
    line.push('\n');
    line
}

/// Escapes as GitHub's workflow commands want it.
fn escape(text: &str, property: bool) -> String {
    let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { text.replace(':', "%3A").replace(',', "%2C") } else { text }
}

fn github(d: &Diagnostic) -> String {
    let p = &d.place;
    let help = d.help.as_ref().map(|h| format!("\n{h}")).unwrap_or_default();
    format!(
        "::error file={},line={},col={},title={}::{}\n",
        escape(&p.file, true),
        p.line,
        p.column,
        escape(&d.code, true),
        escape(&format!("{}{help}", d.message), false)
    )
}

/// Byte range of a place in its source; an empty one at the end where the source is shorter.
fn range(source: &str, place: &Place) -> Range<usize> {
    let lines = source.split_inclusive('\n');
    let before: usize = lines.clone().take(place.line.saturating_sub(1) as usize).map(str::len).sum();
    let line = source.get(before..).and_then(|rest| rest.split('\n').next()).unwrap_or("");
    let at = |n: usize| line.char_indices().nth(n).map_or(line.len(), |(i, _)| i);
    let start = at(place.column.saturating_sub(1) as usize);
    let end = at((place.column.saturating_sub(1) + place.length.max(1)) as usize);
    before + start..before + end.max(start)
}

fn text(d: &Diagnostic, sources: &[SourceFile], color: bool) -> String {
    let source_of =
        |place: &Place| sources.iter().find(|s| s.name == place.file).and_then(|s| std::str::from_utf8(&s.text).ok());
    let Some(source) = source_of(&d.place) else { return short(d) };
    let mut snippet = Snippet::source(source)
        .path(d.place.file.as_str())
        .annotation(AnnotationKind::Primary.span(range(source, &d.place)).label(d.label.as_str()));
    let mut second = None;
    if let Some((place, label)) = &d.related {
        match source_of(place) {
            Some(other) if place.file == d.place.file => {
                snippet = snippet.annotation(AnnotationKind::Context.span(range(other, place)).label(label.as_str()));
            }
            Some(other) => {
                let annotation = AnnotationKind::Context.span(range(other, place)).label(label.as_str());
                second = Some(Snippet::source(other).path(place.file.as_str()).annotation(annotation));
            }
            None => {}
        }
    }
    let mut group: Group<'_> = Level::ERROR.primary_title(d.message.as_str()).id(d.code.as_str()).element(snippet);
    if let Some(second) = second {
        group = group.element(second);
    }
    if let Some(help) = &d.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    renderer.render(&[group])
}
