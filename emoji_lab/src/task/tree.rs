//! Texts as a tree of characters.

use std::collections::HashMap;

/// The node before any character.
pub(crate) const ROOT: u32 = 0;

/// Texts with a value each, as a tree of characters. A node's number is higher than its parent's.
pub(crate) struct Tree<T> {
    edges: HashMap<(u32, char), u32>,
    values: Vec<Option<T>>,
}

impl<T: Copy> Tree<T> {
    pub(super) fn new() -> Self {
        Self { edges: HashMap::new(), values: vec![None] }
    }

    pub(super) fn insert(&mut self, text: impl IntoIterator<Item = char>, value: T) {
        let mut node = ROOT;
        for c in text {
            let next = self.values.len() as u32;
            node = *self.edges.entry((node, c)).or_insert(next);
            if node == next {
                self.values.push(None);
            }
        }
        self.values[node as usize] = Some(value);
    }

    /// The node after `node` and `c`.
    pub(crate) fn next(&self, node: u32, c: char) -> Option<u32> {
        self.edges.get(&(node, c)).copied()
    }

    /// The value of the text that ends at `node`, if one does.
    pub(crate) fn value(&self, node: u32) -> Option<T> {
        self.values[node as usize]
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Each node with the one before it and the character between them, in no order.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (u32, char, u32)> {
        self.edges.iter().map(|(&(node, c), &next)| (node, c, next))
    }

    #[cfg(test)]
    pub(super) fn values(&self) -> impl Iterator<Item = T> {
        self.values.iter().filter_map(|value| *value)
    }
}
