//! Tests that cross rooms; see `tests/README.md`.
