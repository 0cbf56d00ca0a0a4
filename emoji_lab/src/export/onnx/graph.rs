//! Gemma 3 as a graph of ONNX operators, with the inputs and outputs that Transformers.js knows: the
//! tokens that are new, the cache of keys and values of those before, and the last token's logits.
//!
//! | input | type | shape |
//! |---|---|---|
//! | `input_ids` | int64 | `[batch, new]` |
//! | `attention_mask` | int64 | `[batch, past + new]`, all 1 |
//! | `past_key_values.N.key`, `.value` | f32 | `[batch, key_value_heads, past, head_dim]` |
//!
//! | output | type | shape |
//! |---|---|---|
//! | `logits` | f32 | `[batch, 1, vocabulary]` |
//! | `present.N.key`, `.value` | f32 | `[batch, key_value_heads, past + new, head_dim]` |
//!
//! `GroupQueryAttention` and `MatMulNBits` are onnxruntime's own operators
//! (<https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>), the others ONNX's.

use std::collections::BTreeMap;

use super::blocks::{BLOCK, MIDDLE};
use super::proto::{self, Attribute, Axis, Kind, node, value};
use super::variant::OnnxVariant;
use super::weights::{Form, Weights};
use crate::error::Result;
use crate::export::source::{Source, no_numbers};
use crate::model::{Gemma3Config, LayerType, LinearName, NormName, Parameter};
use crate::ops::rope::{frequencies, turn};
use crate::protobuf::Message;

const BATCH: Axis<'_> = Axis::Named("batch_size");
const NEW: Axis<'_> = Axis::Named("sequence_length");
const PAST: Axis<'_> = Axis::Named("past_sequence_length");
const TOTAL: Axis<'_> = Axis::Named("total_sequence_length");

/// A graph in the making, and the file of weights that it needs.
pub(super) struct Graph<'a> {
    config: &'a Gemma3Config,
    variant: OnnxVariant,
    origin: &'a str,
    sources: BTreeMap<Parameter, Source<'a>>,
    nodes: Vec<Message>,
    constants: Vec<Message>,
    pub(super) weights: Weights<'a>,
}

/// The names of the table of angles' cosines and sines.
type Rope = [String; 2];

impl<'a> Graph<'a> {
    /// The graph for these parameters, which reads up to `context` tokens.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if a norm holds what is no number.
    pub(super) fn new(
        config: &'a Gemma3Config,
        sources: &[(Parameter, Source<'a>)],
        variant: OnnxVariant,
        context: usize,
        origin: &'a str,
    ) -> Result<Self> {
        let sources = sources.iter().copied().collect();
        let (nodes, constants, weights) = (vec![], vec![], Weights::default());
        let mut graph = Self { config, variant, origin, sources, nodes, constants, weights };
        graph.build(context)?;
        Ok(graph)
    }

    /// The graph's file, whose weights are in the one called `data`.
    pub(super) fn file(&self, data: &str) -> Vec<u8> {
        let c = self.config;
        let (heads, dim) = (Axis::Length(c.num_key_value_heads), Axis::Length(c.head_dim));
        let mut inputs = vec![
            value("input_ids", Kind::Int64, &[BATCH, NEW]),
            value("attention_mask", Kind::Int64, &[BATCH, TOTAL]),
        ];
        let last = [BATCH, Axis::Length(1), Axis::Length(c.vocab_size)];
        let mut outputs = vec![value("logits", Kind::Float, &last)];
        let (of_past, of_present) = ([BATCH, heads, PAST, dim], [BATCH, heads, TOTAL, dim]);
        for layer in 0..c.num_hidden_layers {
            for which in ["key", "value"] {
                inputs.push(value(&past(layer, which), Kind::Float, &of_past));
                outputs.push(value(&present(layer, which), Kind::Float, &of_present));
            }
        }
        let tensors = [self.constants.clone(), self.weights.messages(data)].concat();
        proto::model(&self.nodes, &tensors, &inputs, &outputs).0
    }

    fn build(&mut self, context: usize) -> Result<()> {
        let c = self.config;
        let (table, mut x) = self.embedding();
        let full = self.rope("rope.full", c.rope_theta, c.rope_scaling_factor, context);
        let sliding = self.rope("rope.sliding", c.rope_local_base_freq, 1.0, context);
        let lengths = self.lengths();
        for (layer, kind) in c.layer_types.iter().enumerate() {
            let (rope, window) = match kind {
                LayerType::FullAttention => (&full, -1),
                LayerType::SlidingAttention => (&sliding, c.sliding_window as i64),
            };
            let attended = self.attention(layer, &x, rope, window, &lengths)?;
            x = self.op("Add", &format!("layers.{layer}.middle"), &[&x, &attended], &[]);
            let fed = self.mlp(layer, &x)?;
            x = self.op("Add", &format!("layers.{layer}.out"), &[&x, &fed], &[]);
        }
        self.head(&x, table)
    }

    /// An operation with one output, which is called `name`.
    fn op(&mut self, op: &str, name: &str, inputs: &[&str], attributes: &[(&str, Attribute<'_>)]) -> String {
        self.nodes.push(node(op, inputs, &[name], attributes));
        name.to_string()
    }

    /// A list of whole numbers that an operator takes as an input.
    fn numbers(&mut self, name: &str, values: &[i64]) -> String {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constants.push(proto::constant(name, Kind::Int64, &[values.len()], &bytes));
        name.to_string()
    }

    fn float(&mut self, name: &str, value: f32) -> String {
        self.constants.push(proto::constant(name, Kind::Float, &[], &value.to_le_bytes()));
        name.to_string()
    }

    /// `x · rsqrt(mean(x²) + eps) · (1 + weight)`, over the last axis.
    fn norm(&mut self, parameter: Parameter, x: &str) -> Result<String> {
        let weight = parameter.name();
        let source = self.sources[&parameter];
        let plus_one = source.read(|values| values.iter().map(|v| v + 1.0).collect::<Vec<f32>>())?;
        if !plus_one.iter().all(|value| value.is_finite()) {
            return Err(no_numbers(self.origin, &weight));
        }
        let bytes: Vec<u8> = plus_one.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constants.push(proto::constant(&weight, Kind::Float, &[plus_one.len()], &bytes));
        let attributes =
            [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(self.config.rms_norm_eps as f32))];
        Ok(self.op("RMSNormalization", &format!("{weight}.out"), &[x, &weight], &attributes))
    }

    /// `x · weightᵀ`.
    fn linear(&mut self, layer: usize, which: LinearName, x: &str) -> String {
        let parameter = Parameter::Linear(layer, which);
        let (name, form) = (parameter.name(), self.variant.linear());
        let weight = self.weights.matrix(&name, self.sources[&parameter], form);
        let [out, inner] = which.dims(self.config);
        match form {
            Form::AsIs | Form::Transposed => self.op("MatMul", &format!("{name}.out"), &[x, &weight[0]], &[]),
            Form::Blocks8 => self.in_blocks(&format!("{name}.out"), x, &weight, [out, inner], 8),
            Form::Blocks4 => self.in_blocks(&format!("{name}.out"), x, &weight, [out, inner], 4),
        }
    }

    fn in_blocks(
        &mut self,
        name: &str,
        x: &str,
        weight: &[String],
        [out, inner]: [usize; 2],
        bits: i64,
    ) -> String {
        let inputs: Vec<&str> = [x].into_iter().chain(weight.iter().map(String::as_str)).collect();
        let attributes = [
            ("K", Attribute::Int(inner as i64)),
            ("N", Attribute::Int(out as i64)),
            ("bits", Attribute::Int(bits)),
            ("block_size", Attribute::Int(BLOCK as i64)),
        ];
        self.op("MatMulNBits", name, &inputs, &attributes)
    }

    /// The tokens' rows times the square root of their width; and the table's tensors, for the head.
    fn embedding(&mut self) -> (Vec<String>, String) {
        let c = self.config;
        let name = Parameter::EmbedTokens.name();
        let source = self.sources[&Parameter::EmbedTokens];
        let table = self.weights.matrix(&name, source, self.variant.table());
        let rows = match table.as_slice() {
            [values] => self.op("Gather", "embed.rows", &[values, "input_ids"], &[]),
            [packed, scales, ..] => {
                let rows = self.op("Gather", "embed.packed", &[packed, "input_ids"], &[]);
                let float = [("to", Attribute::Int(Kind::Float as i64))];
                let rows = self.op("Cast", "embed.whole", &[&rows], &float);
                let middle = self.float("embed.middle", MIDDLE);
                let rows = self.op("Sub", "embed.steps", &[&rows, &middle], &[]);
                let scales = self.op("Gather", "embed.scales", &[scales, "input_ids"], &[]);
                let last = self.numbers("last_axis", &[-1]);
                let scales = self.op("Unsqueeze", "embed.scale", &[&scales, &last], &[]);
                let rows = self.op("Mul", "embed.blocks", &[&rows, &scales], &[]);
                let shape = self.numbers("embed.shape", &[0, 0, c.hidden_size as i64]);
                self.op("Reshape", "embed.rows", &[&rows, &shape], &[])
            }
            [] => String::new(),
        };
        let scale = self.float("embed.factor", (c.hidden_size as f64).sqrt() as f32);
        (table, self.op("Mul", "embed.out", &[&rows, &scale], &[]))
    }

    /// Cosines and sines `[context, head_dim / 2]` of the positions' angles.
    fn rope(&mut self, name: &str, theta: f64, factor: f64, context: usize) -> Rope {
        let frequencies = frequencies(self.config.head_dim, theta, factor);
        let turns = (0..context as u32).flat_map(|at| frequencies.iter().map(move |f| turn(at, *f)));
        let (cosines, sines) = turns.unzip();
        let dims = [context, frequencies.len()];
        [("cos", cosines), ("sin", sines)]
            .map(|(which, values)| self.weights.floats(&format!("{name}.{which}"), dims, values))
    }

    /// What the attention is told of lengths: each row's last place, and the longest row.
    fn lengths(&mut self) -> [String; 2] {
        let int = || [("to", Attribute::Int(Kind::Int32 as i64))];
        let mask = self.op("Cast", "mask", &["attention_mask"], &int());
        let axis = self.numbers("second_axis", &[1]);
        let flat = [("keepdims", Attribute::Int(0))];
        let seen = self.op("ReduceSum", "mask.sum", &[&mask, &axis], &flat);
        self.constants.push(proto::constant("one", Kind::Int32, &[], &1i32.to_le_bytes()));
        let places = self.op("Sub", "mask.last", &[&seen, "one"], &[]);
        let shape = self.op("Shape", "mask.shape", &["attention_mask"], &[]);
        self.constants.push(proto::constant("second", Kind::Int64, &[], &1i64.to_le_bytes()));
        let total = self.op("Gather", "mask.columns", &[&shape, "second"], &[]);
        [places, self.op("Cast", "mask.total", &[&total], &int())]
    }

    /// What a layer's attention adds to the residual stream.
    fn attention(
        &mut self,
        layer: usize,
        x: &str,
        rope: &Rope,
        window: i64,
        lengths: &[String; 2],
    ) -> Result<String> {
        let c = self.config;
        let normed = self.norm(Parameter::Norm(layer, NormName::InputLayernorm), x)?;
        let (q, k) = (c.num_attention_heads, c.num_key_value_heads);
        let queries = self.linear(layer, LinearName::QProj, &normed);
        let queries = self.norm_heads(layer, NormName::QNorm, &queries, q)?;
        let keys = self.linear(layer, LinearName::KProj, &normed);
        let keys = self.norm_heads(layer, NormName::KNorm, &keys, k)?;
        let values = self.linear(layer, LinearName::VProj, &normed);
        let out = format!("layers.{layer}.attended");
        let [places, total] = lengths;
        let [past_keys, past_values] = ["key", "value"].map(|which| past(layer, which));
        let [present_keys, present_values] = ["key", "value"].map(|which| present(layer, which));
        self.nodes.push(node(
            "GroupQueryAttention",
            &[&queries, &keys, &values, &past_keys, &past_values, places, total, &rope[0], &rope[1]],
            &[&out, &present_keys, &present_values],
            &[
                ("num_heads", Attribute::Int(q as i64)),
                ("kv_num_heads", Attribute::Int(k as i64)),
                ("scale", Attribute::Float(c.query_pre_attn_scalar.powf(-0.5) as f32)),
                ("do_rotary", Attribute::Int(1)),
                ("local_window_size", Attribute::Int(window)),
            ],
        ));
        let out = self.linear(layer, LinearName::OProj, &out);
        self.norm(Parameter::Norm(layer, NormName::PostAttentionLayernorm), &out)
    }

    /// Each head of `x` `[batch, new, heads · head_dim]` normed by itself.
    fn norm_heads(&mut self, layer: usize, which: NormName, x: &str, heads: usize) -> Result<String> {
        let parameter = Parameter::Norm(layer, which);
        let (name, dim) = (parameter.name(), self.config.head_dim as i64);
        let apart = self.numbers(&format!("{name}.apart"), &[0, 0, heads as i64, dim]);
        let x = self.op("Reshape", &format!("{name}.heads"), &[x, &apart], &[]);
        let normed = self.norm(parameter, &x)?;
        let together = self.numbers(&format!("{name}.together"), &[0, 0, heads as i64 * dim]);
        Ok(self.op("Reshape", &format!("{name}.flat"), &[&normed, &together], &[]))
    }

    /// What a layer's MLP adds to the residual stream.
    fn mlp(&mut self, layer: usize, x: &str) -> Result<String> {
        let normed = self.norm(Parameter::Norm(layer, NormName::PreFeedforwardLayernorm), x)?;
        let gate = self.linear(layer, LinearName::GateProj, &normed);
        let tanh = [("approximate", Attribute::Text("tanh"))];
        let gate = self.op("Gelu", &format!("layers.{layer}.gate"), &[&gate], &tanh);
        let up = self.linear(layer, LinearName::UpProj, &normed);
        let gated = self.op("Mul", &format!("layers.{layer}.gated"), &[&gate, &up], &[]);
        let down = self.linear(layer, LinearName::DownProj, &gated);
        self.norm(Parameter::Norm(layer, NormName::PostFeedforwardLayernorm), &down)
    }

    /// The logits of each row's last token, from the embedding's tensors where the model has no other head.
    fn head(&mut self, x: &str, embedding: Vec<String>) -> Result<()> {
        let c = self.config;
        let table = match self.sources.get(&Parameter::LmHead) {
            None => embedding,
            Some(source) => self.weights.matrix(&Parameter::LmHead.name(), *source, self.variant.table()),
        };
        let start = self.numbers("last.start", &[-1]);
        let end = self.numbers("last.end", &[i64::MAX]);
        let axis = self.numbers("last.axis", &[1]);
        let last = self.op("Slice", "last", &[x, &start, &end, &axis], &[]);
        let normed = self.norm(Parameter::FinalNorm, &last)?;
        let dims = [c.vocab_size, c.hidden_size];
        match table.as_slice() {
            // A product with the table as it is: turned, it would be in memory twice.
            [values] => {
                let flat = self.numbers("head.rows", &[-1, c.hidden_size as i64]);
                let rows = self.op("Reshape", "head.in", &[&normed, &flat], &[]);
                let turned = [("transB", Attribute::Int(1))];
                let logits = self.op("Gemm", "head.out", &[&rows, values], &turned);
                let shape = self.numbers("head.shape", &[-1, 1, c.vocab_size as i64]);
                self.op("Reshape", "logits", &[&logits, &shape], &[]);
            }
            _ => drop(self.in_blocks("logits", &normed, &table, dims, 8)),
        }
        Ok(())
    }
}

fn past(layer: usize, which: &str) -> String {
    format!("past_key_values.{layer}.{which}")
}

fn present(layer: usize, which: &str) -> String {
    format!("present.{layer}.{which}")
}
