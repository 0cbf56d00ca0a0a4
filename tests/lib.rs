//! Tests that cross modules; see `tests/README.md`.
