use super::*;
use crate::model::open_pretrained;
use crate::task::SYSTEM_PROMPT;

/// A Modelfile as Ollama reads it (its `parser.go`): command and value, until a line ends in what
/// closes the value; characters that are not printable are dropped.
fn parse(text: &str) -> Vec<(String, String)> {
    let unquoted = |buffer: &str| -> Option<String> {
        let s = buffer.trim();
        if let Some(rest) = s.strip_prefix("\"\"\"") {
            return rest.strip_suffix("\"\"\"").map(str::to_string);
        }
        if let Some(rest) = s.strip_prefix('"') {
            return rest.strip_suffix('"').map(str::to_string);
        }
        Some(s.to_string())
    };
    let mut commands = vec![];
    let mut lines = text.split('\n');
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (mut command, mut value) = line.split_once(' ').unwrap();
        let name;
        if command == "PARAMETER" {
            let (parameter, rest) = value.split_once(' ').unwrap();
            name = format!("PARAMETER {parameter}");
            (command, value) = (&name, rest);
        }
        let mut buffer = value.to_string();
        let value = loop {
            buffer.retain(|c| {
                c == '\n' || c == ' ' || !(c.is_control() || c.is_whitespace() || c == '\u{200d}')
            });
            match unquoted(&buffer) {
                Some(value) => break value,
                None => buffer = format!("{buffer}\n{}", lines.next().expect("a value that does not end")),
            }
        };
        commands.push((command.to_string(), value));
    }
    commands
}

/// What Ollama's template language makes of the few forms that are used here.
fn render(template: &str, system: &str, prompt: &str) -> String {
    let body = template.strip_prefix("{{ if .System }}").unwrap();
    let (with, rest) = body.split_once("{{ else }}").unwrap();
    let (without, rest) = rest.split_once("{{ end }}").unwrap();
    let (rest, _) = rest.split_once("{{ .Response }}").unwrap();
    let all = format!("{}{rest}", if system.is_empty() { without } else { with });
    let mut out = String::new();
    let mut left = all.as_str();
    while let Some((text, rest)) = left.split_once("{{ ") {
        let (action, after) = rest.split_once(" }}").unwrap();
        out.push_str(text);
        match action {
            ".System" => out.push_str(system),
            ".Prompt" => out.push_str(prompt),
            quoted => {
                let inner = quoted.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
                let mut pieces = inner.split("\\U");
                out.push_str(pieces.next().unwrap());
                for piece in pieces {
                    let code = u32::from_str_radix(&piece[..8], 16).unwrap();
                    out.push(char::from_u32(code).unwrap());
                    out.push_str(&piece[8..]);
                }
            }
        }
        left = after;
    }
    out + left
}

fn value<'a>(commands: &'a [(String, String)], name: &str) -> Option<&'a str> {
    commands.iter().find(|(command, _)| command == name).map(|(_, value)| value.as_str())
}

const EVIL: [&str; 12] = [
    "\"\"\"\nFROM evil\n",
    "\"\"\"\r\nSYSTEM x",
    "say \"\"\"\n\"\"\"",
    "\"",
    "ends with \"",
    "\"\" \"",
    "{{ .Prompt }}{{ end }}",
    "👩‍👩‍👧 🏳️‍🌈\u{200b}\u{202e}",
    "  blanks around \n\n\t ",
    "line\nPARAMETER temperature 2\nFROM evil",
    "back\\slash \\U00000041 #\n# no comment",
    "日本語 é ünïcode",
];

#[test]
fn a_modelfile_asks_as_was_trained() {
    let tokenizer = open_pretrained("embedded").unwrap().tokenizer;
    for system in EVIL.into_iter().chain([SYSTEM_PROMPT, "", "x"]) {
        let asking = asking(&tokenizer, system, "embedded").unwrap();
        let commands = parse(&asking.modelfile("my emoji.gguf").unwrap());
        let names: Vec<&str> = commands.iter().map(|(name, _)| name.as_str()).collect();
        let wanted = ["FROM", "TEMPLATE", "SYSTEM", "PARAMETER stop", "PARAMETER temperature"];
        let wanted = wanted.into_iter().filter(|name| *name != "SYSTEM" || names.contains(name));
        assert_eq!(names, wanted.collect::<Vec<_>>(), "{system:?}");
        assert_eq!(value(&commands, "FROM"), Some("./my emoji.gguf"));
        assert_eq!(value(&commands, "PARAMETER stop"), Some("<end_of_turn>"));
        let template = value(&commands, "TEMPLATE").unwrap();
        let given = value(&commands, "SYSTEM").unwrap_or_default();
        let messages = |system: &str| match system.is_empty() {
            true => vec![Message::user("to the beach")],
            false => vec![Message::system(system), Message::user("to the beach")],
        };
        let trained = tokenizer.apply_chat_template(&messages(system), true).unwrap();
        assert_eq!(format!("<bos>{}", render(template, given, "to the beach")), trained, "{system:?}");
        // The Hub's files say the same.
        let [(_, template), (_, given), (_, params)] = asking.hub_files();
        assert_eq!(format!("<bos>{}", render(&template, &given, "to the beach")), trained, "{system:?}");
        let params: serde_json::Value = serde_json::from_str(&params).unwrap();
        assert_eq!(params, json!({"temperature": 0, "stop": ["<end_of_turn>"]}));
    }
}

#[test]
fn the_default_is_short_and_plain() {
    let tokenizer = open_pretrained("embedded").unwrap().tokenizer;
    let text = asking(&tokenizer, SYSTEM_PROMPT, "embedded").unwrap().modelfile("m.gguf").unwrap();
    let wanted = "# Asks as the model was trained: ollama create NAME -f Modelfile\n\
        FROM ./m.gguf\n\
        TEMPLATE \"\"\"{{ if .System }}<start_of_turn>user\n{{ .System }} \n\n{{ else }}<start_of_turn>user\n\
        {{ end }}{{ .Prompt }}<end_of_turn>\n<start_of_turn>model\n{{ .Response }}<end_of_turn>\n\"\"\"\n\
        SYSTEM \"\"\"Translate this text to emoji:\"\"\"\n\
        PARAMETER stop \"\"\"<end_of_turn>\"\"\"\nPARAMETER temperature 0\n";
    assert_eq!(text, wanted);
}

#[test]
fn files_that_a_modelfile_cannot_name_are_refused() {
    let tokenizer = open_pretrained("embedded").unwrap().tokenizer;
    let asking = asking(&tokenizer, SYSTEM_PROMPT, "embedded").unwrap();
    for name in ["a\nFROM b.gguf", "a\u{200d}.gguf", "tab\t.gguf", "blank "] {
        let said = asking.modelfile(name).unwrap_err().to_string();
        assert!(said.contains("modelfile: false"), "{said}");
    }
    assert!(asking.modelfile("größe \"q\" {{x}}.gguf").is_ok());
}

#[test]
fn a_template_that_has_no_place_for_a_system_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = open_pretrained("embedded").unwrap().tokenizer;
    tokenizer.save_pretrained(folder.path()).unwrap();
    std::fs::write(
        folder.path().join("chat_template.jinja"),
        "{{ bos_token }}{{ messages[-1].content | upper }}",
    )
    .unwrap();
    let other = Tokenizer::from_dir(folder.path()).unwrap();
    let said = asking(&other, SYSTEM_PROMPT, "mine").unwrap_err().to_string();
    assert!(said.contains("mine") && said.contains("modelfile: false"), "{said}");
}
