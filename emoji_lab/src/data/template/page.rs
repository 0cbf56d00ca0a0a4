//! What a template writes: a page of limited length, with what `{% generation %}` marks on it, and
//! values of limited depth.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Lists in lists deeper than that are not kept: the stack that takes them apart again has an end.
const DEEPEST: usize = 200;

/// How many values are looked at for one of a rendering's fuel.
const LOOKS: u64 = 2;

thread_local! {
    static WRITTEN: Cell<usize> = const { Cell::new(0) };
    static SPANS: RefCell<Vec<Range<usize>>> = const { RefCell::new(Vec::new()) };
}

/// What a template writes: text up to `limit` bytes.
pub(super) struct Page {
    text: Vec<u8>,
    limit: usize,
}

impl Page {
    /// An empty page; the spans of an earlier one on this thread are forgotten.
    pub(super) fn new(limit: usize) -> Self {
        WRITTEN.set(0);
        SPANS.take();
        Self { text: Vec::new(), limit }
    }

    /// The text, and the byte ranges of what was marked in it.
    pub(super) fn finish(self) -> (String, Vec<Range<usize>>) {
        let text = String::from_utf8(self.text)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        // Within a macro or a block set, counting from the page's end goes astray (transformers' too).
        let on_page = |span: &Range<usize>| text.get(span.clone()).is_some();
        let spans = SPANS.take().into_iter().filter(on_page).collect();
        (text, spans)
    }
}

impl std::io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.limit.saturating_sub(self.text.len()) {
            return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge));
        }
        self.text.extend_from_slice(bytes);
        WRITTEN.set(self.text.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The function that `{% generation %}` is a call of: what the block says, which will be written at the page's end as it stands.
pub(super) fn mark(state: &mut State, block: Kwargs) -> Result<String, Error> {
    let caller: Value = block.get("caller")?;
    let content = caller.call(state, &[])?.to_string();
    let start = WRITTEN.get();
    SPANS.with_borrow_mut(|spans| spans.push(start..start + content.len()));
    Ok(content)
}

/// The function that a value goes through which `{% set %}` keeps: `value`, if it is not too deep.
pub(super) fn keep(state: &mut State, value: Value) -> Result<Value, Error> {
    look(state, &value, 0, &mut 0, false)?;
    Ok(value)
}

/// The same for a value that a namespace keeps, which outlives the round of a loop: nor may there be
/// what hides its parts, or leads back to where it is kept.
pub(super) fn keep_on(state: &mut State, value: Value) -> Result<Value, Error> {
    look(state, &value, 0, &mut 0, true)?;
    Ok(value)
}

fn look(state: &State, value: &Value, depth: usize, looks: &mut u64, outlives: bool) -> Result<(), Error> {
    let refused = |what: &'static str| Err(Error::new(ErrorKind::InvalidOperation, what));
    *looks += 1;
    if looks.is_multiple_of(LOOKS) {
        state.consume_fuel(1)?;
    }
    if depth > DEEPEST {
        return refused("set: lists in lists too deep");
    }
    let kind = value.kind();
    if outlives {
        let of_its_kind = value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"));
        if of_its_kind || kind == ValueKind::Plain {
            return refused("set: a namespace keeps no namespaces and no macros");
        }
    }
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    for item in value.try_iter()? {
        if kind == ValueKind::Map {
            look(state, &value.get_item(&item)?, depth + 1, looks, outlives)?;
        }
        look(state, &item, depth + 1, looks, outlives)?;
    }
    Ok(())
}

/// The filter that both sides of a `*` go through: `value`, unless it has lists in it. Repeated again
/// and again, those would be more than can ever be walked through.
pub(super) fn factor(state: &State, value: Value) -> Result<Value, Error> {
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        for (i, item) in value.try_iter()?.enumerate() {
            state.consume_fuel((i as u64 + 1) % LOOKS)?;
            if matches!(item.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
                return Err(Error::new(ErrorKind::InvalidOperation, "a list of lists cannot be repeated"));
            }
        }
    }
    Ok(value)
}
