//! Rows from comma-separated values, as Python's `datasets` reads them (through pandas).

use super::encoding::decode;
use super::options::ReadOptions;
use super::records::{OddRow, Records, first_records, skip_lines};
use super::separator;
use super::table::{Intake, Row};
use crate::error::{Error, Result};
use crate::table_files::{Column, CsvOptions, Header, Skip};

/// Reads the two columns, and ignores others. `name` is what errors call the file, `usual` what
/// separates fields if neither the options nor the header say it.
pub(super) fn read_csv(
    name: &str,
    bytes: &[u8],
    options: &ReadOptions,
    usual: u8,
    rows: &mut Intake,
) -> Result<()> {
    let text = decode(name, bytes, options.files.encoding)?;
    let csv = &options.files.csv;
    let (start, declared) = separator::declared(&text);
    let start = match csv.skip {
        Skip::First(lines) => skip_lines(&text, start, lines),
        Skip::These(_) => start,
    };
    let separator =
        csv.separator.or(declared).unwrap_or_else(|| separator::find(&text[start..], options, usual));
    let mut records = Records::new(name, &text, start, csv, separator);
    let mut table: Option<Table> = None;
    let mut above = match csv.header {
        Header::Row(number) => number,
        _ => 0,
    };
    let mut read = 0;
    while let Some(line) = records.next()? {
        let record = &records.record;
        let at = || format!("{name}, line {line}");
        let Some(table) = &table else {
            if above > 0 {
                above -= 1;
                continue;
            }
            let (header, is_row) = header(csv, record);
            let found = Table::new(&at(), header, options).map_err(|e| match is_row {
                true => e,
                false => below(&text, &records, options).unwrap_or(e),
            })?;
            if is_row {
                found
                    .take(record, line, csv.skip_bad_lines, rows)
                    .map_err(|wrong| records.odd(line, &wrong))?;
                read += 1;
            }
            table = Some(found);
            continue;
        };
        if csv.most_rows.is_some_and(|most| read >= most) {
            break;
        }
        table.take(record, line, csv.skip_bad_lines, rows).map_err(|wrong| records.odd(line, &wrong))?;
        read += 1;
    }
    match (table, read) {
        (None, _) => Err(Error::dataset(
            name,
            "the file has only blank lines",
            format!("Give a file with columns `{}` and `{}`", options.columns.text, options.columns.answer),
        )),
        (Some(_), 0) => Err(Error::dataset(name, "there is a header and no rows", "Add rows under it")),
        (Some(_), _) => Ok(()),
    }
}

/// The columns' names by the first record, and whether that record is a row, too.
fn header(csv: &CsvOptions, record: &::csv::StringRecord) -> (Vec<String>, bool) {
    let own = || record.iter().map(str::to_owned).collect();
    match (&csv.names, csv.header) {
        (Some(names), Header::Row(_)) => (names.clone(), false),
        (Some(names), _) => (names.clone(), true),
        (None, Header::Absent) => ((0..record.len()).map(|i| i.to_string()).collect(), true),
        (None, _) => (own(), false),
    }
}

/// The error if the header is not the first row but a later one, under a title.
fn below(text: &str, records: &Records, options: &ReadOptions) -> Option<Error> {
    const LOOKED_AT: usize = 8;
    let csv = &options.files.csv;
    let first = first_records(&text[records.start..], csv, records.separator, LOOKED_AT);
    let under = first.iter().skip(1).position(|record| options.columns.found(record) == 2)?;
    let above = if under == 0 { "is a row".to_owned() } else { format!("are {} rows", under + 1) };
    Some(Error::dataset(
        records.name,
        format!("the line with the columns' names is not the first: there {above} above it"),
        "Remove what stands above it",
    ))
}

/// Where the wanted fields stand in a row.
struct Table {
    text: usize,
    answer: usize,
    fields: usize,
}

impl Table {
    fn new(at: &str, mut header: Vec<String>, options: &ReadOptions) -> Result<Self> {
        let fields = header.len();
        if let Some(only) = &options.files.csv.only {
            let is_used = |place: usize, name: &str| {
                only.iter().any(|column| match column {
                    Column::Name(wanted) => wanted == name,
                    Column::Place(wanted) => *wanted == place,
                })
            };
            for (place, name) in header.iter_mut().enumerate() {
                if !is_used(place, name) {
                    name.clear();
                }
            }
        }
        let (text, answer) = options.columns.find(at, &header)?;
        Ok(Self { text, answer, fields })
    }

    fn take(
        &self,
        record: &::csv::StringRecord,
        line: usize,
        skip_bad: bool,
        rows: &mut Intake,
    ) -> std::result::Result<(), OddRow> {
        let has = record.len();
        if has != self.fields {
            let empty_end = (self.fields..has).all(|i| record[i].trim().is_empty());
            // pandas passes over rows that are too long alone; what is too short is filled up.
            match skip_bad {
                false => return Err(OddRow { has, wanted: self.fields, empty_end }),
                true if has > self.fields => {
                    rows.passed_over(line);
                    return Ok(());
                }
                true => {}
            }
        }
        let field = |place: usize| record.get(place).unwrap_or_default().to_owned();
        rows.push(Row { line, text: field(self.text), answer: field(self.answer) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table_files::FileOptions;

    type Rows = Vec<(usize, String, String)>;

    fn read(bytes: &[u8], options: &ReadOptions) -> Result<Rows> {
        let mut rows = Vec::new();
        let mut take = |row: Row| rows.push((row.line, row.text, row.answer));
        read_csv("t.csv", bytes, options, b',', &mut Intake::new(&mut take))?;
        Ok(rows)
    }

    fn rows(text: &str) -> Rows {
        read(text.as_bytes(), &ReadOptions::default()).unwrap()
    }

    fn with(csv: CsvOptions) -> ReadOptions {
        ReadOptions { files: FileOptions { csv, ..Default::default() }, ..Default::default() }
    }

    fn row(line: usize, text: &str, emoji: &str) -> (usize, String, String) {
        (line, text.into(), emoji.into())
    }

    fn failure(text: &str) -> String {
        read(text.as_bytes(), &ReadOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn plain_rows_and_other_columns() {
        assert_eq!(rows("text,emoji\nsun,☀️\n"), [row(2, "sun", "☀️")]);
        assert_eq!(rows("emoji,id,text\n☀️,7, sun "), [row(2, " sun ", "☀️")]);
        assert_eq!(rows("text,emoji\nNA,\n,null\n"), [row(2, "NA", ""), row(3, "", "null")]);
    }

    #[test]
    fn byte_order_mark() {
        assert_eq!(rows("\u{feff}text,emoji\nsun,☀️\n"), [row(2, "sun", "☀️")]);
        assert_eq!(rows("\u{feff}\"text\",emoji\r\nsun,☀️\r\n"), [row(2, "sun", "☀️")]);
    }

    #[test]
    fn quotes_newlines_and_line_numbers() {
        let unix = "text,emoji\n\"a, b\",🎉\n\n \t\n\"two\nlines \"\"so\"\"\",🎉\nlast \"one\",🎉";
        let expected =
            [row(2, "a, b", "🎉"), row(5, "two\nlines \"so\"", "🎉"), row(7, "last \"one\"", "🎉")];
        assert_eq!(rows(unix), expected);
        let expected =
            [row(2, "a, b", "🎉"), row(5, "two\r\nlines \"so\"", "🎉"), row(7, "last \"one\"", "🎉")];
        assert_eq!(rows(&unix.replace('\n', "\r\n")), expected);
        let expected =
            [row(2, "a, b", "🎉"), row(5, "two\rlines \"so\"", "🎉"), row(7, "last \"one\"", "🎉")];
        assert_eq!(rows(&unix.replace('\n', "\r")), expected);
        assert_eq!(rows("\n\r\ntext,emoji\n\nsun,☀️"), [row(5, "sun", "☀️")]);
    }

    #[test]
    fn quotes_out_of_place_are_read_as_pandas_does() {
        assert_eq!(rows("text,emoji\na\"b\"c,\"x\"y\n"), [row(2, "a\"b\"c", "xy")]);
        assert_eq!(rows("text,emoji\n\"a\" ,b\n , "), [row(2, "a ", "b"), row(3, " ", " ")]);
        assert_eq!(rows("text,text,emoji\na,b,c"), [row(2, "a", "c")]);
    }

    #[test]
    fn wrong_columns_are_named() {
        let error = failure("Texts,Emojis,\"a \"\"b\"\"\"\n");
        assert!(error.contains(
            r#"t.csv, line 1: there are no columns `text` and `emoji`; the columns are "Texts", "Emojis", "a \"b\"""#
        ));
        assert!(failure("sun,☀️\n").contains("the columns are \"sun\", \"☀️\""));
        assert!(failure("text,label\n").contains("there is no column `emoji`; the columns are \"text\""));
        let many = (0..40).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        assert!(failure(&many).contains("\"11\", and 28 more."));
    }

    #[test]
    fn rows_with_other_field_counts() {
        assert!(
            failure("text,emoji\na,🎉\nb\n").contains("t.csv, line 3: the row has 1 field, the header 2")
        );
        assert!(failure("text,emoji\na,🎉\n\"\"\n").contains("line 3: the row has 1 field"));
        let error = failure("text,emoji\n\"x\ny\",🎉\na, b,🎉\n");
        assert!(
            error.contains("t.csv, line 4: the row has 3 fields, the header 2. Put double quotes"),
            "{error}"
        );
    }

    #[test]
    fn quote_that_never_closes() {
        for end in ["", "\n", ",🎉\nmore,🎉\n", "\",🎉\nlast,\"🎉\n"] {
            let error = failure(&format!("text,emoji\na,🎉\n\"b{end}"));
            let line = if end.contains("last") { 4 } else { 3 };
            assert!(error.contains(&format!("t.csv, line {line}: a double quote is opened")), "{error}");
        }
    }

    #[test]
    fn nothing_in_it() {
        assert!(failure("text,emoji\n\n").contains("there is a header and no rows"));
        assert!(failure(" \n\n").contains("only blank lines"));
        assert!(failure("\u{feff}").contains("only blank lines"));
    }

    #[test]
    fn headers_as_people_write_them() {
        assert_eq!(rows("text, emoji\nsun,☀️\n"), [row(2, "sun", "☀️")]);
        assert_eq!(rows("Text,Emoji\nsun,☀️\n"), [row(2, "sun", "☀️")]);
        assert_eq!(rows(",TEXT, \"emoji\" \n0,sun,☀️\n"), [row(2, "sun", "☀️")]);
        let empty_end = "text,emoji,,\nsun,☀️,,\nparty,🎉,,\n";
        assert_eq!(rows(empty_end), [row(2, "sun", "☀️"), row(3, "party", "🎉")]);
        let under = failure("My rows,\n2024,\ntext,emoji\nsun,☀️\n");
        assert!(under.contains("is not the first: there are 2 rows above it"), "{under}");
        assert!(failure("sun,☀️\nparty,🎉\n").contains("The first row looks like data"));
    }

    #[test]
    fn separators_are_found() {
        let expected = [row(2, "sun, sea and sand", "🏖️"), row(3, "pizza tonight", "🍕")];
        for separator in [";", "\t", "|"] {
            let text = "text;emoji\nsun, sea and sand;🏖️\npizza tonight;🍕\n".replace(';', separator);
            assert_eq!(rows(&text), expected, "{separator:?}");
        }
        assert_eq!(rows("sep=,\ntext,emoji\nsun,☀️\n"), [row(3, "sun", "☀️")]);
        assert_eq!(rows("\u{feff}sep=;\r\n\"text\";emoji\r\n\"a;b\";☀️\r\n"), [row(3, "a;b", "☀️")]);
        let error = failure("text;emoji\na;b;☀️\n");
        assert!(error.contains("Put double quotes around a field with a semicolon in it"), "{error}");
    }

    #[test]
    fn rows_that_spreadsheets_and_programs_spoil() {
        let error = failure("text,emoji\nsun,☀️,\nparty,🎉,\n");
        let says = "line 2: the row has 3 fields, the header 2. Remove the comma at the end";
        assert!(error.contains(says), "{error}");
        let error = failure("text,emoji\n\"he said \\\"hi\\\", then left\",👋\nparty,🎉\n");
        assert!(error.contains("line 2: the row has 3 fields, the header 2"), "{error}");
        assert!(error.contains("not after a backslash"), "{error}");
        let rows_of_nul = [row(2, "su\0n", "☀️"), row(3, "\0end", "x")];
        assert_eq!(rows("text,emoji\nsu\0n,☀️\n\0end,x"), rows_of_nul);
        assert!(failure("text,emoji\na,x\n\0end\nb,x\n").contains("line 3: the row has 1 field"));
        assert_eq!(rows("text,emoji\na\u{2028}b,☀️"), [row(2, "a\u{2028}b", "☀️")]);
        let long = "sun ".repeat(60_000);
        assert_eq!(rows(&format!("text,emoji\n{long},☀️\n")), [row(2, &long, "☀️")]);
    }

    #[test]
    fn an_open_quote_is_named_where_it_opens() {
        let error = failure("text,emoji\n\"a\nb\",\"☀️\nparty,🎉\n");
        assert!(error.contains("t.csv, line 3: a double quote is opened"), "{error}");
        assert!(failure("text,emoji\r\na,b\r\n\"c,d\r\n").contains("t.csv, line 3: a double quote"));
    }

    #[test]
    fn what_a_card_declares_is_done() {
        let read = |text: &str, csv: CsvOptions| read(text.as_bytes(), &with(csv)).map_err(|e| e.to_string());
        let default = CsvOptions::default;
        let names = || Some(vec!["emoji".to_owned(), "text".to_owned()]);
        let sun = |line: usize| Ok(vec![row(line, "sun", "☀️")]);
        assert_eq!(read("☀️,sun\n", CsvOptions { names: names(), ..default() }), sun(1));
        assert_eq!(read("☀️;sun\n", CsvOptions { names: names(), ..default() }), sun(1));
        let renamed = CsvOptions { names: names(), header: Header::Row(0), ..default() };
        assert_eq!(read("a,b\n☀️,sun\n", renamed), sun(2));
        let skip = |skip: Skip| CsvOptions { skip, ..default() };
        assert_eq!(read("x\ny,z\ntext,emoji\nsun,☀️", skip(Skip::First(2))), sun(4));
        assert_eq!(read("x\ntext,emoji\na,b\nsun,☀️", skip(Skip::These(vec![0, 2]))), sun(4));
        let second = CsvOptions { header: Header::Row(1), ..default() };
        assert_eq!(read("x,y\ntext,emoji\nsun,☀️", second), sun(3));
        let quoted = CsvOptions { quote: Some(b'\''), ..default() };
        assert_eq!(read("text,emoji\n'a, b',☀️", quoted), Ok(vec![row(2, "a, b", "☀️")]));
        let escaped = CsvOptions { escape: Some(b'\\'), ..default() };
        let expected = Ok(vec![row(2, "a \"b\"", "☀️")]);
        assert_eq!(read("text,emoji\n\"a \\\"b\\\"\",☀️", escaped), expected);
        let unquoted = CsvOptions { quote: None, ..default() };
        assert_eq!(read("text,emoji\n\"sun,☀️\n", unquoted), Ok(vec![row(2, "\"sun", "☀️")]));
        let one_row = CsvOptions { most_rows: Some(1), ..default() };
        assert_eq!(read("text,emoji\nsun,☀️\nb,c\n", one_row), sun(2));
        let lenient = || CsvOptions { skip_bad_lines: true, ..default() };
        assert_eq!(read("text,emoji\na,b,c\nsun,☀️\n", lenient()), sun(3));
        let short = Ok(vec![row(2, "a", ""), row(3, "sun", "☀️")]);
        assert_eq!(read("text,emoji\na\nsun,☀️\n", lenient()), short);
        let only = |column: Column| CsvOptions { only: Some(vec![column, Column::Place(2)]), ..default() };
        assert_eq!(read("text,x,emoji\nsun,y,☀️\n", only(Column::Name("text".into()))), sun(2));
        let error = read("text,x,emoji\nsun,y,☀️\n", only(Column::Place(1))).unwrap_err();
        assert!(error.contains("no column `text`"), "{error}");
        let numbers = read("sun,☀️\n", CsvOptions { header: Header::Absent, ..default() }).unwrap_err();
        assert!(numbers.contains("the columns are \"0\", \"1\""), "{numbers}");
    }

    #[test]
    fn other_encodings_and_columns() {
        let utf16: Vec<u8> =
            "\u{feff}Text;Emoji\nsun;☀️\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(read(&utf16, &ReadOptions::default()).unwrap(), [row(2, "sun", "☀️")]);
        let latin = crate::table_files::encoding_by_name("latin-1");
        let files = FileOptions { encoding: latin, ..Default::default() };
        let options = ReadOptions { files, ..Default::default() };
        assert_eq!(read(b"text,emoji\ncaf\xe9,x\n", &options).unwrap(), [row(2, "café", "x")]);
        let columns = super::super::columns::Columns { text: "Satz".into(), answer: "Bild".into() };
        let options = ReadOptions { columns, ..Default::default() };
        assert_eq!(read("satz,bild\na,b".as_bytes(), &options).unwrap(), [row(2, "a", "b")]);
    }
}
