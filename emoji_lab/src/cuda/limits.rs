//! What the kernels take: found out from a model's sizes alone, before anything is on the GPU.

use crate::error::{Error, Result};
use crate::gpu::Limits;
use crate::gpu::shared::{self, Group};
use crate::model::{Gemma3, Gemma3Config};
use crate::ops::attention::cuda::{MAX_HEADS, parts};
use crate::ops::rms_norm::cuda::MOST;

/// What is to be done with a model.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plan {
    /// The adapters' rank; 0 without.
    pub(super) rank: usize,
    pub(super) dropout: bool,
    pub(super) training: bool,
}

impl Plan {
    pub(super) fn of(model: &Gemma3, training: bool) -> Self {
        let adapters = || model.linears().filter_map(|l| l.lora.as_ref());
        Self {
            rank: adapters().map(|l| l.a.value.dim(0).unwrap_or(0)).max().unwrap_or(0),
            dropout: training && adapters().any(|l| l.dropout > 0.0),
            training,
        }
    }
}

/// A launch: its kernel, the field of the configuration that decides its shared memory, and the bytes.
struct Need {
    kernel: &'static str,
    field: &'static str,
    value: usize,
    bytes: usize,
}

/// Every launch whose shared memory depends on the model.
fn needs(c: &Gemma3Config, plan: Plan) -> Vec<Need> {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let (heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
    let (queries, parts) = (heads * c.head_dim, parts(heads));
    let group = |count| match plan.rank {
        0 => Group::default(),
        rank => Group { count, padded: rank.next_multiple_of(8), dropout: plan.dropout },
    };
    let need =
        |kernel, field, value, bytes| Need { kernel, field, value, bytes: bytes + shared::declared(kernel) };
    let mut all = vec![
        need("norm_forward", "hidden_size", hidden, shared::norm_forward(hidden, group(3))),
        need("geglu_forward", "intermediate_size", inner, shared::geglu_forward(inner, group(1))),
        need(
            "attention_forward",
            "num_attention_heads",
            heads,
            shared::attention_forward(queries, parts, group(1)),
        ),
        need(
            "qk_norm_rope",
            "num_attention_heads",
            heads,
            shared::qk_norm_rope((heads + kv_heads) * c.head_dim),
        ),
    ];
    if plan.training {
        all.extend([
            need("norm_backward", "hidden_size", hidden, shared::norm_backward(hidden, group(3))),
            need("geglu_backward", "intermediate_size", inner, shared::geglu_backward(inner, group(1))),
            need("attention_delta", "num_attention_heads", heads, shared::attention_delta(queries, group(1))),
            need(
                "attention_backward",
                "num_attention_heads",
                heads,
                shared::attention_backward(queries, parts),
            ),
        ]);
    } else {
        all.push(need("decode_norm_linear", "hidden_size", hidden, shared::decode(hidden)));
    }
    all
}

/// Whether the kernels take a model of this configuration. Two limits need no look: a grid's second
/// dimension (65,535 blocks) is for a model's tensors, of which [`Gemma3Config::validate`] allows 14,338;
/// and a matrix whose rows fit into shared memory has fewer pieces than 31 bits count.
///
/// # Errors
/// [`Error::Device`] that names the field, [`Error::Setting`] for a rank that is too high.
pub(super) fn check(c: &Gemma3Config, plan: Plan, limits: Limits<'_>) -> Result<()> {
    let no = |field: &str, value: usize, why: String| {
        Err(Error::device(
            limits.device,
            format!("{field} is {value}, and {why}"),
            "Compute on the CPU: Device::Cpu",
        ))
    };
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let widths = [("hidden_size", hidden), ("intermediate_size", inner), ("vocab_size", c.vocab_size)];
    if let Some((name, value)) = widths.iter().find(|(_, v)| !v.is_multiple_of(8)) {
        return no(name, *value, "the kernels take rows of a multiple of 8".into());
    }
    if hidden > MOST {
        return no("hidden_size", hidden, format!("the kernels take rows of up to {MOST}"));
    }
    if c.head_dim > 256 || !c.head_dim.is_multiple_of(8) {
        return no(
            "head_dim",
            c.head_dim,
            "the kernels take heads of up to 256 values, a multiple of 8".into(),
        );
    }
    if c.num_attention_heads > MAX_HEADS {
        return no(
            "num_attention_heads",
            c.num_attention_heads,
            format!("the kernels take up to {MAX_HEADS}"),
        );
    }
    let too_large = |plan| {
        let largest = needs(c, plan).into_iter().max_by_key(|need| need.bytes);
        largest.filter(|need| need.bytes > limits.shared_bytes)
    };
    let fits = |rank: &usize| too_large(Plan { rank: *rank, ..plan }).is_none();
    match too_large(plan) {
        None => Ok(()),
        Some(need) if plan.rank > 8 && fits(&8) => {
            // What is needed grows with it.
            let (mut most, mut beyond) = (8, plan.rank.next_multiple_of(8));
            while beyond - most > 8 {
                let middle = (most + (beyond - most) / 2).next_multiple_of(8);
                let middle = if middle == beyond { middle - 8 } else { middle };
                if fits(&middle) { most = middle } else { beyond = middle }
            }
            let help = format!(
                "{} has shared memory for a rank of up to {most} (kernel {}); the CPU takes any (Device::Cpu)",
                limits.name, need.kernel
            );
            Err(Error::setting("r", plan.rank, help))
        }
        Some(need) => Err(Error::device(
            limits.device,
            format!(
                "{} is {}: kernel {} needs {} bytes of shared memory per block, and {} has {}",
                need.field, need.value, need.kernel, need.bytes, limits.name, limits.shared_bytes
            ),
            "Take a GPU that has more (A100 166912, H100 232448), or compute on the CPU: Device::Cpu",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden, inner, layers, heads, key/value heads, head_dim.
    type Row = (&'static str, [usize; 6]);
    const MODELS: [Row; 5] = [
        ("270M", [640, 2048, 18, 4, 1, 256]),
        ("1B", [1152, 6912, 26, 4, 1, 256]),
        ("4B", [2560, 10_240, 34, 8, 4, 256]),
        ("12B", [3840, 15_360, 48, 16, 8, 256]),
        ("27B", [5376, 21_504, 62, 32, 16, 128]),
    ];
    const GPUS: [(&str, usize); 4] =
        [("T4", 64 << 10), ("L4", 99 << 10), ("A100", 163 << 10), ("H100", 227 << 10)];

    fn config(sizes: [usize; 6], vocab: usize) -> Gemma3Config {
        let [hidden, inner, layers, heads, kv_heads, dim] = sizes;
        let json = format!(
            r#"{{"model_type": "gemma3_text", "vocab_size": {vocab}, "hidden_size": {hidden}, "intermediate_size": {inner},
            "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
            "head_dim": {dim}, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
            "sliding_window": 512, "sliding_window_pattern": 6, "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
            "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "attention_bias": false}}"#
        );
        Gemma3Config::from_json(&json, "config.json").unwrap()
    }

    fn verdict(c: &Gemma3Config, plan: Plan, (name, shared_bytes): (&str, usize)) -> String {
        match check(c, plan, Limits { device: "cuda:0", name, shared_bytes }) {
            Ok(()) => "ok".into(),
            Err(error) => error.to_string(),
        }
    }

    const LESSON: Plan = Plan { rank: 16, dropout: true, training: true };
    const GENERATE: Plan = Plan { rank: 0, dropout: false, training: false };

    #[test]
    fn gemma_3_on_real_gpus() {
        for (model, sizes) in MODELS {
            let c = config(sizes, 262_144);
            for gpu in GPUS {
                for plan in [LESSON, Plan { rank: 64, ..LESSON }, Plan { rank: 256, ..LESSON }, GENERATE] {
                    let said = verdict(&c, plan, gpu);
                    let expected = match (model, gpu.0) {
                        ("27B", _) => "num_attention_heads is 32, and the kernels take up to 16",
                        _ => "ok",
                    };
                    if expected == "ok" {
                        assert_eq!(said, "ok", "{model} on {}: {plan:?}", gpu.0);
                    } else {
                        assert!(said.contains(expected), "{model} on {}: {plan:?}: {said}", gpu.0);
                    }
                }
            }
        }
        let wider = [3840, 20_480, 48, 16, 8, 256];
        let said = verdict(&config(wider, 262_144), LESSON, GPUS[0]);
        assert_eq!(
            said,
            "device cuda:0: intermediate_size is 20480: kernel geglu_forward needs 84736 bytes of shared memory per block, \
             and T4 has 65536. Take a GPU that has more (A100 166912, H100 232448), or compute on the CPU: Device::Cpu"
        );
    }

    #[test]
    fn every_other_limit_is_named() {
        let small = [640, 2048, 18, 4, 1, 256];
        let with = |at: usize, value: usize| {
            let mut sizes = small;
            sizes[at] = value;
            verdict(&config(sizes, 520), LESSON, GPUS[3])
        };
        for (said, part) in [
            (with(0, 644), "hidden_size is 644, and the kernels take rows of a multiple of 8"),
            (with(0, 16_392), "hidden_size is 16392, and the kernels take rows of up to 16384"),
            (with(1, 2052), "intermediate_size is 2052, and"),
            (with(3, 24), "num_attention_heads is 24, and"),
            (with(5, 260), "head_dim is 260, and"),
            (with(5, 36), "head_dim is 36, and"),
            (with(1, 200_000), "intermediate_size is 200000: kernel geglu_forward needs"),
            (verdict(&config(small, 521), LESSON, GPUS[3]), "vocab_size is 521, and"),
            (verdict(&config(small, 520), Plan { rank: 20_000, ..LESSON }, GPUS[3]), "setting r = 20000: "),
        ] {
            assert!(said.contains(part), "{said}");
            assert!(said.contains("Device::Cpu"), "no way out: {said}");
        }
    }

    /// The rank that is named as the highest is taken, the next one is not.
    #[test]
    fn the_highest_rank_is_named() {
        let c = config([640, 2048, 18, 4, 1, 256], 520);
        for gpu in GPUS {
            let said = verdict(&c, Plan { rank: 1 << 20, ..LESSON }, gpu);
            let most = said.split("a rank of up to ").nth(1).and_then(|rest| rest.split(' ').next());
            let most: usize = most.and_then(|rank| rank.parse().ok()).unwrap_or_else(|| panic!("{said}"));
            assert!(most >= 256, "{said}");
            assert_eq!(verdict(&c, Plan { rank: most, ..LESSON }, gpu), "ok");
            assert_ne!(verdict(&c, Plan { rank: most + 1, ..LESSON }, gpu), "ok");
        }
    }
}
