//! Weights and adapters as the kernels want them.

use super::activations::Activations;
use super::arena::DeviceArena;
use super::limits::{self, Plan};
use super::upload::{Builder, values_of};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::placed::Placed;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::model::{Gemma3, Gemma3Config, LinearName, NormName, Parameter};
use crate::ops::embedding::cuda::Table;
use crate::ops::lora_linear::Weight;
use crate::ops::lora_linear::cuda::{AdapterGradient, Adapters, DropoutFactors, Unpack};
use crate::train::Slot;

/// The linear layers that read one activation.
pub(super) const GROUPS: [&[LinearName]; 4] = LinearName::GROUPS;
pub(super) const QKV: usize = 0;
pub(super) const O: usize = 1;
pub(super) const GATE_UP: usize = 2;
pub(super) const DOWN: usize = 3;

/// Sets of matrices that layers in NF4 share: while one is used, the next layer is unpacked into the other.
pub(super) const SHARED: usize = 2;

/// The matrices `[outs, ins + tail]` of one layer's groups.
pub(super) type Matrices = [DevicePtr<Compute>; 4];

/// The model's sizes, and those of the adapters' `u` behind each group's activation.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) inner: usize,
    pub(super) vocab: usize,
    pub(super) layers: usize,
    pub(super) window: usize,
    pub(super) rank: usize,
    pub(super) tails: [usize; 4],
    /// Whether matrices and norms are trained themselves.
    pub(super) whole: bool,
    pub(super) eps: f32,
    pub(super) scale: f32,
    pub(super) embedding_scale: f32,
}

impl Sizes {
    pub(super) fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    /// What a group reads and writes.
    pub(super) fn group(&self, group: usize) -> (usize, usize) {
        match group {
            QKV => (self.hidden, self.qkv()),
            O => (self.heads * self.dim, self.hidden),
            GATE_UP => (self.hidden, 2 * self.inner),
            _ => (self.inner, self.hidden),
        }
    }

    /// Of a model that [`limits::check`] let through.
    fn new(c: &Gemma3Config, rank: usize, whole: bool) -> Self {
        let hidden = c.hidden_size;
        let padded = rank.next_multiple_of(8);
        Self {
            hidden,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            dim: c.head_dim,
            inner: c.intermediate_size,
            vocab: c.vocab_size,
            layers: c.num_hidden_layers,
            window: c.sliding_window,
            rank,
            tails: GROUPS.map(|linears| linears.len() * padded),
            whole,
            eps: c.rms_norm_eps as f32,
            scale: c.query_pre_attn_scalar.powf(-0.5) as f32,
            embedding_scale: (hidden as f64).sqrt() as f32,
        }
    }
}

/// One decoder layer on the GPU.
pub(super) struct Layer {
    pub(super) matrices: Matrices,
    pub(super) adapters: [Adapters; 4],
    /// One per linear layer.
    pub(super) unpack: DevicePtr<Unpack>,
    pub(super) norms: Norms,
    pub(super) window: i32,
    pub(super) angles: Angles,
    /// Where matrices and norms are trained themselves.
    pub(super) trained: Option<TrainedLayer>,
    pub(super) sources: Vec<Source>,
}

/// Where a layer that is trained as a whole begins in the arena.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrainedLayer {
    /// Of every group: its layers lie one below the other there, too.
    pub(super) matrices: [usize; 4],
    /// In the order of [`NormName::ALL`].
    pub(super) norms: [usize; 6],
}

impl TrainedLayer {
    pub(super) fn norm(&self, which: NormName) -> usize {
        self.norms[which as usize]
    }
}

/// The weights of a layer's norms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norms {
    pub(super) input: DevicePtr<f32>,
    pub(super) q: DevicePtr<f32>,
    pub(super) k: DevicePtr<f32>,
    pub(super) post_attention: DevicePtr<f32>,
    pub(super) pre_feedforward: DevicePtr<f32>,
    pub(super) post_feedforward: DevicePtr<f32>,
}

/// RoPE's tables, `[positions, dim / 2]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Angles {
    pub(super) cos: DevicePtr<f32>,
    pub(super) sin: DevicePtr<f32>,
}

/// Where an adapter's trained values are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) linear: LinearName,
    /// Offsets in the arena.
    pub(super) a: usize,
    pub(super) b: usize,
}

/// Rows of the embedding that are trained while its table is not.
pub(super) struct TrainedRows {
    /// Which rows they are, ascending.
    pub(super) ids: Vec<u32>,
    /// The same on the GPU.
    pub(super) on_gpu: DevicePtr<i32>,
    /// `[ids, hidden]`, in the arena.
    pub(super) values: DevicePtr<f32>,
    pub(super) gradients: DevicePtr<f32>,
    /// The embedding's, in which they stand in the compute type.
    pub(super) table: DevicePtr<Compute>,
    /// Whether the head reads them, too.
    pub(super) in_head: bool,
}

/// The embedding and the head, `[vocab, hidden]`, which may be one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vocabulary {
    pub(super) lookup: Table,
    /// What products read.
    pub(super) head: DevicePtr<Compute>,
    /// Where embedding and head begin in the arena, where they are trained: at the same place if they are one.
    pub(super) trained_lookup: Option<usize>,
    pub(super) trained_head: Option<usize>,
}

impl Vocabulary {
    /// Whether a head that is trained is the table that rows are looked up in, too.
    pub(super) fn head_is_looked_up(&self) -> bool {
        self.trained_head.is_some() && self.trained_head == self.trained_lookup
    }
}

/// The gradients of a layer's adapters, as their kernel is told of them.
pub(super) struct GradientTable {
    pub(super) adapters: Memory<AdapterGradient>,
    pub(super) count: usize,
    /// Blocks that make them.
    pub(super) tiles: usize,
}

/// A model on the GPU.
pub(super) struct Network {
    pub(super) sizes: Sizes,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: DevicePtr<f32>,
    /// Where the final norm begins in the arena, where it is trained.
    pub(super) trained_final_norm: Option<usize>,
    pub(super) vocabulary: Vocabulary,
    pub(super) trained_rows: Option<TrainedRows>,
    /// Whether weights must be unpacked, or B put in its place, before each use.
    pub(super) unpacks: bool,
    /// The same for all adapters.
    pub(super) dropout: DropoutFactors,
    pub(super) unpack_units: usize,
    /// Positions there are angles for.
    pub(super) positions: usize,
    pub(super) bytes: usize,
    _matrices: Placed<Vec<Matrices>>,
    _memories: Vec<Memory<u8>>,
    /// One per layer, made anew with the activations ([`Self::place_gradients`]).
    pub(super) gradient_tables: Vec<GradientTable>,
}

impl Network {
    /// Puts `model` on the GPU. Trained tensors are those of the arena, where there is one;
    /// `positions` is how long a sequence may be.
    pub(super) fn new(
        gpu: &Gpu,
        model: &Gemma3,
        arena: Option<(&DeviceArena, &[Slot])>,
        positions: usize,
    ) -> Result<Self> {
        let linears = || model.linears();
        let plan = Plan::of(model, arena.is_some());
        limits::check(model.config(), plan, gpu.limits())?;
        let whole = arena.is_some_and(|(_, slots)| slots.iter().any(|s| s.parameter == Parameter::FinalNorm));
        let sizes = Sizes::new(model.config(), plan.rank, whole);
        let quantized = linears().any(|l| matches!(l.weight, Weight::Nf4(_)));
        if quantized && linears().any(|l| matches!(l.weight, Weight::Dense(_))) {
            return Err(Error::device(
                "cuda",
                "some layers are in NF4 and some are not",
                "Quantise all or none",
            ));
        }
        let mut builder = Builder { gpu, sizes: &sizes, arena, memories: vec![], bytes: 0 };
        let trained_final_norm = builder.slot(Parameter::FinalNorm);
        // What is trained itself is in the arena.
        let sets = if whole {
            0
        } else if quantized {
            SHARED
        } else {
            sizes.layers
        };
        let matrices = builder.matrices(sets)?;
        let angles = builder.angles(model, positions)?;
        let mut layers = vec![];
        for (layer, which) in model.layers.iter().zip((0..sets.max(1)).cycle()) {
            let trained = if whole { Some(builder.trained_layer(layer.index)?) } else { None };
            layers.push(builder.layer(layer, &matrices, which, trained, angles)?);
        }
        let final_norm = match (trained_final_norm, arena) {
            (Some(offset), Some((arena, _))) => arena.value_ptr(offset),
            _ => builder.upload(&values_of(&model.norm.weight.value)?, "the final norm")?,
        };
        let vocabulary = builder.vocabulary(model)?;
        let trained_rows = builder.trained_rows(model, &vocabulary)?;
        // Of the largest layer: eight values each, of W and of what is beside it.
        let units = |(group, linears): (usize, &&[LinearName])| {
            let (ins, _) = sizes.group(group);
            let in_a_row = if quantized { ins } else { 0 } + sizes.tails[group];
            let rows = linears.iter().map(|linear| sizes.rows(*linear).1).max().unwrap_or(0);
            rows * in_a_row / 8
        };
        let unpack_units = GROUPS.iter().enumerate().map(units).max().unwrap_or(0);
        let (memories, bytes) = (builder.memories, builder.bytes);
        Ok(Self {
            unpacks: quantized || plan.rank > 0,
            dropout: layers
                .iter()
                .flat_map(|l: &Layer| &l.adapters)
                .map(|adapters| adapters.dropout)
                .find(|dropout| dropout.threshold > 0)
                .unwrap_or(DropoutFactors::NONE),
            unpack_units,
            layers,
            final_norm,
            trained_final_norm,
            vocabulary,
            trained_rows,
            positions,
            bytes,
            _matrices: matrices,
            _memories: memories,
            gradient_tables: vec![],
            sizes,
        })
    }

    /// The rows of the embedding that are trained, where not all are.
    pub(super) fn trained_ids(&self) -> Option<&[u32]> {
        self.trained_rows.as_ref().map(|rows| rows.ids.as_slice())
    }

    /// Tells the kernel of the adapters' gradients where the activations lie.
    pub(super) fn place_gradients(
        &mut self,
        gpu: &Gpu,
        activations: &Activations,
        arena: &DeviceArena,
        scale: f32,
    ) -> Result<()> {
        self.gradient_tables.clear();
        let s = self.sizes.clone();
        let padded = s.rank.next_multiple_of(8);
        for (index, (layer, a)) in self.layers.iter().zip(&activations.layers).enumerate() {
            let g = activations.gradients_of(index);
            let mut all = vec![];
            for &Source { linear, a: offset_a, b: offset_b } in &layer.sources {
                let group = (0..4).find(|g| GROUPS[*g].contains(&linear)).unwrap_or(0);
                let place = GROUPS[group].iter().position(|other| *other == linear).unwrap_or(0);
                let (width, outs) = s.group(group);
                let ld = width + s.tails[group];
                let (x, dy, d_x) = match group {
                    QKV => (a.normed, g.d_qkv, g.d_normed),
                    O => (a.attended, g.d_o, g.d_attended),
                    GATE_UP => (a.middle_normed, g.d_gate_up, g.d_middle_normed),
                    _ => (a.gated, g.d_down, g.d_gated),
                };
                let (first, rows) = s.rows(linear);
                let u = width + place * padded;
                all.push(AdapterGradient {
                    x,
                    u: x.at(gpu, u),
                    dy: dy.at(gpu, first),
                    du: d_x.at(gpu, u),
                    da: arena.gradient_ptr(offset_a),
                    db: arena.gradient_ptr(offset_b),
                    ins: width as i32,
                    outs: rows as i32,
                    rank: s.rank as i32,
                    ldx: ld as i32,
                    ldy: outs as i32,
                    ldu: ld as i32,
                    linear: linear.number(index) as i32,
                    scale,
                });
            }
            self.gradient_tables.push(GradientTable {
                adapters: Memory::from_slice(gpu, &all, "the adapters' table")?,
                count: all.len(),
                tiles: all.iter().map(AdapterGradient::tiles).sum(),
            });
        }
        Ok(())
    }
}

impl Sizes {
    /// A linear layer's first row in its group's matrix, and how many it has.
    pub(super) fn rows(&self, linear: LinearName) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.dim, self.kv_heads * self.dim);
        match linear {
            LinearName::QProj => (0, queries),
            LinearName::KProj => (queries, keys),
            LinearName::VProj => (queries + keys, keys),
            LinearName::GateProj => (0, self.inner),
            LinearName::UpProj => (self.inner, self.inner),
            LinearName::OProj | LinearName::DownProj => (0, self.hidden),
        }
    }
}
