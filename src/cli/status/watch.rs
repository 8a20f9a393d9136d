//! `status --watch`: a live table on a terminal, one text or JSON document after the other elsewhere.

use super::amount::{bits, bytes, count, rate};
use super::read;
use super::text::{changed, dropped, text};
use crate::cli::page::{Page, cut, shown};
use crate::cli::paint::Paint;
use crate::cli::{Exit, Format, Global, streams};
use crate::model::Moment;
use crate::reconcile::rates::Rates;
use crate::reconcile::status::{MappingStatus, State, Status};
use crate::reconcile::tell::Memory;
use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Assumed where the terminal doesn't tell its size.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// Runs until a signal, or until nobody reads any more.
pub(super) async fn run(global: &Global, memory: &mut Memory, format: Format, pause: Duration) -> Result<Exit> {
    let mut signals = Signals::open()?;
    let Page { paint, width } = global.page();
    // One that can't write over what is there gets one text after the other.
    let terminal = width.is_some() && matches!(format, Format::Text) && !streams::is_dumb();
    let mut last = read(global, memory).await?;
    // Kept for as long as the table is shown, whatever ends it.
    let _screen = if terminal { Some(Screen::enter()?) } else { None };
    let mut trouble = None;
    loop {
        let now = Moment::from(SystemTime::now());
        let shown = match format {
            Format::Json => serde_json::to_string(&last).context("write JSON")? + "\n",
            Format::Text if terminal => {
                let (columns, lines) = size();
                screenful(&frame(&last, trouble.as_deref(), now, columns, lines, paint))
            }
            Format::Text => {
                let trouble = trouble.as_ref().map(|t| format!("error: {t}\n")).unwrap_or_default();
                format!("{now}\n{trouble}{}\n", text(&last, now, global.page()))
            }
        };
        if !put(&shown)? {
            return Ok(Exit::Done);
        }
        match signals.next(pause).await {
            Some(Woken::End) => return Ok(Exit::Done),
            Some(Woken::Resized) => continue,
            None => {}
        }
        // What can't be read now may be there again the next time: a daemon restarts, say.
        match read(global, memory).await {
            Ok(status) => (last, trouble) = (status, None),
            Err(error) => trouble = Some(format!("{error:#}")),
        }
    }
}

/// Writes to stdout at once. Returns whether somebody still reads there.
fn put(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.context("write to standard output").map(|()| true),
    }
}

enum Woken {
    End,
    Resized,
}

struct Signals {
    ends: [Signal; 3],
    resized: Signal,
}

impl Signals {
    fn open() -> Result<Self> {
        let open = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            ends: [open(SignalKind::interrupt())?, open(SignalKind::terminate())?, open(SignalKind::hangup())?],
            resized: open(SignalKind::window_change())?,
        })
    }

    /// Waits for a signal, for that long.
    async fn next(&mut self, pause: Duration) -> Option<Woken> {
        let [interrupt, terminate, hangup] = &mut self.ends;
        tokio::select! {
            biased;
            _ = interrupt.recv() => Some(Woken::End),
            _ = terminate.recv() => Some(Woken::End),
            _ = hangup.recv() => Some(Woken::End),
            _ = self.resized.recv() => Some(Woken::Resized),
            () = tokio::time::sleep(pause) => None,
        }
    }
}

/// The terminal's other screen, without a cursor; the first one comes back on drop.
struct Screen;

impl Screen {
    fn enter() -> Result<Self> {
        put("\x1b[?1049h\x1b[?25l\x1b[2J")?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        drop(put("\x1b[?25h\x1b[?1049l"));
    }
}

fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => USUAL_SIZE,
    }
}

/// Lines over what was there, each cleared to its end, without a line feed that would scroll.
fn screenful(lines: &[String]) -> String {
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

/// A column of the table.
struct Column {
    heading: &'static str,
    /// The lower, the longer it stays as the terminal gets narrower.
    rank: u8,
    right: bool,
    cell: fn(&MappingStatus, Moment) -> String,
}

fn of_rates(m: &MappingStatus, tell: impl Fn(Rates) -> String) -> String {
    m.rates.map_or_else(|| "-".to_owned(), tell)
}

const COLUMNS: [Column; 14] = [
    Column { heading: "MAPPING", rank: 0, right: false, cell: |m, _| m.address.clone() },
    Column { heading: "TO", rank: 9, right: false, cell: |m, _| m.node.clone().unwrap_or_default() },
    Column { heading: "STATE", rank: 1, right: false, cell: |m, _| m.state.to_string() },
    Column { heading: "LANE", rank: 7, right: false, cell: |m, _| m.lanes.word().to_owned() },
    Column { heading: "RX PKT", rank: 2, right: true, cell: |m, _| of_rates(m, |r| rate(r.rx_packets)) },
    Column { heading: "TX PKT", rank: 3, right: true, cell: |m, _| of_rates(m, |r| rate(r.tx_packets)) },
    Column { heading: "RX", rank: 4, right: true, cell: |m, _| of_rates(m, |r| bits(r.rx_bytes)) },
    Column { heading: "TX", rank: 5, right: true, cell: |m, _| of_rates(m, |r| bits(r.tx_bytes)) },
    Column { heading: "DROPS", rank: 6, right: true, cell: |m, _| of_rates(m, |r| rate(r.drops)) },
    Column { heading: "DROPPED", rank: 8, right: true, cell: |m, _| count(m.traffic.drops.values().sum()) },
    Column { heading: "RX ALL", rank: 11, right: true, cell: |m, _| bytes(m.traffic.rx_bytes) },
    Column { heading: "TX ALL", rank: 12, right: true, cell: |m, _| bytes(m.traffic.tx_bytes) },
    Column { heading: "KEY", rank: 10, right: false, cell: |m, _| format!("{{{}, {}, {}}}", m.tunnel, m.id, m.remote) },
    Column {
        heading: "CHANGED",
        rank: 13,
        right: false,
        cell: |m, now| m.last_change.as_ref().map_or_else(String::new, |c| changed(c, now)),
    },
];

/// What fills a screen of that size: health, then mappings, those that need a look first, then the busiest.
fn frame(
    status: &Status,
    trouble: Option<&str>,
    now: Moment,
    columns: usize,
    lines: usize,
    paint: Paint,
) -> Vec<String> {
    let mut out: Vec<String> = head(status, trouble, now).iter().map(|line| cut(line, columns)).collect();
    let mut mappings: Vec<&MappingStatus> = status.mappings.iter().collect();
    let busy = |m: &MappingStatus| m.rates.map_or(0.0, |r| r.rx_bytes + r.tx_bytes);
    let calm = |m: &MappingStatus| m.state == State::Active && m.rates.is_none_or(|r| r.drops == 0.0);
    mappings.sort_by(|a, b| {
        calm(a).cmp(&calm(b)).then(busy(b).total_cmp(&busy(a))).then_with(|| a.address.cmp(&b.address))
    });
    // One line for the headings, and one where not all fit.
    let room = lines.saturating_sub(out.len() + 1);
    let shown = if mappings.len() > room { room.saturating_sub(1) } else { mappings.len() };
    let (rows, hidden) = mappings.split_at(shown);
    if !mappings.is_empty() {
        let (heading, lines) = table(rows, now, columns);
        out.push(paint.bold(&heading));
        for (line, mapping) in lines.into_iter().zip(rows) {
            out.push(match mapping.state {
                State::Active if calm(mapping) => line,
                State::Active | State::Pending | State::Held => paint.yellow(&line),
                State::Drifted => paint.red(&line),
            });
        }
    }
    if !hidden.is_empty() {
        out.push(cut(&format!("and {} more", hidden.len()), columns));
    }
    out.truncate(lines);
    out
}

fn head(status: &Status, trouble: Option<&str>, now: Moment) -> Vec<String> {
    let node = status.node.as_ref().map(|n| format!("{n}, ")).unwrap_or_default();
    let revision = match &status.revision {
        Some(revision) if status.in_force => format!("revision {revision} in force"),
        Some(revision) => format!("revision {revision} NOT fully in force"),
        None => "no topology accepted".to_owned(),
    };
    let daemon = match status.daemon.pid {
        Some(pid) => format!("daemon pid {pid}"),
        None => "no daemon".to_owned(),
    };
    let mut lines = vec![format!("{now}  {node}{revision}, {daemon}")];
    lines.extend(trouble.map(|t| format!("error: {t}")));
    lines.extend(
        status.config_error.iter().flat_map(|e| e.lines().next()).map(|l| format!("topology not accepted: {l}")),
    );
    lines.extend(status.errors.iter().take(2).map(|e| format!("error: {e}")));
    if !status.dropped.is_empty() {
        lines.push(dropped(&status.dropped));
    }
    if let Some(key) = status.unknown.first() {
        let why = key.why.as_deref().unwrap_or("");
        let more = if status.unknown.len() > 1 { format!(" (1 of {})", status.unknown.len()) } else { String::new() };
        lines.push(format!("unknown: id {} from {}: {why}{more}", key.id, key.remote));
    }
    lines
}

/// Spaces between two columns.
const GAP: usize = 2;

/// The heading and a line for each mapping, of the columns that fit.
fn table(mappings: &[&MappingStatus], now: Moment, room: usize) -> (String, Vec<String>) {
    let cells: Vec<Vec<String>> =
        COLUMNS.iter().map(|column| mappings.iter().map(|m| (column.cell)(m, now)).collect()).collect();
    let width = |n: usize| {
        let longest = cells[n].iter().map(|c| shown(c)).max().unwrap_or(0);
        longest.max(COLUMNS[n].heading.len())
    };
    let mut by_rank: Vec<usize> = (0..COLUMNS.len()).filter(|n| cells[*n].iter().any(|c| !c.is_empty())).collect();
    by_rank.sort_by_key(|n| COLUMNS[*n].rank);
    let all: usize = by_rank.iter().map(|n| width(*n) + GAP).sum::<usize>().saturating_sub(GAP);
    // Where not all fit, a sign behind the headings says so.
    let more = all > room;
    let table = room.saturating_sub(if more { GAP + 1 } else { 0 });
    let mut used = 0;
    let mut fitting = Vec::new();
    for n in by_rank {
        used += width(n) + if fitting.is_empty() { 0 } else { GAP };
        if used > table && !fitting.is_empty() {
            break;
        }
        fitting.push(n);
    }
    fitting.sort_unstable();
    let line = |cell: &dyn Fn(usize) -> String| {
        let padded: Vec<String> = fitting
            .iter()
            .map(|n| {
                let text = cell(*n);
                let spaces = " ".repeat(width(*n) - shown(&text));
                if COLUMNS[*n].right { spaces + &text } else { text + &spaces }
            })
            .collect();
        cut(padded.join("  ").trim_end(), room)
    };
    let heading = line(&|n| COLUMNS[n].heading.to_owned());
    let heading = if more { cut(&heading, table) + "  …" } else { heading };
    (heading, (0..mappings.len()).map(|row| line(&|n| cells[n][row].clone())).collect())
}
