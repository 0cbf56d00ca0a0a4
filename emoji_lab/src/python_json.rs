//! JSON as Python's `json` writes it: with the words `NaN` and `Infinity`, which JSON does not have.

/// The text with those words as `null`, which is what they can only mean to a reader of numbers.
pub(crate) fn without_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(next) = rest.chars().next() {
        let word =
            ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| !in_string && rest.starts_with(word));
        let taken = match word {
            Some(word) => {
                out.push_str("null");
                word.len()
            }
            None => {
                in_string ^= next == '"';
                // What a backslash is before is not the end of the string.
                let escaped = match in_string && next == '\\' {
                    true => rest[1..].chars().next().map_or(0, char::len_utf8),
                    false => 0,
                };
                let len = next.len_utf8() + escaped;
                out.push_str(&rest[..len]);
                len
            }
        };
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_of_strings_become_null() {
        for (text, plain) in [
            (r#"{"loss": NaN, "x": [-Infinity, Infinity]}"#, r#"{"loss": null, "x": [null, null]}"#),
            (r#"{"NaN": "a \" NaN \\", "b": NaN}"#, r#"{"NaN": "a \" NaN \\", "b": null}"#),
            (r#"{"é": "Infinity", "cut \"#, r#"{"é": "Infinity", "cut \"#),
            ("", ""),
        ] {
            assert_eq!(without_words(text), plain);
        }
    }
}
