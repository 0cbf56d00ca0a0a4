//! How good the answers of several recipes are, on rows that none of them saw.
//!
//! ```text
//! cargo bench -p emoji_lab [--features cuda] --bench quality -- --model MODEL --data DATA
//!     [--split FILE]… [--split-seed N]… [--seeds 1,2,3] [--device cuda] [--epochs 3] [--rows N] [--train-rows N] [--samples 16] [--only 0,2]
//!     [--save DIR]
//! ```
//!
//! MODEL and DATA are what `load_model` and `load_dataset` take. FILE names the held-out rows, from 0, as
//! `{"test": [3, 14]}`; `--split-seed` holds out a tenth instead. Every recipe is trained on each split
//! with each seed, and compared with the first one row by row: a row's score is its mean over the seeds,
//! and intervals are from 2,000 draws of the rows of all splits. Recipes are written in `recipes`, and
//! were chosen on rows of the training parts (`sweep`), not on what this prints. With `--save` each run's
//! adapter is kept in `DIR/SPLIT-RECIPE-SEED`, all of them counted from 0 but the seed.

mod forms;
mod options;
mod recipes;
mod scores;

use std::path::PathBuf;
use std::time::Instant;

use emoji_lab::data::split_at_rows;
use emoji_lab::model::Model;
use emoji_lab::prelude::*;

use forms::{Form, Models};
use options::{Options, Split};
use scores::Scores;

fn main() -> Result<()> {
    let options = Options::from_arguments()?;
    let device = Device::by_name(&options.device)?;
    let base = load_model(&options.model, &device)?;
    let chat = format_chat(&load_dataset(&options.data, Task::emoji())?).take(options.rows);
    say!("{base}\n{} rows of {}", chat.len(), options.data);
    let recipes = recipes::recipes(&options);
    // In every form of each.
    let mut all: Vec<Vec<Scores>> = recipes
        .iter()
        .map(|recipe| Form::all(recipe, options.samples).iter().map(|form| form.scores(recipe)).collect())
        .collect();
    let mut tables = Scores::new("look-up, no model");
    for (place, split) in options.splits.iter().enumerate() {
        let mut rows = match split {
            Split::Seed(seed) => train_test_split(&chat, 0.1, *seed)?,
            Split::Rows(rows) => split_at_rows(&chat, rows)?,
        };
        rows.train = rows.train.take(options.train_rows);
        say!("\n{split}: {rows}");
        let nearest = look_up(&rows.train, &rows.test, &EvaluationConfig::default())?;
        tables.begin_split(rows.test.len());
        tables.add(&nearest);
        for (number, (recipe, scores)) in recipes.iter().zip(&mut all).enumerate() {
            scores.iter_mut().for_each(|scores| scores.begin_split(rows.test.len()));
            for &seed in &options.seeds {
                let args = SftConfig { seed, ..recipe.args.clone() };
                let kept = options.save.as_ref().map(|dir| dir.join(format!("{place}-{number}-{seed}")));
                let Tuned { models, seconds, trainable } = tuned(&base, &rows, recipe, &args, kept)?;
                for (form, scores) in Form::all(recipe, options.samples).into_iter().zip(scores.iter_mut()) {
                    let evaluation = form.evaluate(&models, &rows.test)?;
                    say!(
                        "  {}, {form:?}, seed {seed}: {:.3}; trained in {seconds:.1} s, answered in {:.2} s",
                        recipe.name,
                        evaluation.score().mean,
                        evaluation.seconds
                    );
                    scores.add(&evaluation);
                    scores.add_run(seconds, evaluation.seconds, trainable);
                }
                models.trained.gemma.release_device();
                models.merged.iter().for_each(|merged| merged.gemma.release_device());
            }
        }
    }
    let all: Vec<Scores> = all.into_iter().flatten().collect();
    say!("\n{}", scores::table(&tables, &all));
    Ok(())
}

/// A recipe's run.
struct Tuned {
    models: Models,
    seconds: f64,
    /// How many numbers were trained.
    trainable: usize,
}

/// The base trained by a recipe on the training part; its adapter is kept in the folder `kept`.
fn tuned(
    base: &Model,
    rows: &DatasetSplits,
    recipe: &Recipe,
    args: &SftConfig,
    kept: Option<PathBuf>,
) -> Result<Tuned> {
    let (quant, lora) = (&recipe.quant, recipe.lora.as_ref());
    let mut trainer = SftTrainer::new(base, &rows.train, None, quant, lora, args)?;
    let started = Instant::now();
    trainer.train()?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(folder) = kept {
        trainer.save_model(folder)?;
    }
    let trainable = trainer.finetune().trainable();
    let trained = Model { gemma: trainer.model()?, ..base.clone() };
    let merged = if Form::all(recipe, 1).contains(&Form::MergedIntoExact) {
        trainer.save_model(&args.output_dir)?;
        Some(merge_adapters(base, &args.output_dir)?)
    } else {
        None
    };
    Ok(Tuned { models: Models { trained, merged }, seconds, trainable })
}
