//! The rows of a JSON document, whatever form people and programs gave it.

use super::columns::{Match, matches};
use super::json::{Json, Kind, Malformed};
use super::jsonl::{line_of, malformed};
use super::options::ReadOptions;
use super::report::Counted;
use super::show::shown;
use super::table::{Intake, Row};
use crate::error::{Error, Result};

const HELP: &str = "Save the rows as a list of objects, like [{\"text\": \"party\", \"emoji\": \"🎉\"}]";
/// Lists that hold the rows if there are several: the Hub viewer's, then those people name so.
const ROWS: [&str; 3] = ["rows", "data", "train"];
/// How many keys of the first row are remembered for an error.
const KEYS: usize = 100;

/// Reads rows from places of a text.
pub(super) struct RowReader<'a, 'r, 's> {
    name: &'a str,
    text: &'a str,
    options: &'a ReadOptions,
    rows: &'r mut Intake<'s>,
    read: usize,
    /// Whether any row had the text, and the emoji.
    seen: (bool, bool),
    /// The first row: where it is, and its keys.
    first: Option<(String, Vec<String>)>,
}

/// A member of the document.
struct Member {
    name: String,
    kind: Kind,
    at: usize,
}

impl<'a, 'r, 's> RowReader<'a, 'r, 's> {
    pub fn new(name: &'a str, text: &'a str, options: &'a ReadOptions, rows: &'r mut Intake<'s>) -> Self {
        Self { name, text, options, rows, read: 0, seen: (false, false), first: None }
    }

    /// After the last row: whether there were any, with the two columns.
    pub fn finish(self) -> Result<()> {
        match (&self.first, self.seen) {
            (None, _) => Err(Error::dataset(self.name, "there are no rows", "Give a file with some")),
            (Some(_), (true, true)) => Ok(()),
            (Some((at, keys)), _) => Err(self.options.columns.wrong(at, keys)),
        }
    }

    /// Reads the object that begins at `json` as a row.
    pub fn row(&mut self, json: &mut Json, at: &str, line: usize) -> Result<()> {
        self.row_of(json, at, line, true)
    }

    fn row_of(&mut self, json: &mut Json, at: &str, line: usize, is_outer: bool) -> Result<()> {
        let text = self.text;
        let wrong = |e: Malformed| malformed(at, text, &e, HELP);
        let columns = &self.options.columns;
        let is_first = self.first.is_none();
        let mut keys = Vec::new();
        let mut found: [Option<(Match, String, String)>; 2] = [None, None];
        // The Hub's viewer puts each row into an object of its own.
        let mut inner = None;
        let mut more = json.enter().map_err(wrong)?;
        while more {
            let key = json.name().map_err(wrong)?;
            let kind = json.kind().map_err(wrong)?;
            let fits = [matches(&key, &columns.text), matches(&key, &columns.answer)];
            match fits.iter().position(Option::is_some) {
                Some(place) => {
                    let fit = fits[place].unwrap_or(Match::Loose);
                    // An exact name goes before a loose one.
                    let weaker = found[place].as_ref().is_some_and(|(there, ..)| *there > fit);
                    match weaker {
                        true => json.skip().map_err(wrong)?,
                        false => {
                            let value = self.value(json, at, &key, kind)?;
                            if let Some((there, other, _)) = &found[place]
                                && *there == fit
                            {
                                return Err(self.twice(at, other, &key));
                            }
                            found[place] = Some((fit, key.clone(), value));
                        }
                    }
                }
                None => {
                    if key == "row" && kind == Kind::Object && is_outer {
                        inner = Some(json.at);
                    }
                    json.skip().map_err(wrong)?;
                }
            }
            if is_first && keys.len() < KEYS && !keys.contains(&key) {
                keys.push(key);
            }
            more = json.next_member(b'}').map_err(wrong)?;
        }
        if let (Some(inner), [None, None]) = (inner, &found) {
            return self.row_of(&mut Json::new(text, inner), at, line, false);
        }
        let [text, emoji] = found;
        self.seen = (self.seen.0 || text.is_some(), self.seen.1 || emoji.is_some());
        if is_first {
            self.first = Some((at.to_owned(), keys));
        }
        self.read += 1;
        let value =
            |found: Option<(Match, String, String)>| found.map(|(.., value)| value).unwrap_or_default();
        self.rows.push(Row { line, text: value(text), answer: value(emoji) });
        Ok(())
    }

    /// The error for two keys of a row that are the same column.
    fn twice(&self, at: &str, one: &str, other: &str) -> Error {
        let problem = match one == other {
            true => format!("the key {} stands twice in it", shown(one)),
            false => format!("the keys {} and {} could be the same column", shown(one), shown(other)),
        };
        Error::dataset(at, problem, "Remove one of them, or rename it")
    }

    /// The string of a column.
    fn value(&self, json: &mut Json, at: &str, key: &str, kind: Kind) -> Result<String> {
        let wrong = |e: Malformed| malformed(at, self.text, &e, HELP);
        match kind {
            Kind::String => json.string().map_err(wrong),
            Kind::Null => json.skip().map_err(wrong).map(|()| String::new()),
            other => {
                let help = match other {
                    Kind::List => "Join its parts to one string, or remove the row",
                    _ => "Put double quotes around the value, or remove the row",
                };
                Err(Error::dataset(at, format!("`{key}` is {}, not a string", other.says()), help))
            }
        }
    }

    /// Reads the whole text as one value.
    pub fn document(&mut self) -> Result<()> {
        let mut json = Json::new(self.text, 0);
        json.kind().map_err(|e| self.not_json(&e))?;
        let start = json.at;
        json.skip().map_err(|e| self.not_json(&e))?;
        if !json.is_at_end() {
            let what = "something follows the end of the value".into();
            return Err(self.not_json(&Malformed { at: json.at, what }));
        }
        match &self.options.files.field {
            None => self.table(start),
            Some(field) => {
                let members = match Json::new(self.text, start).kind() {
                    Ok(Kind::Object) => self.members(start)?,
                    _ => Vec::new(),
                };
                match members.iter().rev().find(|member| member.name == *field) {
                    Some(member) => self.table(member.at),
                    None => Err(Error::dataset(
                        self.name,
                        format!(
                            "it has no `{field}`, which the dataset's card names as the field of the rows"
                        ),
                        "Take another file or another revision of the dataset",
                    )),
                }
            }
        }
    }

    fn not_json(&self, e: &Malformed) -> Error {
        let at = format!("{}, line {}", self.name, line_of(self.text, e.at));
        malformed(&at, self.text, e, HELP)
    }

    fn no_table(&self, what: &str) -> Error {
        Error::dataset(self.name, what, HELP)
    }

    /// Reads the rows of the value at `start`, whose syntax has been looked through.
    fn table(&mut self, start: usize) -> Result<()> {
        match self.kind_at(start)? {
            Kind::List => self.list(start),
            Kind::Object => self.object(start),
            other => Err(self.no_table(&format!("{} where a list of rows should be", other.says()))),
        }
    }

    fn kind_at(&self, place: usize) -> Result<Kind> {
        Json::new(self.text, place).kind().map_err(|e| self.not_json(&e))
    }

    /// A list of objects.
    fn list(&mut self, start: usize) -> Result<()> {
        self.rows.counted = Counted::Rows;
        let mut json = Json::new(self.text, start);
        let mut more = json.enter().map_err(|e| self.not_json(&e))?;
        let (mut place, mut line) = (0, 1);
        while more {
            let kind = json.kind().map_err(|e| self.not_json(&e))?;
            line += line_of(&self.text[place..], json.at - place) - 1;
            place = json.at;
            let number = self.read + 1;
            let at = format!("{}, row {number} (line {line})", self.name);
            if kind != Kind::Object {
                return Err(Error::dataset(at, format!("{} where an object should be", kind.says()), HELP));
            }
            self.row(&mut json, &at, number)?;
            more = json.next_member(b']').map_err(|e| self.not_json(&e))?;
        }
        Ok(())
    }

    fn members(&self, start: usize) -> Result<Vec<Member>> {
        let wrong = |e: Malformed| self.not_json(&e);
        let mut json = Json::new(self.text, start);
        let mut members = Vec::new();
        let mut more = json.enter().map_err(wrong)?;
        while more {
            let name = json.name().map_err(wrong)?;
            let kind = json.kind().map_err(wrong)?;
            members.push(Member { name, kind, at: json.at });
            json.skip().map_err(wrong)?;
            more = json.next_member(b'}').map_err(wrong)?;
        }
        Ok(members)
    }

    /// An object: two columns, one row, or something with the rows in it.
    fn object(&mut self, start: usize) -> Result<()> {
        let members = self.members(start)?;
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        if self.options.columns.found(&names) == 2 {
            let (text, emoji) = self.options.columns.find(self.name, &names)?;
            let (text, emoji) = (&members[text], &members[emoji]);
            return match (text.kind, emoji.kind) {
                (Kind::List, Kind::List) | (Kind::Object, Kind::Object) => self.columns(text, emoji),
                _ => {
                    let at = format!("{}, line {}", self.name, line_of(self.text, start));
                    self.row(&mut Json::new(self.text, start), &at, 1)
                }
            };
        }
        let first_in = |member: &Member, wanted: Kind| {
            let mut json = Json::new(self.text, member.at);
            member.kind == Kind::List && json.enter() == Ok(true) && json.kind() == Ok(wanted)
        };
        let lists: Vec<&Member> = members.iter().filter(|member| first_in(member, Kind::Object)).collect();
        let named = |name: &str| members.iter().find(|member| member.name == name);
        if let [one] = lists.as_slice() {
            return self.list(one.at);
        }
        if let Some(rows) = ROWS.iter().find_map(|name| lists.iter().find(|list| list.name == *name)) {
            return self.list(rows.at);
        }
        if !lists.is_empty() {
            let names: Vec<&str> = lists.iter().map(|list| list.name.as_str()).collect();
            return Err(self.no_table(&format!("it holds several lists of rows: {}", names.join(", "))));
        }
        if let (Some(columns), Some(data)) = (named("columns"), named("data"))
            && first_in(columns, Kind::String)
            && first_in(data, Kind::List)
        {
            return self.split(columns.at, data.at);
        }
        // The rows' numbers or names as keys.
        let is_rows = members.iter().all(|member| member.kind == Kind::Object)
            && members.first().is_some_and(|first| {
                let inner = self.members(first.at).unwrap_or_default();
                let names: Vec<&str> = inner.iter().map(|member| member.name.as_str()).collect();
                self.options.columns.found(&names) == 2
            });
        if is_rows {
            self.rows.counted = Counted::Rows;
            for (i, member) in members.iter().enumerate() {
                let at = format!("{}, row {} (\"{}\")", self.name, i + 1, member.name.escape_debug());
                self.row(&mut Json::new(self.text, member.at), &at, i + 1)?;
            }
            return Ok(());
        }
        let at = format!("{}, line {}", self.name, line_of(self.text, start));
        Err(self.options.columns.wrong(&at, &names))
    }

    /// Two columns as lists, or as objects with the rows' numbers as keys.
    fn columns(&mut self, text: &Member, emoji: &Member) -> Result<()> {
        self.rows.counted = Counted::Rows;
        let (mut texts, mut emojis) = (Json::new(self.text, text.at), Json::new(self.text, emoji.at));
        let close = if text.kind == Kind::List { b']' } else { b'}' };
        let mut more = [&mut texts, &mut emojis].map(|json| json.enter());
        loop {
            let at = format!("{}, row {}", self.name, self.read + 1);
            let [text_more, emoji_more] = more;
            let (text_more, emoji_more) =
                (text_more.map_err(|e| self.not_json(&e))?, emoji_more.map_err(|e| self.not_json(&e))?);
            if text_more != emoji_more {
                let (longer, other) = if text_more { (text, emoji) } else { (emoji, text) };
                return Err(Error::dataset(
                    at,
                    format!("`{}` has more values than `{}`", longer.name, other.name),
                    "Give both columns a value for each row (null for none)",
                ));
            }
            if !text_more {
                return Ok(());
            }
            if close == b'}' {
                let one = texts.name().map_err(|e| self.not_json(&e))?;
                let two = emojis.name().map_err(|e| self.not_json(&e))?;
                if one != two {
                    return Err(Error::dataset(
                        at,
                        format!("`{}` goes on with row {one:?}, `{}` with {two:?}", text.name, emoji.name),
                        "Write both columns in the same order",
                    ));
                }
            }
            let value = |json: &mut Json, name: &str| {
                let kind = json.kind().map_err(|e| self.not_json(&e))?;
                self.value(json, &at, name, kind)
            };
            let (one, two) = (value(&mut texts, &text.name)?, value(&mut emojis, &emoji.name)?);
            self.take(one, two, &at);
            more = [&mut texts, &mut emojis].map(|json| json.next_member(close));
        }
    }

    /// Names of columns, and rows as lists (pandas' `orient="split"`).
    fn split(&mut self, columns: usize, data: usize) -> Result<()> {
        self.rows.counted = Counted::Rows;
        let wrong = |e: Malformed| malformed(self.name, self.text, &e, HELP);
        let mut json = Json::new(self.text, columns);
        let mut names = Vec::new();
        let mut more = json.enter().map_err(wrong)?;
        while more {
            match json.kind().map_err(wrong)? {
                Kind::String => names.push(json.string().map_err(wrong)?),
                _ => json.skip().map_err(wrong).map(|()| names.push(String::new()))?,
            }
            more = json.next_member(b']').map_err(wrong)?;
        }
        let places = self.options.columns.find(self.name, &names)?;
        let mut json = Json::new(self.text, data);
        let mut more = json.enter().map_err(wrong)?;
        while more {
            let at = format!("{}, row {}", self.name, self.read + 1);
            let (mut text, mut emoji) = (String::new(), String::new());
            let mut inner = json.enter().map_err(wrong)?;
            let mut place = 0;
            while inner {
                let kind = json.kind().map_err(wrong)?;
                match place {
                    _ if place == places.0 => text = self.value(&mut json, &at, &names[place], kind)?,
                    _ if place == places.1 => emoji = self.value(&mut json, &at, &names[place], kind)?,
                    _ => json.skip().map_err(wrong)?,
                }
                place += 1;
                inner = json.next_member(b']').map_err(wrong)?;
            }
            if place != names.len() {
                let problem = format!("the row has {place} values, `columns` names {}", names.len());
                return Err(Error::dataset(at, problem, HELP));
            }
            self.take(text, emoji, &at);
            more = json.next_member(b']').map_err(wrong)?;
        }
        Ok(())
    }

    fn take(&mut self, text: String, emoji: String, at: &str) {
        self.seen = (true, true);
        self.first.get_or_insert_with(|| (at.to_owned(), Vec::new()));
        self.read += 1;
        self.rows.push(Row { line: self.read, text, answer: emoji });
    }
}
