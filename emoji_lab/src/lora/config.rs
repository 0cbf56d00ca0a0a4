//! What PEFT calls `LoraConfig`, with the notebook's settings as defaults.

use super::token_indices::TokenIndices;
use crate::display::settings_view;
use crate::error::{Error, Result};
use crate::model::{LinearName, Parameter};

/// The layers that can be trained whole, by their names in `modules_to_save`.
pub(super) const WHOLE_MODULES: [(&str, Parameter); 2] =
    [("lm_head", Parameter::LmHead), ("embed_tokens", Parameter::EmbedTokens)];

/// The layer of [`WHOLE_MODULES`] that is called `name`.
pub(super) fn whole_module(name: &str) -> Option<Parameter> {
    WHOLE_MODULES.into_iter().find(|(module, _)| *module == name).map(|(_, parameter)| parameter)
}

/// What `target_modules="all-linear"` means here, written out.
pub(super) fn all_linear() -> Vec<String> {
    LinearName::ALL.map(|which| which.name().to_string()).to_vec()
}

/// Both of [`WHOLE_MODULES`].
pub(super) fn all_whole() -> Vec<String> {
    WHOLE_MODULES.map(|(module, _)| module.to_string()).to_vec()
}

/// Low-rank adapters (Hu et al. 2021): each target layer computes `W x + lora_alpha / r · B A x`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of A and B.
    pub r: usize,
    /// The adapter's output is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Names of the linear layers that get an adapter; `["all-linear"]` stands for all seven.
    pub target_modules: Vec<String>,
    /// Share of A's input that is dropped in training.
    pub lora_dropout: f64,
    /// Layers trained whole beside the adapters: `lm_head` and `embed_tokens`, both or neither.
    pub modules_to_save: Vec<String>,
    /// Rows of the embedding that are trained instead of all of it: some hundred thousand numbers in
    /// place of Gemma's 168 million. `modules_to_save` must then be empty.
    pub trainable_token_indices: TokenIndices,
    /// Whether a tied head stays one tensor with the embedding while both are trained.
    pub ensure_weight_tying: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            target_modules: all_linear(),
            lora_dropout: 0.05,
            modules_to_save: all_whole(),
            trainable_token_indices: TokenIndices::None,
            ensure_weight_tying: true,
        }
    }
}

settings_view!(
    LoraConfig,
    "Adapters",
    r,
    lora_alpha,
    target_modules,
    lora_dropout,
    modules_to_save,
    trainable_token_indices,
    ensure_weight_tying,
);

impl LoraConfig {
    /// Refuses settings that cannot train.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the first such setting.
    pub fn validate(&self) -> Result<()> {
        if self.r == 0 {
            return Err(Error::setting("r", self.r, "the rank is at least 1; 16 is usual"));
        }
        if !self.lora_alpha.is_finite() || self.lora_alpha <= 0.0 {
            let help = "the adapter's output is scaled by lora_alpha / r, so use a number above 0, as 2 · r";
            return Err(Error::setting("lora_alpha", self.lora_alpha, help));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            let help = "a share from 0 up to, not including, 1; 0.05 is usual";
            return Err(Error::setting("lora_dropout", self.lora_dropout, help));
        }
        self.validate_targets()?;
        self.validate_whole_modules()?;
        if self.trains_embeddings() && !self.trainable_token_indices.is_none() {
            return Err(Error::setting(
                "trainable_token_indices",
                format!("{:?}", self.trainable_token_indices),
                "modules_to_save trains every row already: leave it empty (vec![]) to train only these",
            ));
        }
        Ok(())
    }

    /// The layers that get an adapter, each once, in the order of [`LinearName::ALL`].
    ///
    /// Names that are none of a linear layer are left out; [`validate`](Self::validate) refuses them.
    #[must_use]
    pub fn targets(&self) -> Vec<LinearName> {
        let named = |which: &LinearName| self.target_modules.iter().any(|target| target == which.name());
        LinearName::ALL.into_iter().filter(|which| self.is_all_linear() || named(which)).collect()
    }

    /// Whether the head and the embedding are trained whole.
    #[must_use]
    pub fn trains_embeddings(&self) -> bool {
        !self.modules_to_save.is_empty()
    }

    fn is_all_linear(&self) -> bool {
        matches!(&self.target_modules[..], [only] if only.eq_ignore_ascii_case("all-linear"))
    }

    fn validate_targets(&self) -> Result<()> {
        let known = format!("use [\"all-linear\"] or names out of {}", all_linear().join(", "));
        if self.target_modules.is_empty() {
            return Err(Error::setting("target_modules", "[]", known));
        }
        let unknown = self.target_modules.iter().find(|name| LinearName::from_name(name).is_none());
        match unknown {
            Some(name) if !self.is_all_linear() => Err(Error::setting("target_modules", name, known)),
            _ => Ok(()),
        }
    }

    fn validate_whole_modules(&self) -> Result<()> {
        let name = "modules_to_save";
        let unknown = self.modules_to_save.iter().find(|module| whole_module(module).is_none());
        if let Some(other) = unknown {
            return Err(Error::setting(name, other, "only lm_head and embed_tokens can be trained whole"));
        }
        let present =
            WHOLE_MODULES.iter().filter(|(whole, _)| self.modules_to_save.iter().any(|m| m == whole));
        match present.count() {
            0 | 2 => Ok(()),
            _ => Err(Error::setting(
                name,
                self.modules_to_save.join(", "),
                "train lm_head and embed_tokens both, or neither (an empty list)",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_all_linear_are_fine() {
        LoraConfig::default().validate().unwrap();
        let short = LoraConfig { target_modules: vec!["all-linear".into()], ..Default::default() };
        short.validate().unwrap();
        assert_eq!(short.targets(), LinearName::ALL);
        let two = LoraConfig {
            target_modules: vec!["v_proj".into(), "q_proj".into(), "v_proj".into()],
            modules_to_save: vec![],
            ..Default::default()
        };
        two.validate().unwrap();
        assert_eq!(two.targets(), [LinearName::QProj, LinearName::VProj]);
    }

    #[test]
    fn each_setting_that_cannot_work_is_named() {
        let base = LoraConfig::default;
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_string()).collect::<Vec<_>>();
        let cases = [
            (LoraConfig { r: 0, ..base() }, "setting r = 0"),
            (LoraConfig { lora_alpha: f64::NAN, ..base() }, "setting lora_alpha = NaN"),
            (LoraConfig { lora_alpha: 0.0, ..base() }, "setting lora_alpha = 0"),
            (LoraConfig { lora_dropout: 1.0, ..base() }, "setting lora_dropout = 1"),
            (LoraConfig { lora_dropout: f64::NAN, ..base() }, "setting lora_dropout = NaN"),
            (LoraConfig { target_modules: vec![], ..base() }, "setting target_modules = []"),
            (LoraConfig { target_modules: names(&["q_proj", "qkv"]), ..base() }, "target_modules = qkv"),
            (
                LoraConfig { target_modules: names(&["q_proj", "all-linear"]), ..base() },
                "target_modules = all-linear",
            ),
            (LoraConfig { modules_to_save: names(&["norm"]), ..base() }, "modules_to_save = norm"),
            (LoraConfig { modules_to_save: names(&["lm_head"]), ..base() }, "modules_to_save = lm_head"),
        ];
        let cases = cases.into_iter().chain([(
            LoraConfig { trainable_token_indices: TokenIndices::Occurring, ..base() },
            "setting trainable_token_indices = Occurring: modules_to_save trains every row already",
        )]);
        for (config, says) in cases {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
    }
}
