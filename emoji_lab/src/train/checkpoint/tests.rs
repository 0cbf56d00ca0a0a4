use std::fs;

use candle_core::Device;

use super::writing::Parts;
use super::*;
use crate::data::{format_chat, load_dataset};
use crate::lora::LoraConfig;
use crate::model::load_model;
use crate::quant::QuantConfig;
use crate::task::EmojiFilter;
use crate::train::{SftConfig, SftTrainer, Strategy};

/// A run of three steps, not begun.
fn trainer(output_dir: &Path, quant: &QuantConfig, lora: Option<&LoraConfig>) -> SftTrainer {
    let model = load_model("embedded", &crate::Device::Cpu).unwrap();
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let args = SftConfig {
        output_dir: output_dir.to_path_buf(),
        max_steps: Some(3),
        logging_strategy: Strategy::Steps(2),
        eval_strategy: Strategy::No,
        save_strategy: Strategy::No,
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let rows = format_chat(&dataset).take(12);
    SftTrainer::new(&model, &rows, None, quant, lora, &args).unwrap()
}

fn small_lora() -> LoraConfig {
    LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() }
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> Vec<(&String, &[usize], Vec<u32>)> {
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    tensors.iter().map(|(name, tensor)| (name, tensor.dims(), bits(tensor))).collect()
}

/// Field by field; another field that is added must be compared here too.
fn assert_same(one: &Checkpoint, other: &Checkpoint, label: &str) {
    let Checkpoint { weights, moments, rest: Rest { counters, identity, state } } = one;
    let there = &other.rest;
    assert!(bits(weights) == bits(&other.weights), "{label}: weights");
    assert!(bits(moments) == bits(&other.moments), "{label}: moments");
    // As text a float has its bits, the sign of a zero among them.
    assert_eq!(format!("{counters:?}"), format!("{:?}", there.counters), "{label}");
    assert_eq!(identity, &there.identity, "{label}");
    assert_eq!(format!("{state:?}"), format!("{:?}", there.state), "{label}");
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn what_is_saved_is_loaded_and_what_is_loaded_is_saved() {
    let (nf4, full) = (QuantConfig::default(), QuantConfig::none());
    let tied = small_lora();
    let untied = LoraConfig { ensure_weight_tying: false, ..small_lora() };
    let only_adapters = LoraConfig {
        modules_to_save: vec![],
        target_modules: vec!["down_proj".into(), "k_proj".into()],
        ..small_lora()
    };
    for (label, quant, lora) in [
        ("tied", &nf4, Some(&tied)),
        ("untied", &nf4, Some(&untied)),
        ("only adapters", &full, Some(&only_adapters)),
        ("every parameter", &full, None),
    ] {
        let root = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| root.path().join(name));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&second).unwrap();
        let mut run = trainer(root.path(), quant, lora);
        run.train().unwrap();
        let format = run.weights_format();
        let checkpoint = run.checkpoint().unwrap();
        assert_eq!(checkpoint.weights.len(), run.finetune().slots().len(), "{label}");
        checkpoint.save(&first, &format).unwrap();
        let loaded = Checkpoint::load(&first, &format).unwrap();
        assert_same(&loaded, &checkpoint, label);
        loaded.save(&second, &format).unwrap();
        assert!(files(&first) == files(&second), "{label}");
        // The same of a trainer: what it takes up, it gives.
        let mut other = trainer(root.path(), quant, lora);
        other.restore(loaded).unwrap();
        assert_same(&other.checkpoint().unwrap(), &checkpoint, label);
        assert_eq!(other.finetune().steps(), 3);
    }
}

impl SftTrainer {
    fn checkpoint(&mut self) -> Result<Checkpoint> {
        Ok(Checkpoint { weights: self.weights()?, moments: self.moments()?, rest: self.rest()? })
    }
}

impl Checkpoint {
    fn save(&self, dir: &Path, format: &WeightsFormat) -> Result<()> {
        let Self { weights, moments, rest } = self.clone();
        let (giver, parts) = Parts::new();
        giver.moments.send(moments).unwrap();
        giver.weights.send(weights).unwrap();
        giver.rest.send(rest).unwrap();
        parts.save(dir, format).map(|_| ())
    }
}

#[test]
fn one_that_is_given_up_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let run = trainer(root.path(), &QuantConfig::none(), Some(&small_lora()));
    let output_dir = root.path().join("out");
    fs::create_dir(&output_dir).unwrap();
    let to_write = ToWrite {
        step: 7,
        format: run.weights_format(),
        output_dir: output_dir.clone(),
        save_total_limit: None,
    };
    let writing = Writing::begin(to_write);
    assert!(writing.waits_for_rest(7) && !writing.waits_for_rest(8));
    writing.give_moments(run.moments().unwrap());
    writing.give_weights(run.weights().unwrap());
    assert!(writing.finish().unwrap().is_none());
    assert_eq!(fs::read_dir(&output_dir).unwrap().count(), 0);
}

/// A checkpoint with numbers that a careless format loses.
fn odd(run: &mut SftTrainer) -> Checkpoint {
    let values = [f32::MIN_POSITIVE / 8.0, -0.0, 0.1, f32::MAX];
    let tensor = |dims: &[usize]| Tensor::from_slice(&values, dims, &Device::Cpu).unwrap();
    let checkpoint = run.checkpoint().unwrap();
    let counters = Counters {
        passes: u64::MAX - 1,
        loss_since_log: 6.255_003_452_301_025 + 1e-15,
        loss_total: f64::MIN_POSITIVE / 8.0,
        grad_norm: -0.0,
        ..Counters::default()
    };
    Checkpoint {
        moments: [("exp_avg.b", tensor(&[4])), ("exp_avg.a", tensor(&[2, 2]))]
            .map(|(name, tensor)| (name.to_string(), tensor))
            .into(),
        rest: Rest { counters, ..checkpoint.rest },
        ..checkpoint
    }
}

#[test]
fn every_bit_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let mut run = trainer(root.path(), &QuantConfig::default(), Some(&small_lora()));
    let (format, saved) = (run.weights_format(), odd(&mut run));
    let dir = root.path().join("checkpoint");
    fs::create_dir(&dir).unwrap();
    saved.save(&dir, &format).unwrap();
    let mut loaded = Checkpoint::load(&dir, &format).unwrap();
    assert_same(&loaded, &saved, "odd");
    for (name, tensor) in &saved.moments {
        loaded.take_moment(name, tensor.dims()).unwrap();
    }
    assert!(loaded.moments.is_empty());
    // Where the run stands is read without the tensors.
    fs::remove_file(dir.join(OPTIMIZER_FILE)).unwrap();
    let there = TrainingState::load(&dir).unwrap();
    assert_eq!(
        (there.global_step, there.counters, there.identity),
        (0, saved.rest.counters, saved.rest.identity)
    );
}

#[test]
fn changed_settings_and_damage_are_named() {
    let root = tempfile::tempdir().unwrap();
    let mut run = trainer(root.path(), &QuantConfig::default(), Some(&small_lora()));
    let format = run.weights_format();
    let dir = root.path().join("checkpoint");
    fs::create_dir(&dir).unwrap();
    let says = |part: &str| {
        let error = Checkpoint::load(&dir, &format).unwrap_err().to_string();
        assert!(error.contains(part), "{error} should say {part}");
    };
    says("holds no optimizer.safetensors");
    odd(&mut run).save(&dir, &format).unwrap();
    let mut loaded = Checkpoint::load(&dir, &format).unwrap();
    let error = loaded.take_moment("exp_avg.a", &[4, 1]).unwrap_err().to_string();
    assert!(error.contains("has shape [2, 2], not [4, 1]"), "{error}");
    let error = loaded.take_moment("exp_avg.c", &[1]).unwrap_err().to_string();
    assert!(error.contains("no tensor exp_avg.c"), "{error}");

    let path = dir.join(TRAINING_STATE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
    says("has format 1, this is 2");
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    says("training_state.json is not readable");
    fs::write(&path, text.replace("\"passes\"", "\"place\"")).unwrap();
    says("missing field `passes`");
    fs::write(&path, text.replace("\"global_step\": 0", "\"global_step\": 1")).unwrap();
    says("training_state.json is of step 1, trainer_state.json of step 0");
    fs::write(&path, text).unwrap();
    let optimizer = dir.join(OPTIMIZER_FILE);
    fs::write(&optimizer, &fs::read(&optimizer).unwrap()[..40]).unwrap();
    says("optimizer.safetensors: damaged or cut short");
}
