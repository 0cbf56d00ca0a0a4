//! Which modules an adapter is on, and with what rank and scale: the rules by which PEFT reads
//! `target_modules` and its companions (`check_target_module_exists`, `get_pattern_key` of PEFT 0.21).

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::adapter_config::whole_or_float;
use super::adapter_json::strings;
use crate::model::LinearName;

/// The modules of an adapter that is not simply on the same layers of every block.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Selection {
    targets: Names,
    exclude: Names,
    /// `layers_to_transform`: these blocks only.
    layers: Option<Vec<u64>>,
    layers_pattern: Vec<String>,
    rank_pattern: Vec<(String, f64)>,
    alpha_pattern: Vec<(String, f64)>,
    /// What the tool that wrote the adapter has before `layers.0`: `model.`, `model.language_model.`, …
    pub(super) prefix: String,
    /// The file's fields, to be written again as they were read.
    pub(super) fields: Map<String, Value>,
}

/// Modules by name, each meaning every path that ends with it, or by a pattern that matches the path.
#[derive(Debug, Clone, PartialEq)]
enum Names {
    List(Vec<String>),
    Pattern(String),
}

impl Selection {
    /// Reads the fields of an `adapter_config.json`; `None` if it names the same linear layers for
    /// every block, with one rank. The error is a field and what is wrong with it.
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Option<Self>, String> {
        let targets = Names::read(fields, "target_modules")?;
        let layers = match fields.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) if list.is_empty() => None,
            Some(value) => {
                let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                let layers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                Some(layers.ok_or_else(|| format!("layers_to_transform is {value}, not numbers of layers"))?)
            }
        };
        let layers_pattern = match fields.get("layers_pattern") {
            None | Some(Value::Null) => vec![],
            Some(Value::String(one)) if one.is_empty() => vec![],
            Some(Value::String(one)) => vec![one.clone()],
            Some(value) => strings(value).ok_or_else(|| format!("layers_pattern is {value}, not names"))?,
        };
        let selection = Self {
            targets,
            exclude: Names::read(fields, "exclude_modules")?,
            layers,
            layers_pattern,
            rank_pattern: numbers(fields, "rank_pattern")?,
            alpha_pattern: numbers(fields, "alpha_pattern")?,
            prefix: "model.".to_string(),
            fields: fields.clone(),
        };
        selection.compiles()?;
        Ok((!selection.is_plain()).then_some(selection))
    }

    fn is_plain(&self) -> bool {
        let plain = |name: &String| LinearName::from_name(name).is_some();
        let targets = match &self.targets {
            Names::List(names) => names.iter().all(plain),
            Names::Pattern(pattern) => pattern.eq_ignore_ascii_case("all-linear"),
        };
        targets
            && self.exclude == Names::List(vec![])
            && self.layers.is_none()
            && self.rank_pattern.is_empty()
            && self.alpha_pattern.is_empty()
    }

    /// Refuses patterns that are none, with the field's name.
    fn compiles(&self) -> Result<(), String> {
        for (field, names) in [("target_modules", &self.targets), ("exclude_modules", &self.exclude)] {
            if let Names::Pattern(pattern) = names
                && !pattern.eq_ignore_ascii_case("all-linear")
            {
                full(pattern).map_err(|e| format!("{field} is no pattern ({e})"))?;
            }
        }
        for pattern in &self.layers_pattern {
            layer_of(pattern).map_err(|e| format!("layers_pattern is no pattern ({e})"))?;
        }
        for (field, patterns) in
            [("rank_pattern", &self.rank_pattern), ("alpha_pattern", &self.alpha_pattern)]
        {
            for (pattern, _) in patterns {
                suffix(pattern).map_err(|e| format!("{field} has {pattern:?}, which is no pattern ({e})"))?;
            }
        }
        Ok(())
    }

    /// Whether the adapter is on the linear layer `which` of block `layer`.
    pub(super) fn has(&self, layer: usize, which: LinearName) -> bool {
        let path = self.path(layer, which);
        if self.exclude.has(&path) {
            return false;
        }
        let listed = match &self.targets {
            Names::List(names) => names.contains(&path),
            // PEFT writes out the names that it stands for.
            Names::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => {
                return self.is_in_layers(&path);
            }
            // As PEFT: a pattern says it all, and layers_to_transform does not count beside it.
            Names::Pattern(_) => return self.targets.has(&path),
        };
        // As PEFT: so does a whole path.
        listed || self.targets.has(&path) && self.is_in_layers(&path)
    }

    /// The same choice for the text model of its own, as which the adapter is kept and saved: where the
    /// names are those of the multimodal class, they are written out in full for `blocks`.
    pub(super) fn in_own_names(self, blocks: &[usize], (r, alpha): (usize, f64)) -> Self {
        if self.prefix == "model." {
            return self;
        }
        let all = blocks.iter().flat_map(|layer| LinearName::ALL.map(|which| (*layer, which)));
        let chosen: Vec<_> = all.filter(|(layer, which)| self.has(*layer, *which)).collect();
        let paths: Vec<String> = chosen.iter().map(|(layer, which)| which.module_path(*layer)).collect();
        let by_path = |value: &dyn Fn(usize, LinearName) -> f64, usual: f64| -> Vec<(String, f64)> {
            let values = chosen.iter().map(|(layer, which)| value(*layer, *which));
            let pairs = paths.iter().cloned().zip(values);
            pairs.filter(|(_, value)| *value != usual).collect()
        };
        let rank_pattern = by_path(&|layer, which| self.rank(layer, which, r) as f64, r as f64);
        let alpha_pattern = by_path(&|layer, which| self.alpha(layer, which, alpha), alpha);
        let object = |pairs: &[(String, f64)]| {
            Value::Object(pairs.iter().map(|(path, value)| (path.clone(), whole_or_float(*value))).collect())
        };
        let mut fields = self.fields;
        for (name, value) in [
            ("target_modules", json!(paths)),
            ("exclude_modules", Value::Null),
            ("layers_to_transform", Value::Null),
            ("layers_pattern", Value::Null),
            ("rank_pattern", object(&rank_pattern)),
            ("alpha_pattern", object(&alpha_pattern)),
        ] {
            fields.insert(name.to_string(), value);
        }
        Self {
            targets: Names::List(paths),
            exclude: Names::List(vec![]),
            layers: None,
            layers_pattern: vec![],
            rank_pattern,
            alpha_pattern,
            prefix: "model.".to_string(),
            fields,
        }
    }

    fn is_in_layers(&self, path: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let of = |pattern: &str| {
            let found = layer_of(pattern).ok()?.captures(path).ok()??;
            found.get(1)?.as_str().parse::<u64>().ok()
        };
        let layer = match self.layers_pattern.is_empty() {
            true => of("[^.]*"),
            false => self.layers_pattern.iter().find_map(|pattern| of(pattern)),
        };
        layer.is_some_and(|layer| layers.contains(&layer))
    }

    /// The rank of a module, where `r` is that of the others.
    pub(super) fn rank(&self, layer: usize, which: LinearName, r: usize) -> usize {
        self.first_match(&self.rank_pattern, layer, which).map_or(r, |rank| rank as usize)
    }

    /// `lora_alpha` of a module, where `alpha` is that of the others.
    pub(super) fn alpha(&self, layer: usize, which: LinearName, alpha: f64) -> f64 {
        self.first_match(&self.alpha_pattern, layer, which).unwrap_or(alpha)
    }

    fn first_match(&self, patterns: &[(String, f64)], layer: usize, which: LinearName) -> Option<f64> {
        let path = self.path(layer, which);
        let fits = |pattern: &str| suffix(pattern).is_ok_and(|regex| regex.is_match(&path).unwrap_or(false));
        patterns.iter().find(|(pattern, _)| fits(pattern)).map(|(_, value)| *value)
    }

    /// The module's path as the adapter's tool has it.
    fn path(&self, layer: usize, which: LinearName) -> String {
        let path = which.module_path(layer);
        format!("{}{}", self.prefix, path.strip_prefix("model.").unwrap_or(&path))
    }
}

impl Names {
    fn read(fields: &Map<String, Value>, field: &str) -> Result<Self, String> {
        match fields.get(field) {
            None | Some(Value::Null) => Ok(Self::List(vec![])),
            Some(Value::String(pattern)) => Ok(Self::Pattern(pattern.clone())),
            Some(list) => match strings(list) {
                Some(names) if names == ["all-linear"] => Ok(Self::Pattern("all-linear".to_string())),
                Some(names) => Ok(Self::List(names)),
                None => Err(format!("{field} is {list}, not a list of names")),
            },
        }
    }

    fn has(&self, path: &str) -> bool {
        match self {
            Self::List(names) => names
                .iter()
                .any(|name| path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))),
            Self::Pattern(pattern) => full(pattern).is_ok_and(|regex| regex.is_match(path).unwrap_or(false)),
        }
    }
}

/// Python's `re.fullmatch`.
fn full(pattern: &str) -> Result<Regex, fancy_regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

/// Python's `re.match` of a layer's number after `pattern`.
fn layer_of(pattern: &str) -> Result<Regex, fancy_regex::Error> {
    Regex::new(&format!(r"^.*\.(?:{pattern})\.(\d+)\."))
}

/// A key of `rank_pattern`: it matches the end of a path, from a dot on.
fn suffix(pattern: &str) -> Result<Regex, fancy_regex::Error> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
}

fn numbers(fields: &Map<String, Value>, field: &str) -> Result<Vec<(String, f64)>, String> {
    let Some(value) = fields.get(field).filter(|value| !value.is_null()) else { return Ok(vec![]) };
    let read = |map: &Map<String, Value>| {
        map.iter().map(|(name, value)| Some((name.clone(), value.as_f64().filter(|n| *n > 0.0)?))).collect()
    };
    value
        .as_object()
        .and_then(read)
        .ok_or_else(|| format!("{field} is {value}, not numbers above 0 by module"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selection(fields: Value) -> Selection {
        Selection::read(fields.as_object().unwrap()).unwrap().expect("a selection")
    }

    fn chosen(selection: &Selection) -> Vec<String> {
        let all = (0..3).flat_map(|layer| LinearName::ALL.map(|which| (layer, which)));
        all.filter(|(layer, which)| selection.has(*layer, *which))
            .map(|(layer, which)| format!("{layer}.{which}"))
            .collect()
    }

    #[test]
    fn names_are_matched_as_peft_matches_them() {
        for (fields, modules) in [
            (json!({"target_modules": ["self_attn.q_proj"]}), vec!["0.q_proj", "1.q_proj", "2.q_proj"]),
            (json!({"target_modules": ["model.layers.1.mlp.up_proj"]}), vec!["1.up_proj"]),
            (
                json!({"target_modules": ["layers.2.self_attn.v_proj", "1.mlp.up_proj"]}),
                vec!["1.up_proj", "2.v_proj"],
            ),
            (json!({"target_modules": r".*layers\.1\.self_attn\.(q|v)_proj"}), vec!["1.q_proj", "1.v_proj"]),
            (json!({"target_modules": "q_proj"}), vec![]), // The whole path must match.
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
                vec!["0.q_proj", "2.q_proj"],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
                vec!["1.q_proj"],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["h"]}),
                vec![],
            ),
            (
                json!({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.q_proj", "k_proj"]}),
                vec!["1.q_proj", "2.q_proj"],
            ),
            (
                json!({"target_modules": ["all-linear"], "layers_to_transform": [1], "exclude_modules": r".*mlp.*"}),
                vec!["1.q_proj", "1.k_proj", "1.v_proj", "1.o_proj"],
            ),
            (
                json!({"target_modules": "all-linear", "exclude_modules": r".*(mlp|[kvo]_proj).*"}),
                vec!["0.q_proj", "1.q_proj", "2.q_proj"],
            ),
        ] {
            assert_eq!(chosen(&selection(fields.clone())), modules, "{fields}");
        }
        for plain in [json!(["q_proj", "v_proj"]), json!("all-linear"), json!(["all-linear"])] {
            let fields = json!({"target_modules": plain, "rank_pattern": {}, "layers_to_transform": null});
            assert_eq!(Selection::read(fields.as_object().unwrap()), Ok(None));
        }
    }

    #[test]
    fn paths_of_the_multimodal_class_are_matched_as_its_tool_had_them() {
        let mut selection = selection(json!({"target_modules": r".*language_model.*\.q_proj"}));
        assert_eq!(chosen(&selection).len(), 0);
        selection.prefix = "model.language_model.".to_string();
        assert_eq!(chosen(&selection), ["0.q_proj", "1.q_proj", "2.q_proj"]);
        // What is saved again is for the text model, whose paths are others.
        let own = selection.clone().in_own_names(&[0, 2], (4, 8.0));
        assert_eq!(chosen(&own), ["0.q_proj", "2.q_proj"]);
        let again = Selection::read(&own.fields).unwrap();
        assert_eq!(again, Some(own));
    }

    #[test]
    fn ranks_of_the_multimodal_class_are_kept_under_the_text_models_names() {
        let mut selection = selection(json!({
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {r"model\.language_model\.layers\.1\.self_attn\.q_proj": 2},
            "alpha_pattern": {"v_proj": 3.5}
        }));
        selection.prefix = "model.language_model.".to_string();
        let own = selection.in_own_names(&[0, 1], (4, 8.0));
        assert_eq!(own.fields["rank_pattern"], json!({"model.layers.1.self_attn.q_proj": 2}));
        assert_eq!([0, 1].map(|layer| own.rank(layer, LinearName::QProj, 4)), [4, 2]);
        assert_eq!([0, 1].map(|layer| own.alpha(layer, LinearName::VProj, 8.0)), [3.5, 3.5]);
        assert_eq!(own.alpha(0, LinearName::QProj, 8.0), 8.0);
    }

    #[test]
    fn ranks_and_alphas_by_pattern() {
        let selection = selection(json!({
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 6},
            "alpha_pattern": {r"^model\.layers\.\d+\.self_attn\.v_proj": 3.5}
        }));
        assert_eq!([0, 1].map(|layer| selection.rank(layer, LinearName::QProj, 4)), [6, 2]);
        assert_eq!(selection.rank(0, LinearName::VProj, 4), 4);
        assert_eq!(selection.alpha(0, LinearName::QProj, 8.0), 8.0);
        assert_eq!(selection.alpha(2, LinearName::VProj, 8.0), 3.5);
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for (field, value) in [
            ("target_modules", json!("(q_proj")),
            ("exclude_modules", json!(3)),
            ("layers_to_transform", json!(["first"])),
            ("rank_pattern", json!({"q_proj": "eight"})),
            ("alpha_pattern", json!({"(q_proj": 8})),
        ] {
            let mut fields = json!({"target_modules": ["q_proj"]});
            fields[field] = value;
            let error = Selection::read(fields.as_object().unwrap()).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
