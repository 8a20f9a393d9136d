//! Figures of rounds that stood beside each other, their ratios with the bars, and what is written of them.

use serde_json::{Value, json};
use std::fmt::Write;

/// Figures of one thing, one a round.
#[derive(Debug, Default, Clone)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Median over the rounds of `self / other`.
    pub fn ratio(&self, other: &Self) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect()).median()
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bar) => ratio >= bar,
            Self::AtMost(bar) => ratio <= bar,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bar) => write!(f, "at least {bar}x"),
            Self::AtMost(bar) => write!(f, "at most {bar}x"),
        }
    }
}

/// One ratio, or one figure that has no peer.
#[derive(Debug)]
pub struct Ratio {
    pub mode: String,
    pub measure: &'static str,
    pub peer: Option<&'static str>,
    /// The figure itself where there is no peer.
    pub ratio: f64,
    pub bar: Option<Bar>,
}

impl Ratio {
    pub fn met(&self) -> Option<bool> {
        self.bar.map(|bar| bar.met(self.ratio))
    }

    /// `2.14x (at least 2x: yes)`.
    pub fn cell(&self) -> String {
        let mut text = format!("{:.2}x", self.ratio);
        if let (Some(bar), Some(met)) = (self.bar, self.met()) {
            write!(text, " ({bar}: {})", if met { "yes" } else { "**no**" }).unwrap();
        }
        text
    }

    fn json(&self) -> Value {
        let bar = self.bar.map(|bar| bar.to_string());
        let rounded = (self.ratio * 1e4).round() / 1e4;
        let mut value = json!({"mode": self.mode, "measure": self.measure, "peer": self.peer});
        value[if self.peer.is_some() { "ratio" } else { "figure" }] = json!(rounded);
        value["bar"] = json!(bar);
        value["met"] = json!(self.met());
        value
    }
}

/// What a run found: text and a picture for docs/, ratios for the file that is checked.
#[derive(Debug, Default)]
pub struct Findings {
    pub markdown: String,
    pub picture: String,
    pub ratios: Vec<Ratio>,
}

impl Findings {
    /// Adds a table, and shows it at once: a run takes minutes.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
        for row in rows {
            writeln!(text, "| {} |", row.join(" | ")).unwrap();
        }
        eprintln!("{text}");
        self.markdown.push_str(&text);
        self.markdown.push('\n');
    }

    pub fn json(&self) -> String {
        let ratios: Vec<Value> = self.ratios.iter().map(Ratio::json).collect();
        let mut text = serde_json::to_string_pretty(&ratios).unwrap();
        text.push('\n');
        text
    }
}
