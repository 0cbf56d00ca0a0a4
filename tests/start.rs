//! What a run starts from, as TRL and PEFT have it: rows, their order, A and B, and where dropout
//! sits. `tests/python/run` compares the same things with Python itself.

use emoji_lab::ops::IGNORE_INDEX;
use emoji_lab::ops::lora_linear::{Dropout, Lora, Weight, forward};
use emoji_lab::prelude::*;
use emoji_lab::{Device, Tensor};

const ROWS: usize = 19;

fn trainer(args: &SftConfig) -> SftTrainer {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let rows = format_chat(&dataset).take(ROWS);
    let args = SftConfig { eval_strategy: Strategy::No, ..args.clone() };
    SftTrainer::new(&model, &rows, None, &QuantConfig::none(), Some(&LoraConfig::default()), &args).unwrap()
}

#[test]
fn every_epoch_has_an_order_of_its_own_and_all_rows() {
    let one = trainer(&SftConfig::default());
    let (first, second) = (one.epoch_order(0), one.epoch_order(1));
    for order in [&first, &second] {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..ROWS).collect::<Vec<_>>());
    }
    assert_ne!(first, second);
    assert_eq!(trainer(&SftConfig::default()).epoch_order(0), first, "the seed decides");
    assert_ne!(trainer(&SftConfig { seed: 43, ..SftConfig::default() }).epoch_order(0), first);
}

#[test]
fn rows_are_cut_and_the_last_batch_has_what_is_left() {
    let whole = trainer(&SftConfig::default()).epoch_batches(0);
    assert_eq!(whole.iter().map(|b| b.rows).collect::<Vec<_>>(), [4, 4, 4, 4, 3]);
    let lengths: Vec<usize> = whole.iter().flat_map(|b| &b.tokens.segments).map(|row| row.q_len).collect();
    let max_length = lengths.iter().max().unwrap() - 3;
    let cut = trainer(&SftConfig { max_length, ..SftConfig::default() }).epoch_batches(0);
    let mut shorter = 0;
    for (whole, cut) in whole.iter().zip(&cut) {
        for (a, b) in whole.tokens.segments.iter().zip(&cut.tokens.segments) {
            assert_eq!(b.q_len, a.q_len.min(max_length));
            shorter += usize::from(b.q_len < a.q_len);
            let a_ids = &whole.tokens.ids[a.q_start..][..b.q_len];
            let b_ids = &cut.tokens.ids[b.q_start..][..b.q_len];
            assert_eq!(a_ids, b_ids, "cut at the end, not at the start");
            // Each token predicts the next of its row, the last one nothing.
            let targets = &cut.targets[b.q_start..][..b.q_len];
            let next = b_ids[1..].iter().map(|&id| i64::from(id)).chain([IGNORE_INDEX]);
            assert_eq!(targets, next.collect::<Vec<_>>());
        }
    }
    assert!(shorter > 0);
}

/// A model folder with another chat template than its own.
fn with_template(template: &str) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    load_model("embedded", &Device::Cpu).unwrap().save_pretrained(folder.path()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = load_model(&folder.path().display().to_string(), &Device::Cpu).unwrap();
    (folder, model.tokenizer)
}

/// Models that TRL tuned with `assistant_only_loss` come with such a template; in transformers too
/// the tags print nothing.
#[test]
fn a_template_with_generation_tags() {
    let (_folder, tokenizer) = with_template(
        "{{ bos_token }}
{%- set lead = '' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set lead = messages[0]['content'] + '\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if turn['role'] == 'assistant' -%}
{{ '<start_of_turn>model\\n' }}{% generation %}{{ turn['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endgeneration %}
{%- else -%}
{{ '<start_of_turn>' + turn['role'] + '\\n' + (lead if loop.first else '') + (turn['content'] | trim) + '<end_of_turn>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
",
    );
    let mut messages = vec![Message::system("Translate: "), Message::user("hello the user")];
    let text = tokenizer.apply_chat_template(&messages, true).unwrap();
    assert_eq!(
        text,
        "<bos><start_of_turn>user\nTranslate: \n\nhello the user<end_of_turn>\n<start_of_turn>model\n"
    );
    // The model's own template makes the same text of it.
    let plain = load_model("embedded", &Device::Cpu).unwrap().tokenizer;
    assert_eq!(tokenizer.encode_chat(&messages, true).unwrap(), plain.encode_chat(&messages, true).unwrap());
    messages.push(Message::assistant("🎉"));
    assert!(tokenizer.apply_chat_template(&messages, false).unwrap().ends_with("🎉<end_of_turn>\n"));
    let (ids, said) = tokenizer.encode_answers(&messages).unwrap();
    assert_eq!(ids, tokenizer.encode_chat(&messages, false).unwrap());
    let marked: Vec<u32> = ids.iter().zip(said).filter(|(_, said)| *said).map(|(id, _)| *id).collect();
    assert_eq!((marked.len(), tokenizer.decode(&marked, false).unwrap().as_str()), (3, "🎉<end_of_turn>\n"));
    // Marked or found by the generation prompt: the same tokens.
    assert_eq!(plain.encode_answers(&messages).unwrap(), tokenizer.encode_answers(&messages).unwrap());
}

#[test]
fn a_template_with_todays_date() {
    let (_folder, tokenizer) =
        with_template("{{ bos_token }}{{ 'Today is ' + strftime_now('%d %B %Y') + '.' }}");
    let text = tokenizer.apply_chat_template(&[Message::user("hello")], true).unwrap();
    let date = text.strip_prefix("<bos>Today is ").and_then(|text| text.strip_suffix('.')).unwrap();
    let [day, month, year] = date.split(' ').collect::<Vec<_>>()[..] else { panic!("{date}") };
    assert!(day.len() == 2 && day.parse::<u32>().unwrap() <= 31, "{date}");
    assert!(month.chars().all(|c| c.is_ascii_alphabetic()) && year.parse::<u32>().unwrap() > 2024, "{date}");
}

/// With two tokens per row the attention has nothing to choose from; with three every parameter gets a
/// gradient.
#[test]
fn three_tokens_are_the_least_that_trains() {
    let folder = tempfile::tempdir().unwrap();
    let args = SftConfig {
        output_dir: folder.path().to_path_buf(),
        max_length: 3,
        max_steps: Some(3),
        save_strategy: Strategy::No,
        progress_lines: 0,
        ..SftConfig::default()
    };
    assert_eq!(trainer(&args).train().unwrap().global_step, 3);
    let said = SftConfig { max_length: 2, ..args }.validate().unwrap_err().to_string();
    assert!(said.contains("max_length = 2") && said.contains("3 or more"), "{said}");
}

/// As transformers' Trainer has it: without adapters, every parameter but the norms decays.
#[test]
fn norms_do_not_decay() {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let rows = format_chat(&dataset).take(ROWS);
    let args = SftConfig { eval_strategy: Strategy::No, ..SftConfig::default() };
    let whole = SftTrainer::new(&model, &rows, None, &QuantConfig::none(), None, &args).unwrap();
    let arena = whole.finetune();
    let (mut norms, mut others) = (0, 0);
    for slot in arena.slots() {
        let kept = arena.no_decay().contains(&(slot.offset..slot.offset + slot.len()));
        assert_eq!(kept, slot.name.contains("norm"), "{}", slot.name);
        if kept { norms += 1 } else { others += 1 }
    }
    let layers = model.gemma.config().num_hidden_layers;
    assert_eq!((norms, others), (6 * layers + 1, 7 * layers + 1));
    assert!(trainer(&SftConfig::default()).finetune().no_decay().is_empty(), "adapters all decay");
}

/// `kaiming_uniform_(a=√5)` is uniform within ±1/√in_features.
#[test]
fn a_starts_kaiming_uniform_and_b_at_zero() {
    let trainer = trainer(&SftConfig::default());
    let arena = trainer.finetune();
    let (mut a_count, mut b_count) = (0, 0);
    for slot in arena.slots() {
        let values = arena.value(slot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        if slot.name.ends_with("lora_B.weight") {
            assert!(values.iter().all(|v| *v == 0.0), "{}", slot.name);
            b_count += 1;
        } else if slot.name.ends_with("lora_A.weight") {
            let bound = 1.0 / (slot.dims[1] as f32).sqrt();
            let n = values.len() as f32;
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest <= bound && largest > 0.97 * bound, "{}: {largest} of {bound}", slot.name);
            let mean = values.iter().sum::<f32>() / n;
            let variance = values.iter().map(|v| v * v).sum::<f32>() / n;
            // Five standard deviations of the two means.
            assert!(mean.abs() < 5.0 * bound / (3.0 * n).sqrt(), "{}: mean {mean}", slot.name);
            let expected = bound * bound / 3.0;
            let slack = 5.0 * bound * bound * (4.0 / 45.0 / n).sqrt();
            assert!((variance - expected).abs() < slack, "{}: variance {variance}", slot.name);
            a_count += 1;
        }
    }
    assert!(a_count > 0 && a_count == b_count);
}

fn eye(n: usize, value: f32) -> Tensor {
    let values = (0..n * n).map(|i| if i % (n + 1) == 0 { value } else { 0.0 }).collect();
    Tensor::from_vec(values, (n, n), &candle_core::Device::Cpu).unwrap()
}

/// PEFT: `base(x) + scale · B(A(dropout(x)))`. The frozen layer sees all of x.
#[test]
fn dropout_is_on_the_input_of_a_alone() {
    const TOKENS: usize = 40;
    const WIDTH: usize = 50;
    let p = 0.25;
    let dropout = Some(Dropout { p, seed: 1, stream: 2 });
    let x = Tensor::rand(1f32, 2f32, (TOKENS, WIDTH), &candle_core::Device::Cpu).unwrap();
    let (a, b) = (eye(WIDTH, 1.0), eye(WIDTH, 1.0));
    let apply = |w: f32, a: &Tensor| {
        let lora = Lora { a, b: &b, scale: 1.0, dropout };
        forward(&x, &Weight::from(eye(WIDTH, w)), Some(&lora)).unwrap().0
    };
    // With W = 0 and A = B = 1 what comes out is dropout(x): 0, or x / (1 − p).
    let dropped = apply(0.0, &a);
    let pairs = dropped.to_vec2::<f32>().unwrap().concat();
    let mut zeros = 0;
    for (got, x) in pairs.iter().zip(x.to_vec2::<f32>().unwrap().concat()) {
        zeros += usize::from(*got == 0.0);
        assert!(*got == 0.0 || (got - x / (1.0 - p as f32)).abs() < 1e-5);
    }
    let n = (TOKENS * WIDTH) as f64;
    assert!((zeros as f64 / n - p).abs() < 5.0 * (p * (1.0 - p) / n).sqrt(), "{zeros} of {n}");
    let apart = |a: &Tensor, b: &Tensor| {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    // The frozen weight's part is whole.
    assert!(apart(&apply(1.0, &a), &(&x + &dropped).unwrap()) < 1e-5);
    // Dropped before A, not after it.
    let mixing = Tensor::randn(0f32, 1f32, (WIDTH, WIDTH), &candle_core::Device::Cpu).unwrap();
    let expected = dropped.matmul(&mixing.t().unwrap()).unwrap();
    assert!(apart(&apply(0.0, &mixing), &expected) < 1e-3);
    // None is dropped outside training.
    let lora = Lora { a: &a, b: &b, scale: 1.0, dropout: None };
    let (y, _) = forward(&x, &Weight::from(eye(WIDTH, 0.0)), Some(&lora)).unwrap();
    assert!(apart(&y, &x) < 1e-6);
}
