//! Reading the RoPE settings of a `config.json`.

use serde_json::{Map, Value, json};

use super::config::Gemma3Config;
use super::config_json::Fields;
use crate::error::Result;

/// RoPE's bases, and what positions of full-attention layers are divided by.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) local_base: f64,
    pub(super) factor: f64,
}

impl Fields<'_> {
    /// What the fields say of RoPE, in either form.
    pub(super) fn rope(&self) -> Result<Rope> {
        let default = Gemma3Config::default();
        let theta = self.number("rope_theta", default.rope_theta)?;
        let local_base = self.number("rope_local_base_freq", default.rope_local_base_freq)?;
        let mut rope = Rope { theta, local_base, factor: 1.0 };
        if let Some(parameters) = self.get("rope_parameters") {
            let kinds = ["full_attention", "sliding_attention"];
            let objects = kinds.map(|kind| parameters.get(kind).and_then(Value::as_object));
            if objects.iter().all(Option::is_none) {
                let wanted = "an object with full_attention and sliding_attention";
                return Err(self.wrong("rope_parameters", parameters, wanted));
            }
            let [full, sliding] = objects;
            if let Some(full) = full {
                rope.theta = self.number_in(full.get("rope_theta"), "rope_theta", rope.theta)?;
                rope.factor = self.rope_factor(full, "rope_parameters.full_attention")?;
            }
            if let Some(sliding) = sliding {
                let base = sliding.get("rope_theta");
                rope.local_base = self.number_in(base, "rope_theta", rope.local_base)?;
                let name = "rope_parameters.sliding_attention";
                if self.rope_factor(sliding, name)? != 1.0 {
                    return Err(self.wrong(name, &json!(sliding), "of rope_type default"));
                }
            }
        }
        // In the older form the scaling is the full layers' alone.
        if let Some(scaling) = self.get("rope_scaling") {
            let wanted = "null or an object";
            let scaling = scaling.as_object().ok_or_else(|| self.wrong("rope_scaling", scaling, wanted))?;
            rope.factor = self.rope_factor(scaling, "rope_scaling")?;
        }
        Ok(rope)
    }

    fn rope_factor(&self, object: &Map<String, Value>, name: &str) -> Result<f64> {
        let kind = object.get("rope_type").or_else(|| object.get("type"));
        if self.number_in(object.get("partial_rotary_factor"), "partial_rotary_factor", 1.0)? != 1.0 {
            return Err(self.wrong(name, &json!(object), "without a partial_rotary_factor"));
        }
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(1.0),
            Some("linear") => self.number_in(object.get("factor"), "factor", f64::NAN),
            Some(_) => Err(self.wrong(name, &json!(object), "of rope_type default or linear")),
        }
    }
}
