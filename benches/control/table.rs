//! Rounds of measurements that stand beside each other, and the table they end in.

use std::fmt::Write;
use std::time::{Duration, Instant};

/// Times of one thing in several rounds.
#[derive(Debug, Default, Clone)]
pub struct Times(pub Vec<Duration>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn best(&self) -> Duration {
        self.0.iter().min().copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.quantile(50)
    }

    pub fn quantile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    pub fn text(&self) -> String {
        format!("{} (best {})", show(self.median()), show(self.best()))
    }
}

/// Median over the rounds of `a / b`.
pub fn ratio(a: &Times, b: &Times) -> f64 {
    let mut ratios: Vec<f64> = a.0.iter().zip(&b.0).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

pub fn timed<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = f();
    (start.elapsed(), value)
}

pub fn show(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1000.0 {
        format!("{micros:.0} µs")
    } else if micros < 1e6 {
        format!("{:.2} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}

/// One line: what was measured, ours, the other, their ratio, the bar, and whether it was met (`None`: no bar).
#[derive(Debug)]
pub struct Row {
    pub what: String,
    pub ours: String,
    pub other: String,
    pub ratio: String,
    pub bar: String,
    pub met: Option<bool>,
}

#[derive(Debug, Default)]
pub struct Table {
    pub rows: Vec<Row>,
}

impl Table {
    /// Adds a line and shows it at once: a run takes minutes.
    pub fn add(&mut self, what: &str, ours: &str, other: &str, ratio: &str, bar: &str, met: Option<bool>) {
        let row = Row {
            what: what.to_owned(),
            ours: ours.to_owned(),
            other: other.to_owned(),
            ratio: ratio.to_owned(),
            bar: bar.to_owned(),
            met,
        };
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    pub fn markdown(&self) -> String {
        let mut text =
            String::from("| measure | tunnel-mesh | beside it | ratio | bar | met |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            writeln!(text, "{}", line(row)).unwrap();
        }
        text
    }
}

fn line(row: &Row) -> String {
    let met = match row.met {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "",
    };
    format!("| {} | {} | {} | {} | {} | {met} |", row.what, row.ours, row.other, row.ratio, row.bar)
}
