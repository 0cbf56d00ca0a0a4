//! A small table: caption, columns, rows, one of them marked, a total, notes.

use super::text::{display_width, escape_html, has_rtl, single_line, wrap};

/// Where the text of a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Columns of text wider than this are wrapped in the text form.
const MAX_COLUMN: usize = 44;

/// What stands in a cell: a text, or several that belong together.
///
/// Several, as a text and its emoji with an arrow between, are ours to put in order: in HTML those
/// that are written from right to left stay whole and do not change places with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    pieces: Vec<String>,
}

impl Cell {
    /// A cell of several texts, one after the other; the piece `"\n"` begins a line.
    pub fn joined<I>(pieces: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self { pieces: pieces.into_iter().map(Into::into).collect() }
    }

    fn text(&self) -> String {
        self.pieces.concat()
    }

    /// The cell's direction, and its HTML.
    fn html(&self) -> (&'static str, String) {
        let isolated = |piece: &String| match piece.as_str() {
            "\n" => "<br>".to_string(),
            text if has_rtl(text) => format!("<bdi>{}</bdi>", html_lines(text)),
            text => html_lines(text),
        };
        match self.pieces.as_slice() {
            [] => ("auto", String::new()),
            [text] => ("auto", html_lines(text)),
            pieces => ("ltr", pieces.iter().map(isolated).collect()),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { pieces: vec![text.into()] }
    }
}

/// A table that can be shown as text and as HTML.
///
/// ```
/// use emoji_lab::display::{Align, Table};
/// let table = Table::new("Fruit")
///     .column("Name", Align::Left)
///     .column("Pieces", Align::Right)
///     .row(["🍎 apple", "3"])
///     .row(["🍌 banana", "12"])
///     .highlight(1, "most");
/// assert!(table.to_text().contains("🍌 banana      12  ← most"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    caption: String,
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<Cell>>,
    total: Option<Vec<Cell>>,
    highlight: Option<(usize, String)>,
    notes: Vec<String>,
}

impl Table {
    /// A table without columns or rows.
    pub fn new(caption: impl Into<String>) -> Self {
        Self { caption: caption.into(), ..Self::default() }
    }

    /// Adds a column.
    pub fn column(mut self, name: impl Into<String>, align: Align) -> Self {
        self.columns.push((name.into(), align));
        self
    }

    /// Adds a row. Cells that are missing stay empty; cells beyond the columns are left out.
    pub fn row<I>(mut self, cells: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Cell>,
    {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the row under the line at the foot of the table.
    pub fn total<I>(mut self, cells: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Cell>,
    {
        self.total = Some(cells.into_iter().map(Into::into).collect());
        self
    }

    /// Marks row `index` (from 0) and says why in a word or two.
    pub fn highlight(mut self, index: usize, why: impl Into<String>) -> Self {
        self.highlight = Some((index, why.into()));
        self
    }

    /// Adds a line below the table.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    fn names(&self) -> Vec<Cell> {
        self.columns.iter().map(|(name, _)| name.as_str().into()).collect()
    }

    /// The row's mark, if it is the highlighted one.
    fn mark(&self, index: usize) -> Option<String> {
        self.highlight.as_ref().filter(|(row, _)| *row == index).map(|(_, why)| format!("← {why}"))
    }

    /// Aligned text for a monospace font, lines ended by `\n`.
    pub fn to_text(&self) -> String {
        let fit = |cells: &[Cell]| -> Vec<Vec<String>> {
            let text = |i| cells.get(i).map(Cell::text).unwrap_or_default();
            (0..self.columns.len()).map(|i| wrap(&text(i), MAX_COLUMN)).collect()
        };
        let head = fit(&self.names());
        let body: Vec<_> = self.rows.iter().map(|row| fit(row)).collect();
        let total = self.total.as_ref().map(|row| fit(row));

        let mut widths = vec![0; self.columns.len()];
        for row in std::iter::once(&head).chain(&body).chain(&total) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.iter().map(|line| display_width(line)).fold(*width, usize::max);
            }
        }
        let rule = widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>().join("──") + "\n";

        let mut out = String::new();
        if !self.caption.is_empty() {
            out += &format!("{}\n", single_line(&self.caption));
        }
        if !self.columns.is_empty() {
            self.push_text_row(&mut out, &head, &widths, None);
            out += &rule;
            for (index, row) in body.iter().enumerate() {
                self.push_text_row(&mut out, row, &widths, self.mark(index).as_deref());
            }
            if let Some(total) = &total {
                out += &rule;
                self.push_text_row(&mut out, total, &widths, None);
            }
        }
        for note in &self.notes {
            for line in wrap(note, 100) {
                out += &line;
                out.push('\n');
            }
        }
        out
    }

    fn push_text_row(&self, out: &mut String, cells: &[Vec<String>], widths: &[usize], mark: Option<&str>) {
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let mut text = String::new();
            for (i, ((cell, width), (_, align))) in cells.iter().zip(widths).zip(&self.columns).enumerate() {
                let cell = cell.get(line).map_or("", String::as_str);
                let pad = " ".repeat(width.saturating_sub(display_width(cell)));
                let gap = if i == 0 { "" } else { "  " };
                text += gap;
                match align {
                    Align::Left => text += &format!("{cell}{pad}"),
                    Align::Right => text += &format!("{pad}{cell}"),
                }
            }
            if let (0, Some(mark)) = (line, mark) {
                text += &format!("  {mark}");
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
    }

    /// HTML with inline styles only: no colour of its own but a translucent tint on the marked
    /// row, so that it takes the theme it stands in. Alignment is said in attributes too, because
    /// code-hosting pages strip styles.
    pub fn to_html(&self) -> String {
        let mut out = String::from(
            "<table style=\"border-collapse:collapse;margin:0.4em 0;color:inherit;\
             background:transparent;font-variant-numeric:tabular-nums\">\n",
        );
        if !self.caption.is_empty() {
            out += &format!(
                "<caption style=\"caption-side:top;text-align:left;font-weight:600;color:inherit;\
                 padding:0.3em 0\"><b>{}</b></caption>\n",
                escape_html(&single_line(&self.caption))
            );
        }
        out += "<thead>\n";
        self.push_html_row(&mut out, "th", &self.names(), "border-bottom:1px solid currentColor", None);
        out += "</thead>\n<tbody>\n";
        for (index, row) in self.rows.iter().enumerate() {
            let mark = self.mark(index);
            let style = match mark {
                Some(_) => "background:rgba(46,160,67,0.20);font-weight:600",
                None => "",
            };
            self.push_html_row(&mut out, "td", row, style, mark.as_deref());
        }
        if let Some(total) = &self.total {
            let style = "border-top:1px solid currentColor;font-weight:600";
            self.push_html_row(&mut out, "td", total, style, None);
        }
        out += "</tbody>\n</table>\n";
        for note in &self.notes {
            out += &format!(
                "<div style=\"color:inherit;opacity:0.85;font-size:0.9em;margin:0.15em 0\">{}</div>\n",
                html_lines(note)
            );
        }
        out
    }

    fn push_html_row(&self, out: &mut String, tag: &str, cells: &[Cell], style: &str, mark: Option<&str>) {
        *out += &if style.is_empty() { "<tr>".to_string() } else { format!("<tr style=\"{style}\">") };
        // Names stay on one line; a long answer must not squeeze the other columns.
        let fit = if tag == "th" { "white-space:nowrap" } else { "max-width:32em;overflow-wrap:break-word" };
        let cell = |(direction, text): (&str, String), align: &str| {
            format!(
                "<{tag} dir=\"{direction}\" align=\"{align}\" valign=\"top\" style=\"text-align:{align};vertical-align:top;\
                 padding:0.25em 0.8em;color:inherit;{fit}\">{text}</{tag}>"
            )
        };
        for (i, (_, align)) in self.columns.iter().enumerate() {
            let text = cells.get(i).map(Cell::html).unwrap_or(("auto", String::new()));
            *out += &match align {
                Align::Left => cell(text, "left"),
                Align::Right => cell(text, "right"),
            };
        }
        if self.highlight.is_some() {
            *out += &cell(("auto", escape_html(mark.unwrap_or_default())), "left");
        }
        *out += "</tr>\n";
    }
}

fn html_lines(text: &str) -> String {
    text.lines().map(|line| escape_html(&single_line(line))).collect::<Vec<_>>().join("<br>")
}

super::notebook_view!(Table);

#[cfg(test)]
mod tests {
    use super::*;

    fn emoji_table() -> Table {
        Table::new("Answers")
            .column("Text", Align::Left)
            .column("Emoji", Align::Left)
            .column("Tokens", Align::Right)
            .row(["let's go to the beach", "🏖️🌊", "4"])
            .row(["family", "👨‍👩‍👧‍👦", "11"])
            .row(["日本", "🇯🇵", "2"])
    }

    #[test]
    fn columns_line_up_with_emoji() {
        let text = emoji_table().to_text();
        let ends: Vec<usize> = text.lines().skip(1).map(display_width).collect();
        assert_eq!(ends, vec![ends[0]; 5], "{text}");
        assert!(text.contains("let's go to the beach  🏖️🌊        4\n"), "{text}");
        assert!(text.contains("日本                   🇯🇵          2\n"), "{text}");
    }

    #[test]
    fn the_highlighted_row_is_marked_in_both_forms() {
        let table = emoji_table().highlight(1, "best <1>");
        assert_eq!(table.to_text().lines().filter(|line| line.ends_with("← best <1>")).count(), 1);
        let html = table.to_html();
        assert_eq!(html.matches("← best &lt;1&gt;").count(), 1);
        assert_eq!(html.matches("rgba(").count(), 1);
    }

    #[test]
    fn html_is_escaped_everywhere() {
        let evil = "<img src=x onerror=alert(1)>";
        let table = Table::new(evil)
            .column(evil, Align::Left)
            .row([evil])
            .total([evil])
            .highlight(0, evil)
            .note(evil);
        assert!(!table.to_html().contains("<img"));
        assert_eq!(table.to_html().matches("&lt;img").count(), 6);
    }

    #[test]
    fn writing_from_right_to_left_stays_in_its_cell() {
        let pair = |text: &str, emoji: &str| Cell::joined([text, " → ", emoji]);
        let table = Table::new("")
            .column("a", Align::Left)
            .column("b", Align::Left)
            .row([pair("שלום", "עולם"), "سلام <b>".into()])
            .row([pair("go", "🏖️"), "\u{202e}x".into()]);
        let html = table.to_html();
        assert!(
            html.contains("dir=\"ltr\"") && html.contains("<bdi>שלום</bdi> → <bdi>עולם</bdi></td>"),
            "{html}"
        );
        assert!(html.contains(">go → 🏖️</td>") && html.contains(">سلام &lt;b&gt;</td>"), "{html}");
        assert!(html.contains(">⟨U+202E⟩x</td>"), "{html}");
        let text = table.to_text();
        assert!(text.contains("שלום → עולם") && text.contains("⟨U+202E⟩x"), "{text}");
    }

    #[test]
    fn odd_tables_do_not_panic() {
        assert_eq!(Table::new("").to_text(), "");
        let _ = Table::new("").to_html();
        let table = Table::new("c")
            .column("a", Align::Left)
            .column("b", Align::Right)
            .row(Vec::<String>::new())
            .row(["1", "2", "3"])
            .highlight(9, "nowhere");
        assert_eq!(table.to_text(), "c\na  b\n────\n\n1  2\n");
        assert!(!table.to_html().contains("nowhere"));
    }

    #[test]
    fn long_and_multi_line_cells_are_wrapped() {
        let table = Table::new("")
            .column("a", Align::Left)
            .column("n", Align::Right)
            .row(["word ".repeat(30) + "\n\nend", "1".to_string()]);
        let text = table.to_text();
        assert!(text.lines().all(|line| display_width(line) <= MAX_COLUMN + 3), "{text}");
        assert!(text.contains("\nend\n"));
        assert!(table.to_html().contains("<br><br>end"));
    }
}
