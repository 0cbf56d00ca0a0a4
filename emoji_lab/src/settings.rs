//! Settings that a run may give from outside.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_or_default() {
        // Cargo sets this one for every test; changing the environment is unsafe with threads.
        assert_eq!(setting("CARGO_PKG_NAME", "other"), "emoji_lab");
        assert_eq!(setting("EMOJI_LAB_NO_SUCH_SETTING", "embedded"), "embedded");
        assert_eq!(setting("EMOJI_LAB_NO_SUCH_SETTING", ""), "");
    }
}
