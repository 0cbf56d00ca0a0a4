//! Where each trained parameter lies on the GPU.

use std::ops::Range;

use crate::ops::adamw::cuda::{DECAYS, OF_EMBEDDING, OF_PRODUCTS, PIECE, Piece};
use crate::train::Slot;
use crate::train::layout::embedding_len;

/// Where a parameter's values and gradients begin: among what products read, or beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Products(usize),
    Beside(usize),
}

impl Place {
    /// Its first element there.
    pub(super) fn at(self) -> usize {
        match self {
            Self::Products(at) | Self::Beside(at) => at,
        }
    }
}

/// Elements that lie next to each other, and are treated alike.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Among all trained elements, in the order of the slots.
    first: usize,
    len: usize,
    place: Place,
    of_embedding: bool,
    decays: bool,
}

/// The places of all slots.
#[derive(Debug)]
pub(crate) struct Places {
    /// One per slot.
    runs: Vec<Run>,
    in_products: usize,
    beside: usize,
}

impl Places {
    /// Of `slots`, of which products read those that `is_product` picks. Each of both kinds keeps the slots'
    /// order.
    pub(crate) fn new(slots: &[Slot], is_product: impl Fn(&Slot) -> bool) -> Self {
        let embedding_len = embedding_len(slots);
        let (mut in_products, mut beside) = (0, 0);
        let runs = slots.iter().map(|slot| {
            let (end, place): (&mut usize, fn(usize) -> Place) = match is_product(slot) {
                true => (&mut in_products, Place::Products),
                false => (&mut beside, Place::Beside),
            };
            let place = place(*end);
            *end += slot.len();
            Run {
                first: slot.offset,
                len: slot.len(),
                place,
                of_embedding: slot.offset < embedding_len,
                decays: slot.decays(),
            }
        });
        Self { runs: runs.collect(), in_products, beside }
    }

    /// How many elements products read.
    pub(super) fn in_products(&self) -> usize {
        self.in_products
    }

    /// How many others there are.
    pub(super) fn beside(&self) -> usize {
        self.beside
    }

    /// First element and length of every slot.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.runs.iter().map(|run| (run.first, run.len))
    }

    /// Where element `offset` of all is.
    pub(super) fn of(&self, offset: usize) -> Place {
        let after = self.runs.partition_point(|run| run.first <= offset);
        match self.runs.get(after.wrapping_sub(1)) {
            Some(Run { first, place: Place::Products(at), .. }) => Place::Products(at + offset - first),
            Some(Run { first, place: Place::Beside(at), .. }) => Place::Beside(at + offset - first),
            // There are no slots.
            None => Place::Beside(offset),
        }
    }

    /// Whether weight decay applies to the slot that begins at `offset`.
    pub(super) fn decays(&self, offset: usize) -> bool {
        self.runs.iter().any(|run| run.first == offset && run.decays)
    }

    /// Which of [`Self::pieces`] are those of the slot that begins at `offset`.
    pub(super) fn pieces_of(&self, offset: usize) -> Range<usize> {
        let count = |run: &Run| run.len.div_ceil(PIECE);
        let before = self.runs.iter().take_while(|run| run.first < offset).map(count).sum();
        let own = self.runs.iter().find(|run| run.first == offset).map_or(0, count);
        before..before + own
    }

    /// AdamW's work in pieces of at most [`PIECE`] elements.
    pub(super) fn pieces(&self) -> Vec<Piece> {
        let of_run = |run: &Run| {
            let run = *run;
            let of_products = if matches!(run.place, Place::Products(_)) { OF_PRODUCTS } else { 0 };
            let of_embedding = if run.of_embedding { OF_EMBEDDING } else { 0 };
            let decays = if run.decays { DECAYS } else { 0 };
            (0..run.len).step_by(PIECE).map(move |from| Piece {
                first: (run.first + from) as u64,
                at: (run.place.at() + from) as u64,
                len: PIECE.min(run.len - from) as u32,
                kind: of_products | of_embedding | decays,
            })
        };
        self.runs.iter().flat_map(of_run).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LinearName, NormName, Parameter};

    fn slots() -> Vec<Slot> {
        let (mut offset, mut slots) = (0, vec![]);
        for (parameter, len) in [
            (Parameter::EmbedTokens, 3 * PIECE + 8),
            (Parameter::Norm(0, NormName::InputLayernorm), 16),
            (Parameter::Linear(0, LinearName::QProj), 64),
            (Parameter::Linear(0, LinearName::KProj), 32),
            (Parameter::FinalNorm, 24),
            (Parameter::LmHead, 40),
        ] {
            slots.push(Slot { parameter, name: parameter.name(), offset, dims: vec![len] });
            offset += len;
        }
        slots
    }

    #[test]
    fn every_element_has_a_place_of_its_own_and_a_piece() {
        let slots = slots();
        let products = |slot: &Slot| matches!(slot.parameter, Parameter::Linear(..) | Parameter::LmHead);
        let places = Places::new(&slots, products);
        let all: usize = slots.iter().map(Slot::len).sum();
        assert_eq!((places.in_products(), places.beside()), (136, all - 136));
        let mut seen = vec![];
        for slot in &slots {
            for offset in slot.offset..slot.offset + slot.len() {
                let place = places.of(offset);
                assert_eq!(matches!(place, Place::Products(_)), products(slot), "{}", slot.name);
                seen.push((matches!(place, Place::Products(_)), place.at()));
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
        // Matrices that are read as one lie one after the other.
        let at = |slot: usize| places.of(slots[slot].offset).at();
        assert_eq!(at(3), at(2) + 64);

        let pieces = places.pieces();
        assert!(pieces.iter().all(|p| p.first % 4 == 0 && p.at % 4 == 0 && p.len % 4 == 0));
        let mut next = 0;
        for piece in &pieces {
            assert!(piece.first == next && piece.len as usize <= PIECE);
            next += u64::from(piece.len);
            let slot = slots.iter().rfind(|slot| slot.offset as u64 <= piece.first).unwrap();
            assert_eq!(places.of(piece.first as usize).at() as u64, piece.at);
            assert_eq!(piece.kind & OF_PRODUCTS != 0, products(slot));
            assert_eq!(piece.kind & DECAYS != 0, slot.decays());
            assert_eq!(piece.kind & OF_EMBEDDING != 0, slot.parameter == Parameter::EmbedTokens);
        }
        assert_eq!(next as usize, all);
        for slot in &slots {
            let own = &pieces[places.pieces_of(slot.offset)];
            assert_eq!(own[0].first as usize, slot.offset, "{}", slot.name);
            assert_eq!(own.iter().map(|p| p.len as usize).sum::<usize>(), slot.len(), "{}", slot.name);
            assert_eq!(places.decays(slot.offset), slot.decays(), "{}", slot.name);
        }
    }
}
