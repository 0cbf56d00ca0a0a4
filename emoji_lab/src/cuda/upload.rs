//! A model's weights on their way to the GPU, in the forms that the kernels want.

use std::marker::PhantomData;

use candle_core::Tensor;
use rayon::prelude::*;

use super::arena::DeviceArena;
use super::network::{
    Angles, DOWN, GATE_UP, GROUPS, Layer, Matrices, Norms, O, QKV, Sizes, Source, TrainedLayer, TrainedRows,
    Vocabulary,
};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::placed::Placed;
use crate::gpu::pointer::{Compute, DevicePtr, Plain, as_bytes};
use crate::host;
use crate::model::layer::DecoderLayer;
use crate::model::{Gemma3, LayerType, NormName, Parameter};
use crate::ops::embedding::cuda::Table;
use crate::ops::lazy::LazyTensor;
use crate::ops::lora_linear::Weight;
use crate::ops::lora_linear::cuda::{Adapters, DropoutFactors, Unpack};
use crate::ops::rope::RopeTable;
use crate::train::Slot;

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

pub(super) fn values_of(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(host::read(&tensor.contiguous()?, |v| Ok(v.to_vec()))?)
}

/// Uploads part after part, and keeps what was uploaded.
pub(super) struct Builder<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) sizes: &'a Sizes,
    pub(super) arena: Option<(&'a DeviceArena, &'a [Slot])>,
    pub(super) memories: Vec<Memory<u8>>,
    pub(super) bytes: usize,
}

impl Builder<'_> {
    pub(super) fn upload<T: Plain>(&mut self, values: &[T], what: &str) -> Result<DevicePtr<T>> {
        let memory = Memory::from_slice(self.gpu, values, what)?;
        let start = memory.ptr();
        self.bytes += size_of_val(values);
        self.memories.push(memory.untyped());
        Ok(start)
    }

    /// Where the arena has a tensor.
    pub(super) fn slot(&self, parameter: Parameter) -> Option<usize> {
        self.arena?.1.iter().find(|slot| slot.parameter == parameter).map(|slot| slot.offset)
    }

    /// The matrices of `layers` layers, zeros.
    pub(super) fn matrices(&mut self, layers: usize) -> Result<Placed<Vec<Matrices>>> {
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
    pub(super) fn angles(&mut self, model: &Gemma3, positions: usize) -> Result<[Angles; 2]> {
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
    pub(super) fn layer(
        &mut self,
        layer: &DecoderLayer,
        all: &Placed<Vec<Matrices>>,
        which: usize,
        trained: Option<TrainedLayer>,
        angles: [Angles; 2],
    ) -> Result<Layer> {
        let (gpu, s) = (self.gpu, self.sizes);
        let matrices = match (trained, self.arena) {
            (Some(trained), Some((arena, _))) => trained.matrices.map(|offset| arena.product_ptr(offset)),
            _ => all[which],
        };
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
                    // The arena has it.
                    Weight::Dense(_) if trained.is_some() => {}
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
        let norm = |which: NormName| match (trained, self.arena) {
            (Some(trained), Some((arena, _))) => arena.value_ptr(trained.norm(which)),
            _ => norms[which as usize].on(gpu, base),
        };
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
        let norms = Norms {
            input: norm(NormName::InputLayernorm),
            q: norm(NormName::QNorm),
            k: norm(NormName::KNorm),
            post_attention: norm(NormName::PostAttentionLayernorm),
            pre_feedforward: norm(NormName::PreFeedforwardLayernorm),
            post_feedforward: norm(NormName::PostFeedforwardLayernorm),
        };
        Ok(Layer {
            matrices,
            adapters,
            unpack: self.upload(&unpack, "the layers' table")?,
            norms,
            window: if sliding { s.window as i32 } else { 0 },
            angles: angles[usize::from(sliding)],
            trained,
            sources,
        })
    }

    /// Where a layer begins in the arena that has all of the model.
    pub(super) fn trained_layer(&self, index: usize) -> Result<TrainedLayer> {
        let place = |parameter: Parameter| {
            self.slot(parameter).ok_or_else(|| {
                Error::training(
                    format!("{} is not trained, and the final norm is", parameter.name()),
                    "Train every parameter, or give a LoraConfig",
                )
            })
        };
        let (mut matrices, mut norms) = ([0; 4], [0; 6]);
        for (first, group) in matrices.iter_mut().zip(GROUPS) {
            *first = place(Parameter::Linear(index, group[0]))?;
            // One matrix for the group: nothing lies between its layers.
            let mut next = *first;
            for &linear in group {
                let at = place(Parameter::Linear(index, linear))?;
                if at != next {
                    let problem = format!("{} is not beside its group", linear.module_path(index));
                    return Err(Error::training(problem, "This is a fault of emoji_lab"));
                }
                let (_, rows) = self.sizes.rows(linear);
                next += rows * self.sizes.group(GROUPS.iter().position(|g| g == &group).unwrap_or(0)).0;
            }
        }
        for (to, which) in norms.iter_mut().zip(NormName::ALL) {
            *to = place(Parameter::Norm(index, which))?;
        }
        Ok(TrainedLayer { matrices, norms })
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
    pub(super) fn trained_rows(
        &mut self,
        model: &Gemma3,
        vocabulary: &Vocabulary,
    ) -> Result<Option<TrainedRows>> {
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

    pub(super) fn vocabulary(&mut self, model: &Gemma3) -> Result<Vocabulary> {
        let trained = |parameter: Parameter| Some((self.arena?.0, self.slot(parameter)?));
        let (embedding, own_head) = (trained(Parameter::EmbedTokens), trained(Parameter::LmHead));
        let at = |trained: Option<(&DeviceArena, usize)>| trained.map(|(_, offset)| offset);
        let Some(head) = &model.lm_head else {
            // One table for both.
            let (trained_lookup, trained_head) = (at(embedding), at(embedding));
            let (lookup, head) = match embedding {
                Some((arena, offset)) => (arena.table(offset), arena.product_ptr(offset)),
                None => {
                    let rows = self.frozen(&model.embed_tokens.value)?;
                    (Table::Compute(rows), rows)
                }
            };
            return Ok(Vocabulary { lookup, head, trained_lookup, trained_head });
        };
        let (trained_lookup, trained_head) = (at(embedding), at(own_head));
        let lookup = match embedding {
            Some((arena, offset)) => arena.table(offset),
            None => Table::Compute(self.frozen(&model.embed_tokens.value)?),
        };
        let head = match own_head {
            Some((arena, offset)) => arena.product_ptr(offset),
            None => self.frozen(&head.value)?,
        };
        Ok(Vocabulary { lookup, head, trained_lookup, trained_head })
    }
}
