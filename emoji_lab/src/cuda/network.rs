//! Weights and adapters as the kernels want them.

use candle_core::Tensor;
use rayon::prelude::*;

use super::Gpu;
use super::activations::Activations;
use super::arena::DeviceArena;
use super::limits::{self, Plan};
use super::memory::{Layout, Memory};
use crate::error::{Error, Result};
use crate::host;
use crate::model::layer::DecoderLayer;
use crate::model::{Gemma3, Gemma3Config, LayerType, LinearName, Parameter};
use crate::ops::embedding;
use crate::ops::lora_linear::Weight;
use crate::ops::lora_linear::cuda::{AdapterGradient, Adapters, Unpack};
use crate::ops::rope::RopeTable;
use crate::train::Slot;

/// The linear layers that read one activation.
pub(super) const GROUPS: [&[LinearName]; 4] = LinearName::GROUPS;
pub(super) const QKV: usize = 0;
pub(super) const O: usize = 1;
pub(super) const GATE_UP: usize = 2;
pub(super) const DOWN: usize = 3;

/// Rooms that layers in NF4 share.
pub(super) const ROOMS: usize = 2;

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

/// One decoder layer on the card.
pub(super) struct Layer {
    /// The four groups' matrices `[outs, ins + tail]`.
    pub(super) matrices: [u64; 4],
    pub(super) adapters: [Adapters; 4],
    /// `Unpack[7]`.
    pub(super) unpack: u64,
    pub(super) norms: [u64; 6],
    pub(super) window: i32,
    pub(super) cos: u64,
    pub(super) sin: u64,
    /// `AdapterGradient[adapter_count]`; set by [`Network::place_gradients`].
    pub(super) adapter_gradients: u64,
    pub(super) adapter_count: usize,
    pub(super) gradient_tiles: usize,
    /// What is needed to make them: the linear layer, and offsets of A and B in the arena.
    sources: Vec<(LinearName, usize, usize)>,
}

/// Where rows of the embedding are looked up: f32, bf16, or f32 in halves, if `low` is not 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lookup {
    rows: u64,
    low: u64,
    f32: bool,
}

impl Lookup {
    /// Rows `ids`, scaled, into `x`.
    ///
    /// # Safety
    /// As [`embedding::cuda::forward`].
    pub(super) unsafe fn rows(
        &self,
        gpu: &Gpu,
        ids: u64,
        x: u64,
        shape: (usize, usize),
        scale: f32,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match self.low {
                0 => embedding::cuda::forward(gpu, (self.rows, self.f32), ids, x, shape, scale),
                low => embedding::cuda::forward_split(gpu, (self.rows, low), ids, x, shape, scale),
            }
        }
    }
}

/// A table of embeddings or of the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) lookup: Lookup,
    /// What products read, in the compute type.
    pub(super) head: u64,
    /// Where the gradients are added.
    pub(super) d_lookup: Option<u64>,
    pub(super) d_head: Option<u64>,
}

/// A model on the card.
pub(super) struct Network {
    pub(super) sizes: Sizes,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: u64,
    pub(super) table: Table,
    /// Whether weights must be unpacked, or B put in its place, before each use.
    pub(super) unpacks: bool,
    /// Dropout's threshold and factor, the same for all adapters.
    pub(super) dropout: (u32, f32),
    pub(super) unpack_units: usize,
    /// Positions there are angles for.
    pub(super) positions: usize,
    pub(super) bytes: usize,
    _memories: Vec<Memory>,
    /// A table per layer, made anew with every room for activations.
    pub(super) gradient_tables: Vec<Memory>,
}

/// Values put together on the host, each aligned, to go over in one copy.
#[derive(Default)]
struct Staging {
    bytes: Vec<u8>,
}

impl Staging {
    fn put(&mut self, bytes: &[u8]) -> usize {
        let at = self.bytes.len().next_multiple_of(256);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        at
    }

    fn put_f32(&mut self, values: &[f32]) -> usize {
        self.put(as_bytes(values))
    }
}

/// Plain numbers as bytes.
fn as_bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: only called with numbers and `repr(C)` structs of numbers without padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// `values` in the compute type, row by row with room for `tail` values behind each.
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
    /// Puts `model` on the card. Trained tensors are those of the arena, where there is one;
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
        // In NF4 layers unpack into two rooms by turns: one is filled while the other is used.
        let rooms = builder.matrices(if quantized { ROOMS } else { sizes.layers })?;
        let angles = builder.angles(model, positions)?;
        let mut layers = vec![];
        for (layer, &room) in model.layers.iter().zip(rooms.iter().cycle()) {
            layers.push(builder.layer(layer, room, angles)?);
        }
        let final_norm = builder.upload(&values_of(&model.norm.weight.value)?, "the final norm")?;
        let table = builder.table(model)?;
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
                .map(Adapters::dropout)
                .find(|(threshold, _)| *threshold > 0)
                .unwrap_or((0, 1.0)),
            unpack_units,
            layers,
            final_norm,
            table,
            positions,
            bytes,
            _memories: memories,
            gradient_tables: vec![],
            sizes,
        })
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
        let t = gpu.size() as u64;
        let padded = s.rank.next_multiple_of(8);
        for (index, (layer, a)) in self.layers.iter_mut().zip(&activations.layers).enumerate() {
            let g = activations.gradients_of(index);
            let mut all = vec![];
            for &(linear, offset_a, offset_b) in &layer.sources {
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
                    u: x + u as u64 * t,
                    dy: dy + first as u64 * t,
                    du: d_x + u as u64 * 4,
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
            layer.adapter_count = all.len();
            layer.gradient_tiles = all.iter().map(AdapterGradient::tiles).sum();
            let memory = Memory::from_slice(gpu, as_bytes(&all), "the adapters' table")?;
            layer.adapter_gradients = memory.ptr();
            self.gradient_tables.push(memory);
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
    memories: Vec<Memory>,
    bytes: usize,
}

impl Builder<'_> {
    fn keep(&mut self, memory: Memory, bytes: usize) -> u64 {
        let ptr = memory.ptr();
        self.bytes += bytes;
        self.memories.push(memory);
        ptr
    }

    fn upload<T: Copy>(&mut self, values: &[T], what: &str) -> Result<u64> {
        let memory = Memory::from_slice(self.gpu, values, what)?;
        Ok(self.keep(memory, size_of_val(values)))
    }

    /// Where the arena has a tensor.
    fn slot(&self, parameter: Parameter) -> Option<usize> {
        self.arena?.1.iter().find(|slot| slot.parameter == parameter).map(|slot| slot.offset)
    }

    /// Room for the four matrices of `layers` layers.
    fn matrices(&mut self, layers: usize) -> Result<Vec<[u64; 4]>> {
        let (s, size) = (self.sizes, self.gpu.size());
        let place = |base: u64| {
            let mut layout = Layout::new(base);
            let rooms: Vec<[u64; 4]> = (0..layers)
                .map(|_| {
                    [QKV, O, GATE_UP, DOWN].map(|group| {
                        let (ins, outs) = s.group(group);
                        layout.take(outs * (ins + s.tails[group]) * size)
                    })
                })
                .collect();
            (rooms, layout.end() as usize)
        };
        let bytes = place(0).1;
        let memory = Memory::zeros(self.gpu, bytes, "the linear layers")?;
        let base = self.keep(memory, bytes);
        Ok(place(base).0)
    }

    /// Cosines and sines for global and for local layers.
    fn angles(&mut self, model: &Gemma3, positions: usize) -> Result<[(u64, u64); 2]> {
        let all: Vec<u32> = (0..positions as u32).collect();
        let (global, local) = model.rope_tables(&all)?;
        let mut upload = |table: &RopeTable| -> Result<(u64, u64)> {
            let (cos, sin) = table.tables();
            Ok((self.upload(&values_of(cos)?, "RoPE angles")?, self.upload(&values_of(sin)?, "RoPE angles")?))
        };
        Ok([upload(&global)?, upload(&local)?])
    }

    fn layer(&mut self, layer: &DecoderLayer, matrices: [u64; 4], angles: [(u64, u64); 2]) -> Result<Layer> {
        let s = self.sizes;
        let size = self.gpu.size();
        let padded = s.rank.next_multiple_of(8);
        let mut staging = Staging::default();
        let mut unpack: Vec<(Unpack, Option<(usize, usize)>)> = vec![];
        let mut adapters = [Adapters::default(); 4];
        let mut sources = vec![];
        for (group, linears) in GROUPS.iter().enumerate() {
            let (width, _) = s.group(group);
            let ld = width + s.tails[group];
            for (place, &which) in linears.iter().enumerate() {
                let linear = layer.linear(which);
                let (first, rows) = s.rows(which);
                let out = matrices[group] + (first * ld * size) as u64;
                let mut entry = Unpack {
                    out,
                    rows: rows as i32,
                    width: width as i32,
                    ld: ld as i32,
                    block_size: 1,
                    b_at: (width + place * padded) as i32,
                    rank: s.rank as i32,
                    ..Unpack::default()
                };
                let mut packed_at = None;
                match &linear.weight {
                    Weight::Nf4(w) => {
                        entry.block_size = w.block_size() as i32;
                        packed_at = Some((staging.put(w.packed()), staging.put_f32(w.absmax())));
                    }
                    Weight::Dense(w) => {
                        let bytes = host::read(&w.contiguous()?, |w| {
                            Ok(rows_in_compute_type(self.gpu, w, width, s.tails[group]))
                        })?;
                        self.write(out, &bytes)?;
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
                    to.a[place] = arena.value_ptr(a);
                    to.set_dropout(lora.dropout);
                    entry.b = arena.value_ptr(b);
                    entry.scale = lora.scale as f32;
                    sources.push((which, a, b));
                }
                unpack.push((entry, packed_at));
            }
            if s.rank > 0 {
                adapters[group].count = linears.len() as i32;
                adapters[group].rank = s.rank as i32;
                adapters[group].padded = padded as i32;
            }
        }
        let mut norms_at = [0; 6];
        for (at, (_, norm)) in norms_at.iter_mut().zip(layer.norms()) {
            *at = staging.put_f32(&values_of(&norm.weight.value)?);
        }
        let base = self.upload(&staging.bytes, "the layers' packed weights")?;
        let unpack: Vec<Unpack> = unpack
            .into_iter()
            .map(|(entry, at)| match at {
                Some((packed, absmax)) => {
                    Unpack { packed: base + packed as u64, absmax: base + absmax as u64, ..entry }
                }
                None => entry,
            })
            .collect();
        let sliding = layer.layer_type == LayerType::SlidingAttention;
        let (cos, sin) = angles[usize::from(sliding)];
        Ok(Layer {
            matrices,
            adapters,
            unpack: self.upload(as_bytes(&unpack), "the layers' table")?,
            norms: norms_at.map(|at| base + at as u64),
            window: if sliding { s.window as i32 } else { 0 },
            cos,
            sin,
            adapter_gradients: 0,
            adapter_count: 0,
            gradient_tiles: 0,
            sources,
        })
    }

    /// Copies bytes to a place within one of our buffers.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let within = self.memories.iter().find_map(|m| {
            let offset = to.checked_sub(m.ptr())? as usize;
            (offset + bytes.len() <= m.len()).then_some((m, offset))
        });
        match within {
            Some((memory, offset)) => memory.write(offset, bytes),
            None => Err(Error::device("cuda", "a weight outside its room", "This is a fault of emoji_lab")),
        }
    }

    fn table(&mut self, model: &Gemma3) -> Result<Table> {
        let s = self.sizes;
        let bf16 = self.gpu.bf16();
        let embedding = self.slot(Parameter::EmbedTokens);
        let tied = model.lm_head.is_none();
        let head = if tied { embedding } else { self.slot(Parameter::LmHead) };
        let gradient = |offset: usize| self.arena.map(|(arena, _)| arena.gradient_ptr(offset));
        let (d_lookup, d_head) = (embedding.and_then(gradient), head.and_then(gradient));
        let arena = self.arena.map(|(arena, _)| arena);
        let mut frozen = |tensor: &Tensor| -> Result<u64> {
            let bytes =
                host::read(&tensor.contiguous()?, |v| Ok(rows_in_compute_type(self.gpu, v, s.hidden, 0)))?;
            self.upload(&bytes, "the embedding")
        };
        let lookup = match (embedding, arena) {
            (Some(_), Some(arena)) if tied => {
                Lookup { rows: arena.head_values.ptr(), low: arena.head_values.low_ptr(), f32: !bf16 }
            }
            (Some(offset), Some(arena)) => Lookup { rows: arena.value_ptr(offset), low: 0, f32: true },
            _ => Lookup { rows: frozen(&model.embed_tokens.value)?, low: 0, f32: !bf16 },
        };
        let head = match (head, arena, &model.lm_head) {
            (Some(_), Some(arena), _) => arena.head_values.ptr(),
            (.., None) => lookup.rows,
            (.., Some(head)) => frozen(&head.value)?,
        };
        Ok(Table { lookup, head, d_lookup, d_head })
    }
}
