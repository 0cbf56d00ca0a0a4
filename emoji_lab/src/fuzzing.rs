//! Doors to readers that are not public, for the fuzzers and for the test that replays their seeds.

/// Reads a dataset's card and looks for the training split's files as it says.
pub fn hub_card(text: &str) {
    crate::hub::fuzz_card(text);
}

/// Reads the Hub's listing of a repository's files, and chooses tables and weights among them.
pub fn hub_listing(text: &str) {
    crate::hub::fuzz_listing(text);
}

/// Reads a model's `generation_config.json`.
pub fn generation_config(bytes: &[u8]) {
    crate::model::fuzz_generation_config(bytes);
}
