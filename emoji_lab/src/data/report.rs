//! What became of a dataset's rows: read, kept, dropped and why.

use std::fmt::{self, Write};

use super::columns::Columns;
use super::notes::{Note, Noticed, is_encoded_twice, near_emoji};
use super::show::shown;
use super::table::Row;
use crate::display::{Align, Cell, Table, show_both, write_plain};
use crate::task::{DropReason, Task};

/// How many dropped rows of each reason a report shows in full.
const EXAMPLES: usize = 3;
/// How many line numbers of each reason its table shows.
const LINES: usize = 8;

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
    /// Text and answer of the first few.
    pub examples: Vec<(String, String)>,
}

/// What became of a dataset's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleaningReport {
    /// The path, Hub id or `embedded`.
    pub source: String,
    /// What the rows are to teach; its filter decided.
    pub task: Task,
    /// What the numbers in `dropped` count.
    pub counted: Counted,
    /// Rows in the file.
    pub rows_read: usize,
    /// Rows that passed.
    pub rows_kept: usize,
    /// The others, by reason, in the order in which the reasons first came up.
    pub dropped: Vec<Dropped>,
    /// What else was noticed, in the order in which it first came up.
    pub notes: Vec<Note>,
}

impl CleaningReport {
    pub(super) fn new(source: &str, task: Task) -> Self {
        Self {
            source: source.to_owned(),
            task,
            counted: Counted::Lines,
            rows_read: 0,
            rows_kept: 0,
            dropped: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Counts a row of these columns, and says whether it stays.
    pub(super) fn judge(&mut self, row: &Row, columns: &Columns) -> bool {
        self.rows_read += 1;
        if let Some(value) = [&row.answer, &row.text].into_iter().find(|value| is_encoded_twice(value)) {
            self.note(Noticed::EncodedTwice, 1, row.line, value);
        }
        let repeats = columns.are(&row.text, &row.answer).then_some(DropReason::RepeatedHeader);
        let Some(reason) = repeats.or_else(|| reason_to_drop(row, &self.task)) else {
            self.rows_kept += 1;
            return true;
        };
        if reason == DropReason::TextBesideEmoji
            && let Some(what) = near_emoji(&row.answer)
        {
            self.note(what, 1, row.line, &row.answer);
        }
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
            dropped.examples.push((row.text.clone(), row.answer.clone()));
        }
        false
    }

    /// Counts rows that something was noticed about.
    pub(super) fn note(&mut self, what: Noticed, rows: usize, first: usize, example: &str) {
        match self.notes.iter_mut().find(|note| note.what == what) {
            Some(note) => note.rows += rows,
            None => self.notes.push(Note { what, rows, first, example: example.to_owned() }),
        }
    }

    /// Rows that did not pass.
    pub fn rows_dropped(&self) -> usize {
        self.rows_read - self.rows_kept
    }

    /// The report in one line, as errors give it.
    pub(super) fn summary(&self) -> String {
        let mut parts = vec![format!("{} rows read", self.rows_read)];
        let at = match self.counted {
            Counted::Lines => "on line",
            Counted::Rows => "in row",
        };
        for d in &self.dropped {
            let first = d.lines.first().copied().unwrap_or_default();
            parts.push(format!("{} with {}, first {at} {first}", d.lines.len(), d.reason.says()));
        }
        parts.extend(self.notes.iter().map(said));
        parts.join("; ")
    }

    /// The report as an HTML table.
    pub fn to_html(&self) -> String {
        let mut table = Table::new(format!("{}, filter {}", self.source, self.task.filter.name()))
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
        for note in &self.notes {
            let (rows, first) = (note.rows.to_string(), note.first.to_string());
            let example = if note.example.is_empty() { String::new() } else { shown(&note.example) };
            table = table.row([format!("note: {}", note.what.says()), rows, first, example]);
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
            writeln!(f, "{}, filter {}", self.source, self.task.filter.name())?;
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
            for note in &self.notes {
                write!(
                    f,
                    "\n{:>7}  note: {} (first: {} {}",
                    note.rows,
                    note.what.says(),
                    self.counted.one(),
                    note.first
                )?;
                match note.example.is_empty() {
                    true => write!(f, ")")?,
                    false => write!(f, ", {})", shown(&note.example))?,
                }
            }
            Ok(())
        })
    }
}

/// A note in a line, as errors give it.
fn said(note: &Note) -> String {
    match note.example.is_empty() {
        true => format!("{} {}", note.rows, note.what.says()),
        false => format!("{} {}, as {}", note.rows, note.what.says(), shown(&note.example)),
    }
}

fn reason_to_drop(row: &Row, task: &Task) -> Option<DropReason> {
    if row.answer.is_empty() {
        Some(DropReason::EmptyAnswer)
    } else if row.text.is_empty() {
        Some(DropReason::EmptyText)
    } else {
        task.filter.reason_to_drop(&row.answer)
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
    use crate::task::EmojiFilter;

    fn report(filter: EmojiFilter) -> CleaningReport {
        let mut report = CleaningReport::new("a<b.csv", filter.into());
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
                let row = Row { line: i + 2, text: (*text).into(), answer: (*emoji).into() };
                report.judge(&row, &Columns::default())
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
        let expected: [(DropReason, &[usize]); 4] = [
            (SeveralCharacters, &[3]),
            (TextBesideEmoji, &[4, 8]),
            (EmptyText, &[5]),
            (EmptyAnswer, &[6, 7]),
        ];
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
        let mut report = CleaningReport::new("a\u{202e}\u{1b}.csv", EmojiFilter::PurelyEmoji.into());
        for (text, emoji) in [("שלום", "עולם"), ("EVCXR_BEGIN_CONTENT x", "\u{2066}\u{9b}no")] {
            report.judge(&Row { line: 2, text: text.into(), answer: emoji.into() }, &Columns::default());
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
        let mut report = CleaningReport::new("t", EmojiFilter::PurelyEmoji.into());
        for line in 2..100 {
            report.judge(&Row { line, text: "x".repeat(1000), answer: "no".into() }, &Columns::default());
        }
        let text = report.to_string();
        assert!(text.contains("(lines 2, 3, 4, 5, 6, 7, 8, 9, …)"), "{text}");
        assert_eq!(text.matches("line ").count(), EXAMPLES, "{text}");
        assert!(text.len() < 500, "{text}");
    }

    #[test]
    fn what_was_noticed_is_said() {
        let mut report = CleaningReport::new("t", EmojiFilter::PurelyEmoji.into());
        for (line, (text, emoji)) in
            [("a", " ☀️"), ("b", "ðŸŽ‰"), ("Text ", "EMOJI"), ("cafÃ©", "☕"), ("c", "☀️ ")]
                .into_iter()
                .enumerate()
        {
            report
                .judge(&Row { line: line + 2, text: text.into(), answer: emoji.into() }, &Columns::default());
        }
        assert_eq!((report.rows_kept, reasons(&report)[1]), (1, (DropReason::RepeatedHeader, &[4][..])));
        let text = report.to_string();
        assert!(
            text.contains(
                "      2  note: emoji with blanks around them: remove the blanks (first: line 2, \" ☀️\")"
            ),
            "{text}"
        );
        assert!(text.contains("      2  note: looks encoded twice: save it again from the original as UTF-8 (first: line 3, \"ðŸŽ‰\")"), "{text}");
        assert!(report.to_html().contains("note: emoji with blanks"));
        assert!(report.summary().contains("2 looks encoded twice"), "{}", report.summary());
    }
}
