//! Tags of a template's source that are read otherwise here than minijinja reads them.

/// What is called with the content of `{% generation %}…{% endgeneration %}`: minijinja knows no tags
/// but its own.
pub(super) const GENERATION: &str = "__generation__";

/// What every value goes through that a `{% set %}` keeps, and its version for a namespace's.
pub(super) const KEPT: &str = "__kept__";
pub(super) const KEPT_ON: &str = "__kept_on__";

/// The filter that both sides of a `*` go through.
pub(super) const FACTOR: &str = "__factor__";

/// A source with its tags replaced.
pub(super) struct Retagged {
    pub(super) source: String,
    /// Whether it has `{% generation %}` tags.
    pub(super) marks: bool,
}

/// `source` with `{% generation %}` written as a call of [`GENERATION`], what a `{% set %}` keeps as one
/// of [`KEPT`], and both sides of a `*` with [`FACTOR`].
///
/// Comments, raw blocks and texts within expressions stay as they are, and so do lines.
pub(super) fn retag(source: &str) -> Retagged {
    let mut made = Retagged { source: String::with_capacity(source.len()), marks: false };
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        made.source.push_str(before);
        let (len, replacement) = match from.as_bytes().get(1) {
            Some(b'#') => (from.find("#}").map_or(from.len(), |end| end + 2), None),
            Some(b'{') => {
                let len = end_of_code(from, "}}");
                (len, factors(&from[..len], 0))
            }
            Some(b'%') => block(from, &mut made.marks),
            _ => (1, None),
        };
        made.source.push_str(replacement.as_deref().unwrap_or(&from[..len]));
        rest = &from[len..];
    }
    made.source.push_str(rest);
    made
}

/// How long the block tag is that `from` begins with (a raw block up to its end), and what it is to
/// be replaced by.
fn block(from: &str, marks: &mut bool) -> (usize, Option<String>) {
    let len = end_of_code(from, "%}");
    let tag = &from[..len];
    let Some(inner) = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")) else {
        return (len, None);
    };
    let code = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    let name = code.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
    match (name, code.len() == name.len()) {
        ("raw", true) => (end_of_raw(from, len), None),
        ("generation", true) => {
            *marks = true;
            (len, Some(tag.replacen("generation", &format!("call {GENERATION}()"), 1)))
        }
        ("endgeneration", true) => (len, Some(tag.replacen("endgeneration", "endcall", 1))),
        ("set", false) => {
            let made = kept(tag, code);
            (len, factors(made.as_deref().unwrap_or(tag), 0).or(made))
        }
        _ => (len, factors(tag, 0)),
    }
}

/// Behind the `{% endraw %}` of the raw block whose first tag ends at `at`.
fn end_of_raw(from: &str, mut at: usize) -> usize {
    while let Some(next) = from[at..].find("{%") {
        at += next;
        let inner = from[at + 2..].trim_start_matches(['-', '+']).trim_start();
        if inner.starts_with("endraw") {
            return at + end_of_code(&from[at..], "%}");
        }
        at += 2;
    }
    from.len()
}

/// `{% set target = value %}` with the value kept through a function.
fn kept(tag: &str, code: &str) -> Option<String> {
    let (target, value) = code.split_once('=')?;
    let names = |c: char| c.is_alphanumeric() || c.is_whitespace() || "_.,()".contains(c);
    if !target.chars().all(names) || value.starts_with('=') || value.trim().is_empty() {
        return None;
    }
    let function = if target.contains('.') { KEPT_ON } else { KEPT };
    // With the brackets of a tuple, for `set a, b = 1, 2`.
    Some(tag.replacen(code, &format!("{target}= {function}(({}))", value.trim_start_matches(' ')), 1))
}

/// `code` with [`FACTOR`] after both sides of every `*` outside of texts; `None` if it has none.
fn factors(code: &str, depth: usize) -> Option<String> {
    // Jinja refuses what is deeper.
    if depth > 200 {
        return None;
    }
    let bytes = code.as_bytes();
    let (mut out, mut from, mut at) = (String::new(), 0, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' => at = end_of_text(bytes, at),
            b'*' if bytes.get(at + 1) == Some(&b'*') => at += 2,
            b'*' => {
                let end = end_of_operand(bytes, at + 1);
                // What is within the operand gets its own.
                let operand = factors(&code[at + 1..end], depth + 1);
                let operand = operand.as_deref().unwrap_or(&code[at + 1..end]);
                out.push_str(&format!("{}|{FACTOR} *{operand}|{FACTOR}", code[from..at].trim_end()));
                (from, at) = (end, end);
            }
            _ => at += 1,
        }
    }
    (from > 0).then(|| out + &code[from..])
}

/// Behind the operand at `at`: a name, a number, a text or what is in brackets, with what follows it,
/// filters too.
fn end_of_operand(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(|b| b.is_ascii_whitespace() || matches!(b, b'-' | b'+')) {
        at += 1;
    }
    let begins = at;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' if at == begins => at = end_of_text(bytes, at),
            b'(' | b'[' | b'{' => at = end_of_brackets(bytes, at),
            b'.' | b'_' => at += 1,
            b if b.is_ascii_alphanumeric() || !b.is_ascii() => at += 1,
            _ => match bytes[at..].iter().position(|b| !b.is_ascii_whitespace()) {
                Some(next) if bytes[at + next] == b'|' => {
                    at += next + 1;
                    at += bytes[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
                }
                _ => break,
            },
        }
    }
    at
}

fn end_of_text(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => at += 1,
            _ if byte == bytes[start] => return at,
            _ => {}
        }
    }
    bytes.len()
}

fn end_of_brackets(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' => {
                at = end_of_text(bytes, at);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// Where code that begins with two characters of delimiter ends: after the first `close` outside of
/// texts and brackets.
fn end_of_code(from: &str, close: &str) -> usize {
    let bytes = from.as_bytes();
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            _ if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            b'"' | b'\'' => at = end_of_text(bytes, at),
            b'{' => at = end_of_brackets(bytes, at),
            _ => at += 1,
        }
    }
    from.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_where_they_are_tags() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "{% call __generation__() %}a{% endcall %}"),
            ("{%-  generation\n-%}a{%+endgeneration+%}", "{%-  call __generation__()\n-%}a{%+endcall+%}"),
        ] {
            let made = retag(source);
            assert_eq!((made.source.as_str(), made.marks), (expected, true));
        }
        for (source, expected) in [
            ("{% set x = 1 %}", "{% set x = __kept__((1)) %}"),
            ("{%- set x=[1,\n2] -%}", "{%- set x= __kept__(([1,\n2])) -%}"),
            ("{%set a.b = c.d == e%}", "{%set a.b = __kept_on__((c.d == e))%}"),
            ("{% set a, b = 1, '%}' %}", "{% set a, b = __kept__((1, '%}')) %}"),
        ] {
            let made = retag(source);
            assert_eq!((made.source.as_str(), made.marks), (expected, false));
        }
        for (source, expected) in [
            ("{{ a * 2 }}", "{{ a|F * 2|F }}"),
            ("{{ 'x*' * n.m[1 * 2](3)-1 }}", "{{ 'x*'|F * n.m[1|F * 2|F](3)|F-1 }}"),
            ("{% if 2*[1, ']'] %}", "{% if 2|F *[1, ']']|F %}"),
            ("{{ a * -b * c ** 2 }}", "{{ a|F * -b|F|F * c|F ** 2 }}"),
            ("{{ 2 * m | length + n|f(1) * 2 }}", "{{ 2|F * m | length|F + n|f(1)|F * 2|F }}"),
            ("{{ {'a': {'b': 1}} * 2 }}", "{{ {'a': {'b': 1}}|F * 2|F }}"),
        ] {
            assert_eq!(retag(source).source, expected.replace('F', FACTOR));
        }
        for source in [
            "",
            "{",
            "{%",
            "{{ '",
            "{% raw",
            "{# {% generation %} #}",
            "{# {% generation %}",
            "{% raw %}{% generation %}{% endraw %}",
            "{%- raw -%}{% generation %}{% if %}{%- endraw -%}",
            "{{ '{% generation %}' }}",
            "{{ \"\\\"{% generation %}\" }}",
            "{% if x == '%}{% generation %}' %}",
            "{% generations %}",
            "{% set x %}a=b{% endset %}",
            "{% set x | default(a=1) %}y{% endset %}",
            "{% set x == 1 %}",
            "{% set x = %}",
            "{% set",
            "{% settle = 1 %}",
            "{% raw %}{% set x = 1 %}{% endraw %}",
            "generation",
        ] {
            let made = retag(source);
            assert_eq!((made.source.as_str(), made.marks), (source, false));
        }
    }
}
