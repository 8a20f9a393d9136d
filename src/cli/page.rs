//! What text is laid out for: a terminal with its width and colours, or a pipe.
//!
//! The rule: nothing is lost on a narrow terminal. Lines that are too long go on below, indented, and break between words
//! alone: what somebody copies (an address, a place in a file) stays in one piece, even where it is longer than a line. A
//! pipe gets every line as it is.

use super::paint::Paint;
use unicode_width::UnicodeWidthChar;

/// What text is laid out for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) paint: Paint,
    /// Columns of the terminal; `None` where it is none.
    pub(super) width: Option<usize>,
}

impl Page {
    /// Folds every line that is too long. What follows hangs a little below its line.
    pub(super) fn fold(self, text: &str) -> String {
        let Some(width) = self.width else { return text.to_owned() };
        let mut out = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
            let indent = line.len() - line.trim_start_matches(' ').len();
            out.push_str(&fold(line, width, indent + if indent == 0 { 2 } else { 4 }));
            out.push_str(end);
        }
        out
    }

    /// Folds one line; what follows begins in that column.
    pub(super) fn hang(self, line: &str, column: usize) -> String {
        self.width.map_or_else(|| line.to_owned(), |width| fold(line, width, column))
    }
}

/// Columns that a text takes on the screen: colours take none.
pub(super) fn shown(text: &str) -> usize {
    Letters::of(text).map(|(_, width)| width).sum()
}

/// As much of a line as fits, with a sign where something is missing.
pub(super) fn cut(line: &str, room: usize) -> String {
    if shown(line) <= room {
        return line.to_owned();
    }
    let mut used = 0;
    let fits = |(_, width): &(char, usize)| {
        used += width;
        used < room
    };
    let kept = Letters::of(line).take_while(fits).map(|(c, _)| c);
    kept.chain((room > 0).then_some('…')).collect()
}

/// The characters of a text and the columns that each takes.
struct Letters<'a> {
    rest: std::str::Chars<'a>,
    colour: bool,
}

impl<'a> Letters<'a> {
    fn of(text: &'a str) -> Self {
        Self { rest: text.chars(), colour: false }
    }
}

impl Iterator for Letters<'_> {
    type Item = (char, usize);

    fn next(&mut self) -> Option<(char, usize)> {
        let c = self.rest.next()?;
        let hidden = self.colour || c == '\x1b';
        self.colour = hidden && c != 'm';
        Some((c, if hidden { 0 } else { c.width().unwrap_or(0) }))
    }
}

/// What isn't broken, and the spaces before it.
#[derive(Debug, Default)]
struct Word {
    gap: usize,
    text: String,
    width: usize,
}

/// Words of a line. What is in braces is one, as long as it fits into that room.
fn words(line: &str, room: usize) -> Vec<Word> {
    let mut words = vec![Word::default()];
    // Whether the last word has begun: colours alone are no beginning, so that they don't count where lines break.
    let mut begun = false;
    for (c, width) in Letters::of(line) {
        if c == ' ' && begun {
            words.push(Word::default());
            begun = false;
        }
        let Some(word) = words.last_mut() else { continue };
        if c == ' ' {
            word.gap += 1;
        } else {
            begun |= width > 0;
            word.text.push(c);
            word.width += width;
        }
    }
    let mut joined: Vec<Word> = Vec::with_capacity(words.len());
    for word in words {
        if let Some(last) = joined.last_mut()
            && last.text.contains('{')
            && !last.text.contains('}')
            && last.width + word.gap + word.width <= room
        {
            last.text.push_str(&" ".repeat(word.gap));
            last.text.push_str(&word.text);
            last.width += word.gap + word.width;
        } else {
            joined.push(word);
        }
    }
    joined
}

fn fold(line: &str, width: usize, column: usize) -> String {
    if shown(line) <= width {
        return line.to_owned();
    }
    let column = column.min(width / 3);
    let words = words(line, width - column);
    let mut out = String::with_capacity(line.len() + 16);
    let mut used = 0;
    for (n, word) in words.iter().enumerate() {
        // Two spaces part cells: one that fits into a line of its own isn't broken, where that line has more room.
        let cell_from = |n: usize| words[n..].iter().skip(1).take_while(|w| w.gap < 2).map(|w| w.gap + w.width);
        let cell = word.width + cell_from(n).sum::<usize>();
        let fits = |size: usize| used + word.gap + size <= width;
        let whole = word.gap >= 2 && used + word.gap > column && column + cell <= width;
        if n == 0 || fits(if whole { cell } else { word.width }) {
            out.push_str(&" ".repeat(word.gap));
            used += word.gap;
        } else {
            out.push('\n');
            out.push_str(&" ".repeat(column));
            used = column;
        }
        out.push_str(&word.text);
        used += word.width;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "  ~ eth2  {vxlan0, 456, 172.16.1.102} port -> {vxlan0, 457, 172.16.1.102} port  (changed)  topology/a.yaml:6:5";

    fn page(width: usize) -> Page {
        Page { paint: Paint(false), width: Some(width) }
    }

    #[test]
    fn a_line_goes_on_below_and_breaks_between_words() {
        let expected = "  ~ eth2  {vxlan0, 456, 172.16.1.102} port ->\n      {vxlan0, 457, 172.16.1.102} port  (changed)\n      \
                        topology/a.yaml:6:5";
        assert_eq!(page(52).fold(LINE), expected);
        assert_eq!(page(52).fold(expected), expected);
        assert_eq!(page(200).fold(LINE), LINE);
        assert_eq!(Page { paint: Paint(false), width: None }.fold(LINE), LINE);
        assert_eq!(page(18).hang("note  a bc def ghi jk", 6), "note  a bc def ghi\n      jk");
    }

    #[test]
    fn nothing_is_lost_at_any_width_and_colours_change_no_break() {
        let colored = "  \x1b[33m~\x1b[0m eth2  {vxlan0, 456, 172.16.1.102} port -> {vxlan0, 457, 172.16.1.102} port  \
                       (changed)\x1b[2m  topology/a.yaml:6:5\x1b[0m";
        for width in 1..130 {
            let folded = page(width).fold(LINE);
            assert!(folded.split_whitespace().eq(LINE.split_whitespace()), "{width}: {folded}");
            let broken = |line: &&str| shown(line) > width && line.trim().contains(' ');
            assert_eq!(folded.lines().find(broken), None, "{width}: {folded}");
            let colored = page(width).fold(colored);
            let plain = ["33", "0", "2"].iter().fold(colored, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
            assert_eq!(plain, folded, "{width}");
        }
    }

    #[test]
    fn wide_characters_take_their_place() {
        assert_eq!((shown("赤/eth1"), shown("\x1b[31mred\x1b[0m"), shown("")), (7, 3, 0));
        assert_eq!(
            (cut("赤い/eth1", 6), cut("abc", 3), cut("abcd", 3)),
            ("赤い/…".to_owned(), "abc".to_owned(), "ab…".to_owned())
        );
        assert_eq!((cut("abc", 0), cut("abc", 1)), (String::new(), "…".to_owned()));
    }
}
