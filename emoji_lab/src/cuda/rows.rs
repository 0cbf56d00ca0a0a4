//! Many sequences side by side: their caches, and the pass that reads a token of each.
//!
//! The linear layers are products over [`ROWS`] rows, however many sequences there are: the algorithm that
//! cuBLAS takes, and with it every bit of a row, depends on the number of rows. Norms and GeGLU are those
//! of training, attention is that of one stream with a block per head and sequence.

use cudarc::driver::CudaGraph;

use super::decode::{Caches, heads_of};
use super::network::{DOWN, GATE_UP, Layer, Network, O, QKV};
use super::sampler::Sampler;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::gemm::{Out, gemm, matrix};
use crate::gpu::graph::capture;
use crate::gpu::placed::Placed;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::decode::cuda::{DecodeAttention, DecodeState};
use crate::ops::decode_rows::cuda::{CopyRows, Likeliest, RowCopy, RowFill, best_blocks};
use crate::ops::embedding::cuda::Lookup;
use crate::ops::geglu::cuda::GegluForward;
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::rms_norm::cuda::{Branch, NormForward};
use crate::ops::sample::cuda::Chosen;
use crate::ops::step::Step;

/// Rows of every product, and the most sequences.
pub(super) const ROWS: usize = 64;

/// Tokens that are asked for before one looks which answers have ended.
pub(super) const AHEAD: usize = 4;

/// What a step writes, [`ROWS`] rows each. Rows that no sequence has are zeros, or what was there last.
pub(super) struct RowBuffers {
    pub(super) state: DevicePtr<DecodeState>,
    /// `[ROWS, AHEAD]`.
    pub(super) written: DevicePtr<i32>,
    pub(super) fills: DevicePtr<RowFill>,
    pub(super) copies: DevicePtr<RowCopy>,
    /// The stream before a layer's attention, and before its MLP.
    streams: [DevicePtr<f32>; 2],
    /// Of no use but to training.
    rstd: DevicePtr<f32>,
    rstd_branch: DevicePtr<f32>,
    normed: DevicePtr<Compute>,
    qkv: DevicePtr<Compute>,
    attended: DevicePtr<Compute>,
    o: DevicePtr<Compute>,
    middle_normed: DevicePtr<Compute>,
    gate_up: DevicePtr<Compute>,
    gated: DevicePtr<Compute>,
    down: DevicePtr<Compute>,
    /// After the final norm.
    pub(super) hidden: DevicePtr<Compute>,
    /// Zeros: nothing is dropped out.
    step: DevicePtr<Step>,
}

/// The logits of all tokens, `[ROWS, vocab]`, and the best of each block.
struct Logits {
    logits: DevicePtr<f32>,
    best: DevicePtr<f32>,
    best_row: DevicePtr<i32>,
}

/// The head's rows for some tokens.
struct Subset {
    /// `[tokens, hidden]`.
    matrix: DevicePtr<Compute>,
    /// `[ROWS, tokens]`.
    logits: DevicePtr<f32>,
    copies: DevicePtr<RowCopy>,
    tokens: usize,
}

/// How the next tokens are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The likeliest.
    Likeliest,
    /// By each row's rule.
    Rule,
    /// Not here: the host has the logits of some tokens.
    OnHost,
}

/// Room for a number of sequences, with the graphs of a step.
pub(super) struct Rows {
    pub(super) caches: Placed<Caches>,
    pub(super) buffers: Placed<RowBuffers>,
    /// How many sequences.
    pub(super) count: usize,
    logits: Option<Placed<Logits>>,
    pub(super) sampler: Option<Sampler>,
    subset: Option<Placed<Subset>>,
    /// One for each [`Choice`].
    graphs: [Option<CudaGraph>; 3],
}

impl RowBuffers {
    fn new(gpu: &Gpu, network: &Network) -> Result<Placed<Self>> {
        let s = &network.sizes;
        let width = |group: usize| s.group(group).0 + s.tails[group];
        Placed::zeros(gpu, "sequences side by side", |layout| Self {
            state: layout.take(ROWS),
            written: layout.take(ROWS * AHEAD),
            fills: layout.take(ROWS),
            copies: layout.take(ROWS),
            streams: [layout.take(ROWS * s.hidden), layout.take(ROWS * s.hidden)],
            rstd: layout.take(ROWS),
            rstd_branch: layout.take(ROWS),
            normed: layout.take(ROWS * width(QKV)),
            qkv: layout.take(ROWS * s.qkv()),
            attended: layout.take(ROWS * width(O)),
            o: layout.take(ROWS * s.hidden),
            middle_normed: layout.take(ROWS * width(GATE_UP)),
            gate_up: layout.take(ROWS * 2 * s.inner),
            gated: layout.take(ROWS * width(DOWN)),
            down: layout.take(ROWS * s.hidden),
            hidden: layout.take(ROWS * s.hidden),
            step: layout.take(1),
        })
    }
}

impl Rows {
    /// For `count` sequences, [`ROWS`] at most, of up to `room` tokens.
    pub(super) fn new(gpu: &Gpu, network: &Network, room: usize, count: usize) -> Result<Self> {
        Ok(Self {
            caches: Caches::new(gpu, network, room, count)?,
            buffers: RowBuffers::new(gpu, network)?,
            count,
            logits: None,
            sampler: None,
            subset: None,
            graphs: [const { None }; 3],
        })
    }

    /// Makes what choosing by `choice` takes; `head` are the tokens whose logits the host asks for.
    pub(super) fn prepare(
        &mut self,
        gpu: &Gpu,
        network: &Network,
        choice: Choice,
        head: &[u32],
    ) -> Result<()> {
        let s = &network.sizes;
        if choice == Choice::OnHost {
            // The head's rows are those of this call.
            self.subset = None;
            return self.take_subset(gpu, network, head);
        }
        if self.logits.is_none() {
            let blocks = best_blocks(s.vocab);
            self.logits = Some(Placed::zeros(gpu, "the logits of all sequences", |layout| Logits {
                logits: layout.take(ROWS * s.vocab),
                best: layout.take(ROWS * blocks),
                best_row: layout.take(ROWS * blocks),
            })?);
        }
        if choice == Choice::Rule && self.sampler.is_none() {
            self.sampler = Some(Sampler::new(gpu, s.vocab, self.count)?);
        }
        Ok(())
    }

    fn take_subset(&mut self, gpu: &Gpu, network: &Network, head: &[u32]) -> Result<()> {
        let width = network.sizes.hidden;
        // A number that cuBLAS has its faster kernels for; what is behind the tokens is not looked at.
        let tokens = head.len().next_multiple_of(8);
        let subset = Placed::zeros(gpu, "the head of a constraint", |layout| Subset {
            matrix: layout.take(tokens * width),
            logits: layout.take(ROWS * tokens),
            copies: layout.take(tokens),
            tokens,
        })?;
        let copies: Vec<RowCopy> =
            head.iter().zip(0..).map(|(token, to)| RowCopy { from: *token as i32, to }).collect();
        subset.write_at(subset.copies, &copies)?;
        let copy = CopyRows {
            from: network.vocabulary.head,
            to: subset.matrix,
            copies: subset.copies,
            width: width as i32,
        };
        if !head.is_empty() {
            // SAFETY: tokens are within the vocabulary, and the matrix has a row for each.
            unsafe { copy.launch(gpu, head.len())? };
        }
        self.subset = Some(subset);
        Ok(())
    }

    /// The logits of the tokens that were given, in every row: `[ROWS, tokens]`, with how many values a
    /// row has.
    pub(super) fn read_subset(&self, gpu: &Gpu, network: &Network) -> Result<(Vec<f32>, usize)> {
        let Some(subset) = &self.subset else { return Err(super::generator::missing()) };
        let (hidden, tokens) = (network.sizes.hidden, subset.tokens);
        let (x, weight) = (matrix(self.buffers.hidden, hidden), matrix(subset.matrix, hidden));
        let out = Out::F32(matrix(subset.logits, tokens));
        // SAFETY: laid out for these sizes.
        unsafe { gemm(gpu, (ROWS, tokens, hidden), x, weight.transposed(), out)? };
        let mut logits = vec![0.0; ROWS * tokens];
        subset.read_at(subset.logits, &mut logits)?;
        Ok((logits, tokens))
    }

    /// Chooses what follows the hidden states, in rows whose state wants a token.
    pub(super) fn choose(&self, gpu: &Gpu, network: &Network, choice: Choice) -> Result<()> {
        let (s, b) = (&network.sizes, &self.buffers);
        let Some(l) = self.logits.as_ref().filter(|_| choice != Choice::OnHost) else { return Ok(()) };
        let (x, weight) = (matrix(b.hidden, s.hidden), matrix(network.vocabulary.head, s.hidden));
        let likeliest = Likeliest {
            logits: l.logits,
            best: l.best,
            best_row: l.best_row,
            written: b.written,
            state: b.state,
            vocab: s.vocab,
            room: AHEAD,
        };
        let to = Chosen { written: b.written, state: b.state, rows: self.count, room: AHEAD };
        // SAFETY: all of them are laid out for this network, and for as many rows.
        unsafe {
            let out = Out::F32(matrix(l.logits, s.vocab));
            gemm(gpu, (ROWS, s.vocab, s.hidden), x, weight.transposed(), out)?;
            match &self.sampler {
                Some(sampler) if choice == Choice::Rule => sampler.choose(l.logits, to),
                _ => likeliest.launch(gpu, self.count),
            }
        }
    }

    /// Reads the token that each state names, and chooses the one after it. The first token of a sequence
    /// is chosen by [`Self::choose`].
    pub(super) fn step(&mut self, gpu: &Gpu, network: &Network, choice: Choice) -> Result<()> {
        let which = choice as usize;
        if self.graphs[which].is_none() {
            // A first time for nothing, since kernels are loaded when they are first used. It puts the
            // keys and values into the caches that the step's own pass puts there; those of the choice
            // have been used.
            self.read(gpu, network)?;
            self.graphs[which] = Some(capture(gpu, || {
                self.read(gpu, network)?;
                self.choose(gpu, network, choice)
            })?);
        }
        match &self.graphs[which] {
            Some(graph) => graph.launch().map_err(|e| gpu.error(e.0)),
            None => Ok(()),
        }
    }

    /// Reads the token that each state names, up to the hidden states after the final norm.
    fn read(&self, gpu: &Gpu, network: &Network) -> Result<()> {
        let (s, b) = (&network.sizes, &self.buffers);
        let ld = |group: usize| s.group(group).0 + s.tails[group];
        let linear = |layer: &Layer, group: usize, x, y| {
            let (outs, ld) = (s.group(group).1, ld(group));
            let weight = matrix(layer.matrices[group], ld);
            let y = Out::Compute(matrix(y, outs));
            // SAFETY: buffers and matrices are laid out for these sizes.
            unsafe { gemm(gpu, (ROWS, outs, ld), matrix(x, ld), weight.transposed(), y) }
        };
        let [before, middle] = b.streams;
        let lookup = Lookup {
            table: network.vocabulary.lookup,
            ids: DecodeState::token_of(b.state),
            x: before,
            width: s.hidden,
            scale: s.embedding_scale,
            apart: size_of::<DecodeState>() / size_of::<i32>(),
        };
        let norm = NormForward {
            x: before,
            branch: Branch::NONE,
            stream: None,
            weight: network.final_norm,
            rstd: b.rstd,
            y: b.normed,
            step: None,
            adapters: Adapters::NONE,
            ldy: ld(QKV) as i32,
            width: s.hidden as i32,
            eps: s.eps,
        };
        let branch =
            |rows, weight| Branch { rows: Some(rows), weight: Some(weight), rstd: Some(b.rstd_branch) };
        // SAFETY: buffers and caches are laid out for this network; states are within the caches' room.
        unsafe {
            lookup.launch(gpu, ROWS)?;
            let mut last = Branch::NONE;
            for (index, (layer, cache)) in network.layers.iter().zip(&self.caches.layers).enumerate() {
                let n = &layer.norms;
                let x = if index == 0 { before } else { middle };
                NormForward { x, branch: last, stream: Some(before), weight: n.input, ..norm }
                    .launch(gpu, ROWS)?;
                linear(layer, QKV, b.normed, b.qkv)?;
                let attention = DecodeAttention {
                    qkv: b.qkv,
                    weight_q: n.q,
                    weight_k: n.k,
                    cos: layer.angles.cos,
                    sin: layer.angles.sin,
                    keys: cache.keys,
                    values: cache.values,
                    y: b.attended,
                    state: b.state,
                    heads: heads_of(network, cache),
                };
                attention.launch(gpu, self.count)?;
                linear(layer, O, b.attended, b.o)?;
                let post = NormForward {
                    branch: branch(b.o, n.post_attention),
                    stream: Some(middle),
                    weight: n.pre_feedforward,
                    y: b.middle_normed,
                    ldy: ld(GATE_UP) as i32,
                    ..norm
                };
                post.launch(gpu, ROWS)?;
                linear(layer, GATE_UP, b.middle_normed, b.gate_up)?;
                let geglu = GegluForward {
                    gate_up: b.gate_up,
                    y: b.gated,
                    step: b.step,
                    adapters: Adapters::NONE,
                    ldy: ld(DOWN) as i32,
                    width: s.inner as i32,
                };
                geglu.launch(gpu, ROWS, 1)?;
                linear(layer, DOWN, b.gated, b.down)?;
                last = branch(b.down, n.post_feedforward);
            }
            let (x, ldy) = (middle, s.hidden as i32);
            NormForward { x, branch: last, stream: Some(before), y: b.hidden, ldy, ..norm }.launch(gpu, ROWS)
        }
    }
}
