//! Settings that a run may give from outside.

use std::str::FromStr;

use crate::error::{Error, Result};

/// The environment variable `name`, or `default` where it is not set or empty.
///
/// The notebook's settings pass through here so that a run without a front end (nbconvert) can
/// change them. Not for tokens: the value is meant to be shown.
pub fn setting(name: &str, default: &str) -> String {
    match std::env::var_os(name) {
        Some(value) if !value.is_empty() => value.to_string_lossy().into_owned(),
        _ => default.to_owned(),
    }
}

/// [`setting`] for a value that is not text: a number of rows, a share, a seed.
///
/// # Errors
/// [`Error::Setting`] naming the variable if what it holds is no such value.
pub fn setting_or<T: FromStr>(name: &'static str, default: T) -> Result<T> {
    let value = setting(name, "");
    if value.is_empty() {
        return Ok(default);
    }
    let kind = std::any::type_name::<T>();
    value.parse().map_err(|_| Error::setting(name, &value, format!("expected a number ({kind})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_or_default() {
        // Cargo sets this one for every test; changing the environment is unsafe with threads.
        assert_eq!(setting("CARGO_PKG_NAME", "other"), "emoji_lab");
        assert_eq!(setting("EMOJI_LAB_NO_SUCH_SETTING", "embedded"), "embedded");
        assert_eq!(setting("EMOJI_LAB_NO_SUCH_SETTING", ""), "");
        assert_eq!(setting_or("EMOJI_LAB_NO_SUCH_SETTING", 64usize).unwrap(), 64);
        assert_eq!(setting_or::<u64>("CARGO_PKG_VERSION_MAJOR", 7).unwrap(), 0);
        let error = setting_or("CARGO_PKG_NAME", 1.5).unwrap_err().to_string();
        assert_eq!(error, "setting CARGO_PKG_NAME = emoji_lab: expected a number (f64)");
    }
}
