use std::path::Path;

use super::*;
use crate::data::Role;
use crate::model::gguf_tokenizer::tests::tiny_tokenizer;

fn messages() -> Vec<Message> {
    let say = |role, content: &str| Message { role, content: content.to_string() };
    vec![
        say(Role::System, "Translate this text to emoji: "),
        say(Role::User, "hello the world"),
        say(Role::Assistant, "🎉🎉"),
    ]
}

fn refused(folder: &Path) -> String {
    Tokenizer::from_dir(folder).expect_err("must be refused").to_string()
}

#[test]
fn what_it_saves_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tiny_tokenizer();
    tokenizer.save_pretrained(folder.path()).unwrap();
    let read = Tokenizer::from_dir(folder.path()).unwrap();
    assert_eq!(read.vocab_size(), 512);
    for text in ["hello the world", "  \n\n\t é", "<bos><unused3>🎉🎉<end_of_turn>"] {
        assert_eq!(read.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
    let ids = read.encode_chat(&messages()[..2], true).unwrap();
    assert_eq!(ids, tokenizer.encode_chat(&messages()[..2], true).unwrap());
    assert_eq!((ids[0], ids.iter().filter(|&&id| id == read.bos()).count()), (2, 1));
    assert_eq!(
        read.apply_chat_template(&messages(), false).unwrap(),
        "<bos><start_of_turn>user\nTranslate this text to emoji: \n\nhello the world<end_of_turn>\n\
         <start_of_turn>model\n🎉🎉<end_of_turn>\n"
    );
    assert_eq!((read.bos(), read.eos(), read.pad(), read.end_of_turn()), (2, 1, 0, Some(6)));
    assert_eq!(read.stop_ids(), [1, 6]);
    assert_eq!(read.token_to_id("<unk>"), Some(3));
    // Saving again changes nothing.
    let again = tempfile::tempdir().unwrap();
    read.save_pretrained(again.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
    {
        let [one, two] = [&folder, &again].map(|dir| std::fs::read(dir.path().join(name)).unwrap());
        assert!(one == two, "{name}");
    }
}

#[test]
fn the_template_file_wins_and_an_eos_of_the_configuration_stops_too() {
    let folder = tempfile::tempdir().unwrap();
    tiny_tokenizer().save_pretrained(folder.path()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<mask>"},
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "a"}]}"#,
    );
    let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.stop_ids()), (1, &[1, 4, 6][..]));
    assert_ne!(tokenizer.chat_template().source(), "a");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    assert_eq!(Tokenizer::from_dir(folder.path()).unwrap().chat_template().source(), "a");
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
    assert_eq!(tokenizer.chat_template().source(), ChatTemplate::gemma().unwrap().source());
}

#[test]
fn templates_are_found_where_people_have_them() {
    let folder = tempfile::tempdir().unwrap();
    tiny_tokenizer().save_pretrained(folder.path()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let remove = |name: &str| std::fs::remove_file(folder.path().join(name)).unwrap();
    let source = || Tokenizer::from_dir(folder.path()).map(|t| t.chat_template().source().to_owned());
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "tools");
    write("tokenizer_config.json", r#"{"chat_template": {"tool_use": "x", "default": "object"}}"#);
    write("chat_template.json", r#"{"chat_template": "processor"}"#);
    write("chat_template.jinja", "file");
    assert_eq!(source().unwrap(), "file");
    remove("chat_template.jinja");
    assert_eq!(source().unwrap(), "object");
    write("additional_chat_templates/default.jinja", "additional");
    assert_eq!(source().unwrap(), "additional");
    remove("additional_chat_templates/default.jinja");
    write("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert_eq!(source().unwrap(), "processor");
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "tool_use", "template": "no"}]}"#);
    let said = source().unwrap_err().to_string();
    assert!(said.contains("chat_template has tool_use, and none that is called default"), "{said}");
    write("tokenizer_config.json", r#"{"chat_template": 3}"#);
    assert!(source().unwrap_err().to_string().contains("neither a text nor a list"));
}

#[test]
fn templates_can_name_every_special_token() {
    let folder = tempfile::tempdir().unwrap();
    tiny_tokenizer().save_pretrained(folder.path()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "chat_template.jinja",
        "{{ bos_token ~ eos_token ~ unk_token ~ mask_token ~ boi_token ~ sep_token }}",
    );
    write(
        "tokenizer_config.json",
        r#"{"unk_token": {"content": "<unk>"}, "mask_token": "<mask>", "sep_token": null,
        "extra_special_tokens": {"boi_token": "<boi>"}}"#,
    );
    std::fs::remove_file(folder.path().join("special_tokens_map.json")).unwrap();
    let text = Tokenizer::from_dir(folder.path()).unwrap().apply_chat_template(&messages(), true).unwrap();
    assert_eq!(text, "<bos><eos><unk><mask><boi>");
}

#[test]
fn answers_are_marked_token_by_token() {
    let say = |role, content: &str| Message { role, content: content.to_string() };
    let talk = [
        say(Role::User, "hello the user"),
        say(Role::Assistant, "🎉 hello"),
        say(Role::User, "the"),
        say(Role::Assistant, "é"),
    ];
    let plain = tiny_tokenizer();
    let (ids, said) = plain.encode_answers(&talk).unwrap();
    assert_eq!(ids, plain.encode_chat(&talk, false).unwrap());
    let texts = |said: &[bool]| -> Vec<String> {
        let mut parts = vec![];
        for (i, said_too) in said.iter().enumerate().filter(|(_, said)| **said) {
            match parts.last_mut() {
                Some(part) if said[i - 1] == *said_too => Vec::push(part, ids[i]),
                _ => parts.push(vec![ids[i]]),
            }
        }
        parts.iter().map(|ids| plain.decode(ids, false).unwrap()).collect()
    };
    // The é is in no token: every one of its bytes is marked.
    assert_eq!(texts(&said), ["🎉 hello<end_of_turn>\n", "é<end_of_turn>\n"]);
    assert_eq!(texts(&plain.encode_answers(&talk[..3]).unwrap().1), ["🎉 hello<end_of_turn>\n"]);
    assert!(plain.encode_answers(&talk[..1]).unwrap().1.iter().all(|said| !said));
}

#[test]
fn a_token_without_an_embedding_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    tiny_tokenizer().save_pretrained(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let image = r#""added_tokens":[{"id":512,"content":"<image_soft_token>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},"#;
    std::fs::write(&path, text.replacen(r#""added_tokens":["#, image, 1)).unwrap();
    let tokenizer = Tokenizer::from_dir(folder.path()).unwrap().for_model(512).unwrap();
    assert_eq!(tokenizer.vocab_size(), 513);
    assert!(tokenizer.encode("hello").is_ok());
    let said = tokenizer.encode("hello <image_soft_token>").unwrap_err().to_string();
    assert!(said.contains("<image_soft_token> (id 512)"), "{said}");
    assert!(tokenizer.for_model(400).unwrap_err().to_string().contains("512 tokens"));
}

#[test]
fn missing_and_damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refused(folder.path()).contains("no tokenizer.json"));
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", "{");
    assert!(refused(folder.path()).contains("not a tokenizer.json"));
    // A merge that is longer than every token: the library itself would panic.
    write(
        "tokenizer.json",
        r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"BPE","vocab":{"ab":0},"merges":[["ab","ab"]]}}"#,
    );
    assert!(refused(folder.path()).contains("contradict each other"));
    tiny_tokenizer().save_pretrained(folder.path()).unwrap();
    write("tokenizer_config.json", "[]");
    assert!(refused(folder.path()).contains("tokenizer_config.json"));
    write("tokenizer_config.json", r#"{"bos_token": "<start>"}"#);
    assert!(refused(folder.path()).contains("no <start>"));
}

#[test]
fn a_saved_tokenizer_neither_cuts_nor_pads() {
    let mut inner =
        parse_tokenizer(tiny_tokenizer().inner.to_string(false).unwrap().as_bytes(), "t").unwrap();
    inner.with_padding(Some(Default::default()));
    inner
        .with_truncation(Some(tokenizers::TruncationParams { max_length: 2, ..Default::default() }))
        .unwrap();
    let tokenizer = Tokenizer::new(inner, Map::new(), "t").unwrap();
    assert!(tokenizer.encode("hello the world hello").unwrap().len() > 2);
}

#[test]
fn can_be_shared_between_threads() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    check(&tiny_tokenizer());
    assert!(format!("{:?}", tiny_tokenizer()).len() < 200);
}
