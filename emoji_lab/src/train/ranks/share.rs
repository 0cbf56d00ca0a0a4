//! Which rank does which of a step's batches.

use crate::train::Batch;
use crate::train::engine::Step;

/// One rank's part of a step.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    /// As many for every rank; the last may be empty, and adds nothing.
    pub(crate) batches: Vec<Batch>,
    /// Tokens of the longest batch that any rank has at each place.
    pub(crate) longest: Vec<usize>,
    /// The step, with the passes that are this rank's.
    pub(crate) step: Step,
}

impl Share {
    /// Tokens of its batches together.
    pub(crate) fn tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.tokens.len()).sum()
    }
}

/// Ranks take turns: batch i is rank i mod `ranks`'s, as with accelerate, and its forward pass has the
/// number that it has on one device, which does all of them one after the other.
pub(super) fn shares(batches: &[Batch], step: &Step, ranks: usize) -> Vec<Share> {
    let longest: Vec<usize> = batches
        .chunks(ranks)
        .map(|turn| turn.iter().map(|batch| batch.tokens.len()).max().unwrap_or(0))
        .collect();
    let share = |rank: usize| {
        let mut own: Vec<Batch> = batches.iter().skip(rank).step_by(ranks).cloned().collect();
        own.resize_with(longest.len(), Batch::empty);
        let passes_apart = step.passes_apart * ranks as u64;
        let step = Step { first_pass: step.pass(rank), passes_apart, ..*step };
        Share { batches: own, longest: longest.clone(), step }
    };
    (0..ranks).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Row;

    fn batch(tokens: usize) -> Batch {
        Batch::from_rows(&[Row::whole((0..tokens as u32).collect())])
    }

    #[test]
    fn batches_go_round_and_keep_their_passes() {
        let step = Step {
            number: 3,
            learning_rate: 1e-3,
            embedding_learning_rate: 1e-3,
            targets: 20,
            first_pass: 40,
            passes_apart: 1,
            last_pass: 44,
            check: None,
        };
        let batches: Vec<Batch> = [5, 7, 3, 2, 9].map(batch).into();
        for ranks in 1..=6 {
            let shares = shares(&batches, &step, ranks);
            assert_eq!(shares.len(), ranks);
            let mut done = vec![];
            for (rank, share) in shares.iter().enumerate() {
                assert_eq!(share.batches.len(), 5usize.div_ceil(ranks), "{ranks} ranks");
                assert_eq!((share.step.targets, share.step.last_pass, share.step.number), (20, 44, 3));
                for (i, own) in share.batches.iter().enumerate() {
                    assert!(own.tokens.len() <= share.longest[i]);
                    if own.rows > 0 {
                        let number = (share.step.pass(i) - 40) as usize;
                        assert_eq!((number % ranks, own), (rank, &batches[number]));
                        done.push(number);
                    } else {
                        assert_eq!(
                            (own.tokens.len(), own.target_count(), i),
                            (0, 0, share.batches.len() - 1)
                        );
                    }
                }
            }
            done.sort_unstable();
            assert_eq!(done, [0, 1, 2, 3, 4]);
        }
        assert_eq!(shares(&batches, &step, 2)[1].longest, [7, 3, 9]);
        assert_eq!(shares(&batches, &step, 2)[1].tokens(), 9);
    }
}
