//! Rows of the emoji data's lengths, of random tokens.

use emoji_lab::rng::Philox;
use emoji_lab::train::{Batch, Row};

/// `count` batches, of which one epoch of Google's rows has 569 of four: 29 tokens per row on average, 20 to 38.
pub fn batches(count: usize, rows_a_batch: usize, vocab: u64) -> Vec<Batch> {
    let mut random = Philox::new(2, 0);
    (0..count)
        .map(|_| {
            let rows: Vec<Row> = (0..rows_a_batch)
                .map(|_| {
                    // Two draws: lengths crowd in the middle, as the real ones do.
                    let len = 20 + random.below(10) + random.below(10);
                    Row::whole((0..len).map(|_| random.below(vocab) as u32).collect())
                })
                .collect();
            Batch::from_rows(&rows)
        })
        .collect()
}
