//! Which module of the crate may use which: the list is the design, and another arrow fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up; a module uses those after its colon and no other.
///
/// No arrow points back. `model` and `train` know nothing of `cuda`, though they choose it: a GPU brings
/// its generator and its engine by a trait of theirs.
const USES: &str = "
    rng:
    memory:
    protobuf:
    python_json:
    host: memory
    plain:
    display:
    error: plain
    sniff: error
    files: error
    settings: error
    task: display error
    table_files: error sniff
    hub: display error files table_files
    data: display error hub rng sniff table_files task
    quant: display error host memory
    gpu: error
    ops: error gpu host memory quant rng
    device: error gpu ops
    model: data device display error files host hub memory ops quant rng sniff task
    lora: display error files model ops quant rng sniff
    evaluate: data display error model rng task
    train: data device display error evaluate files host lora model ops protobuf python_json quant rng
    cuda: error gpu host memory model ops train
    plot: display error files train
    card: data display evaluate hub task train
    export: data display error files host hub model ops protobuf quant task
    compare: display error model task
    sweep: data display error evaluate lora model quant train
";

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without comments and tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The names right after `crate::`, those of a group among them.
fn used(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => drop(names.insert(word(after))),
            Some(group) => {
                let group = group.split("};").next().unwrap_or_default();
                names.extend(group.split(',').map(|name| word(name.trim())));
            }
        }
    }
    names
}

#[test]
fn modules_use_only_what_the_list_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../emoji_lab");
    let allowed: BTreeMap<&str, BTreeSet<&str>> = USES
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .map(|(module, uses)| (module, uses.split_whitespace().collect()))
        .collect();
    let mut below = BTreeSet::new();
    for (module, uses) in USES.lines().filter_map(|line| line.trim().split_once(':')) {
        let above: Vec<_> = uses.split_whitespace().filter(|name| !below.contains(name)).collect();
        assert!(above.is_empty(), "{module} points back at {above:?}");
        below.insert(module);
    }
    let mut files = vec![];
    let crates = [root.join("numerics/src"), root.join("src")];
    crates.iter().for_each(|folder| sources(folder, &mut files));
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = vec![];
    for path in &files {
        let inside = crates.iter().find_map(|folder| path.strip_prefix(folder).ok()).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        // Tests may look everywhere; the front pages show everything.
        let is_test = ["tests", "testing"].iter().any(|name| inside.to_string_lossy().contains(name))
            || inside.ends_with("rehearsal.rs");
        if is_test || ["lib", "tutorial", "fuzzing"].contains(&module.as_str()) {
            continue;
        }
        let Some(may) = allowed.get(module.as_str()) else {
            wrong.push(format!("{module} is not in the list"));
            continue;
        };
        for name in used(&code(path)) {
            if !allowed.contains_key(name.as_str()) || name == module {
                continue;
            }
            if !may.contains(name.as_str()) {
                wrong.push(format!("{} uses {name}", inside.display()));
            }
            seen.entry(module.clone()).or_default().insert(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // An arrow that is no longer there goes from the list, so that it does not come back.
    for (module, may) in &allowed {
        let there = seen.get(*module).cloned().unwrap_or_default();
        let gone: Vec<_> = may.iter().filter(|name| !there.contains(**name)).collect();
        assert!(gone.is_empty(), "{module} no longer uses {gone:?}");
    }
}
