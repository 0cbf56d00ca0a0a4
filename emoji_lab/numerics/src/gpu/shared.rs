//! Shared memory: what every launch asks for per block, in one place, so that a model can be looked at
//! before anything of it is on the GPU (`limits.rs`).

/// Bytes per block that a launch gets without asking; above, `Gpu::allow_shared` asks.
pub(crate) const UNASKED: usize = 48 << 10;

/// What `kernel` at most declares for itself (`__shared__`), which counts as well.
pub fn declared(kernel: &str) -> usize {
    match kernel {
        // `block_sum`, and the partial sums of `adapters_down` (`ops/adapters.cuh`).
        // Of one row; with several rows a block there are as many partial sums (`rows.rs`).
        "norm_forward" => 128 + 256,
        "geglu_forward" => 256,
        // Maxima and sums of the warps, for each of four widths of a head.
        "attention_forward" => 4 * 128 + 256,
        "attention_delta" => 128,
        "norm_backward" | "decode_norm_linear" | "decode_norm_geglu" => 128,
        "decode_head" => 256,
        _ => 0,
    }
}

/// The adapters that read one activation, as far as shared memory goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Group {
    pub count: usize,
    /// The rank as it is laid out.
    pub padded: usize,
    pub dropout: bool,
}

impl Group {
    /// The dropout masks of one row, a bit per value and adapter.
    fn masks(self, width: usize) -> usize {
        if self.dropout { self.count * width / 8 } else { 0 }
    }

    /// The masks, the gradients of `u`, and what comes of them for every adapter.
    fn back(self, width: usize) -> usize {
        self.masks(width) + self.count * (self.padded + width) * 4
    }
}

pub fn norm_forward(width: usize, group: Group) -> usize {
    width * 4 + group.masks(width)
}

pub fn norm_backward(width: usize, group: Group) -> usize {
    group.back(width)
}

pub fn geglu_forward(width: usize, group: Group) -> usize {
    width * 4 + group.masks(width)
}

pub fn geglu_backward(width: usize, group: Group) -> usize {
    group.back(width)
}

/// `width` is all heads'; `parts` are the warps that share one.
pub fn attention_forward(width: usize, parts: usize, group: Group) -> usize {
    (1 + parts) * width * 4 + group.masks(width)
}

pub fn attention_delta(width: usize, group: Group) -> usize {
    group.back(width)
}

/// As [`attention_forward`].
pub fn attention_backward(width: usize, parts: usize) -> usize {
    2 * parts * width * 4
}

/// Rows of 256 values in bf16 and eight more: sixteen queries of a group's heads, 32 keys and values.
pub(crate) fn attention_tiles(group: usize) -> usize {
    (group * 16 + 2 * 32) * (256 + 8) * 2
}

/// The same, the output's gradients beside the queries, and two numbers of each.
pub(crate) fn attention_tiles_backward(group: usize) -> usize {
    attention_tiles(group) + group * 16 * ((256 + 8) * 2 + 2 * 4)
}

/// `width` is that of queries and keys.
pub fn qk_norm_rope(width: usize) -> usize {
    width * 4
}

/// `decode_norm_linear`, `decode_norm_geglu` and `decode_head`: the vector that all rows meet.
pub fn decode(width: usize) -> usize {
    width * 4
}
