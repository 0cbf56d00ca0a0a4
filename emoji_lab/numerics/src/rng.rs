//! Random numbers that are the same on every machine, device and run.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011) turns a counter into four random words by ten rounds of multiplication, with no state
//! in between. So a GPU thread can compute the word that belongs to its element, and a run that
//! is taken up from a checkpoint needs one number to go on where it stopped.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The Philox4x32-10 function: four random words for a counter and a key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A stream of random words, readable in order or at any place.
///
/// The key is `seed` (low word first); the counter's low two words number the block of four
/// words, its high two are `stream`. Streams of one seed never overlap, so each use (the split,
/// the order of an epoch, a layer's dropout) takes one of its own.
#[derive(Debug, Clone)]
pub struct Philox {
    seed: u64,
    stream: u64,
    position: u64,
    block: [u32; 4],
}

impl Philox {
    /// The beginning of a stream.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream, position: 0, block: [0; 4] }
    }

    /// The four words of block `counter`; does not move the position.
    pub fn at(&self, counter: u64) -> [u32; 4] {
        let words = |x: u64| [x as u32, (x >> 32) as u32];
        let ([c0, c1], [c2, c3]) = (words(counter), words(self.stream));
        philox4x32_10([c0, c1, c2, c3], words(self.seed))
    }

    /// The words of the blocks from `counter` on: word `w` of block `counter + i` is `[w][i]`. One step of the
    /// function is taken for all of them before the next, which compilers make vectors of.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "four arrays at one place")]
    pub fn blocks<const N: usize>(&self, counter: u64) -> [[u32; N]; 4] {
        let words = |x: u64| [x as u32, (x >> 32) as u32];
        let ([s0, s1], mut key) = (words(self.stream), words(self.seed));
        let mut c = [[0u32; N], [0; N], [s0; N], [s1; N]];
        for i in 0..N {
            [c[0][i], c[1][i]] = words(counter.wrapping_add(i as u64));
        }
        for _ in 0..ROUNDS {
            for i in 0..N {
                let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0][i]);
                let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2][i]);
                c[0][i] = (b >> 32) as u32 ^ c[1][i] ^ key[0];
                c[1][i] = b as u32;
                c[2][i] = (a >> 32) as u32 ^ c[3][i] ^ key[1];
                c[3][i] = a as u32;
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c
    }

    /// How many words have been drawn: what a checkpoint keeps.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on after the first `position` words of the stream.
    pub fn set_position(&mut self, position: u64) {
        self.position = position;
        if !position.is_multiple_of(4) {
            self.block = self.at(position / 4);
        }
    }

    /// The next word.
    pub fn next_u32(&mut self) -> u32 {
        let lane = (self.position % 4) as usize;
        if lane == 0 {
            self.block = self.at(self.position / 4);
        }
        self.position = self.position.wrapping_add(1);
        self.block[lane]
    }

    /// A uniform number in [0, 1): a multiple of 2⁻²⁴, from the high 24 bits of one word.
    pub fn next_f32(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// A uniform number in `0..n`, without bias (Lemire, "Fast random integer generation in an
    /// interval", 2019); 0 for `n` of 0 or 1, which draws nothing.
    ///
    /// One word a try for `n` up to 2³², two (low word first) above; a try is thrown away with a
    /// chance below `n` / 2³² or `n` / 2⁶⁴.
    pub fn below(&mut self, n: u64) -> u64 {
        if n < 2 {
            return 0;
        }
        let bits = if n <= 1 << 32 { 32 } else { 64 };
        let range = 1u128 << bits;
        let reject = range % u128::from(n);
        loop {
            let mut word = u128::from(self.next_u32());
            if bits == 64 {
                word |= u128::from(self.next_u32()) << 32;
            }
            let product = word * u128::from(n);
            if product % range >= reject {
                return (product / range) as u64;
            }
        }
    }

    /// Shuffles in place (Fisher–Yates, from the last element down): element `i` is exchanged
    /// with element `below(i + 1)`, for `i` from `len - 1` to 1.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// Streams of [`Philox`] under a run's seed, apart from dropout's (which count up from 0).
pub mod streams {
    /// Initial values of the adapters.
    pub const INIT: u64 = 1 << 63;
    /// The order of the rows, plus the epoch.
    pub const ORDER: u64 = 1 << 62;
    /// Seeds of several answers to one prompt.
    pub const SAMPLES: u64 = 1 << 61;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_side_by_side_are_those_alone() {
        let random = Philox::new(0x1234_5678_9abc, 77);
        let first = u64::from(u32::MAX) - 2;
        let words = random.blocks::<7>(first);
        for i in 0..7 {
            assert_eq!(words.map(|word| word[i]), random.at(first + i as u64));
        }
    }

    #[test]
    fn known_answers() {
        // The philox4x32-10 lines of Random123's kat_vectors.
        let answers = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in answers {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn seed_and_stream_fill_key_and_counter() {
        let rng = Philox::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        assert_eq!(rng.at(0x85a3_08d3_243f_6a88), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn in_order_and_at_a_place_agree() {
        let mut rng = Philox::new(42, 7);
        let drawn: Vec<u32> = (0..23).map(|_| rng.next_u32()).collect();
        for (i, word) in drawn.iter().enumerate() {
            assert_eq!(rng.at(i as u64 / 4)[i % 4], *word);
            let mut again = Philox::new(42, 7);
            again.set_position(i as u64);
            assert_eq!(again.next_u32(), *word);
            assert_eq!(again.position(), i as u64 + 1);
        }
        assert_ne!(drawn[..4], Philox::new(42, 8).at(0));
        assert_ne!(drawn[..4], Philox::new(43, 7).at(0));
    }

    #[test]
    fn floats_are_in_the_unit_interval() {
        let mut rng = Philox::new(1, 0);
        let drawn: Vec<f32> = (0..20_000).map(|_| rng.next_f32()).collect();
        assert!(drawn.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = drawn.iter().sum::<f32>() / drawn.len() as f32;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }

    #[test]
    fn below_is_even() {
        let mut rng = Philox::new(2, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[rng.below(6) as usize] += 1;
        }
        // Standard deviation of a count is 91; five of them.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 460), "{counts:?}");
        // 3/4 of the words' range, where keeping every word makes half of the draws multiples of 3.
        let n = 3 << 30;
        let thirds = (0..30_000).filter(|_| rng.below(n).is_multiple_of(3)).count();
        assert!(thirds.abs_diff(10_000) < 410, "{thirds}");
        let before = rng.position();
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
        assert_eq!(rng.position(), before);
        assert!((0..100).map(|_| rng.below(u64::MAX)).any(|x| x > u64::from(u32::MAX)));
    }

    #[test]
    fn shuffle_is_a_permutation_and_even() {
        let mut items: Vec<usize> = (0..100).collect();
        Philox::new(3, 0).shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(items, sorted);
        let mut counts = std::collections::HashMap::new();
        let mut rng = Philox::new(4, 0);
        for _ in 0..24_000 {
            let mut four = [0, 1, 2, 3];
            rng.shuffle(&mut four);
            *counts.entry(four).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|c| c.abs_diff(1000) < 160), "{counts:?}");
    }
}
