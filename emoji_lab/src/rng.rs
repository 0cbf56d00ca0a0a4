//! rng (being built).
