//! What transformers' environment for chat templates has, in minijinja's.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, escape_formatter};

use super::{clock, json, page, python, tags};

/// What a rendering may take: one for an instruction, one for 64 bytes of text or three places of a
/// list. A conversation of a hundred turns takes some tens of thousands; this much takes about a tenth
/// of a second, and bounds what values made on the way can hold.
pub(super) const FUEL: u64 = 2_000_000;

/// The mark of an error that the template itself raised.
#[derive(Debug)]
pub(super) struct Raised;

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("raise_exception")
    }
}

impl std::error::Error for Raised {}

fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Seq | Map | String | Iterable | Undefined)
}

/// Jinja as transformers sets it up: `trim_blocks`, `lstrip_blocks`, `break` and `continue`, Python's
/// methods, its own `tojson`, `raise_exception` and `strftime_now`; nothing outside can be reached.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // Delimiters stay at their defaults, so that this cannot fail.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python::method);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
    });
    environment.add_function("strftime_now", |format: &str| clock::strftime_now(format));
    environment.add_function("dict", python::dict);
    environment.add_filter("trim", python::strip);
    environment.add_filter("tojson", json::tojson);
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, python::escape);
    }
    environment.add_function(tags::GENERATION, page::mark);
    environment.add_filter(tags::FACTOR, page::factor);
    environment.add_function(tags::KEPT, page::keep);
    environment.add_function(tags::KEPT_ON, page::keep_on);
    environment.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain));
    environment
        .add_test("sequence", |value: &Value| is_iterable(value) && value.kind() != ValueKind::Iterable);
    environment.add_test("iterable", is_iterable);
    environment.set_formatter(|out, state, value| match value.is_number() && !value.is_integer() {
        true => Ok(out.write_str(&python::float(f64::try_from(value.clone())?))?),
        false => escape_formatter(out, state, value),
    });
    environment
}
