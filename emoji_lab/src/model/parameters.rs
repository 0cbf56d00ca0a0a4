//! The table of Gemma 3's parameters: what each one is, its shape, and its name in every file.
//!
//! The model has an embedding, decoder layers of seven linear layers ([`LinearName`]) and six norms
//! ([`NormName`]) each, a last norm, and a head where that is not the embedding. Whatever depends on which
//! parameter it is (files, the flat buffers of training, adapters, GGUF, the GPU's matrices) asks here.

use std::fmt;

use super::config::Gemma3Config;

/// The embedding's name, and the head's where they are tied.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
/// The head of an untied model.
pub const LM_HEAD: &str = "lm_head.weight";
const FINAL_NORM: &str = "model.norm.weight";
const LAYERS: &str = "model.layers.";
const WEIGHT: &str = ".weight";
const LORA_A: &str = ".lora_A.weight";
const LORA_B: &str = ".lora_B.weight";
const LORA_MAGNITUDE: &str = ".lora_magnitude_vector";
/// PEFT's names of rows that are trained apart from their table.
const EMBED_TOKENS_ROWS: &str = "model.embed_tokens.token_adapter.trainable_tokens_delta";
const LM_HEAD_ROWS: &str = "lm_head.token_adapter.trainable_tokens_delta";

/// A linear layer of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinearName {
    /// Queries, from the residual stream.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// From what the heads attended to back into the residual stream.
    OProj,
    /// The MLP's gate, before GELU.
    GateProj,
    /// What the gate lets through.
    UpProj,
    /// From the MLP back into the residual stream.
    DownProj,
}

impl LinearName {
    /// All seven, in the order in which they are numbered.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// Those that read one activation, and can be one matrix.
    pub const GROUPS: [&'static [Self]; 4] = [
        &[Self::QProj, Self::KProj, Self::VProj],
        &[Self::OProj],
        &[Self::GateProj, Self::UpProj],
        &[Self::DownProj],
    ];

    /// Its block, its name there, and llama.cpp's name.
    const fn row(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::QProj => ("self_attn", "q_proj", "attn_q"),
            Self::KProj => ("self_attn", "k_proj", "attn_k"),
            Self::VProj => ("self_attn", "v_proj", "attn_v"),
            Self::OProj => ("self_attn", "o_proj", "attn_output"),
            Self::GateProj => ("mlp", "gate_proj", "ffn_gate"),
            Self::UpProj => ("mlp", "up_proj", "ffn_up"),
            Self::DownProj => ("mlp", "down_proj", "ffn_down"),
        }
    }

    /// What transformers calls it, and PEFT in `target_modules`: `q_proj`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The one that [`name`](Self::name) is of.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|which| which.name() == name)
    }

    /// Its path in the model, as `model.layers.0.self_attn.q_proj`.
    #[must_use]
    pub fn module_path(self, layer: usize) -> String {
        let (block, name, _) = self.row();
        format!("{LAYERS}{layer}.{block}.{name}")
    }

    /// `[out_features, in_features]`.
    #[must_use]
    pub fn dims(self, config: &Gemma3Config) -> [usize; 2] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        match self {
            Self::QProj => [queries, hidden],
            Self::KProj | Self::VProj => [keys, hidden],
            Self::OProj => [hidden, queries],
            Self::GateProj | Self::UpProj => [inner, hidden],
            Self::DownProj => [hidden, inner],
        }
    }

    /// Its number among the linear layers of the whole model. Dropout's random stream goes by it, so that
    /// it is part of a run's numbers.
    #[must_use]
    pub const fn number(self, layer: usize) -> usize {
        layer * Self::ALL.len() + self as usize
    }
}

impl fmt::Display for LinearName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A norm of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NormName {
    /// Before attention.
    InputLayernorm,
    /// Of each query head by itself.
    QNorm,
    /// Of each key head by itself.
    KNorm,
    /// Of what attention adds to the residual stream.
    PostAttentionLayernorm,
    /// Before the MLP.
    PreFeedforwardLayernorm,
    /// Of what the MLP adds to the residual stream.
    PostFeedforwardLayernorm,
}

impl NormName {
    /// All six, in the order in which they are numbered.
    pub const ALL: [Self; 6] = [
        Self::InputLayernorm,
        Self::QNorm,
        Self::KNorm,
        Self::PostAttentionLayernorm,
        Self::PreFeedforwardLayernorm,
        Self::PostFeedforwardLayernorm,
    ];

    /// Its path in the layer, and llama.cpp's name.
    const fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::InputLayernorm => ("input_layernorm", "attn_norm"),
            Self::QNorm => ("self_attn.q_norm", "attn_q_norm"),
            Self::KNorm => ("self_attn.k_norm", "attn_k_norm"),
            Self::PostAttentionLayernorm => ("post_attention_layernorm", "post_attention_norm"),
            Self::PreFeedforwardLayernorm => ("pre_feedforward_layernorm", "ffn_norm"),
            Self::PostFeedforwardLayernorm => ("post_feedforward_layernorm", "post_ffw_norm"),
        }
    }

    /// How many numbers it has.
    #[must_use]
    pub fn dim(self, config: &Gemma3Config) -> usize {
        match self {
            Self::QNorm | Self::KNorm => config.head_dim,
            _ => config.hidden_size,
        }
    }
}

/// A parameter of the model, or of an adapter on it; those of a decoder layer with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parameter {
    /// The embedding, which is the head too where they are tied.
    EmbedTokens,
    /// The head of an untied model.
    LmHead,
    /// The norm after the last layer.
    FinalNorm,
    /// The weight of a linear layer.
    Linear(usize, LinearName),
    /// The weight of a norm.
    Norm(usize, NormName),
    /// An adapter's A.
    LoraA(usize, LinearName),
    /// An adapter's B.
    LoraB(usize, LinearName),
    /// The lengths of the merged rows, in weight-decomposed LoRA.
    LoraMagnitude(usize, LinearName),
    /// Rows of the embedding that an adapter trains; where head and embedding are tied, of both.
    EmbedTokensRows,
    /// Rows of an untied head that an adapter trains.
    LmHeadRows,
}

impl Parameter {
    /// Those of the model that `config` describes, in the order in which they are computed with; the
    /// head only if it is not tied to the embedding.
    #[must_use]
    pub fn all(config: &Gemma3Config) -> Vec<Self> {
        let mut all = vec![Self::EmbedTokens];
        all.extend((0..config.num_hidden_layers).flat_map(Self::of_layer));
        all.push(Self::FinalNorm);
        if !config.tie_word_embeddings {
            all.push(Self::LmHead);
        }
        all
    }

    fn of_layer(layer: usize) -> [Self; 13] {
        let (linear, norm) = (|which| Self::Linear(layer, which), |which| Self::Norm(layer, which));
        [
            norm(NormName::InputLayernorm),
            linear(LinearName::QProj),
            linear(LinearName::KProj),
            linear(LinearName::VProj),
            linear(LinearName::OProj),
            norm(NormName::QNorm),
            norm(NormName::KNorm),
            norm(NormName::PostAttentionLayernorm),
            norm(NormName::PreFeedforwardLayernorm),
            linear(LinearName::GateProj),
            linear(LinearName::UpProj),
            linear(LinearName::DownProj),
            norm(NormName::PostFeedforwardLayernorm),
        ]
    }

    /// transformers' name, and PEFT's of an adapter's without its `base_model.model.` in front.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::EmbedTokens => EMBED_TOKENS.to_string(),
            Self::LmHead => LM_HEAD.to_string(),
            Self::FinalNorm => FINAL_NORM.to_string(),
            Self::Linear(layer, which) => which.module_path(layer) + WEIGHT,
            Self::Norm(layer, which) => format!("{LAYERS}{layer}.{}{WEIGHT}", which.row().0),
            Self::LoraA(layer, which) => which.module_path(layer) + LORA_A,
            Self::LoraB(layer, which) => which.module_path(layer) + LORA_B,
            Self::LoraMagnitude(layer, which) => which.module_path(layer) + LORA_MAGNITUDE,
            Self::EmbedTokensRows => EMBED_TOKENS_ROWS.to_string(),
            Self::LmHeadRows => LM_HEAD_ROWS.to_string(),
        }
    }

    /// The parameter that [`name`](Self::name) is of.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let layer = layer_of(name).unwrap_or_default();
        let whole =
            [Self::EmbedTokens, Self::LmHead, Self::FinalNorm, Self::EmbedTokensRows, Self::LmHeadRows]
                .into_iter();
        let norms = NormName::ALL.into_iter().map(|which| Self::Norm(layer, which));
        let linears = LinearName::ALL.into_iter().flat_map(|which| {
            [Self::Linear, Self::LoraA, Self::LoraB, Self::LoraMagnitude].map(|kind| kind(layer, which))
        });
        whole.chain(norms).chain(linears).find(|parameter| parameter.name() == name)
    }

    /// The name that llama.cpp gives it in a GGUF; an adapter's has none.
    #[must_use]
    pub fn gguf_name(self) -> Option<String> {
        match self {
            Self::EmbedTokens => Some("token_embd.weight".to_string()),
            Self::LmHead => Some("output.weight".to_string()),
            Self::FinalNorm => Some("output_norm.weight".to_string()),
            Self::Linear(layer, which) => Some(format!("blk.{layer}.{}.weight", which.row().2)),
            Self::Norm(layer, which) => Some(format!("blk.{layer}.{}.weight", which.row().1)),
            Self::LoraA(..) | Self::LoraB(..) | Self::LoraMagnitude(..) => None,
            Self::EmbedTokensRows | Self::LmHeadRows => None,
        }
    }

    /// Its shape in the model of `config`; `rank` is that of the adapter, where it is one's, or how many
    /// rows it trains.
    #[must_use]
    pub fn shape(self, config: &Gemma3Config, rank: usize) -> Vec<usize> {
        match self {
            Self::EmbedTokens | Self::LmHead => vec![config.vocab_size, config.hidden_size],
            Self::FinalNorm => vec![config.hidden_size],
            Self::Linear(_, which) => which.dims(config).to_vec(),
            Self::Norm(_, which) => vec![which.dim(config)],
            Self::LoraA(_, which) => vec![rank, which.dims(config)[1]],
            Self::LoraB(_, which) => vec![which.dims(config)[0], rank],
            Self::LoraMagnitude(_, which) => vec![which.dims(config)[0]],
            Self::EmbedTokensRows | Self::LmHeadRows => vec![rank, config.hidden_size],
        }
    }

    /// The linear layer that it adapts, if it is of a LoRA adapter.
    #[must_use]
    pub fn adapts(self) -> Option<LinearName> {
        match self {
            Self::LoraA(_, which) | Self::LoraB(_, which) | Self::LoraMagnitude(_, which) => Some(which),
            _ => None,
        }
    }

    /// Whether it is of a LoRA adapter.
    #[must_use]
    pub fn is_adapter(self) -> bool {
        self.adapts().is_some()
    }

    /// Whether it is the embedding or the head, or rows of them.
    #[must_use]
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::EmbedTokens | Self::LmHead) || self.is_token_rows()
    }

    /// Whether it is rows of the embedding or the head.
    #[must_use]
    pub fn is_token_rows(self) -> bool {
        matches!(self, Self::EmbedTokensRows | Self::LmHeadRows)
    }

    /// Whether it is the weight of a norm.
    #[must_use]
    pub fn is_norm(self) -> bool {
        matches!(self, Self::FinalNorm | Self::Norm(..))
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Every tensor of the model that `config` describes, with transformers' name and its shape;
/// `lm_head.weight` only if it is not tied to the embedding.
pub fn tensor_shapes(config: &Gemma3Config) -> Vec<(String, Vec<usize>)> {
    let shaped = |parameter: Parameter| (parameter.name(), parameter.shape(config, 0));
    Parameter::all(config).into_iter().map(shaped).collect()
}

/// The number of the decoder layer that a tensor of this name is in, whether or not Gemma has such a
/// tensor there.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix(LAYERS)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every row of the table, in a model of two layers with every kind of adapter.
    fn table() -> Vec<Parameter> {
        let config = Gemma3Config { tie_word_embeddings: false, num_hidden_layers: 2, ..Default::default() };
        let adapters = (0..2).flat_map(|layer| {
            let kinds = [Parameter::LoraA, Parameter::LoraB, Parameter::LoraMagnitude];
            kinds.into_iter().flat_map(move |kind| LinearName::ALL.map(|which| kind(layer, which)))
        });
        Parameter::all(&config).into_iter().chain(adapters).collect()
    }

    #[test]
    fn every_name_is_of_one_parameter() {
        for parameter in table() {
            assert_eq!(Parameter::from_name(&parameter.name()), Some(parameter), "{parameter}");
        }
        for other in ["model.layers.3.mlp.x.weight", "model.layers.03.mlp.up_proj.weight", "norm.weight", ""]
        {
            assert_eq!(Parameter::from_name(other), None, "{other}");
        }
        assert_eq!(LinearName::QProj.module_path(0), "model.layers.0.self_attn.q_proj");
        assert_eq!(Parameter::Linear(3, LinearName::QProj).name(), "model.layers.3.self_attn.q_proj.weight");
        let a = Parameter::LoraA(17, LinearName::DownProj);
        assert_eq!(a.name(), "model.layers.17.mlp.down_proj.lora_A.weight");
        let b = Parameter::LoraB(17, LinearName::DownProj);
        assert_eq!(b.name(), "model.layers.17.mlp.down_proj.lora_B.weight");
        let magnitude = Parameter::LoraMagnitude(0, LinearName::UpProj);
        assert_eq!(magnitude.name(), "model.layers.0.mlp.up_proj.lora_magnitude_vector");
    }

    #[test]
    fn every_tensor_of_a_model_has_a_name_of_its_own_in_a_gguf() {
        let own: Vec<_> = table().into_iter().filter(|parameter| !parameter.is_adapter()).collect();
        let names: BTreeSet<_> = own.iter().filter_map(|parameter| parameter.gguf_name()).collect();
        assert_eq!(names.len(), own.len());
        assert!(table().iter().all(|parameter| parameter.is_adapter() == parameter.gguf_name().is_none()));
        // llama.cpp knows a norm by its name.
        for parameter in own {
            let named = parameter.gguf_name().is_some_and(|name| name.ends_with("norm.weight"));
            assert_eq!(named, parameter.is_norm(), "{parameter}");
        }
    }

    #[test]
    fn numbers_and_groups_follow_the_order() {
        for (at, which) in LinearName::ALL.into_iter().enumerate() {
            assert_eq!((which.number(0), which.number(2)), (at, 14 + at));
            assert_eq!(LinearName::from_name(which.name()), Some(which));
        }
        assert_eq!(LinearName::GROUPS.concat(), LinearName::ALL);
        // What one activation is read by is as wide as it.
        let config = Gemma3Config::default();
        for group in LinearName::GROUPS {
            let widths: BTreeSet<_> = group.iter().map(|which| which.dims(&config)[1]).collect();
            assert_eq!(widths.len(), 1, "{group:?}");
        }
    }

    #[test]
    fn layers_are_counted_by_name() {
        assert_eq!(layer_of("model.layers.12.whatever"), Some(12));
        assert_eq!(layer_of("model.norm.weight"), None);
    }
}
