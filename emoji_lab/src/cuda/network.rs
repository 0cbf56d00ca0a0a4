//! Weights and adapters as the kernels want them.

use std::marker::PhantomData;

use candle_core::Tensor;
use rayon::prelude::*;

use super::activations::Activations;
use super::arena::DeviceArena;
use super::limits::{self, Plan};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::placed::Placed;
use crate::gpu::pointer::{Compute, DevicePtr, Plain, as_bytes};
use crate::host;
use crate::model::layer::DecoderLayer;
use crate::model::{Gemma3, Gemma3Config, LayerType, LinearName, Parameter};
use crate::ops::embedding::cuda::{Table, TableGradient};
use crate::ops::lazy::LazyTensor;
use crate::ops::lora_linear::Weight;
use crate::ops::lora_linear::cuda::{AdapterGradient, Adapters, DropoutFactors, Unpack};
use crate::ops::rope::RopeTable;
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
    fn new(c: &Gemma3Config, rank: usize) -> Self {
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
    sources: Vec<Source>,
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
struct Source {
    linear: LinearName,
    /// Offsets in the arena.
    a: usize,
    b: usize,
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
    /// Where the gradient of the rows is added, where they are trained: to the head's if they are one, else to
    /// f32 of their own.
    pub(super) d_lookup: Option<TableGradient>,
    pub(super) d_head: Option<DevicePtr<Compute>>,
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

/// Values put together on the host, each aligned, to go over in one copy.
#[derive(Default)]
struct Staging {
    bytes: Vec<u8>,
}

/// Where values of type `T` begin in the staging, in bytes.
struct Staged<T> {
    at: usize,
    of: PhantomData<T>,
}

impl Staging {
    fn put<T: Plain>(&mut self, values: &[T]) -> Staged<T> {
        let at = self.bytes.len().next_multiple_of(256);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(as_bytes(values));
        Staged { at, of: PhantomData }
    }
}

impl<T> Staged<T> {
    /// On the GPU, where the staging begins at `base`.
    fn on(&self, gpu: &Gpu, base: DevicePtr<u8>) -> DevicePtr<T> {
        base.at(gpu, self.at).cast()
    }
}

/// `values` in the compute type, row by row, each followed by `tail` zeros.
fn rows_in_compute_type(gpu: &Gpu, values: &[f32], width: usize, tail: usize) -> Vec<u8> {
    let size = gpu.size();
    let mut out = vec![0u8; values.len() / width * (width + tail) * size];
    out.par_chunks_mut((width + tail) * size).zip(values.par_chunks(width)).for_each(|(out, row)| {
        if size == 4 {
            out[..width * 4].copy_from_slice(as_bytes(row));
        } else {
            for (out, v) in out.chunks_exact_mut(2).zip(row) {
                out.copy_from_slice(&half::bf16::from_f32(*v).to_bits().to_ne_bytes());
            }
        }
    });
    out
}

fn values_of(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(host::read(&tensor.contiguous()?, |v| Ok(v.to_vec()))?)
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
        let sizes = Sizes::new(model.config(), plan.rank);
        let quantized = linears().any(|l| matches!(l.weight, Weight::Nf4(_)));
        if quantized && linears().any(|l| matches!(l.weight, Weight::Dense(_))) {
            return Err(Error::device(
                "cuda",
                "some layers are in NF4 and some are not",
                "Quantise all or none",
            ));
        }
        let mut builder = Builder { gpu, sizes: &sizes, arena, memories: vec![], bytes: 0 };
        let matrices = builder.matrices(if quantized { SHARED } else { sizes.layers })?;
        let angles = builder.angles(model, positions)?;
        let mut layers = vec![];
        for (layer, which) in model.layers.iter().zip((0..matrices.len()).cycle()) {
            layers.push(builder.layer(layer, &matrices, which, angles)?);
        }
        let final_norm = builder.upload(&values_of(&model.norm.weight.value)?, "the final norm")?;
        let vocabulary = builder.vocabulary(model)?;
        let trained_rows = builder.trained_rows(model, &vocabulary)?;
        let units = |group: usize| {
            let (ins, outs) = sizes.group(group);
            (if quantized { ins / 8 } else { 0 } + sizes.tails[group]) * outs
        };
        let unpack_units = (0..4).map(units).max().unwrap_or(0);
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
    fn rows(&self, linear: LinearName) -> (usize, usize) {
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

struct Builder<'a> {
    gpu: &'a Gpu,
    sizes: &'a Sizes,
    arena: Option<(&'a DeviceArena, &'a [Slot])>,
    memories: Vec<Memory<u8>>,
    bytes: usize,
}

impl Builder<'_> {
    fn upload<T: Plain>(&mut self, values: &[T], what: &str) -> Result<DevicePtr<T>> {
        let memory = Memory::from_slice(self.gpu, values, what)?;
        let start = memory.ptr();
        self.bytes += size_of_val(values);
        self.memories.push(memory.untyped());
        Ok(start)
    }

    /// Where the arena has a tensor.
    fn slot(&self, parameter: Parameter) -> Option<usize> {
        self.arena?.1.iter().find(|slot| slot.parameter == parameter).map(|slot| slot.offset)
    }

    /// The matrices of `layers` layers, zeros.
    fn matrices(&mut self, layers: usize) -> Result<Placed<Vec<Matrices>>> {
        let s = self.sizes;
        let matrices: Placed<Vec<Matrices>> = Placed::zeros(self.gpu, "the linear layers", |layout| {
            let mut matrix = |group: usize| {
                let (ins, outs) = s.group(group);
                layout.take(outs * (ins + s.tails[group]))
            };
            (0..layers).map(|_| [QKV, O, GATE_UP, DOWN].map(&mut matrix)).collect()
        })?;
        self.bytes += matrices.bytes();
        Ok(matrices)
    }

    /// For global and for local layers.
    fn angles(&mut self, model: &Gemma3, positions: usize) -> Result<[Angles; 2]> {
        let all: Vec<u32> = (0..positions as u32).collect();
        let (global, local) = model.rope_tables(&all)?;
        let mut upload = |table: &RopeTable| -> Result<Angles> {
            let (cos, sin) = table.tables();
            Ok(Angles {
                cos: self.upload(&values_of(cos)?, "RoPE angles")?,
                sin: self.upload(&values_of(sin)?, "RoPE angles")?,
            })
        };
        Ok([upload(&global)?, upload(&local)?])
    }

    /// A layer whose matrices are number `which` of all.
    fn layer(
        &mut self,
        layer: &DecoderLayer,
        all: &Placed<Vec<Matrices>>,
        which: usize,
        angles: [Angles; 2],
    ) -> Result<Layer> {
        let (gpu, s, matrices) = (self.gpu, self.sizes, all[which]);
        let padded = s.rank.next_multiple_of(8);
        let mut staging = Staging::default();
        let mut unpack = vec![];
        let mut adapters = [Adapters::NONE; 4];
        let mut sources = vec![];
        for (group, linears) in GROUPS.iter().enumerate() {
            let (width, _) = s.group(group);
            let ld = width + s.tails[group];
            for (place, &which) in linears.iter().enumerate() {
                let linear = layer.linear(which);
                let (first, rows) = s.rows(which);
                let out = matrices[group].at(gpu, first * ld);
                let mut entry = Unpack {
                    packed: None,
                    absmax: None,
                    out,
                    b: None,
                    rows: rows as i32,
                    width: width as i32,
                    ld: ld as i32,
                    block_size: 1,
                    b_at: (width + place * padded) as i32,
                    rank: s.rank as i32,
                    scale: 0.0,
                    padding: 0,
                };
                let mut packed_at = None;
                match &linear.weight {
                    Weight::Nf4(w) => {
                        entry.block_size = w.block_size() as i32;
                        packed_at = Some((staging.put(w.packed()), staging.put(w.absmax())));
                    }
                    Weight::Dense(w) => {
                        let bytes = host::read(&w.to_tensor()?.contiguous()?, |w| {
                            Ok(rows_in_compute_type(gpu, w, width, s.tails[group]))
                        })?;
                        all.write_at(out.cast(), &bytes)?;
                    }
                }
                let to = &mut adapters[group];
                to.linear[place] = which.number(layer.index) as i32;
                if let Some(lora) = &linear.lora {
                    let a = self.slot(Parameter::LoraA(layer.index, which));
                    let b = self.slot(Parameter::LoraB(layer.index, which));
                    let (Some((arena, _)), Some(a), Some(b)) = (self.arena, a, b) else {
                        let name = which.module_path(layer.index);
                        return Err(Error::training(
                            format!("the adapter of {name} is not among the trained parameters"),
                            "This is a fault of emoji_lab",
                        ));
                    };
                    to.a[place] = Some(arena.value_ptr(a));
                    to.dropout = DropoutFactors::new(lora.dropout);
                    entry.b = Some(arena.value_ptr(b));
                    entry.scale = lora.scale as f32;
                    sources.push(Source { linear: which, a, b });
                }
                unpack.push((entry, packed_at));
            }
            if s.rank > 0 {
                adapters[group].count = linears.len() as i32;
                adapters[group].rank = s.rank as i32;
                adapters[group].padded = padded as i32;
            }
        }
        let mut norms = vec![];
        for (_, norm) in layer.norms() {
            norms.push(staging.put(&values_of(&norm.weight.value)?));
        }
        let base = self.upload(&staging.bytes, "the layers' packed weights")?;
        let norm = |which: usize| norms[which].on(gpu, base);
        let unpack: Vec<Unpack> = unpack
            .into_iter()
            .map(|(entry, at)| match at {
                Some((packed, absmax)) => {
                    Unpack { packed: Some(packed.on(gpu, base)), absmax: Some(absmax.on(gpu, base)), ..entry }
                }
                None => entry,
            })
            .collect();
        let sliding = layer.layer_type == LayerType::SlidingAttention;
        Ok(Layer {
            matrices,
            adapters,
            unpack: self.upload(&unpack, "the layers' table")?,
            norms: Norms {
                input: norm(0),
                q: norm(1),
                k: norm(2),
                post_attention: norm(3),
                pre_feedforward: norm(4),
                post_feedforward: norm(5),
            },
            window: if sliding { s.window as i32 } else { 0 },
            angles: angles[usize::from(sliding)],
            sources,
        })
    }

    /// A frozen table of the embedding or the head, in the compute type.
    fn frozen(&mut self, table: &LazyTensor) -> Result<DevicePtr<Compute>> {
        let hidden = self.sizes.hidden;
        let bytes = host::read(&table.to_tensor()?.contiguous()?, |v| {
            Ok(rows_in_compute_type(self.gpu, v, hidden, 0))
        })?;
        Ok(self.upload(&bytes, "the embedding")?.cast())
    }

    /// The rows of the embedding that the arena has, whose table is frozen.
    fn trained_rows(&mut self, model: &Gemma3, vocabulary: &Vocabulary) -> Result<Option<TrainedRows>> {
        let (Some(rows), Table::Compute(table)) = (&model.token_rows, vocabulary.lookup) else {
            return Ok(None);
        };
        let (Some((arena, _)), Some(offset)) = (self.arena, self.slot(Parameter::EmbedTokensRows)) else {
            return Err(Error::training(
                "rows of the embedding stand beside it, and are not among the trained parameters",
                "This is a fault of emoji_lab",
            ));
        };
        let ids: Vec<i32> = rows.ids.iter().map(|id| *id as i32).collect();
        Ok(Some(TrainedRows {
            ids: rows.ids.clone(),
            on_gpu: self.upload(&ids, "the trained rows' ids")?,
            values: arena.value_ptr(offset),
            gradients: arena.gradient_ptr(offset),
            table,
            in_head: model.lm_head.is_none(),
        }))
    }

    fn vocabulary(&mut self, model: &Gemma3) -> Result<Vocabulary> {
        let trained = |parameter: Parameter| Some((self.arena?.0, self.slot(parameter)?));
        let (embedding, own_head) = (trained(Parameter::EmbedTokens), trained(Parameter::LmHead));
        let Some(head) = &model.lm_head else {
            // One table for both.
            return Ok(match embedding {
                Some((arena, _)) => {
                    let d_head = arena.head_gradients.ptr();
                    Vocabulary {
                        lookup: arena.head_values.table(),
                        head: arena.head_values.head(),
                        d_lookup: Some(TableGradient::Compute(d_head)),
                        d_head: Some(d_head),
                    }
                }
                None => {
                    let rows = self.frozen(&model.embed_tokens.value)?;
                    Vocabulary { lookup: Table::Compute(rows), head: rows, d_lookup: None, d_head: None }
                }
            });
        };
        let lookup = match embedding {
            Some((arena, offset)) => Table::F32(arena.value_ptr(offset)),
            None => Table::Compute(self.frozen(&model.embed_tokens.value)?),
        };
        let head = match own_head {
            Some((arena, _)) => arena.head_values.head(),
            None => self.frozen(&head.value)?,
        };
        Ok(Vocabulary {
            lookup,
            head,
            d_lookup: embedding.map(|(arena, offset)| TableGradient::F32(arena.gradient_ptr(offset))),
            d_head: own_head.map(|(arena, _)| arena.head_gradients.ptr()),
        })
    }
}
