//! `strftime_now`: today's date and time as Python's `datetime.now().strftime` writes them.

use std::ffi::CString;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

/// The longest text that a format may make.
const LONGEST: usize = 4096;

/// Local time by `format`, in English whatever the machine's language is set to.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs() as libc::time_t, now.subsec_micros())
}

fn strftime(format: &str, seconds: libc::time_t, micros: u32) -> Result<String, Error> {
    let failed = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    // A first character that is cut off again: 0 bytes then mean that there was no room.
    let format = CString::new(format!(".{}", without_pythons_own(format, micros)))
        .map_err(|_| failed("a zero character in the format"))?;
    // SAFETY: all zeros are a valid `tm`.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of ours.
    if unsafe { libc::localtime_r(&seconds, &mut local) }.is_null() {
        return Err(failed("this machine's time is none"));
    }
    let mut text = vec![0u8; LONGEST];
    // SAFETY: the buffer has the length that is named, the format ends in a zero. No code here calls
    // setlocale, so the names are those of the C locale.
    let len = unsafe { libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &local) };
    if len == 0 {
        return Err(failed(&format!("more than {LONGEST} characters")));
    }
    text.truncate(len);
    text.remove(0);
    String::from_utf8(text).map_err(|_| failed("not UTF-8"))
}

/// `format` with what Python fills in by itself: microseconds, and a time zone that
/// `datetime.now()` does not know.
fn without_pythons_own(format: &str, micros: u32) -> String {
    let mut out = String::with_capacity(format.len());
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        let directive = if c == '%' { rest.next() } else { None };
        match (c, directive) {
            ('%', Some('f')) => out += &format!("{micros:06}"),
            ('%', Some('z' | 'Z')) => {}
            ('%', Some(':')) if rest.as_str().starts_with('z') => drop(rest.next()),
            ('%', Some(other)) => out.extend(['%', other]),
            // A % that ends the format is one.
            ('%', None) => out += "%%",
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // Noon in UTC: on this day in every time zone but the outermost.
    const NOON: libc::time_t = 1_795_608_000;

    #[test]
    fn dates_are_english() {
        let date = |format: &str| strftime(format, NOON, 1234).unwrap();
        assert_eq!(date("%d %B %Y"), "25 November 2026");
        assert_eq!(date("Today is %A, %-d %b '%y."), "Today is Wednesday, 25 Nov '26.");
        assert_eq!(date("%Y-%m-%d %% %f [%z%Z%:z] é 100%"), "2026-11-25 % 001234 [] é 100%");
        assert_eq!(date(""), "");
        assert_eq!(date("%%z"), "%z");
        assert_eq!(strftime_now("%Y").unwrap().len(), 4);
    }

    #[test]
    fn formats_that_fill_the_memory_are_refused() {
        for format in ["%1000000000d", "\0", &"%c".repeat(4096)] {
            assert!(strftime(format, NOON, 0).is_err());
        }
    }
}
