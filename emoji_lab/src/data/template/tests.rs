//! Whole templates: what transformers makes of them, and that they end.

use super::*;
use crate::data::Conversation;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/text/chat.jsonl");
const TEMPLATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates/rows.jsonl");

/// Each construct of Jinja that templates use: what transformers makes of it, we make of it.
#[test]
fn templates_do_what_they_do_in_transformers() {
    let rows = std::fs::read_to_string(TEMPLATES).unwrap();
    let mut wrong = vec![];
    for line in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let tokens = ["bos", "eos", "pad", "unk"].map(|t| (format!("{t}_token"), format!("<{t}>")));
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let prompt = row["add_generation_prompt"].as_bool().unwrap();
        let ours = ChatTemplate::with_tokens(row["template"].as_str().unwrap(), tokens)
            .map_err(|e| ("syntax", e))
            .and_then(|t| t.render_marked(&messages, prompt).map_err(|e| ("rendering", e)));
        let fits = match (&ours, row["error"].as_str()) {
            (Ok(ours), None) => {
                let chars = |at: usize| ours.text[..at].chars().count();
                let spans: Vec<_> = ours.spans.iter().map(|s| [chars(s.start), chars(s.end)]).collect();
                ours.text == row["text"].as_str().unwrap() && serde_json::json!(spans) == row["spans"]
            }
            (Err((_, e)), Some("raised")) => e.to_string().contains(&format!(
                "refuses these messages: {}",
                row["said"].as_str().unwrap().trim_end_matches('.')
            )),
            (Err((at, e)), Some(kind)) => {
                let said = e.to_string();
                // Jinja looks filters and tests up when it compiles.
                let late = said.contains("unknown filter") || said.contains("unknown test");
                said.lines().count() == 1
                    && !said.contains("refuses")
                    && (*at == "syntax" || kind != "syntax" || late)
            }
            _ => false,
        };
        if !fits {
            let theirs = row["text"].as_str().map_or_else(|| row["error"].to_string(), str::to_owned);
            wrong.push(format!("{}:\n  ours   {ours:?}\n  theirs {theirs:?} {}", row["name"], row["spans"]));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

fn check_golden(template: &ChatTemplate) {
    let lines = std::fs::read_to_string(GOLDEN).unwrap();
    let mut checked = 0;
    for line in lines.lines() {
        let golden: serde_json::Value = serde_json::from_str(line).unwrap();
        let conversation: Conversation = serde_json::from_str(line).unwrap();
        assert_eq!(template.render(&conversation.messages, false).unwrap(), golden["text"]);
        assert_eq!(template.render(&conversation.prompt(), true).unwrap(), golden["prompt"]);
        checked += 1;
    }
    assert!(checked > 50, "{GOLDEN} has {checked} lines");
}

#[test]
fn our_gemma_template_writes_the_golden_text() {
    check_golden(&ChatTemplate::gemma().unwrap());
}

#[test]
fn gemmas_own_template_writes_the_golden_text() {
    let path = crate::settings::setting("EMOJI_LAB_TOKENIZER_CONFIG", "");
    let Ok(config) = std::fs::read_to_string(&path) else {
        println!("skipped: EMOJI_LAB_TOKENIZER_CONFIG names no tokenizer_config.json of Gemma 3");
        return;
    };
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let source = config["chat_template"].as_str().unwrap();
    let template = ChatTemplate::new(source, "<bos>", "<eos>").unwrap();
    check_golden(&template);
    let ours = ChatTemplate::gemma().unwrap();
    let (system, user) = (|| Message::system("\n s "), || Message::user("\u{1c}\u{85}u\u{a0}\n"));
    let model = || Message::assistant(" a<>&\"' {{ x }} ");
    for messages in [
        vec![user()],
        vec![system(), user(), model(), user()],
        vec![user(), model(), user(), model()],
        vec![system()],
        vec![model()],
        vec![user(), user()],
        vec![user(), system()],
        vec![system(), system()],
        vec![Message::user("")],
    ] {
        for prompt in [false, true] {
            let (a, b) = (template.render(&messages, prompt), ours.render(&messages, prompt));
            assert_eq!(a.ok(), b.ok(), "{messages:?}");
        }
    }
}

/// A template comes from anywhere: it must neither run for ever nor fill the memory.
#[test]
fn templates_end() {
    let nest = |inner: &str| {
        let (open, close) = ("{% for i in range(99999) %}", "{% endfor %}");
        format!("{}{inner}{}", open.repeat(3), close.repeat(3))
    };
    let grown =
        |by: &str| format!("{{% set n = namespace(x='x') %}}{}", nest(&format!("{{% set n.x = {by} %}}")));
    for source in [
        nest(""),
        nest("text"),
        nest("{{ messages }}"),
        nest("{% set x = messages | tojson %}"),
        grown("n.x ~ n.x"),
        grown("n.x + n.x"),
        grown("n.x * 2"),
        grown("[n.x, n.x] | join"),
        grown("'{}{}'.format(n.x, n.x)"),
        grown("n.x.replace('x', 'xx')"),
        grown("n.x | replace('x', 'xx')"),
        grown("[n.x] | tojson"),
        grown("[n.x] * 2"),
        grown("{'a': n.x, 'b': n.x}"),
        "{{ 'x' * 1000000000 }}".into(),
        "{{ 'x' * 99999 * 99999 }}".into(),
        "{{ ['x'] * 1000000000 }}".into(),
        "{% set x = 'x' * 1000000 %}{{ x.replace('', x) }}".into(),
        "{% set x = 'x' * 1000000 %}{{ x | replace('x', x) }}".into(),
        "{% set x = 'x' * 1000000 %}{{ x.join(x) }}".into(),
        "{% set x = 'x' * 1000000 %}{{ x | list | join(x) }}".into(),
        "{{ 'x'.center(1000000000) }}".into(),
        "{{ 'x'.ljust(1000000000, 'é') }}".into(),
        "{{ 'x'.zfill(1000000000) }}".into(),
        "{{ '%1000000000d' | format(1) }}".into(),
        "{{ '%.1000000000f' | format(1.5) }}".into(),
        "{{ '{:>1000000000}'.format('x') }}".into(),
        "{{ '{:.1000000000f}'.format(1.5) }}".into(),
        "{{ 'x' | indent(1000000000, true) }}".into(),
        "{{ [1] | batch(1000000000, 0) | list }}".into(),
        "{{ [1] | slice(1000000000, 0) | list }}".into(),
        "{{ [1] | slice(1000000000) | list | length }}".into(),
        "{{ range(99999999999) | list }}".into(),
        "{{ [[1] * 90000] * 90000 | tojson }}".into(),
        "{{ ([1] * 90000) | tojson(indent=1000) }}".into(),
        "{{ [[[[1]]]] | tojson(indent='x' * 10000000) }}".into(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}".into(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n | tojson }}".into(),
        "{% set n = namespace() %}{% set n.n = [n] %}{{ n ~ '' }}".into(),
        "{% set n = namespace() %}{% set n.n = [n] %}{{ n == n.n[0] }}{{ [n] | string }}{{ [n, n] | sort }}".into(),
        "{% set n = namespace(x=[]) %}{% macro m() %}{{ n.x }}{% endmacro %}{% set n.x = [m] %}{{ n }}".into(),
        "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}".into(),
        "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = {'a': n.x}.items() %}{% endfor %}{{ n.x | list }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) ~ '' }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | string | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | tojson | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | pprint | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | join | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | upper | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | trim | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | escape | length }}".into(),
        "{{ ([[[1] * 1000] * 1000] * 1000) | list | length }}".into(),
        "{{ ''.join([[[[1] * 1000] * 1000] * 1000]) | length }}".into(),
        "{{ '{}'.format([[[1] * 1000] * 1000] * 1000) | length }}".into(),
        "{{ ('%s' | format([[[1] * 1000] * 1000] * 1000)) | length }}".into(),
        "{{ raise_exception([[[1] * 1000] * 1000] * 1000) }}".into(),
        "{% set x = [[[1] * 1000] * 1000] * 1000 %}{{ x == [[[1] * 1000] * 1000] * 1000 }}".into(),
        "{{ [[[1] * 1000] * 1000] * 1000 == [[[1] * 1000] * 1000] * 1000 }}".into(),
        "{{ [[[[1] * 1000] * 1000] * 1000, [[[1] * 1000] * 1000] * 1000] | sort | length }}".into(),
        "{{ [[[[1] * 1000] * 1000] * 1000, [[[1] * 1000] * 1000] * 1000] | unique | list | length }}".into(),
        "{{ {([[[1] * 1000] * 1000] * 1000): 1} | length }}".into(),
        "{{ [[[[1] * 1000] * 1000] * 1000] | groupby('x') | length }}".into(),
        "{% set x = [1] * 1000 %}{% set y = [x] %}{{ (y * 1000) ~ '' }}".into(),
        "{% extends 'chat_template' %}".into(),
        "{% include 'chat_template' %}".into(),
        "{% import 'chat_template' as x %}{{ x }}".into(),
        "{{ strftime_now('%c' * 100000) }}".into(),
    ] {
        let started = std::time::Instant::now();
        let template = ChatTemplate::new(source.as_str(), "", "").unwrap();
        let made = template.render(&[Message::user("hello")], true);
        let took = started.elapsed();
        assert!(took.as_secs() < 20, "{source:.70} takes {took:?}");
        match made {
            Ok(text) => assert!(text.len() <= LONGEST + 5 * TIMES, "{source:.70}"),
            Err(error) => {
                let said = error.to_string();
                assert!(said.lines().count() == 1 && said.len() < 1000, "{said}");
            }
        }
    }
    let endless = ChatTemplate::new(nest(""), "", "").unwrap().render(&[Message::user("")], true);
    let said = endless.unwrap_err().to_string();
    assert!(said.starts_with("model chat template, line 1: does not end, or writes far more"), "{said}");
    // What is long because it was given much is fine.
    let long = "x ".repeat(1 << 20);
    let text = ChatTemplate::gemma().unwrap().render(&[Message::user(long.clone())], true).unwrap();
    assert!(text.contains(long.trim()));
}

/// Lists in lists, each made and forgotten on the stack: deeper than it would go by itself.
#[test]
fn deep_values_are_no_crash() {
    for inner in ["[n.x]", "{'x': n.x}", "(n.x,)"] {
        for end in ["", "{{ n.x }}", "{{ n.x == n.y }}", "{{ n.x | tojson }}", "{{ [n.x, n.y] | sort }}"] {
            let source = format!(
                "{{% set n = namespace(x=[], y=[]) %}}{{% for j in range(99) %}}{{% for i in range(99999) %}}\
                 {{% set n.x = {inner} %}}{{% endfor %}}{{% endfor %}}{end}"
            );
            let template = ChatTemplate::new(source, "", "").unwrap();
            assert!(template.render(&[Message::user("")], true).is_err());
            let source = format!(
                "{{% set n = namespace(x=[], y=[]) %}}{{% for i in range(90000) %}}\
                 {{% set n.x = {inner} %}}{{% endfor %}}{{% set n.y = n.x %}}{end}"
            );
            let template = ChatTemplate::new(source, "", "").unwrap();
            assert!(template.render(&[Message::user("")], true).is_err());
        }
    }
    let source = "{% set x = [] %}".to_owned() + &"{% set x = [x] %}".repeat(3_500) + "{{ x }}";
    let _ = ChatTemplate::new(source, "", "").unwrap().render(&[Message::user("")], true);
    // Long chains of operators nest as deep, in the compiler and in what they make.
    for chain in [
        "+1",
        "~1",
        " and 1",
        ".a",
        "[0]",
        "|upper",
        " is none",
        " if 1",
        "*1",
        "**1",
        "=1",
        "(1)",
        ",1",
        "|batch(1)|list",
    ] {
        let source = format!("{{{{ 1{} }}}}", chain.repeat(20_000 / chain.len()));
        if let Ok(template) = ChatTemplate::new(source, "", "") {
            let _ = template.render(&[Message::user("")], true);
        }
    }
    for deep in ["(", "[", "{{ {1:", "{% if x %}", "{% for x in y %}", "{{ not ", "{{ -", "{% set x = -"] {
        let opened = if deep.starts_with('{') { "" } else { "{{ " };
        assert!(ChatTemplate::new(opened.to_owned() + &deep.repeat(60_000 / deep.len()), "", "").is_err());
    }
    let elif = "{% if x %}".to_owned() + &"{% elif x %}".repeat(5_000) + "{% endif %}";
    let _ = ChatTemplate::new(elif, "", "");
    assert!(ChatTemplate::new("x".repeat(LONGEST_SOURCE + 1), "", "").is_err());
}

#[test]
fn faults_of_a_template_are_not_the_messages() {
    let said = |source: &str| {
        let template = ChatTemplate::new(source, "", "").unwrap();
        template.render(&[Message::user("x")], true).unwrap_err().to_string()
    };
    for (source, name) in [
        ("{{ no_such_function() }}", "no_such_function"),
        ("{{ 'x' | no_such_filter }}", "no_such_filter"),
        ("{{ 'x' is no_such_test }}", "no_such_test"),
        ("{{ 'x'.no_such_method() }}", "no_such_method"),
    ] {
        let said = said(source);
        assert!(said.contains("cannot be rendered: unknown") && said.contains(name), "{said}");
        assert!(said.contains("The template is at fault, not the messages"), "{said}");
    }
    let said = said("\n{{ raise_exception('No\ntools.') }}");
    assert_eq!(said, format!("model chat template, line 2: refuses these messages: No tools. {TURNS}"));
}

#[test]
fn turns_that_do_not_alternate() {
    let template = ChatTemplate::gemma().unwrap();
    let error = template.render(&[Message::user("a"), Message::user("b")], true).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("Conversation roles must alternate user/assistant"), "{said}");
    assert_eq!(said.lines().count(), 1);
    assert!(template.render(&[], true).unwrap_err().to_string().contains("no messages"));
}

#[test]
fn templates_that_are_no_templates() {
    let error = ChatTemplate::new("{{ bos_token }}\n{% for %}", "", "").unwrap_err().to_string();
    assert!(error.starts_with("model chat template, line 2: is not valid Jinja: "), "{error}");
}

#[test]
fn blocks_leave_no_white_space_and_python_methods_work() {
    let source = "  {% for m in messages %}\n{{ m.role.upper() }}:{{ m['content'].strip() }}{{ eos_token }}\n  {% endfor %}\n";
    let template = ChatTemplate::new(source, "<b>", "</s>").unwrap();
    let text = template.render(&[Message::user(" a "), Message::assistant("b")], false).unwrap();
    assert_eq!(text, "USER:a</s>\nASSISTANT:b</s>\n");
    assert_eq!(template.source(), source);
}

#[test]
fn can_be_kept_in_a_cell_and_shared() {
    fn owned<T: Clone + fmt::Debug + Send + Sync + 'static>(_: &T) {}
    let template = ChatTemplate::gemma().unwrap();
    owned(&template);
    assert!(format!("{template:?}").len() < 200);
}
