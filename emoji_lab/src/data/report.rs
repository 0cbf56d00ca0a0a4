//! What became of a dataset's rows: read, kept, dropped and why.

use std::fmt::{self, Write};

use super::dataset::Row;
use super::filter::{EmojiFilter, purely_emoji};
use super::show::shown;
use crate::display::{Align, Cell, Table, show_both, write_plain};

/// How many dropped rows of each reason a report shows in full.
const EXAMPLES: usize = 3;
/// How many line numbers of each reason its table shows.
const LINES: usize = 8;

/// Why a row was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Nothing in `text`.
    EmptyText,
    /// Nothing in `emoji`.
    EmptyEmoji,
    /// `emoji` holds something that is no emoji.
    TextBesideEmoji,
    /// `emoji` is all emoji, but one of them takes several characters, which
    /// [`EmojiFilter::EveryCharacter`] does not count as emoji.
    SeveralCharacters,
}

impl DropReason {
    fn says(self) -> &'static str {
        match self {
            Self::EmptyText => "an empty text",
            Self::EmptyEmoji => "an empty emoji",
            Self::TextBesideEmoji => "text beside the emoji",
            Self::SeveralCharacters => "an emoji of several characters",
        }
    }
}

/// What the numbers of a report count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Lines of the file.
    Lines,
    /// Rows of the dataset, where it is in a format without lines or in several files.
    Rows,
}

impl Counted {
    fn one(self) -> &'static str {
        match self {
            Self::Lines => "line",
            Self::Rows => "row",
        }
    }

    fn one_in_title(self) -> &'static str {
        match self {
            Self::Lines => "Line",
            Self::Rows => "Row",
        }
    }
}

/// The rows dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The reason.
    pub reason: DropReason,
    /// The line of the file where each row begins, or the row's own number: see
    /// [`CleaningReport::counted`]. Both from 1.
    pub lines: Vec<usize>,
    /// `text` and `emoji` of the first few.
    pub examples: Vec<(String, String)>,
}

/// What became of a dataset's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleaningReport {
    /// The path, Hub id or `embedded`.
    pub source: String,
    /// The filter.
    pub filter: EmojiFilter,
    /// What the numbers in `dropped` count.
    pub counted: Counted,
    /// Rows in the file.
    pub rows_read: usize,
    /// Rows that passed.
    pub rows_kept: usize,
    /// The others, by reason, in the order in which the reasons first came up.
    pub dropped: Vec<Dropped>,
}

impl CleaningReport {
    pub(super) fn new(source: &str, filter: EmojiFilter) -> Self {
        let counted = Counted::Lines;
        Self { source: source.to_owned(), filter, counted, rows_read: 0, rows_kept: 0, dropped: Vec::new() }
    }

    /// Counts a row, and says whether it stays.
    pub(super) fn judge(&mut self, row: &Row) -> bool {
        self.rows_read += 1;
        let Some(reason) = reason_to_drop(row, self.filter) else {
            self.rows_kept += 1;
            return true;
        };
        let place = match self.dropped.iter().position(|d| d.reason == reason) {
            Some(place) => place,
            None => {
                self.dropped.push(Dropped { reason, lines: Vec::new(), examples: Vec::new() });
                self.dropped.len() - 1
            }
        };
        let dropped = &mut self.dropped[place];
        dropped.lines.push(row.line);
        if dropped.examples.len() < EXAMPLES {
            dropped.examples.push((row.text.clone(), row.emoji.clone()));
        }
        false
    }

    /// Rows that did not pass.
    pub fn rows_dropped(&self) -> usize {
        self.rows_read - self.rows_kept
    }

    /// The report in one line, as errors give it.
    pub(super) fn summary(&self) -> String {
        let mut parts = vec![format!("{} rows read", self.rows_read)];
        for d in &self.dropped {
            let first = d.lines.first().copied().unwrap_or_default();
            let at = match self.counted {
                Counted::Lines => "on line",
                Counted::Rows => "in row",
            };
            parts.push(format!("{} with {}, first {at} {first}", d.lines.len(), d.reason.says()));
        }
        parts.join("; ")
    }

    /// The report as an HTML table.
    pub fn to_html(&self) -> String {
        let mut table = Table::new(format!("{}, filter {:?}", self.source, self.filter))
            .column("What became of them", Align::Left)
            .column("Rows", Align::Right)
            .column(format!("{}s", self.counted.one_in_title()), Align::Left)
            .column("Examples", Align::Left)
            .row(["read".to_string(), self.rows_read.to_string()])
            .row(["kept".to_string(), self.rows_kept.to_string()]);
        for d in &self.dropped {
            let mut examples = Vec::new();
            for (i, example) in d.examples.iter().enumerate() {
                examples.extend((i > 0).then(|| "\n".to_string()));
                examples.extend(pair(example));
            }
            table = table.row([
                format!("dropped: {}", d.reason.says()).into(),
                d.lines.len().to_string().into(),
                first_lines(&d.lines).into(),
                Cell::joined(examples),
            ]);
        }
        table.to_html()
    }

    /// Shows the table in a notebook, with its text twin.
    pub fn evcxr_display(&self) {
        show_both(&self.to_html(), &self.to_string());
    }
}

impl fmt::Display for CleaningReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, |f| {
            writeln!(f, "{}, filter {:?}", self.source, self.filter)?;
            writeln!(f, "{:>7}  read", self.rows_read)?;
            write!(f, "{:>7}  kept", self.rows_kept)?;
            for d in &self.dropped {
                let (count, reason) = (d.lines.len(), d.reason.says());
                let lines = first_lines(&d.lines);
                write!(f, "\n{count:>7}  dropped: {reason} ({}s {lines})", self.counted.one())?;
                for (line, example) in d.lines.iter().zip(&d.examples) {
                    write!(f, "\n{:9}{} {line}: {}", "", self.counted.one(), pair(example).concat())?;
                }
            }
            Ok(())
        })
    }
}

fn reason_to_drop(row: &Row, filter: EmojiFilter) -> Option<DropReason> {
    if row.emoji.is_empty() {
        Some(DropReason::EmptyEmoji)
    } else if row.text.is_empty() {
        Some(DropReason::EmptyText)
    } else if filter.keeps(&row.emoji) {
        None
    } else if filter == EmojiFilter::EveryCharacter && purely_emoji(&row.emoji) {
        Some(DropReason::SeveralCharacters)
    } else {
        Some(DropReason::TextBesideEmoji)
    }
}

fn first_lines(lines: &[usize]) -> String {
    let mut shown: Vec<String> = lines.iter().take(LINES).map(usize::to_string).collect();
    if lines.len() > LINES {
        shown.push("…".to_owned());
    }
    shown.join(", ")
}

fn pair((text, emoji): &(String, String)) -> [String; 3] {
    [shown(text), " → ".to_string(), shown(emoji)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(filter: EmojiFilter) -> CleaningReport {
        let mut report = CleaningReport::new("a<b.csv", filter);
        let rows = [
            ("party", "🎉"),
            ("sun", "☀️"),
            ("<b>", "x & y"),
            ("", "🎉"),
            ("nothing", ""),
            ("", ""),
            ("two\nlines", "🎉!"),
        ];
        let kept: Vec<bool> = rows
            .iter()
            .enumerate()
            .map(|(i, (text, emoji))| {
                report.judge(&Row { line: i + 2, text: (*text).into(), emoji: (*emoji).into() })
            })
            .collect();
        assert_eq!(kept.iter().filter(|k| **k).count(), report.rows_kept);
        report
    }

    fn reasons(report: &CleaningReport) -> Vec<(DropReason, &[usize])> {
        report.dropped.iter().map(|d| (d.reason, d.lines.as_slice())).collect()
    }

    #[test]
    fn every_row_is_counted_once_with_its_reason() {
        use DropReason::*;
        let strict = report(EmojiFilter::EveryCharacter);
        assert_eq!((strict.rows_read, strict.rows_kept, strict.rows_dropped()), (7, 1, 6));
        let expected: [(DropReason, &[usize]); 4] =
            [(SeveralCharacters, &[3]), (TextBesideEmoji, &[4, 8]), (EmptyText, &[5]), (EmptyEmoji, &[6, 7])];
        assert_eq!(reasons(&strict), expected);
        assert_eq!(reasons(&report(EmojiFilter::PurelyEmoji)), expected[1..]);
        assert_eq!(reasons(&report(EmojiFilter::None)), expected[2..]);
    }

    #[test]
    fn text_and_html_say_the_same() {
        let report = report(EmojiFilter::PurelyEmoji);
        let text = report.to_string();
        assert!(
            text.contains("      2  kept\n      2  dropped: text beside the emoji (lines 4, 8)"),
            "{text}"
        );
        assert!(text.contains("line 8: \"two\\nlines\" → \"🎉!\""), "{text}");
        let html = report.to_html();
        assert!(html.contains("a&lt;b.csv, filter PurelyEmoji"), "{html}");
        for cell in [">dropped: text beside the emoji</td>", ">2</td>", ">4, 8</td>"] {
            assert!(html.contains(cell), "{cell}: {html}");
        }
        assert!(html.contains("&quot;&lt;b&gt;&quot; → &quot;x &amp; y&quot;"), "{html}");
    }

    #[test]
    fn what_rows_hold_stays_in_its_place() {
        let mut report = CleaningReport::new("a\u{202e}\u{1b}.csv", EmojiFilter::PurelyEmoji);
        for (text, emoji) in [("שלום", "עולם"), ("EVCXR_BEGIN_CONTENT x", "\u{2066}\u{9b}no")] {
            report.judge(&Row { line: 2, text: text.into(), emoji: emoji.into() });
        }
        let (text, html) = (report.to_string(), report.to_html());
        for shown in [&text, &html] {
            assert!(shown.contains("a⟨U+202E⟩␛.csv") && !shown.contains("EVCXR_"), "{shown}");
            assert!(
                shown.contains("⟨U+2066⟩") && !shown.contains(['\u{1b}', '\u{202e}', '\u{2066}', '\u{9b}']),
                "{shown}"
            );
        }
        assert!(html.contains("<bdi>&quot;שלום&quot;</bdi> → <bdi>&quot;עולם&quot;</bdi><br>"), "{html}");
    }

    #[test]
    fn long_lists_and_values_are_cut() {
        let mut report = CleaningReport::new("t", EmojiFilter::PurelyEmoji);
        for line in 2..100 {
            report.judge(&Row { line, text: "x".repeat(1000), emoji: "no".into() });
        }
        let text = report.to_string();
        assert!(text.contains("(lines 2, 3, 4, 5, 6, 7, 8, 9, …)"), "{text}");
        assert_eq!(text.matches("line ").count(), EXAMPLES, "{text}");
        assert!(text.len() < 500, "{text}");
    }
}
