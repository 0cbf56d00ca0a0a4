//! Texts as weighted words, and which of them is nearest to another.

use std::collections::HashMap;

use unicode_segmentation::UnicodeSegmentation;

/// Texts by their words' TF-IDF (Spärck Jones 1972), as scikit-learn's `TfidfVectorizer` weighs them:
/// a word's weight is how often the text has it times `ln((1 + n) / (1 + df)) + 1`, where `df` of the
/// `n` texts have it, and a text's weights have length 1.
///
/// Words are Unicode's (UAX #29), in small letters. Of the words, pairs of words and character n-grams
/// that were tried on training rows, words alone found the best answers.
#[derive(Debug)]
pub(super) struct TfIdf {
    /// Each word's number.
    words: HashMap<String, usize>,
    idf: Vec<f64>,
    /// For each word, the texts that have it and its weight in them.
    texts: Vec<Vec<(usize, f64)>>,
    /// How many texts there are.
    len: usize,
}

impl TfIdf {
    /// Counts the words of `texts`.
    pub(super) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut index = Self { words: HashMap::new(), idf: vec![], texts: vec![], len: 0 };
        for text in texts {
            for (word, count) in counts(text) {
                let next = index.words.len();
                let word = *index.words.entry(word).or_insert(next);
                if word == next {
                    index.texts.push(vec![]);
                }
                index.texts[word].push((index.len, count));
            }
            index.len += 1;
        }
        let n = index.len as f64;
        index.idf =
            index.texts.iter().map(|texts| ((1.0 + n) / (1.0 + texts.len() as f64)).ln() + 1.0).collect();
        let mut squares = vec![0.0; index.len];
        for (texts, idf) in index.texts.iter_mut().zip(&index.idf) {
            for (text, weight) in texts {
                *weight *= idf;
                squares[*text] += *weight * *weight;
            }
        }
        for (text, weight) in index.texts.iter_mut().flatten() {
            *weight /= squares[*text].sqrt();
        }
        index
    }

    /// The number of the text that is nearest to `text` and the cosine between them: the first of
    /// equals, and the first of all, with 0, if no word is known. `None` if there are no texts.
    pub(super) fn nearest(&self, text: &str) -> Option<(usize, f64)> {
        // In an order that does not change from run to run, for sums depend on it.
        let mut known: Vec<(usize, f64)> = counts(text)
            .into_iter()
            .filter_map(|(word, count)| self.words.get(&word).map(|&word| (word, count * self.idf[word])))
            .collect();
        known.sort_unstable_by_key(|(word, _)| *word);
        let length = known.iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt();
        let mut cosines = vec![0.0; self.len];
        for (word, weight) in known {
            for (text, its) in &self.texts[word] {
                cosines[*text] += weight / length * its;
            }
        }
        let mut best = (0, *cosines.first()?);
        for (text, cosine) in cosines.into_iter().enumerate() {
            if cosine > best.1 {
                best = (text, cosine);
            }
        }
        Some(best)
    }
}

/// The words of a text and how often it has them.
fn counts(text: &str) -> HashMap<String, f64> {
    let mut counts = HashMap::new();
    for word in text.unicode_words() {
        *counts.entry(word.to_lowercase()).or_insert(0.0) += 1.0;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TfidfVectorizer(token_pattern=r"\\b\\w+\\b")` of scikit-learn 1.9.1, and the product of its rows.
    #[test]
    fn cosines_are_scikit_learns() {
        let texts = ["the cat sat on the mat", "a dog and a cat", "pizza tonight", "The Mat"];
        let index = TfIdf::new(texts);
        for (text, nearest, cosine) in GOLDEN {
            let (found, its) = index.nearest(text).unwrap();
            assert_eq!(found, nearest, "{text}");
            assert!((its - cosine).abs() < 1e-12, "{text}: {its} for {cosine}");
        }
    }

    const GOLDEN: [(&str, usize, f64); 5] = [
        ("The cat!", 0, 0.698_712_824_053_744_4),
        ("a mat, a mat and a dog", 1, 0.846_566_755_803_918_3),
        ("mat", 3, 0.707_106_781_186_547_5),
        ("tonight we eat pizza", 2, 1.0),
        ("The MAT sat", 0, 0.799_094_074_729_015_6),
    ];

    #[test]
    fn the_first_of_equals_and_none_of_none() {
        let index = TfIdf::new(["rain", "sun", "sun"]);
        assert_eq!(index.nearest("SUN!").unwrap().0, 1);
        assert_eq!(index.nearest("snow"), Some((0, 0.0)));
        assert_eq!(index.nearest(""), Some((0, 0.0)));
        assert_eq!(TfIdf::new([]).nearest("sun"), None);
        assert_eq!(TfIdf::new(["", "…"]).nearest("sun"), Some((0, 0.0)));
    }
}
