//! Steps on their way when something fails: on a GPU; without one they say that they are skipped.

use candle_core::{DType, Tensor};

use super::engine::Step;
use super::{CudaFinetune, Gpu, Settings, Ticket, Work};
use crate::device::Device;
use crate::gpu::shared;
use crate::lora::LoraConfig;
use crate::model::{Gemma3, Gemma3Config, Weights, tensor_shapes};
use crate::ops::adamw::AdamW;
use crate::quant::QuantConfig;
use crate::rng::Philox;
use crate::train::{Batch, Buffer, Finetune};

fn gpu() -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu.with_dtype(DType::F32).unwrap()),
        Err(error) => {
            println!("skipped: no GPU ({error})");
            None
        }
    }
}

fn model() -> Gemma3 {
    let config = Gemma3Config::from_json(
        r#"{"model_type": "gemma3_text", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 32, "sliding_window": 6,
        "sliding_window_pattern": 2, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2,
        "eos_token_id": 1, "pad_token_id": 0, "attention_bias": false}"#,
        "config.json",
    )
    .unwrap();
    let mut random = Philox::new(3, 0);
    let mut weights = Weights::new("random", Default::default());
    for (name, dims) in tensor_shapes(&config) {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| (random.next_f32() - 0.5) * 0.3).collect();
        weights.tensors.insert(name, Tensor::from_vec(values, dims, &candle_core::Device::Cpu).unwrap());
    }
    Gemma3::new(&config, &weights, &Device::Cpu).unwrap()
}

fn batch(len: usize, seed: u64) -> Batch {
    let mut random = Philox::new(seed, 1);
    let ids: Vec<u32> = (0..len).map(|_| random.below(96) as u32).collect();
    let mut targets: Vec<i64> = ids[1..].iter().map(|id| i64::from(*id)).collect();
    targets.push(-100);
    Batch { tokens: crate::model::PackedTokens::new(&[&ids[..]]), targets, rows: 1 }
}

/// A trainer on the GPU, and the CPU's slots to read it by.
fn start(gpu: &Gpu) -> (CudaFinetune, Finetune) {
    let lora = LoraConfig { lora_dropout: 0.25, ..LoraConfig::default() };
    let host = Finetune::new(&model(), &QuantConfig::none(), Some(&lora), AdamW::default(), 1.0, 42).unwrap();
    let settings = Settings { optimizer: AdamW::default(), max_grad_norm: 1.0, seed: 42 };
    let model = host.model().unwrap();
    let parts: Vec<Tensor> =
        host.slots().iter().map(|slot| host.value(slot).unwrap().flatten_all().unwrap()).collect();
    let values = Tensor::cat(&parts, 0).unwrap();
    (CudaFinetune::new(gpu, &model, host.slots(), &values, settings).unwrap(), host)
}

fn values(cuda: &CudaFinetune, host: &Finetune) -> Vec<f32> {
    host.slots().iter().flat_map(|s| cuda.arena().read(Buffer::Values, s.offset, s.len()).unwrap()).collect()
}

/// Memory runs out while the graph of a new length is made, with two steps on their way: these give what
/// they gave, and the step that failed, sent again, is the third and not the fourth.
#[test]
fn a_failed_submit_applies_nothing() {
    let Some(gpu) = gpu() else { return };
    for many in [false, true] {
        let of = |i: usize| {
            let first = batch(if i == 2 { 40 } else { 9 }, i as u64);
            if many { vec![first, batch(23, 10 + i as u64)] } else { vec![first] }
        };
        let step = |i: usize| Step {
            number: i + 1,
            learning_rate: 1e-3,
            embedding_learning_rate: 1e-3,
            targets: of(i).iter().map(Batch::target_count).sum(),
            first_pass: (i * of(0).len()) as u64,
            passes_apart: 1,
            last_pass: ((i + 1) * of(0).len()) as u64 - 1,
            check: None,
        };
        let (mut plain, host) = start(&gpu);
        let mut expected = vec![];
        for i in 0..4 {
            let ticket = plain.submit(&of(i), &step(i)).unwrap();
            let done = plain.wait(ticket).unwrap();
            expected.push((done.loss_sum, done.grad_norm));
        }
        for work in
            [Work::Step, Work::Gradients { first: true }, Work::Gradients { first: false }, Work::Update]
        {
            if many == (work == Work::Step) {
                continue;
            }
            let (mut cuda, _) = start(&gpu);
            let late = work == Work::Update || work == Work::Gradients { first: false };
            let mut tickets: Vec<Ticket> = vec![];
            for i in 0..4 {
                // Graphs that all steps share fail at the first.
                if i == if late { 0 } else { 2 } {
                    cuda.fails = Some(work);
                    let text = cuda.submit(&of(i), &step(i)).unwrap_err().to_string();
                    assert!(text.contains("no memory left") && text.contains("drop(trainer)"), "{text}");
                    assert_eq!((cuda.sent, cuda.fails), (i, None));
                }
                tickets.push(cuda.submit(&of(i), &step(i)).unwrap());
            }
            // The last first: each is asked for by its ticket.
            let mut given: Vec<(f64, f64)> = tickets
                .iter()
                .rev()
                .map(|t| cuda.wait(*t).map(|done| (done.loss_sum, done.grad_norm)).unwrap())
                .collect();
            given.reverse();
            assert_eq!(given, expected, "{work:?}");
            assert!(values(&cuda, &host) == values(&plain, &host), "{work:?}");
            assert!(cuda.wait(tickets[0]).unwrap_err().to_string().contains("twice"));
            assert!(cuda.wait(Ticket(4)).unwrap_err().to_string().contains("another trainer"));
        }
    }
}

/// Room made again and again leaves nothing behind.
#[test]
fn tables_are_not_kept_of_rooms_that_are_gone() {
    let Some(gpu) = gpu() else { return };
    let (mut cuda, _) = start(&gpu);
    for tokens in [8, 64, 300] {
        cuda.reserve(tokens).unwrap();
        assert_eq!(cuda.network.gradient_tables.len(), 2);
    }
}

/// What `shared.rs` says that kernels declare is no less than what they do.
#[test]
fn declared_shared_memory_is_counted() {
    use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    let Some(gpu) = gpu() else { return };
    for kernel in [
        "norm_forward",
        "norm_backward",
        "geglu_forward",
        "geglu_backward",
        "attention_forward",
        "attention_delta",
        "attention_backward",
        "qk_norm_rope",
        "decode_norm_linear",
        "decode_norm_geglu",
        "decode_head",
    ] {
        for dtype in [DType::F32, DType::BF16] {
            let Ok(gpu) = gpu.with_dtype(dtype) else { continue };
            let function = gpu.function(kernel, true).unwrap();
            let bytes = gpu.attribute(function, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).unwrap();
            println!("{kernel} in {dtype:?} declares {bytes}");
            assert!(bytes as usize <= shared::declared(kernel), "{kernel} in {dtype:?} declares {bytes}");
        }
    }
}
