//! Saving adds: whatever else lies in a folder is there afterwards, byte for byte, after every function
//! that writes into a folder which a person named, when it works and when it fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use emoji_lab::hub::{HubEnv, login_with};
use emoji_lab::lora::Adapter;
use emoji_lab::prelude::*;
use emoji_lab::rng::Philox;

/// Everything below a folder: its kind and content by path.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_symlink() {
                found.insert(name, format!("link to {:?}", fs::read_link(&path).unwrap()).into_bytes());
            } else if kind.is_dir() {
                found.insert(name, b"folder".to_vec());
                walk(root, &path, found);
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// Files that are somebody's own: made-up names, and names that are nearly those of what is saved.
fn put_foreign_files(dir: &Path, random: &mut Philox) {
    const NEAR: [&str; 22] = [
        "model.safetensors.bak",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "model.gguf",
        "config.json.old",
        "config.json.1.part",
        "README.txt",
        "checkpoint-3x",
        "checkpoint-",
        "checkpoint-007",
        "trainer_state.json.orig",
        "notes.part",
        "files.txt.bak",
        ".hidden",
        "tokenizer.model",
        "adapter_config.yaml",
        "optimizer.pt",
        "runs.txt",
        "Gemma 🏖️ ü.txt",
        "a b",
        "..c",
        ".emoji_lab-new",
    ];
    const LETTERS: [char; 12] = ['a', 'Z', '7', '-', '_', '.', ' ', 'é', '日', '🎉', '~', '$'];
    fs::create_dir_all(dir).unwrap();
    for _ in 0..6 {
        let name = match random.below(3) {
            0 => NEAR[random.below(NEAR.len() as u64) as usize].to_string(),
            _ => {
                let len = 1 + random.below(12);
                let letters = (0..len).map(|_| LETTERS[random.below(LETTERS.len() as u64) as usize]);
                format!("x{}", letters.collect::<String>())
            }
        };
        let path = dir.join(&name);
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match random.below(4) {
            0 => {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("model.safetensors"), name.as_bytes()).unwrap();
            }
            #[cfg(unix)]
            1 => std::os::unix::fs::symlink("nowhere/at all", &path).unwrap(),
            _ => fs::write(&path, format!("{name} {}", random.next_u32())).unwrap(),
        }
    }
}

struct Made {
    model: Model,
    adapter: Adapter,
    with_lora: SftTrainer,
    without: SftTrainer,
    rows: ChatDataset,
    pushed: PathBuf,
}

type Saving = (&'static str, fn(&Made, &Path) -> Result<()>, &'static [&'static str]);

const TOKENIZER: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// A model's folder has its tokenizer in it.
const MODEL: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// As with Python, a trainer's adapter has the tokenizer beside it.
const ADAPTER_AND_TOKENIZER: [&str; 6] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Every function that writes into a folder of a person's choice, and the names it writes.
const SAVING: [Saving; 8] = [
    ("save_pretrained", |made, dir| made.model.save_pretrained(dir), &MODEL),
    ("save_pretrained_as", |made, dir| made.model.save_pretrained_as(dir, DType::BF16), &MODEL),
    ("save_model with LoRA", |made, dir| made.with_lora.save_model(dir), &ADAPTER_AND_TOKENIZER),
    ("save_model without LoRA", |made, dir| made.without.save_model(dir), &MODEL),
    ("Adapter::save", |made, dir| made.adapter.save(dir), &ADAPTER),
    ("Tokenizer::save_pretrained", |made, dir| made.model.tokenizer.save_pretrained(dir), &TOKENIZER),
    ("dry run", dry_run, &["README.md", "files.txt"]),
    ("train", train, &["trainer_state.json"]),
];

fn dry_run(made: &Made, dir: &Path) -> Result<()> {
    let login = login_with(&HubEnv::from_variables(&|_| None), None)?;
    let config = PushConfig { dry_run: Some(dir.to_path_buf()), ..PushConfig::default() };
    push_to_hub(&login, &made.pushed, &config, &ModelCard::default()).map(|_| ())
}

fn train(made: &Made, dir: &Path) -> Result<()> {
    let args = SftConfig { output_dir: dir.to_path_buf(), ..settings(dir) };
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    SftTrainer::new(&made.model, &made.rows, None, &QuantConfig::none(), Some(&lora), &args)?
        .train()
        .map(|_| ())
}

fn settings(dir: &Path) -> SftConfig {
    SftConfig {
        output_dir: dir.to_path_buf(),
        max_steps: Some(1),
        eval_strategy: Strategy::No,
        save_strategy: Strategy::Steps(1),
        save_total_limit: Some(1),
        progress_lines: 0,
        ..SftConfig::default()
    }
}

/// What a function may add or write again; all else must be as it was.
fn is_its_own(path: &Path, function: &str, names: &[&str]) -> bool {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    let beside: &[&str] = match function {
        "train" => &["checkpoint-1", "runs"],
        "dry run" => &[".emoji_lab-dry-run"],
        _ => &[],
    };
    names.contains(&first.as_str()) || beside.contains(&first.as_str())
}

fn made(root: &Path) -> Made {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let rows = format_chat(&dataset).take(4);
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let new = |lora: Option<&LoraConfig>| {
        SftTrainer::new(&model, &rows, None, &QuantConfig::none(), lora, &settings(&root.join("unused")))
            .unwrap()
    };
    let (with_lora, without) = (new(Some(&lora)), new(None));
    let adapter = with_lora.adapter().unwrap().unwrap();
    let pushed = root.join("pushed");
    model.save_pretrained(&pushed).unwrap();
    Made { model, adapter, with_lora, without, rows, pushed }
}

#[test]
fn what_else_is_in_a_folder_stays_on_success_and_on_failure() {
    let root = tempfile::tempdir().unwrap();
    let made = made(root.path());
    let mut random = Philox::new(2026, 11);
    for round in 0..6 {
        for (name, save, names) in SAVING {
            let dir = root.path().join(format!("{round}-{}", name.replace([' ', ':'], "-")));
            // A dry run writes into a folder of its own: the first makes it, others' files come later.
            if name == "dry run" {
                save(&made, &dir).unwrap();
            }
            put_foreign_files(&dir, &mut random);
            if round % 2 == 1 && name != "dry run" {
                // Over an earlier result of its own.
                save(&made, &dir).unwrap();
            }
            let before = contents(&dir);
            save(&made, &dir).unwrap_or_else(|e| panic!("{name}: {e}"));
            let after = contents(&dir);
            for (path, content) in before.iter().filter(|(path, _)| !is_its_own(path, name, names)) {
                assert!(after.get(path) == Some(content), "{name}, round {round}: {path:?} is another");
            }
            for path in after.keys().filter(|path| !before.contains_key(*path)) {
                assert!(is_its_own(path, name, names), "{name}, round {round}: {path:?} is new");
            }
            for file in names {
                assert!(dir.join(file).is_file(), "{name} wrote no {file}");
            }

            // Something lies where one of its files is to go: all stays as it is.
            let dir = root.path().join(format!("{round}-{}-fails", name.replace([' ', ':'], "-")));
            if name == "dry run" {
                save(&made, &dir).unwrap();
            }
            put_foreign_files(&dir, &mut random);
            for file in names {
                let blocked = dir.join(file);
                let there = fs::read(&blocked).ok();
                let _ = fs::remove_file(&blocked);
                fs::create_dir(&blocked).unwrap();
                let before = contents(&dir);
                assert!(save(&made, &dir).is_err(), "{name} wrote over the folder {file}");
                let mut after = contents(&dir);
                if name == "train" {
                    // It fails at its end: the checkpoint and the log that it has written by then stay.
                    after.retain(|path, _| before.contains_key(path) || !is_its_own(path, name, &[]));
                }
                assert!(after == before, "{name}, round {round}, {file} blocked: the folder is another");
                fs::remove_dir(&blocked).unwrap();
                if let Some(there) = there {
                    fs::write(&blocked, there).unwrap();
                }
            }
        }
    }
}

/// The notebook's own order of things: the model is saved where checkpoints and logs are.
#[test]
fn a_model_saved_into_output_dir_leaves_the_run_in_it() {
    let root = tempfile::tempdir().unwrap();
    let made = made(root.path());
    let dir = root.path().join("out");
    for lora in [None, Some(LoraConfig { r: 2, ..LoraConfig::default() })] {
        let mut trainer = SftTrainer::new(
            &made.model,
            &made.rows,
            None,
            &QuantConfig::none(),
            lora.as_ref(),
            &settings(&dir),
        )
        .unwrap();
        trainer.train().unwrap();
        let before = contents(&dir);
        trainer.save_model(&dir).unwrap();
        made.model.save_pretrained(&dir).unwrap();
        let after = contents(&dir);
        assert!(before.keys().any(|path| path.starts_with("checkpoint-1")));
        for (path, content) in before.iter().filter(|(path, _)| {
            !is_its_own(path, "save_model", &[&MODEL[..], &ADAPTER_AND_TOKENIZER].concat())
                || path.starts_with("checkpoint-1")
        }) {
            assert!(after.get(path) == Some(content), "{path:?}");
        }
        assert!(load_model(dir.to_str().unwrap(), &Device::Cpu).is_ok());
    }
}

/// A model's folder and an adapter's have no name in common: each goes into the other's and takes nothing.
#[test]
fn a_model_and_an_adapter_share_a_folder() {
    let root = tempfile::tempdir().unwrap();
    let made = made(root.path());
    for order in [[0, 4], [4, 0]] {
        let dir = root.path().join(format!("{order:?}"));
        let [(_, first, _), (_, second, names)] = order.map(|at| SAVING[at]);
        first(&made, &dir).unwrap();
        let before = contents(&dir);
        second(&made, &dir).unwrap();
        let after = contents(&dir);
        assert!(before.iter().all(|(path, content)| after.get(path) == Some(content)));
        assert_eq!(after.len(), before.len() + names.iter().filter(|name| dir.join(name).is_file()).count());
        assert!(Adapter::load(&dir).is_ok() && load_model(dir.to_str().unwrap(), &Device::Cpu).is_ok());
    }
}

/// In the Hugging Face cache a model's weights are a link to a file that other programs share.
#[cfg(unix)]
#[test]
fn weights_that_are_a_link_are_replaced_by_a_file() {
    let root = tempfile::tempdir().unwrap();
    let made = made(root.path());
    let (shared, dir) = (root.path().join("shared"), root.path().join("dir"));
    fs::create_dir(&dir).unwrap();
    fs::write(&shared, "others read this").unwrap();
    std::os::unix::fs::symlink(&shared, dir.join("model.safetensors")).unwrap();
    made.model.save_pretrained(&dir).unwrap();
    assert!(!fs::symlink_metadata(dir.join("model.safetensors")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&shared).unwrap(), "others read this");
}

#[test]
fn a_dry_run_writes_only_over_what_a_dry_run_wrote() {
    let root = tempfile::tempdir().unwrap();
    let made = made(root.path());
    // What marked such a folder before is a name that others use as well.
    let data = root.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("files.txt"), "mine").unwrap();
    fs::write(data.join("rows.csv"), "text,emoji\n").unwrap();
    let before = contents(&data);
    let error = dry_run(&made, &data).unwrap_err().to_string();
    assert!(error.contains("dry_run") && error.contains("no dry run wrote"), "{error}");
    assert!(contents(&data) == before);
    // A mark that somebody wrote is none.
    fs::write(data.join(".emoji_lab-dry-run"), "files.txt\n").unwrap();
    assert!(dry_run(&made, &data).is_err());
    // In a dry run's folder, somebody's own file under a name that the next one wants.
    let dry = root.path().join("dry");
    dry_run(&made, &dry).unwrap();
    let mark = fs::read_to_string(dry.join(".emoji_lab-dry-run")).unwrap();
    fs::write(dry.join(".emoji_lab-dry-run"), mark.replace("README.md\n", "")).unwrap();
    let error = dry_run(&made, &dry).unwrap_err().to_string();
    assert!(error.contains("its README.md was not written by a dry run"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_leads_on() {
    let root = tempfile::tempdir().unwrap();
    let made = made(root.path());
    let (disk, link) = (root.path().join("disk"), root.path().join("link"));
    fs::create_dir(&disk).unwrap();
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    for (name, save, names) in SAVING {
        if name == "dry run" {
            continue; // What the others leave there is not a dry run's.
        }
        save(&made, &link).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "{name}");
        for file in names {
            assert!(disk.join(file).is_file(), "{name} wrote no {file}");
        }
    }
}
