//! Files that people give in a table's place: what they are, and how to make a table of them.

use std::path::Path;

use super::TableFormat;
use crate::sniff::Disguise;

const SPREADSHEET: Disguise = Disguise {
    problem: "is a spreadsheet, not a text file",
    help: "Open it and save the sheet as \"CSV UTF-8\" (Python: pandas.read_excel(…).to_csv(\"rows.csv\", index=False))",
};
const COMPRESSED: Disguise =
    Disguise { problem: "is compressed", help: "Unpack it first (gunzip, unzip, zstd -d, bunzip2, xz -d)" };
const ARROW: Disguise = Disguise {
    problem: "is an Arrow file, as save_to_disk writes them",
    help: "Save the rows as csv (Python: load_from_disk(folder).to_csv(\"rows.csv\"))",
};
const DATABASE: Disguise = Disguise {
    problem: "is a database",
    help: "Export the table as csv (sqlite3 -header -csv FILE \"select text, emoji from rows\" > rows.csv)",
};
const PICKLE: Disguise = Disguise {
    problem: "is a pickle, which can run code and is not read",
    help: "Save the rows as csv (Python: pandas.read_pickle(…).to_csv(\"rows.csv\", index=False))",
};
const PLAIN_TEXT: Disguise = Disguise {
    problem: "its name ends in .txt, which does not say how its columns are written",
    help: "Rename it to .csv or .tsv if it is a table with a line of names (text,emoji), to .jsonl if it holds JSON",
};
const DOCUMENT: Disguise = Disguise {
    problem: "is a document, not a table",
    help: "Save its table as CSV UTF-8 with the columns text and emoji",
};
const PARQUET: Disguise =
    Disguise { problem: "is a parquet file", help: "Rename it so that its name ends in .parquet" };
const JSON: Disguise =
    Disguise { problem: "holds JSON", help: "Rename it so that its name ends in .json or .jsonl" };
const NO_ENDING: Disguise = Disguise {
    problem: "its name has no ending that says what it holds",
    help: "Rename it so that its name ends in .csv or .tsv, if it is a table with a line of names (text,emoji)",
};
const NO_PARQUET: Disguise = Disguise {
    problem: "cannot be read as parquet: it does not begin as one",
    help: "Download it again, or name it after what it holds",
};

/// What a file is by the ending of its name, if it is no table that can be read.
pub(crate) fn by_name(name: &str) -> Option<Disguise> {
    let Some(ending) = Path::new(name).extension() else { return Some(NO_ENDING) };
    let ending = ending.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "xlsx" | "xls" | "xlsm" | "xlsb" | "ods" | "numbers" | "gsheet" => Some(SPREADSHEET),
        "gz" | "gzip" | "zip" | "zst" | "zstd" | "bz2" | "xz" | "lz4" | "7z" | "rar" | "tar" | "tgz" => {
            Some(COMPRESSED)
        }
        "arrow" | "feather" | "ipc" => Some(ARROW),
        "db" | "sqlite" | "sqlite3" | "duckdb" | "mdb" | "accdb" => Some(DATABASE),
        "pkl" | "pickle" | "npy" | "npz" | "pt" | "joblib" => Some(PICKLE),
        "txt" => Some(PLAIN_TEXT),
        "md" | "docx" | "doc" | "odt" | "pdf" | "rtf" | "html" | "htm" | "xml" | "yaml" | "yml" => {
            Some(DOCUMENT)
        }
        _ => None,
    }
}

/// What a file is by its first bytes, if that is not the format that its name says.
pub(crate) fn by_content(start: &[u8], format: Option<TableFormat>) -> Option<Disguise> {
    let begins = |with: &[u8]| start.starts_with(with);
    if begins(b"PAR1") {
        return (format != Some(TableFormat::Parquet)).then_some(PARQUET);
    }
    // Office files are ZIP archives whose first member tells what they are.
    let office =
        [&b"[Content_Types].xml"[..], b"_rels/", b"xl/", b"mimetypeapplication/vnd.oasis", b"Index/"];
    let is_office = || office.iter().any(|name| start.get(30..).is_some_and(|at| at.starts_with(name)));
    let other = match () {
        _ if begins(b"PK\x03\x04") && is_office() => SPREADSHEET,
        _ if begins(b"\xd0\xcf\x11\xe0") => SPREADSHEET,
        _ if begins(b"PK\x03\x04") || begins(b"\x1f\x8b") || begins(b"\x28\xb5\x2f\xfd") => COMPRESSED,
        _ if begins(b"BZh") || begins(b"\xfd7zXZ\0") || begins(b"7z\xbc\xaf") || begins(b"Rar!") => {
            COMPRESSED
        }
        _ if begins(b"ARROW1") || begins(b"FEA1") => ARROW,
        _ if begins(b"SQLite format 3\0") => DATABASE,
        _ if begins(b"%PDF") || begins(b"{\\rtf") => DOCUMENT,
        _ if start.first() == Some(&0x80) && matches!(start.get(1), Some(2..=5)) => PICKLE,
        _ if format == Some(TableFormat::Parquet) => NO_PARQUET,
        _ => return text(start, format),
    };
    Some(other)
}

/// What a text file holds, if that is not what its name says.
fn text(start: &[u8], format: Option<TableFormat>) -> Option<Disguise> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let is_json = start.starts_with(b"{\"") || start.starts_with(b"[{") || start.starts_with(b"[\n");
    let ending = matches!(format, Some(TableFormat::Csv | TableFormat::Tsv));
    match (is_json, format) {
        (true, _) if ending => Some(JSON),
        (true, None) => Some(JSON),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_what_is_no_table() {
        for (name, says) in [
            ("rows.XLSX", "spreadsheet"),
            ("a/rows.ods", "spreadsheet"),
            ("rows.csv.gz", "compressed"),
            ("rows.jsonl.zst", "compressed"),
            ("data-00000-of-00001.arrow", "save_to_disk"),
            ("rows.db", "database"),
            ("rows.pkl", "pickle"),
            ("rows.txt", "ends in .txt"),
            ("README.md", "document"),
        ] {
            assert!(by_name(name).unwrap().problem.contains(says), "{name}");
        }
        assert!(by_name("rows").unwrap().problem.contains("no ending"));
        assert!(by_name("rows.csv").is_none());
    }

    #[test]
    fn contents_say_what_a_name_hides() {
        let csv = Some(TableFormat::Csv);
        let zip = |member: &str| [b"PK\x03\x04", &[0; 26][..], member.as_bytes()].concat();
        for (start, says) in [
            (zip("[Content_Types].xml"), "spreadsheet"),
            (zip("mimetypeapplication/vnd.oasis.opendocument.spreadsheet"), "spreadsheet"),
            (zip("rows.csv"), "compressed"),
            (b"\x1f\x8b\x08".to_vec(), "compressed"),
            (b"SQLite format 3\0".to_vec(), "database"),
            (b"\x80\x04\x95".to_vec(), "pickle"),
            (b"PAR1".to_vec(), "parquet"),
            (b"[{\"text\"".to_vec(), "JSON"),
        ] {
            assert!(by_content(&start, csv).unwrap().problem.contains(says), "{says}");
        }
        assert_eq!(by_content(b"PAR1", Some(TableFormat::Parquet)), None);
        assert_eq!(by_content(b"[{\"text\"", Some(TableFormat::JsonLines)), None);
        assert_eq!(by_content(b"text,emoji\n", csv), None);
        assert_eq!(by_content("é,x\n".as_bytes(), csv), None);
        assert!(by_content(b"text,emoji\n", Some(TableFormat::Parquet)).unwrap().problem.contains("parquet"));
    }
}
