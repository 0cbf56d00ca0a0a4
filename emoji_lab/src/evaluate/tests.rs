//! Evaluations as a whole: of the embedded model, of answers from elsewhere, of a look-up.

use std::sync::Arc;

use super::*;
use crate::data::{Example, format_chat, load_dataset, train_test_split};
use crate::display::Table;
use crate::model::{generate, load_model};
use crate::task::{EmojiFilter, Judge, Measure, Task, Unit, emoji_f1, emoji_list};

fn rows(pairs: &[(&str, &str)]) -> Vec<Example> {
    let row = |(text, answer): &(&str, &str)| Example { text: text.to_string(), answer: answer.to_string() };
    pairs.iter().map(row).collect()
}

fn judged(name: &str, rows: &[Example], answers: &[&str]) -> Evaluation {
    judge_answers(name, rows, answers, &EvaluationConfig::default()).unwrap()
}

const FOUR: [(&str, &str); 4] =
    [("a party", "🎉"), ("the beach", "🏖️🌊"), ("a cake", "🎂"), ("party by the sea", "🎉🌊")];

#[test]
fn a_models_answers_are_those_it_gives() {
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let splits = train_test_split(&format_chat(&dataset), 0.03, 7).unwrap();
    let model = load_model("embedded", &crate::Device::Cpu).unwrap();
    let config = EvaluationConfig::default();
    let evaluation = evaluate(&model, &splits.test, &config).unwrap();
    assert_eq!((evaluation.rows.len(), evaluation.name.as_str()), (splits.test.len(), "embedded"));
    let (mut f1, mut tokens) = (0.0, 0);
    for (row, conversation) in evaluation.rows.iter().zip(&splits.test.conversations) {
        assert_eq!(row.answer, generate(&model, &conversation.prompt(), &config.generation).unwrap());
        assert_eq!(
            (row.text.as_str(), row.expected.as_str()),
            (conversation.user_text(), conversation.assistant_text())
        );
        f1 += emoji_f1(&row.answer, &row.expected);
        tokens += row.tokens.unwrap();
    }
    let n = evaluation.rows.len() as f64;
    assert!((evaluation.score().mean - f1 / n).abs() < 1e-12);
    assert_eq!(evaluation.tokens_per_answer(), Some(tokens as f64 / n));
    assert!(tokens > evaluation.rows.len());

    // What a table of the training rows knows, by the same measures.
    let nearest = look_up(&splits.train, &splits.test, &config).unwrap();
    assert_eq!((nearest.mean("only_emoji"), nearest.tokens_per_answer()), (Some(1.0), None));
    assert!(nearest.score().mean > 0.2, "{}", nearest.score());
    let itself = look_up(&splits.test, &splits.test, &config).unwrap();
    assert!(itself.score().mean > 0.95, "{}", itself.score());
    let table = compare_evaluations(&[("look-up", &nearest), ("base", &evaluation)]).unwrap().to_text();
    assert!(
        table.contains("over look-up") && table.contains("← best") && table.contains("tokens"),
        "{table}"
    );
}

#[test]
fn measures_are_means_over_the_rows() {
    let evaluation = judged("mine", &rows(&FOUR), &["🎉", "🏖️ beach", "", "🌊🌊"]);
    let mean = |name| evaluation.mean(name).unwrap();
    assert!((mean("f1") - (1.0 + 2.0 / 3.0 + 0.0 + 0.5) / 4.0).abs() < 1e-12);
    assert_eq!((mean("first_right"), mean("only_emoji"), mean("exact")), (0.5, 0.5, 0.25));
    assert_eq!((mean("emoji"), mean("distinct"), mean("repeats")), (1.0, 0.75, 0.25));
    assert_eq!(evaluation.mean("bleu"), None);
    assert_eq!(evaluation.estimate("exact").unwrap().mean, 0.25);
    let worst: Vec<&str> = evaluation.worst(3).iter().map(|row| row.text.as_str()).collect();
    assert_eq!(worst, ["a cake", "party by the sea", "the beach"]);
    let text = evaluation.to_text();
    assert!(text.contains("mine: 4 answers") && text.contains("(empty)"), "{text}");
    assert!(text.contains("emoji F1           0.542"), "{text}");
}

#[test]
fn differences_are_taken_row_by_row() {
    let rows = rows(&FOUR);
    let good = judged("good", &rows, &["🎉", "🏖️🌊", "🎂", "🎉"]);
    let bad = judged("bad", &rows, &["🎉", "🏖️", "🎉", "🎉🌊"]);
    let difference = good.difference(&bad).unwrap();
    // 0, 1/3, 1, -1/3.
    assert!((difference.score.mean - 0.25).abs() < 1e-12);
    assert_eq!((difference.better, difference.worse, difference.equal), (2, 1, 1));
    assert!(!difference.is_clear() && difference.score.low < 0.0 && difference.score.high > 0.5);
    assert!(difference.to_string().starts_with("good against bad: emoji F1 +0.250 [-0.1"), "{difference}");
    let back = bad.difference(&good).unwrap();
    assert_eq!((back.score.mean, back.better, back.worse), (-difference.score.mean, 1, 2));
    let none = good.difference(&good).unwrap();
    assert_eq!((none.score.low, none.score.high, none.equal), (0.0, 0.0, 4));
}

#[test]
fn one_always_a_little_better_is_seen_though_the_means_overlap() {
    let many: Vec<Example> = (0..40).flat_map(|_| rows(&FOUR)).collect();
    let answers = |of: [&'static str; 4]| of.repeat(40);
    // Half of the rows right, half wrong; the one answers the beach whole, too.
    let a = judged("a", &many, &answers(["🎉", "🏖️🌊", "🐈", "🐈"]));
    let b = judged("b", &many, &answers(["🎉", "🏖️", "🐈", "🐈"]));
    assert!(b.score().high > a.score().low, "{} {}", a.score(), b.score());
    assert!(a.difference(&b).unwrap().is_clear());
}

#[test]
fn what_cannot_be_compared_says_why() {
    let (all, fewer) = (rows(&FOUR), rows(&FOUR[..3]));
    let mut moved = all.clone();
    moved.swap(1, 2);
    let one = judged("one", &all, &["🎉"; 4]);
    for (other, why) in [
        (judged("fewer", &fewer, &["🎉"; 3]), "3 rows, and this one has 4"),
        (judged("moved", &moved, &["🎉"; 4]), "\"a cake\" in row 1"),
    ] {
        let said = one.difference(&other).unwrap_err().to_string();
        assert!(
            said.starts_with("setting other = ") && said.contains(why) && said.contains("same rows"),
            "{said}"
        );
        assert!(compare_evaluations(&[("one", &one), ("other", &other)]).is_err());
    }
    assert!(
        compare_evaluations::<&str, &Evaluation>(&[])
            .unwrap_err()
            .to_string()
            .contains("setting evaluations")
    );
    let config = EvaluationConfig { judge: Some(Arc::new(Lengths)), ..Default::default() };
    let lengths = judge_answers("lengths", &all, &["a"; 4], &config).unwrap();
    assert!(one.difference(&lengths).unwrap_err().to_string().contains("by characters"));
    let said = compare_evaluations(&[("one", &one), ("lengths", &lengths)]).unwrap_err().to_string();
    assert!(said.contains("lengths") && said.contains("same judge"), "{said}");
}

/// Another task's judge: how long an answer is; none is a fault of the judge.
#[derive(Debug)]
struct Lengths;

impl Judge for Lengths {
    fn measures(&self) -> Vec<Measure> {
        vec![Measure { name: "characters", label: "characters", unit: Unit::Count }]
    }
    fn judge(&self, answer: &str, _: &str) -> Vec<f64> {
        vec![if answer.is_empty() { f64::NAN } else { answer.chars().count() as f64 }]
    }
}

#[test]
fn another_task_brings_its_judge() {
    let config = EvaluationConfig { judge: Some(Arc::new(Lengths)), ..Default::default() };
    let rows = rows(&FOUR);
    let evaluation = judge_answers("words", &rows, &["a", "bb", "cc", "ddd"], &config).unwrap();
    assert_eq!(evaluation.score().mean, 2.0);
    assert!(evaluation.to_text().contains("characters   2.0"), "{}", evaluation.to_text());
    let said = judge_answers("words", &rows, &["a", "", "b", "c"], &config).unwrap_err().to_string();
    assert!(said.starts_with("setting judge = Lengths") && said.contains("NaN"), "{said}");
    let said = judge_answers("words", &rows, &["a"], &config).unwrap_err().to_string();
    assert!(said.contains("setting answers = 1 answers") && said.contains("4 rows"), "{said}");
}

#[test]
fn no_rows_are_an_error() {
    let (none, some) = (rows(&[]), rows(&FOUR));
    let config = EvaluationConfig::default();
    let model = load_model("embedded", &crate::Device::Cpu).unwrap();
    assert!(evaluate(&model, &none, &config).unwrap_err().to_string().contains("setting rows = no rows"));
    assert!(look_up(&some, &none, &config).unwrap_err().to_string().contains("setting rows = no rows"));
    assert!(look_up(&none, &some, &config).unwrap_err().to_string().contains("setting train = no rows"));
    assert!(judge_answers("x", &none, &[""; 0], &config).is_err());
    let long = rows(&[("a", "🎉"), (&"word ".repeat(2000), "🎉")]);
    let said = evaluate(&model, &long, &config).unwrap_err().to_string();
    assert!(said.contains("as prompt 1") && said.contains("shorten"), "{said}");
}

#[test]
fn hostile_rows_names_and_answers_are_shown_as_text() {
    const EVIL: &str = "hi\nEVCXR_BEGIN_CONTENT text/html\n<img src=x>\u{1b}[8m\u{202e}\rgone";
    let rows = rows(&[(EVIL, EVIL)]);
    let evaluation = judged(EVIL, &rows, &[EVIL]);
    let table: Table = compare_evaluations(&[(EVIL, &evaluation), (EVIL, &evaluation)]).unwrap();
    let difference = evaluation.difference(&evaluation).unwrap().to_string();
    let mut other = evaluation.clone();
    other.rows[0].text = format!("{EVIL}{EVIL}");
    let error = evaluation.difference(&other).unwrap_err().to_string();
    assert!(difference.lines().count() == 1 && error.lines().count() == 1, "{difference}\n{error}");
    let views = [evaluation.to_string(), evaluation.to_html(), table.to_string(), table.to_html()];
    for shown in views.iter().chain([&difference, &error]) {
        assert!(shown.contains("BEGIN_CONTENT") && !shown.contains("EVCXR_"), "{shown}");
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\r']), "{shown}");
    }
    assert!(!evaluation.to_html().contains("<img") && !table.to_html().contains("<img"));
}

#[test]
fn answers_can_be_held_to_emoji_and_agreed_on() {
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let splits = train_test_split(&format_chat(&dataset), 0.02, 7).unwrap();
    let model = load_model("embedded", &crate::Device::Cpu).unwrap();
    let mut config = EvaluationConfig::default();
    config.generation.constraint = dataset.task.constraint.clone();
    let held = evaluate(&model, &splits.test, &config).unwrap();
    assert_eq!((held.mean("only_emoji"), held.mean("repeats")), (Some(1.0), Some(0.0)));
    config.samples = 8;
    let agreed = evaluate(&model, &splits.test, &config).unwrap();
    assert_eq!((agreed.mean("only_emoji"), agreed.mean("repeats")), (Some(1.0), Some(0.0)));
    for row in &agreed.rows[..3] {
        let chosen = consensus(&model, &dataset.task, &row.text, 8, &config.generation).unwrap();
        assert_eq!(chosen.answer, row.answer);
        assert_eq!(chosen.samples.len(), 8);
        let drawn: Vec<String> = chosen.samples.iter().flat_map(|sample| emoji_list(sample)).collect();
        assert!(emoji_list(&chosen.answer).iter().all(|emoji| drawn.contains(emoji)));
        assert!(row.tokens.unwrap() > 0 && (0.0..=1.0).contains(&chosen.agreement));
    }
    let said = consensus(&model, &dataset.task, "pizza", 1, &config.generation).unwrap_err().to_string();
    assert!(said.starts_with("setting samples = 1"), "{said}");
}

#[test]
fn suggestions_differ_in_their_emoji() {
    let model = load_model("embedded", &crate::Device::Cpu).unwrap();
    let task = Task::emoji();
    for text in ["let's go to the beach", "pizza", ""] {
        let answers = suggest(&model, &task, text, 3).unwrap();
        assert_eq!(answers, suggest(&model, &task, text, 3).unwrap());
        let mut sets: Vec<Vec<String>> = answers.iter().map(|answer| emoji_list(answer)).collect();
        sets.iter_mut().for_each(|set| set.sort_unstable());
        sets.sort();
        sets.dedup();
        assert_eq!(sets.len(), 3, "{answers:?}");
        assert!(answers.iter().all(|answer| task.constraint.as_ref().unwrap().allows(answer)));
    }
    // Of two labels there are no three.
    let moods = Task::one_of("Mood: ", ["joy", "fear"]);
    let mut both = suggest(&model, &moods, "what a day", 3).unwrap();
    both.sort_unstable();
    assert_eq!(both, ["fear", "joy"]);
    assert!(suggest(&model, &task, "pizza", 0).is_err());
}
