//! The model card: the `README.md` that tells people and the Hub what the model is.

mod markdown;
mod of_evaluation;
mod of_run;
mod yaml;

use std::fmt;

use markdown::{cell, code, figure, is_hub_id, line, line_keeping_space, link, metric_type, table};
use yaml::Yaml;

use crate::display::{ComparisonRow, plain};
use crate::hub::RepositoryCard;
use crate::task::Task;
use crate::train::LogEntry;

/// The file that holds the loss curve beside the card.
const PLOT: &str = "loss.svg";

/// An answer of the model, for the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardSample {
    /// What was asked.
    pub text: String,
    /// What the base model answered, if it was asked.
    pub base: Option<String>,
    /// What the fine-tuned model answered.
    pub tuned: String,
}

impl From<&ComparisonRow> for CardSample {
    fn from(row: &ComparisonRow) -> Self {
        Self { text: row.prompt.clone(), base: Some(row.base.clone()), tuned: row.tuned.clone() }
    }
}

/// A model card; [`ModelCard::to_markdown`] makes the `README.md` of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The heading; the repository's name if empty.
    pub title: String,
    /// The model that was tuned: a Hub id, or what else it is called.
    pub base_model: String,
    /// Hub ids of the datasets, or what else they are called.
    pub datasets: Vec<String>,
    /// The Hub's name of the licence: `gemma` for what is made from Gemma.
    pub license: String,
    /// Language codes.
    pub language: Vec<String>,
    /// Tags for the Hub's search.
    pub tags: Vec<String>,
    /// The Python library that loads the folder.
    pub library_name: String,
    /// What the model does, as the Hub calls it.
    pub pipeline_tag: String,
    /// What it does, as the end of "fine-tuned to …".
    pub description: String,
    /// The instruction that the model was trained with.
    pub system_prompt: String,
    /// A text to ask, in the example of use.
    pub example: String,
    /// How it was made, as the end of a sentence.
    pub method: String,
    /// The training settings: name and value.
    pub settings: Vec<(String, String)>,
    /// The log history of the training.
    pub log_history: Vec<LogEntry>,
    /// The loss curve as an SVG picture.
    pub plot: Option<String>,
    /// Figures of an evaluation: name and value. The last validation loss of `log_history` if empty.
    pub evaluation: Vec<(String, f64)>,
    /// Questions and answers.
    pub samples: Vec<CardSample>,
}

impl Default for ModelCard {
    /// Of text to emoji.
    fn default() -> Self {
        Self::of(&Task::emoji())
    }
}

impl ModelCard {
    /// What a task alone says.
    pub fn of(task: &Task) -> Self {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        Self {
            title: String::new(),
            base_model: "google/gemma-3-270m-it".to_string(),
            datasets: Vec::new(),
            license: "gemma".to_string(),
            language: texts(&["en"]),
            tags: texts(&[&task.name, "gemma3", "lora", "sft"]),
            library_name: "transformers".to_string(),
            pipeline_tag: "text-generation".to_string(),
            description: task.description.clone(),
            system_prompt: task.system_prompt.clone(),
            example: task.example.clone(),
            method: "LoRA fine-tuning in Rust, merged into the base model's weights".to_string(),
            settings: Vec::new(),
            log_history: Vec::new(),
            plot: None,
            evaluation: Vec::new(),
            samples: Vec::new(),
        }
    }
}

/// How a card says that its model is used from Rust. It is compiled as a test below.
const IN_RUST: &str = include_str!("use.txt");

#[cfg(doctest)]
#[doc = concat!("```no_run\n# fn main() -> emoji_lab::Result<()> {\n", include_str!("use.txt"), "# Ok(())\n# }\n```")]
struct InRustCompiles;

impl ModelCard {
    /// The `README.md` for the repository `repo_id`: YAML front matter as the Hub reads it, then text.
    pub fn to_markdown(&self, repo_id: &str) -> String {
        let name = repo_id.rsplit('/').next().unwrap_or(repo_id);
        let title = if self.title.trim().is_empty() { name } else { self.title.trim() };
        let mut parts = vec![
            format!("---\n{}---", Yaml::document(self.front_matter(name))),
            format!("# {}", line(title)),
            format!("{} fine-tuned to {}.", link(&self.base_model, ""), line(&self.description)),
        ];
        parts.push(self.how_to_load(repo_id));
        if !self.samples.is_empty() {
            parts.push(format!("## Examples\n\n{}", self.sample_table()));
        }
        parts.push(self.training());
        let evaluation = self.figures();
        if !evaluation.is_empty() {
            let rows = evaluation.iter().map(|(name, value)| vec![cell(name), figure(*value)]);
            parts.push(format!("## Evaluation\n\n{}", table(&["figure", "value"], rows)));
        }
        if self.license == "gemma" {
            parts.push(
                "## Licence\n\nA derivative of Gemma: its use is bound by the \
                 [Gemma Terms of Use](https://ai.google.dev/gemma/terms)."
                    .to_string(),
            );
        }
        parts.join("\n\n") + "\n"
    }

    /// The figures to show: those given, or the last validation loss.
    fn figures(&self) -> Vec<(String, f64)> {
        if !self.evaluation.is_empty() {
            return self.evaluation.clone();
        }
        let last = self.log_history.iter().rev().find_map(|entry| entry.eval_loss);
        last.map(|loss| ("Validation loss".to_string(), loss)).into_iter().collect()
    }

    fn front_matter(&self, name: &str) -> Vec<(&'static str, Yaml)> {
        let one = |text: &String| if text.is_empty() { Yaml::List(vec![]) } else { Yaml::text(text.clone()) };
        // The Hub checks these against its own repositories and refuses a card with a path in them.
        let base = if is_hub_id(&self.base_model) { one(&self.base_model) } else { Yaml::List(vec![]) };
        let mut entries = vec![
            ("base_model", base),
            ("datasets", Yaml::texts(self.datasets.iter().filter(|id| is_hub_id(id)))),
            ("language", Yaml::texts(&self.language)),
            ("library_name", one(&self.library_name)),
            ("license", one(&self.license)),
            ("pipeline_tag", one(&self.pipeline_tag)),
            ("tags", Yaml::texts(&self.tags)),
        ];
        // The Hub takes figures on a dataset of its own only.
        let (evaluation, dataset) = (self.figures(), self.datasets.iter().find(|id| is_hub_id(id)));
        if let (false, Some(dataset)) = (evaluation.is_empty(), dataset) {
            let metrics = evaluation.iter().filter(|(_, value)| value.is_finite()).map(|(name, value)| {
                Yaml::Map(vec![
                    ("type", Yaml::text(metric_type(name))),
                    ("name", Yaml::text(name.clone())),
                    ("value", Yaml::Number(*value)),
                ])
            });
            let result = Yaml::Map(vec![
                ("task", Yaml::Map(vec![("type", one(&self.pipeline_tag))])),
                (
                    "dataset",
                    Yaml::Map(vec![
                        ("name", Yaml::text(dataset.clone())),
                        ("type", Yaml::text(dataset.clone())),
                    ]),
                ),
                ("metrics", Yaml::List(metrics.collect())),
            ]);
            let model = Yaml::Map(vec![("name", Yaml::text(name)), ("results", Yaml::List(vec![result]))]);
            entries.push(("model-index", Yaml::List(vec![model])));
        }
        entries
    }

    fn how_to_load(&self, repo_id: &str) -> String {
        // JSON's quoting is Python's as well, and a Rust string's except for `\u`, which line() leaves none of.
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let (repo, prompt) = (quote(repo_id), quote(&line_keeping_space(&self.system_prompt)));
        let text = quote(&line_keeping_space(&self.example));
        format!(
            "## Use\n\nIn Python:\n\n```python\nfrom transformers import pipeline\n\npipe = pipeline(\"text-generation\", \
             model={repo})\nmessages = [\n    {{\"role\": \"system\", \"content\": {prompt}}},\n    {{\"role\": \"user\", \
             \"content\": {text}}},\n]\nprint(pipe(messages, max_new_tokens=64, \
             do_sample=False)[0][\"generated_text\"][-1][\"content\"])\n```\n\nIn Rust, with `emoji_lab`:\n\n```rust\n\
             {}```",
            IN_RUST
                .replace("\"OWNER/NAME\"", &repo)
                .replace("\"SYSTEM PROMPT\"", &prompt)
                .replace("\"TEXT\"", &text)
        )
    }

    fn sample_table(&self) -> String {
        let with_base = self.samples.iter().any(|sample| sample.base.is_some());
        let rows = self.samples.iter().map(|sample| {
            let mut row = vec![cell(&sample.text)];
            if with_base {
                row.push(cell(sample.base.as_deref().unwrap_or_default()));
            }
            row.push(cell(&sample.tuned));
            row
        });
        if with_base {
            table(&["text", "base model", "this model"], rows)
        } else {
            table(&["text", "this model"], rows)
        }
    }

    fn training(&self) -> String {
        let mut parts = vec!["## Training".to_string()];
        if !self.datasets.is_empty() {
            let names: Vec<String> = self.datasets.iter().map(|id| link(id, "datasets/")).collect();
            parts.push(format!("Data: {}.", names.join(", ")));
        }
        if !self.settings.is_empty() {
            let rows =
                self.settings.iter().map(|(name, value)| vec![format!("`{}`", code(name)), cell(value)]);
            parts.push(table(&["setting", "value"], rows));
        }
        let losses = self.losses();
        if !losses.is_empty() {
            parts.push(table(&["epoch", "step", "training loss", "validation loss"], losses.into_iter()));
        }
        if self.plot.is_some() {
            parts.push(format!("![Training and validation loss]({PLOT})"));
        }
        parts.push(format!("Made with `emoji_lab`: {}.", line(&self.method)));
        parts.join("\n\n")
    }

    /// One row for each step that has a loss: a training and an evaluation entry of one step share it.
    fn losses(&self) -> Vec<Vec<String>> {
        let mut rows: Vec<(usize, f64, Option<f64>, Option<f64>)> = Vec::new();
        for entry in self.log_history.iter().filter(|entry| entry.loss.or(entry.eval_loss).is_some()) {
            match rows.iter_mut().find(|row| row.0 == entry.step) {
                Some(row) => (row.2, row.3) = (row.2.or(entry.loss), row.3.or(entry.eval_loss)),
                None => rows.push((entry.step, entry.epoch, entry.loss, entry.eval_loss)),
            }
        }
        let show = |loss: Option<f64>| loss.map(figure).unwrap_or_default();
        rows.into_iter()
            .map(|(step, epoch, loss, eval)| {
                vec![format!("{epoch:.2}"), step.to_string(), show(loss), show(eval)]
            })
            .collect()
    }
}

impl RepositoryCard for ModelCard {
    fn readme(&self, repo_id: &str) -> String {
        self.to_markdown(repo_id)
    }

    fn pictures(&self) -> Vec<(&'static str, String)> {
        self.plot.clone().map(|plot| (PLOT, plot)).into_iter().collect()
    }
}

impl fmt::Display for ModelCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.to_markdown("model")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> ModelCard {
        ModelCard {
            datasets: vec!["kr15t3n/text2emoji".into(), "my rows.csv".into()],
            settings: vec![("learning_rate".into(), "5e-5".into()), ("a|b".into(), "x|y\nz".into())],
            log_history: vec![
                LogEntry { loss: Some(2.5), epoch: 1.0, step: 10, ..Default::default() },
                LogEntry { eval_loss: Some(2.25), epoch: 1.0, step: 10, ..Default::default() },
                LogEntry { train_loss: Some(2.5), epoch: 1.0, step: 10, ..Default::default() },
            ],
            plot: Some("<svg/>".into()),
            evaluation: vec![("Validation loss".into(), 2.25)],
            samples: vec![CardSample { text: "a <b> | *c*".into(), base: None, tuned: "🏖️".into() }],
            ..Default::default()
        }
    }

    #[test]
    fn the_card_has_its_parts() {
        let text = card().to_markdown("ann/myemoji");
        assert!(text.starts_with(
            "---\nbase_model: google/gemma-3-270m-it\ndatasets:\n  - kr15t3n/text2emoji\nlanguage:\n"
        ));
        for part in [
            "license: gemma\n",
            "# myemoji\n",
            "model=\"ann/myemoji\"",
            "\"Translate this text to emoji: \"",
            "| 1.00 | 10 | 2.5000 | 2.2500 |",
            "![Training and validation loss](loss.svg)",
            "| `a/b` | x\\|y z |",
            "| a &lt;b> \\| \\*c\\* | 🏖️ |",
            "| Validation loss | 2.2500 |",
            "type: validation_loss",
            "Gemma Terms of Use",
            "`my rows.csv`",
            "[google/gemma-3-270m-it](https://huggingface.co/google/gemma-3-270m-it) fine-tuned",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(text.matches("\n---\n").count(), 1);
    }

    #[test]
    fn samples_and_names_hide_nothing() {
        let evil = "\u{202e}a\u{1b}[8m\u{2028}</td><script>";
        let card = ModelCard {
            title: evil.into(),
            datasets: vec![evil.into()],
            settings: vec![(evil.into(), evil.into())],
            samples: vec![CardSample { text: evil.into(), base: Some(evil.into()), tuned: evil.into() }],
            ..Default::default()
        };
        let text = card.to_markdown("ann/x");
        assert!(text.contains("| ⟨U+202E⟩a␛\\[8m⟨U+2028⟩&lt;/td>&lt;script> |"), "{text}");
        assert!(!text.contains(['\u{202e}', '\u{1b}', '\u{2028}']), "{text}");
    }

    #[test]
    fn the_last_validation_loss_is_the_evaluation() {
        let text = ModelCard { evaluation: vec![], ..card() }.to_markdown("ann/x");
        assert!(text.contains("| Validation loss | 2.2500 |") && text.contains("value: 2.25"), "{text}");
        // Without a dataset of the Hub the figure stays in the text.
        let here =
            ModelCard { datasets: vec!["/home/ann/my rows.csv".into()], ..card() }.to_markdown("ann/x");
        assert!(!here.contains("model-index") && here.contains("| Validation loss | 2.2500 |"), "{here}");
        assert!(here.contains("Data: `my rows.csv`") && !here.contains("/home/ann"), "{here}");
    }

    #[test]
    fn a_base_model_that_is_a_path_stays_out_of_the_front_matter() {
        for (base, shown) in
            [("embedded", "embedded"), ("/root/x.gguf", "x.gguf"), ("models/x.gguf", "x.gguf")]
        {
            let text = ModelCard { base_model: base.into(), ..Default::default() }.to_markdown("ann/x");
            assert!(
                !text.contains("base_model:") && text.contains(&format!("`{shown}` fine-tuned")),
                "{text}"
            );
        }
    }
}
