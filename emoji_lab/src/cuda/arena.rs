//! The optimizer's arena on the GPU: trained values, gradients and moments.

use std::sync::{Mutex, PoisonError};

use super::places::{Place, Places};
use super::rooms::Rooms;
use super::stored::Stored;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::gemm::{Out, matrix};
use crate::gpu::memory::Memory;
use crate::gpu::nccl::Numbers;
use crate::gpu::pinned::Pinned;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::adamw::cuda::Piece;
use crate::ops::embedding::cuda::{Table, TableGradient};
use crate::ops::grad_norm::cuda::{Gradients, RANGE_PARTIALS, Range, SquaresByRange};
use crate::train::{Buffer, Slot};

/// Flat buffers. What products read (the head; every matrix where all of the model is trained) lies apart
/// from the other values and gradients. In bf16 its values are two halves of which products read the
/// higher one: so there is no copy of it; and its gradients are bf16, as autocast rounds them, too, unless
/// several micro-batches are added up ([`Self::add_in_f32`]).
#[derive(Debug)]
pub(crate) struct DeviceArena {
    values: Memory<f32>,
    products: Stored,
    gradients: Memory<f32>,
    product_gradients: ProductGradients,
    /// Of everything.
    pub(super) exp_avg: Stored,
    pub(super) exp_avg_sq: Stored,
    places: Places,
    /// AdamW's work, a block each.
    pieces: Memory<Piece>,
    piece_count: usize,
    gpu: Gpu,
    /// Page-locked memory on the way to the host.
    staging: Mutex<Option<[Pinned; 2]>>,
    rooms: Rooms,
}

/// Gradients of what products read.
#[derive(Debug)]
enum ProductGradients {
    Compute(Memory<Compute>),
    F32(Memory<f32>),
    /// They are made where they are used (`head_pieces.rs`).
    NotKept,
}

impl ProductGradients {
    fn bytes(&self) -> usize {
        match self {
            Self::Compute(memory) => memory.bytes(),
            Self::F32(memory) => memory.bytes(),
            Self::NotKept => 0,
        }
    }
}

/// Where the gradient of something that products read is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum GradientPtr {
    Compute(DevicePtr<Compute>),
    F32(DevicePtr<f32>),
}

impl GradientPtr {
    /// As the outcome of a product, in rows of `ld`: in place of what is there, or added to it.
    pub(super) fn out(self, ld: usize, fresh: bool) -> Out {
        match (self, fresh) {
            (Self::Compute(to), true) => Out::Compute(matrix(to, ld)),
            (Self::Compute(to), false) => Out::AddCompute(matrix(to, ld)),
            (Self::F32(to), true) => Out::F32(matrix(to, ld)),
            (Self::F32(to), false) => Out::AddF32(matrix(to, ld)),
        }
    }

    /// As that of a table whose rows are looked up.
    pub(super) fn of_table(self) -> TableGradient {
        match self {
            Self::Compute(to) => TableGradient::Compute(to),
            Self::F32(to) => TableGradient::F32(to),
        }
    }
}

fn not_kept() -> Error {
    Error::training(
        "the head's gradient is not kept in memory",
        "Call reserve_sums() before: sums of several batches are kept",
    )
}

/// Bytes of each half of the page-locked memory.
const STAGING: usize = 32 << 20;

impl DeviceArena {
    /// With `values` of `places`, zeros for the moments, and no gradients yet.
    pub(crate) fn new(gpu: &Gpu, values: &[f32], places: Places, bf16_moments: bool) -> Result<Self> {
        let (in_products, beside, pieces) = (places.in_products(), places.beside(), places.pieces());
        let arena = Self {
            values: Memory::zeros(gpu, beside, "the trained parameters")?,
            products: Stored::room(gpu, in_products, gpu.bf16(), "the trained matrices")?,
            gradients: Memory::poisoned(gpu, beside, "gradients")?,
            product_gradients: ProductGradients::Compute(Memory::poisoned(
                gpu,
                in_products,
                "gradients of the matrices",
            )?),
            exp_avg: Stored::zeros(gpu, values.len(), bf16_moments, "AdamW's first moment")?,
            exp_avg_sq: Stored::zeros(gpu, values.len(), bf16_moments, "AdamW's second moment")?,
            pieces: Memory::from_slice(gpu, &pieces, "AdamW's pieces")?,
            piece_count: pieces.len(),
            places,
            gpu: gpu.clone(),
            staging: Mutex::new(None),
            rooms: Rooms::default(),
        };
        for (offset, len) in arena.places.runs() {
            arena.write(Buffer::Values, offset, &values[offset..offset + len])?;
        }
        Ok(arena)
    }

    /// Whether sums of gradients are kept in f32.
    pub(super) fn adds_in_f32(&self) -> bool {
        !self.gpu.bf16() || matches!(self.product_gradients, ProductGradients::F32(_))
    }

    /// From now on they are: the gradients of what products read lie elsewhere, and are not there yet.
    pub(super) fn add_in_f32(&mut self) -> Result<()> {
        let len = self.places.in_products();
        // The old ones go first: there may not be room for both.
        self.product_gradients = ProductGradients::Compute(Memory::zeros(&self.gpu, 0, "no gradients")?);
        match Memory::poisoned(&self.gpu, len, "gradients of the matrices, added up in f32") {
            Ok(memory) => self.product_gradients = ProductGradients::F32(memory),
            Err(error) => {
                let memory = Memory::poisoned(&self.gpu, len, "gradients of the matrices")?;
                self.product_gradients = ProductGradients::Compute(memory);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether the gradients of what products read have a place in memory.
    pub(super) fn keeps_product_gradients(&self) -> bool {
        !matches!(self.product_gradients, ProductGradients::NotKept)
    }

    /// From now on they have, or have not. What is there is not kept.
    pub(super) fn keep_product_gradients(&mut self, keep: bool) -> Result<()> {
        match (keep, self.keeps_product_gradients()) {
            (true, false) => {
                let len = self.places.in_products();
                let memory = Memory::poisoned(&self.gpu, len, "gradients of the matrices")?;
                self.product_gradients = ProductGradients::Compute(memory);
            }
            (false, true) => self.product_gradients = ProductGradients::NotKept,
            _ => {}
        }
        Ok(())
    }

    /// How many elements products read.
    pub(super) fn in_products(&self) -> usize {
        self.places.in_products()
    }

    /// The gradient of what begins at `offset` and products do not read, on the GPU.
    pub(super) fn gradient_ptr(&self, offset: usize) -> DevicePtr<f32> {
        self.gradients.ptr().at(&self.gpu, self.places.of(offset).at())
    }

    /// The values of what begins at `offset` and products do not read, on the GPU.
    pub(super) fn value_ptr(&self, offset: usize) -> DevicePtr<f32> {
        self.values.ptr().at(&self.gpu, self.places.of(offset).at())
    }

    /// Where products read what begins at `offset`.
    pub(super) fn product_ptr(&self, offset: usize) -> DevicePtr<Compute> {
        self.products.products().at(&self.gpu, self.places.of(offset).at())
    }

    /// What begins at `offset` as a table whose rows are looked up.
    pub(super) fn table(&self, offset: usize) -> Table {
        match self.places.of(offset) {
            Place::Products(at) => self.products.table(&self.gpu, at),
            Place::Beside(_) => Table::F32(self.value_ptr(offset)),
        }
    }

    /// The gradient of what begins at `offset`, whatever reads it; `None` where it is not kept.
    pub(super) fn any_gradient(&self, offset: usize) -> Option<GradientPtr> {
        match (self.places.of(offset), &self.product_gradients) {
            (Place::Beside(_), _) => Some(GradientPtr::F32(self.gradient_ptr(offset))),
            (Place::Products(at), ProductGradients::Compute(memory)) => {
                Some(GradientPtr::Compute(memory.ptr().at(&self.gpu, at)))
            }
            (Place::Products(at), ProductGradients::F32(memory)) => {
                Some(GradientPtr::F32(memory.ptr().at(&self.gpu, at)))
            }
            (Place::Products(_), ProductGradients::NotKept) => None,
        }
    }

    /// All gradients that are kept, for their norm.
    pub(super) fn all_gradients(&self) -> (Gradients, DevicePtr<f32>, usize) {
        let len = self.places.in_products();
        let products = match &self.product_gradients {
            ProductGradients::Compute(memory) => Gradients::Compute(memory.ptr(), len),
            ProductGradients::F32(memory) => Gradients::F32(memory.ptr(), len),
            ProductGradients::NotKept => Gradients::F32(self.gradients.ptr(), 0),
        };
        (products, self.gradients.ptr(), self.places.beside())
    }

    /// Values that AdamW moves: those beside products, those of products and the latter's lower halves.
    pub(super) fn all_values(&self) -> (DevicePtr<f32>, DevicePtr<Compute>, Option<DevicePtr<i16>>) {
        (self.values.ptr(), self.products.products(), self.products.low())
    }

    /// AdamW's pieces, and how many there are.
    pub(super) fn pieces(&self) -> (DevicePtr<Piece>, usize) {
        (self.pieces.ptr(), self.piece_count)
    }

    /// The pieces before and after those of what begins at `offset`.
    pub(super) fn pieces_around(&self, offset: usize) -> [(DevicePtr<Piece>, usize); 2] {
        let own = self.places.pieces_of(offset);
        let behind = self.pieces.ptr().at(&self.gpu, own.end);
        [(self.pieces.ptr(), own.start), (behind, self.piece_count - own.end)]
    }

    /// Whether weight decay applies to what begins at `offset`.
    pub(super) fn decays(&self, offset: usize) -> bool {
        self.places.decays(offset)
    }

    /// Both halves of what products read from `offset` on, where it is kept so.
    pub(super) fn halves(&self, offset: usize) -> Option<(DevicePtr<half::bf16>, DevicePtr<i16>)> {
        match self.table(offset) {
            Table::Halves { high, low } => Some((high, low)),
            _ => None,
        }
    }

    /// The gradients that several GPUs add up: those of the `head` elements of the head, which are complete
    /// before the layers', those of other matrices, and all others.
    pub(super) fn travelling(&self, head: usize) -> [Numbers; 3] {
        // Slots begin with the embedding and the head: what products read does with the latter.
        let of = |first: usize, len: usize| match &self.product_gradients {
            ProductGradients::Compute(memory) => {
                Numbers::compute(&self.gpu, memory.ptr().at(&self.gpu, first), len)
            }
            ProductGradients::F32(memory) => Numbers::f32(memory.ptr().at(&self.gpu, first), len),
            // Several GPUs keep them.
            ProductGradients::NotKept => Numbers::f32(self.gradients.ptr(), 0),
        };
        let others = Numbers::f32(self.gradients.ptr(), self.places.beside());
        [of(0, head), of(head, self.places.in_products() - head), others]
    }

    /// Bytes of values, gradients and moments.
    pub(super) fn bytes(&self) -> [usize; 3] {
        [
            self.values.bytes() + self.products.bytes(),
            self.gradients.bytes() + self.product_gradients.bytes(),
            self.exp_avg.bytes() + self.exp_avg_sq.bytes(),
        ]
    }

    /// First element and length of what lies together in `which`: one copy brings it to the host.
    pub(super) fn together(&self, which: Buffer) -> Vec<(usize, usize)> {
        let moments = matches!(which, Buffer::ExpAvg | Buffer::ExpAvgSq);
        let of_products = |offset: usize| matches!(self.places.of(offset), Place::Products(_));
        let mut together: Vec<(usize, usize)> = vec![];
        for (first, len) in self.places.runs() {
            match together.last_mut() {
                Some((before, all)) if moments || of_products(*before) == of_products(first) => *all += len,
                _ => together.push((first, len)),
            }
        }
        together
    }

    /// Begins to make room on the host for all of these buffers, which are to be read [`Self::together`].
    pub(super) fn make_rooms(&self, buffers: &[Buffer]) {
        let lens = buffers.iter().flat_map(|buffer| self.together(*buffer)).map(|(_, len)| len);
        self.rooms.make(lens.collect());
    }

    /// `len` values from `offset` on.
    pub(crate) fn read(&self, which: Buffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        let f32s = |memory: &Memory<f32>, at| {
            let mut values = vec![0f32; len];
            memory.read(at, &mut values)?;
            Ok(values)
        };
        match (which, self.places.of(offset)) {
            (Buffer::ExpAvg, _) => self.stored(&self.exp_avg, offset, len),
            (Buffer::ExpAvgSq, _) => self.stored(&self.exp_avg_sq, offset, len),
            (Buffer::Values, Place::Products(at)) => self.stored(&self.products, at, len),
            (Buffer::Values, Place::Beside(at)) => f32s(&self.values, at),
            (Buffer::Gradients, Place::Products(at)) => match &self.product_gradients {
                ProductGradients::Compute(memory) => memory.read_widened(at, len),
                ProductGradients::F32(memory) => f32s(memory, at),
                ProductGradients::NotKept => Err(not_kept()),
            },
            (Buffer::Gradients, Place::Beside(at)) => f32s(&self.gradients, at),
        }
    }

    fn stored(&self, stored: &Stored, offset: usize, len: usize) -> Result<Vec<f32>> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => none.insert([Pinned::new(&self.gpu, STAGING)?, Pinned::new(&self.gpu, STAGING)?]),
        };
        stored.read(&self.gpu, offset, self.rooms.take(len), len, staging)
    }

    /// Overwrites what begins at `offset`.
    pub(crate) fn write(&self, which: Buffer, offset: usize, values: &[f32]) -> Result<()> {
        match (which, self.places.of(offset)) {
            (Buffer::ExpAvg, _) => self.exp_avg.write(offset, values),
            (Buffer::ExpAvgSq, _) => self.exp_avg_sq.write(offset, values),
            (Buffer::Values, Place::Products(at)) => self.products.write(at, values),
            (Buffer::Values, Place::Beside(at)) => self.values.write(at, values),
            (Buffer::Gradients, Place::Products(at)) => match &self.product_gradients {
                ProductGradients::Compute(memory) => memory.write_rounded(at, values),
                ProductGradients::F32(memory) => memory.write(at, values),
                ProductGradients::NotKept => Err(not_kept()),
            },
            (Buffer::Gradients, Place::Beside(at)) => self.gradients.write(at, values),
        }
    }

    /// Every slot's sum of squared gradients, 0 where they are not kept: not finite if one of them is not.
    pub(crate) fn gradient_squares(&self, slots: &[Slot]) -> Result<Vec<f64>> {
        let mut squares = vec![0f64; slots.len()];
        for of_products in [false, true] {
            let picked: Vec<(usize, Range)> = (slots.iter().enumerate())
                .filter_map(|(i, slot)| {
                    let place = self.places.of(slot.offset);
                    let range = Range { first: place.at() as u64, len: slot.len() as u64 };
                    (matches!(place, Place::Products(_)) == of_products).then_some((i, range))
                })
                .collect();
            if picked.is_empty() || of_products && !self.keeps_product_gradients() {
                continue;
            }
            let all: Vec<Range> = picked.iter().map(|(_, range)| *range).collect();
            let table = Memory::from_slice(&self.gpu, &all, "the parameters' table")?;
            let mut sums = vec![0f64; all.len() * RANGE_PARTIALS];
            let sums_at = Memory::zeros(&self.gpu, sums.len(), "partial sums")?;
            let (ranges, partials) = (table.ptr(), sums_at.ptr());
            // SAFETY: as many ranges as the table has, all within their buffer.
            unsafe {
                match &self.product_gradients {
                    ProductGradients::Compute(memory) if of_products => {
                        let gradients = memory.ptr();
                        SquaresByRange { gradients, ranges, partials }.launch(&self.gpu, all.len())?;
                    }
                    ProductGradients::F32(memory) if of_products => {
                        let gradients = memory.ptr();
                        SquaresByRange { gradients, ranges, partials }.launch(&self.gpu, all.len())?;
                    }
                    _ => {
                        let gradients = self.gradients.ptr();
                        SquaresByRange { gradients, ranges, partials }.launch(&self.gpu, all.len())?;
                    }
                }
            }
            sums_at.read(0, &mut sums)?;
            for ((slot, _), sums) in picked.iter().zip(sums.chunks(RANGE_PARTIALS)) {
                squares[*slot] = sums.iter().sum();
            }
        }
        Ok(squares)
    }
}
