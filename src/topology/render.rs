//! Diagnostics as text, with the source line and a caret, or in the forms that editors and CI read.

use super::SourceFile;
use super::diagnostic::{Diagnostic, Place, Related};
use annotate_snippets::renderer::DEFAULT_TERM_WIDTH;
use annotate_snippets::{Annotation, AnnotationKind, Level, Origin, Renderer, Snippet};
use std::borrow::Cow;
use std::collections::HashMap;
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

/// What the output goes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Whether it shows colours.
    pub color: bool,
    /// Columns that it shows, where it has an end.
    pub width: Option<usize>,
}

/// Renders all of them.
pub fn render(diagnostics: &[Diagnostic], sources: &[SourceFile], form: Form, look: Look) -> String {
    match form {
        Form::Text => {
            let sources: HashMap<&str, Lines<'_>> = sources.iter().map(Lines::of).collect();
            diagnostics.iter().map(|d| text(d, &sources, look) + "\n\n").collect()
        }
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
    if let Some(Related { place, label }) = &d.related {
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
        "::error file={},line={},col={},endColumn={},title={}::{}\n",
        escape(&p.file, true),
        p.line,
        p.column,
        p.column.saturating_add(p.length),
        escape(&d.code, true),
        escape(&format!("{}{help}", d.message), false)
    )
}

/// A source whose lines are found at once.
struct Lines<'a> {
    /// What isn't UTF-8 is replaced.
    text: Cow<'a, str>,
    /// Where each line starts, and where the text ends.
    starts: Vec<usize>,
}

/// Lines between two places of one file that are still shown as one snippet.
const APART: usize = 100;

impl<'a> Lines<'a> {
    fn of(source: &'a SourceFile) -> (&'a str, Self) {
        let text = String::from_utf8_lossy(source.content());
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(ends).chain(std::iter::once(text.len())).collect();
        (&source.name, Self { text, starts })
    }

    /// Byte offset of a line, counted from 0; the end of the text where there is none.
    fn start(&self, line: usize) -> usize {
        self.starts.get(line).copied().unwrap_or(self.text.len())
    }

    /// A snippet of the lines that these places are on, which are in order of lines.
    fn snippet<'b>(
        &'b self,
        file: &'b str,
        marks: &[(AnnotationKind, &Place, &'b str)],
    ) -> Snippet<'b, Annotation<'b>> {
        let lines = marks.iter().map(|(_, place, _)| place.line.saturating_sub(1) as usize);
        let (first, last) = lines.fold((usize::MAX, 0), |(low, high), n| (low.min(n), high.max(n)));
        let from = self.start(first);
        let cut = &self.text[from..self.start(last + 1)];
        let annotations = marks.iter().map(|(kind, place, label)| {
            let range = self.range(place);
            kind.span(range.start.saturating_sub(from)..range.end.saturating_sub(from)).label(*label)
        });
        Snippet::source(cut).line_start(first + 1).path(file).annotations(annotations)
    }

    /// Byte range of a place; an empty one at the end where the text is shorter.
    fn range(&self, place: &Place) -> Range<usize> {
        let number = place.line.saturating_sub(1) as usize;
        let before = self.start(number);
        let line = self.text[before..self.start(number + 1)].trim_end_matches('\n');
        let at = |n: usize| line.char_indices().nth(n).map_or(line.len(), |(i, _)| i);
        let start = at(place.column.saturating_sub(1) as usize);
        let end = at((place.column.saturating_sub(1) as usize).saturating_add(place.length.max(1) as usize));
        before + start..before + end.max(start)
    }
}

fn text(d: &Diagnostic, sources: &HashMap<&str, Lines<'_>>, look: Look) -> String {
    let title = Level::ERROR.primary_title(d.message.as_str()).id(d.code.as_str());
    let primary = (AnnotationKind::Primary, &d.place, d.label.as_str());
    let second = d.related.as_ref().map(|r| (AnnotationKind::Context, &r.place, r.label.as_str()));
    let mut group = match sources.get(d.place.file.as_str()) {
        None => title.element(Origin::path(d.place.file.as_str())),
        Some(lines) => match second {
            Some(second) if second.1.file == d.place.file && near(&d.place, second.1) => {
                title.element(lines.snippet(&d.place.file, &[primary, second]))
            }
            _ => {
                let group = title.element(lines.snippet(&d.place.file, &[primary]));
                let other = second.and_then(|s| Some((sources.get(s.1.file.as_str())?, s)));
                match other {
                    Some((lines, second)) => group.element(lines.snippet(&second.1.file, &[second])),
                    None => group,
                }
            }
        },
    };
    if let Some(help) = &d.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let renderer = if look.color { Renderer::styled() } else { Renderer::plain() };
    renderer.term_width(look.width.unwrap_or(DEFAULT_TERM_WIDTH)).render(&[group])
}

fn near(one: &Place, other: &Place) -> bool {
    (one.line.abs_diff(other.line) as usize) <= APART
}
